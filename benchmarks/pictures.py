"""Draw the pictures of the documentation from the code as it is.

``python -m benchmarks.pictures`` writes to ``docs/images``: two generated images of RID and two of Roofline above their
masks, and the forecast of GPU memory over published measurements.

``--climb FOLDER`` also draws a climb: its verdict table, its report page, its memory by batch size, and in MLflow the
comparison of its runs and the page of one run. FOLDER is what ``benchmarks.climb --keep`` leaves. It needs Chromium
(Debian: ``apt install chromium``) and the packages of requirements-bench.txt (``PYTHONPATH=.bench``).
"""

import argparse
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import cv2
import numpy as np
from mlflow import MlflowClient
from rich.console import Console

from benchmarks.gpu_published import figure as published_figure
from benchmarks.measure import ROOT, newest_file
from roofscale.config import RunConfig
from roofscale.data.sample import CHANNELS, Pixels, Sample
from roofscale.data.sources import open_sources
from roofscale.data.synthetic import GenerateSpec, generate
from roofscale.phases.gate import CPU_PHASES
from roofscale.phases.history import latest_result
from roofscale.phases.results import PhaseResult
from roofscale.report.figures.phase import phase_figures
from roofscale.report.figures.run import write_figure
from roofscale.report.format import verdict_table
from roofscale.tracking.history import experiment_name

if TYPE_CHECKING:
    from playwright.sync_api import Page

IMAGES = ROOT / "docs" / "images"
SIDE_PX, SHOWN_PX, BORDER_PX = 512, 300, 4
COLOURS = {"roof": (66, 135, 245), "eave": (250, 204, 21), "ridge": (239, 68, 68), "hip": (34, 197, 94)}  # RGB
JPEG_QUALITY = 90
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
REPORT_WIDTH_PX, MLFLOW_WIDTH_PX = 1200, 1500
TABLE_COLUMNS = 130  # of the terminal whose verdict table is shown
SETTLE_MS = 5000  # MLflow draws its charts after its lists, and polls the server for ever
LISTED = {"searchFilter": "tags.outcome = 'ok'", "orderByKey": "metrics.`knob/batch_size`"}
COLUMNS = [
    *(f"metrics.`{name}`" for name in ("knob/batch_size", "knob/num_workers", "memory/mib_per_sample", "memory/share",
                                       "speed/samples_per_s")),
    *(f"tags.`{name}`" for name in ("phase", "step", "verdict")),
]  # fmt: skip


def generated_images(seed: int) -> Pixels:
    """Draw two images of RID and two of Roofline above their masks, uint8 RGB of shape HWC."""
    spec = GenerateSpec(("rid", "roofline"), 2, 1, 0, roofline_samples=20, roofline_px=SIDE_PX, seed=seed)
    config = RunConfig(datasets=spec.datasets, max_samples=2)
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), spec)
        samples = [split.train.read(n) for split in open_sources(config, Path(folder)).values() for n in (0, 1)]
    rows = ([sample.image_HWC for sample in samples], [_labelled(sample) for sample in samples])
    return cv2.vconcat([cv2.hconcat([_shown(image) for image in row]) for row in rows])


def _labelled(sample: Sample) -> Pixels:
    """Return the image, paler, with the channels of its mask in colour."""
    drawn = (sample.image_HWC // 3 + 150).astype(np.uint8)
    for index, channel in enumerate(CHANNELS):
        drawn[sample.target_HWK[:, :, index] > 0] = COLOURS[channel]
    return drawn


def _shown(image_HWC: Pixels) -> Pixels:
    """Return an image in the size of the picture, with a white border."""
    small = cv2.resize(image_HWC, (SHOWN_PX, SHOWN_PX), interpolation=cv2.INTER_AREA)
    return cv2.copyMakeBorder(small, *(4 * (BORDER_PX,)), cv2.BORDER_CONSTANT, value=(255, 255, 255))


def draw_climb(climb: Path, images: Path) -> Iterator[Path]:
    """Draw the pictures of a climb; yield their files."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{climb.resolve()}/mlflow.db"
    results = {number: latest_result(number) for number in CPU_PHASES}
    phase1, phase2 = results[1], results[2]
    if phase1 is None or phase2 is None:
        raise SystemExit(f"{climb}: expected a climb of phases 1 and 2 in its mlflow.db.")
    write_figure(phase_figures(phase2)["memory_by_batch.png"], images / "memory-by-batch.png")
    yield images / "memory-by-batch.png"

    with browser() as page:
        page.set_content(verdict_page(phase1))
        page.add_style_tag(content="pre { display: inline-block; padding: 8px }")  # as wide as the table
        page.locator("pre").screenshot(path=images / "verdicts.png")
        yield images / "verdicts.png"
        page.goto((climb / "experiments/results/phase2.html").resolve().as_uri())
        page.set_viewport_size({"width": REPORT_WIDTH_PX, "height": 1600})  # its head: the page is three times as long
        page.screenshot(path=images / "report.png")
        yield images / "report.png"

    client = MlflowClient()
    phases = [number for number, result in results.items() if result]
    experiments = [client.get_experiment_by_name(experiment_name(number)).experiment_id for number in phases]
    with mlflow_server() as uri, browser(mlflow_storage(experiments)) as page:
        page.set_viewport_size({"width": MLFLOW_WIDTH_PX, "height": 800})
        query = urlencode({"experiments": json.dumps(experiments), **LISTED}, quote_via=quote)
        page.goto(f"{uri}/#/compare-experiments/s?{query}")
        page.get_by_text(phase2.results[-1].step.name).first.wait_for()
        page.wait_for_timeout(SETTLE_MS)
        page.screenshot(path=images / "mlflow-compare.png")
        yield images / "mlflow-compare.png"
        page.goto(f"{uri}/#/experiments/{experiments[1]}/runs/{phase2.results[-1].run_id}/model-metrics")
        page.get_by_role("heading", name=phase2.results[-1].step.name).wait_for()
        page.get_by_placeholder("Search metric charts").fill("loss")
        page.wait_for_timeout(SETTLE_MS)
        page.screenshot(path=images / "mlflow-run.png")
        yield images / "mlflow-run.png"


def verdict_page(phase: PhaseResult) -> str:
    """Return the verdict table of a phase, as the terminal shows it, in HTML."""
    console = Console(record=True, width=TABLE_COLUMNS, file=io.StringIO())
    console.print(verdict_table(f"Phase {phase.phase.number}: {phase.verdict.label}", phase.results))
    return console.export_html()


def mlflow_storage(experiments: Sequence[str]) -> dict[str, Any]:
    """Return what MLflow's page keeps in the browser: the view of model training, no assistant, columns of the list."""
    name = json.dumps(list(experiments), separators=(",", ":"))
    return {
        "mlflow.workflowType_v1": "machine_learning",
        "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,
        "mlflow.assistant.panelOpen_v1": False,
        f"MLflowLocalStorage-1.1-ExperimentPage-{name}-ReactComponentState": {"selectedColumns": COLUMNS, **LISTED},
    }


@contextmanager
def browser(storage: Mapping[str, Any] | None = None) -> Iterator["Page"]:
    """Open a page of a headless Chromium, with this local storage in every origin."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise SystemExit(f"No browser found, expected one of {', '.join(BROWSERS)}. Debian: apt install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, chromium_sandbox=os.getuid() != 0)
        page = chromium.new_page(viewport={"width": REPORT_WIDTH_PX, "height": 800})
        for key, value in (storage or {}).items():
            page.add_init_script(f"localStorage.setItem({json.dumps(key)}, {json.dumps(json.dumps(value))})")
        try:
            yield page
        finally:
            chromium.close()


@contextmanager
def mlflow_server() -> Iterator[str]:
    """Serve the MLflow store that the environment names on loopback; yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                        "MLFLOW_BACKEND_STORE_URI": os.environ["MLFLOW_TRACKING_URI"]},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        uri = f"http://127.0.0.1:{port}"
        while server.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=5):
                break
            time.sleep(0.2)
        yield uri
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, 9)
        server.wait()


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--climb", type=Path, help="folder of a climb to draw, too")
    parser.add_argument("--folder", type=Path, default=IMAGES)
    asked = parser.parse_args()
    images = asked.folder.resolve()
    drawn = cv2.cvtColor(generated_images(asked.seed), cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(images / "generated.jpg"), drawn, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
        raise OSError(f"{images / 'generated.jpg'}: could not be written")
    published = json.loads(newest_file("gpu_published.json").read_text(encoding="utf-8"))
    published_figure(published["rows"], images / "forecast-published.png")
    for file in draw_climb(asked.climb, images) if asked.climb else ():
        print(file)


if __name__ == "__main__":
    main()

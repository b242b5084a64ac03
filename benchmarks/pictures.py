"""Draw the pictures of the documentation from the code as it is.

``python -m benchmarks.pictures`` writes to ``docs/images``: two generated images of RID and two of Roofline above their
masks, and the forecast of GPU memory over published measurements.

``--climb FOLDER`` also draws a climb: its verdict table, its report page, its memory by batch size, and in MLflow the
comparison of its runs and the page of one run. FOLDER is what ``benchmarks.climb --keep`` leaves. Needs Chromium
(Debian: ``apt install chromium``).
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
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
from roofscale.phases.history import latest_result
from roofscale.report.figures.phase import phase_figures
from roofscale.report.figures.run import write_figure
from roofscale.report.format import verdict_table
from roofscale.tracking.history import experiment_name

IMAGES = ROOT / "docs" / "images"
SIDE_PX, SHOWN_PX, BORDER_PX = 512, 300, 4
COLOURS = {"roof": (66, 135, 245), "eave": (250, 204, 21), "ridge": (239, 68, 68), "hip": (34, 197, 94)}  # RGB
JPEG_QUALITY = 90
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH_PX, RENDER_MS = 1200, 15_000
TABLE_COLUMNS = 150  # of the terminal whose verdict table is shown


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
    os.chdir(climb)  # MLflow keeps the artifacts of a local store under relative paths
    os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///mlflow.db"
    results = {number: latest_result(number) for number in (1, 2)}
    phase1, phase2 = results[1], results[2]
    if phase1 is None or phase2 is None:
        raise SystemExit(f"{climb}: expected a climb of phases 1 and 2 in its mlflow.db.")

    console = Console(record=True, width=TABLE_COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(verdict_table(f"Phase 1: {phase1.verdict.label}", phase1.results))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "verdicts.html"
        console.save_html(str(page))
        yield screenshot(page.as_uri(), images / "verdicts.png")
    yield screenshot(Path("experiments/results/phase2.html").resolve().as_uri(), images / "report.png", 1500)
    write_figure(phase_figures(phase2)["memory_by_batch.png"], images / "memory-by-batch.png")
    yield images / "memory-by-batch.png"

    client = MlflowClient()
    experiments = [client.get_experiment_by_name(experiment_name(number)).experiment_id for number in (1, 2)]
    run_id = phase2.results[-1].run_id
    with mlflow_server() as uri:
        shown = {
            "experiments": json.dumps(experiments),
            "searchFilter": "tags.outcome = 'ok'",
            "orderByKey": "metrics.`knob/batch_size`",
        }
        query = urlencode(shown, quote_via=quote)
        yield screenshot(f"{uri}/#/compare-experiments/s?{query}", images / "mlflow-compare.png")
        yield screenshot(f"{uri}/#/experiments/{experiments[-1]}/runs/{run_id}", images / "mlflow-run.png", 1300)


def screenshot(address: str, file: Path, height: int = 800) -> Path:
    """Save a page as a headless browser shows it, WIDTH_PX wide and ``height`` px high; return the file."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"No browser found, expected one of {', '.join(BROWSERS)}. Debian: apt install chromium")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [browser, "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}",
             *(["--no-sandbox"] if os.getuid() == 0 else []), f"--window-size={WIDTH_PX},{height}",
             f"--virtual-time-budget={RENDER_MS}", f"--screenshot={file.resolve()}", address],
            check=True, stderr=subprocess.DEVNULL, timeout=180,
        )  # fmt: skip
    return file


@contextmanager
def mlflow_server() -> Iterator[str]:
    """Serve the MLflow store of this folder on loopback; yield the address."""
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

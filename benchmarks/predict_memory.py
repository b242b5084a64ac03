"""Peak memory of ``roofscale predict`` on a 10000x10000 picture over that on a 2000x2000 part of it."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import rasterio
from rasterio.windows import Window

from benchmarks.measure import GENERATED, Result, run_alone, scratch_folder
from roofscale import model as models
from roofscale.config import RunConfig
from roofscale.data.synthetic import GenerateSpec, generate
from roofscale.measurement import Outcome
from roofscale.predict.vectorize import write_geojson

SPEC = GenerateSpec(("airs",), airs_tiles=(1, 1, 0), airs_tile_px=10000)
# Memory for the picture is asked about, not memory for the model: a small encoder answers in two minutes.
CONFIG = RunConfig(encoder="resnet18", image_size=512, datasets=("airs",))
PART_PX = 2000
# Not getrusage's figure, which starts from what the process had that started this one.
_CHILD = """
import re, sys
{call}
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1], file=sys.stderr)
"""
_PREDICT = "from roofscale.cli import main; main(sys.argv[1:], standalone_mode=False)"
_OUTLINES = "from pathlib import Path; from roofscale.predict.vectorize import write_geojson\n" \
            "write_geojson(*map(Path, sys.argv[1:]))"  # fmt: skip


def measure() -> list[Result]:
    """Predict both with one model of random weights, each in a process of its own."""
    root = GENERATED / "bench-airs"
    generate(root, SPEC)
    (whole,) = sorted(root.glob("airs/**/train/image/*.tif"))
    with scratch_folder() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        part = _part(whole, folder / "part.tif")
        run_id = _log_model(folder)
        words = ["-o", "mask.tif", "--model", run_id]
        peaks = {"2000": _peak(_PREDICT, folder, "predict", str(part), *words)}
        peaks["10000"] = _peak(_PREDICT, folder, "predict", str(whole), *words)
        label = whole.parents[1] / "label" / whole.name
        outlines = _peak(_OUTLINES, folder, str(label), "outlines.geojson")
        count = write_geojson(label, folder / "outlines.geojson")
    details = {"peak_mib": peaks, "outlines_peak_mib": outlines, "outlines": count, "config": CONFIG.as_dict()}
    return [
        Result(
            "peak memory of predicting 10000x10000 px over 2000x2000 px",
            peaks["10000"] / peaks["2000"],
            target=1.15,
            at_most=True,
            note=f"{peaks['10000']:,.0f} MiB over {peaks['2000']:,.0f} MiB; {CONFIG.encoder}, windows of 512 px; "
            f"tracing the {count} outlines of a label of 10000x10000 px: {outlines:,.0f} MiB",
            details=details,
        )
    ]


def _part(whole: Path, file: Path) -> Path:
    with rasterio.open(whole) as dataset:
        bands = dataset.read(window=Window(0, 0, PART_PX, PART_PX))
        profile = {**dataset.profile, "width": PART_PX, "height": PART_PX}
    with rasterio.open(file, "w", **profile) as dataset:
        dataset.write(bands)
    return file


def _log_model(folder: Path) -> str:
    from roofscale.tracking import Tracker, save_model

    os.chdir(folder)  # artifacts lie beside where the store is used from
    run = Tracker("predict", folder / "runs").start("untrained", {})
    run.log_params(CONFIG)
    run.model(partial(save_model, models.build(CONFIG), CONFIG.image_size))
    run.finish(Outcome.OK)
    return run.run_id


def _peak(call: str, folder: Path, *words: str) -> float:
    """The most memory that a process had resident, MiB."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD.format(call=call), *words], cwd=folder, check=True, stderr=subprocess.PIPE
    )
    return int(done.stderr.splitlines()[-1]) / 1024


if __name__ == "__main__":
    run_alone(measure)

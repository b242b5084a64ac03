"""The GPU's table: our loop against Lightning and a cached batch, the device's peaks, memory, and each switch.

With the project's environment, and Lightning beside it (requirements-bench.txt), on a machine with a GPU::

    pip install --no-deps --target .bench -r requirements-bench.txt
    PYTHONPATH=.bench python -m benchmarks.gpu_table benchmarks/results/gpu_table.json [KEY=VALUE]...

It measures at phase 5's settings, or without a GPU at small sizes on a CPU, writes the file and prints the table.
Compared measures ran by turns, each time in a process of its own. A part that the file has is not measured again, so
that the same command goes on where it was cut off. MLflow, Optuna and SageMaker's SDK need not be there; with
augment=none albumentations neither. No GPU has run it yet: not validated on a GPU.
"""

import contextlib
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import peaks, run, switches
from benchmarks.measure import GENERATED, Result, in_own_process, in_turns, machine, now, say_each, this_gpu
from benchmarks.switches import Switch
from roofscale import compute
from roofscale.config import RunConfig
from roofscale.data.loader import make_loader
from roofscale.data.sample import Batch
from roofscale.data.sources import DataSplit, open_sources
from roofscale.data.synthetic import GenerateSpec, generate
from roofscale.errors import ConfigError
from roofscale.forecast.allocator import Settings
from roofscale.forecast.gpu_memory import GpuForecaster, Terms
from roofscale.forecast.results import GpuForecast
from roofscale.forecast.roofline_model import estimate_step, peaks_of
from roofscale.forecast.trace import trace_run
from roofscale.train import malloc
from roofscale.train.device import select_device
from roofscale.train.trainer import Trainer

TILES = GenerateSpec(("airs",), airs_tiles=(2, 1, 0), airs_tile_px=4096)
ROUNDS = 3
TARGETS = {"Lightning with its defaults": 2.0, "Lightning with the same recipe": 1.0, "a cached-batch loop": 0.95}
TARGET_SIDE, TARGET_BATCH, TARGET_GIB = 1024, 16, 17.7  # px, samples, 80 % of what an A10G can really give
ON_A_GPU = {"image_size": 1024, "batch_size": 16, "num_workers": 4}  # of phase 5
ON_A_CPU = {"encoder": "resnet18", "image_size": 128, "batch_size": 4, "num_workers": 1, "threads": 1}
STEPS = {"cuda": (5, 35), "cpu": (3, 23)}  # of a pass: those that only warm up, and all

Part = Mapping[str, Any]  # what one part of the measurement gave, as JSON


def base_config(words: Sequence[str]) -> RunConfig:
    """What is measured: phase 5's settings, or small ones without a GPU, and the overrides."""
    common = {"datasets": "airs", "max_samples": 0, "val_samples": 2}
    settings = ON_A_GPU if torch.cuda.is_available() else ON_A_CPU
    return RunConfig().with_overrides({**common, **settings}).with_overrides(words)


# ---- in a process of its own: one way to train, its samples/s


def trained(way: str, config: RunConfig) -> float:
    """Samples/s of one pass, the steps that warm up left out."""
    if config.threads:
        torch.set_num_threads(config.threads)
    skip, steps = STEPS[select_device(config).device.type]
    split = _split(config, steps)
    if way == "a cached-batch loop":
        return _cached_rate(config, split, skip, steps)
    from benchmarks import lightning_trainer

    if way == "ours":
        return lightning_trainer.by_us(config, split, skip=skip).samples_per_s
    recipe = way == "Lightning with the same recipe"
    return lightning_trainer.by_lightning(config, split, recipe=recipe, skip=skip).samples_per_s


def _split(config: RunConfig, steps: int) -> DataSplit:
    """Windows of generated tiles, again and again, enough for so many steps."""
    split = open_sources(config, GENERATED / "bench-windows")["airs"]
    count = len(split.train)
    return DataSplit(split.train.subset([index % count for index in range(steps * config.batch_size)]), split.val)


def _cached_rate(config: RunConfig, split: DataSplit, skip: int, steps: int) -> float:
    """Of a batch that lies on the device already, which no loader can beat."""
    trainer = Trainer(config, steps)
    batch = next(iter(make_loader(config, [split.train], epoch=0, train=True)))
    batch = Batch(*trainer.to_device(batch), batch.ids)
    start = 0.0
    for step in range(steps):
        if step == skip:
            start = now()
        trainer.step(batch)
        trainer.schedule.step()
        trainer.progress.step += 1
    return (steps - skip) * config.batch_size / (now() - start)


# ---- the parts


def pace(base: RunConfig) -> Part:
    """Our loop, Lightning twice and a cached batch by turns; samples/s, None where a GPU's memory did not do."""
    generate(GENERATED / "bench-windows", TILES)
    words = json.dumps(base.as_dict())

    def way(name: str) -> Callable[[], float | None]:
        environment = {} if name == "Lightning with its defaults" else malloc.training_environment()
        return lambda: in_own_process("benchmarks.gpu_table", "--here", name, words, environment=environment)

    return {"rounds": in_turns({name: way(name) for name in ("ours", *TARGETS)}, ROUNDS, say_each)}


def device(base: RunConfig) -> Part:
    """A traced step's work, and the peaks that it is held against: measured here, and of the data sheet."""
    if base.threads:
        torch.set_num_threads(base.threads)  # as the step has
    where = select_device(base)
    known = {"measured here": peaks.measured(where)}
    gpu = this_gpu().gpu if where.device.type == "cuda" else ""
    with contextlib.suppress(ConfigError):  # a device without entered peaks
        known["data sheet"] = peaks_of(gpu)
    work = trace_run(base, where.precision).at(base.batch_size).work  # micro-batches do the work of the whole batch
    found: dict[str, Any] = {"precision": where.precision, "gpu": gpu, "peaks": {}}
    for whose, best in known.items():
        step = estimate_step(work, gpu, where.precision, base.batch_size, best)
        found |= {"flops": step.flops, "nbytes": step.nbytes}
        found["peaks"][whose] = {
            "flops_per_s": best.flops_per_second(where.precision, convolution=True),
            "bytes_per_s": 1e9 * best.memory,
            "roofline_seconds": step.seconds,
        }
    return found


def effects(base: RunConfig) -> Part:
    """Each switch by turns, and the forecast of its GPU memory; of an A10G if there is no GPU."""
    on_gpu = torch.cuda.is_available()
    where = this_gpu() if on_gpu else compute.get("ml.g5.xlarge")
    chosen = switches.ON_A_GPU if on_gpu else switches.SWITCHES
    measured = switches.rounds(base, chosen)
    forecast = {one.words(base): _memory(base, one, where) for one in (Switch(), *chosen)}
    return {"gpu": where.gpu, "rounds": measured, "effects": switches.effects(measured), "forecast": forecast}


def _memory(base: RunConfig, switch: Switch, where: compute.Compute) -> dict[str, float] | None:
    """MiB by the forecast; None if there is none."""
    config = switch.config(base)
    try:
        found: GpuForecast = GpuForecaster.of_run(config, where, settings=Settings.parse(switch.allocator)).forecast(
            config.batch_size
        )
    except ConfigError:  # a compiled step
        return None
    return {"allocated_mib": found.allocated_mib, "reserved_mib": found.reserved_mib, "context_mib": found.context_mib}


PARTS: Mapping[str, Callable[[RunConfig], Part]] = {"pace": pace, "device": device, "switches": effects}


# ---- the table


def results(base: RunConfig, parts: Mapping[str, Part]) -> list[Result]:
    """All rows of the table."""
    paces, effect = parts["pace"]["rounds"], parts["switches"]
    return [
        *(_against(name, target, paces) for name, target in TARGETS.items()),
        *_attained(base, parts["device"], [one["a cached-batch loop"] for one in paces]),
        *_by_switch(effect),
        *_memory_errors(effect),
        _fitting(base, effect),
    ]


def _against(name: str, target: float, rounds: Sequence[Mapping[str, float | None]]) -> Result:
    ratios = [ours / theirs for one in rounds if (ours := one["ours"]) and (theirs := one[name])]
    return _ratio(f"samples/s over {name}", target, ratios, "out of memory: compare again with a smaller batch_size")


def _ratio(measure: str, target: float | None, ratios: Sequence[float], otherwise: str, note: str = "") -> Result:
    """Median and spread of the rounds; where there are none, why."""
    if not ratios:
        return Result(measure, None, target, note=otherwise)
    return Result(measure, statistics.median(ratios), target, spread=(min(ratios), max(ratios)), note=note)


def _attained(base: RunConfig, part: Part, rates: Sequence[float | None]) -> Iterator[Result]:
    """What a step on a cached batch reaches of the device's FLOP/s and bytes/s, and of its roofline."""
    seconds = [base.batch_size / rate for rate in rates if rate]
    for whose in ("measured here", "data sheet"):
        least = {}  # seconds that a step must take
        if best := part["peaks"].get(whose):
            arithmetic, traffic = part["flops"] / best["flops_per_s"], part["nbytes"] / best["bytes_per_s"]
            least = {"FLOP/s": arithmetic, "bytes/s": traffic, "roofline": best["roofline_seconds"]}
        for what in ("FLOP/s", "bytes/s", "roofline"):
            ratios = [least[what] / taken for taken in seconds] if least else []
            note = f"{part['flops']:.3g} FLOPs and {part['nbytes']:.3g} bytes a step as traced, {part['precision']}"
            name = f"a step's {what} over the device's, {whose}" if what != "roofline" else f"{what} reached, {whose}"
            yield _ratio(name, None, ratios, "no GPU of gpu_peaks.yaml", note)


def _by_switch(part: Part) -> Iterator[Result]:
    """What each switch does to speed and to peak memory."""
    for row in part["effects"]:
        for what, words in (("samples_per_s", "samples/s"), ("peak_mib", "peak memory")):
            found = row.get(what)
            ratios = [found["least"], found["ratio"], found["greatest"]] if found else []
            yield _ratio(f"{words} with {row['switch']} over without", None, ratios, "out of memory")


def _memory_errors(part: Part) -> Iterator[Result]:
    """How far the forecast of what is reserved was off, as a share of what was measured."""
    for name, forecast in part["forecast"].items():
        taken = [one[name]["peak_mib"] for one in part["rounds"] if one[name] and "allocated_mib" in one[name]]
        errors = [abs(forecast["reserved_mib"] / mib - 1) for mib in taken] if forecast else []
        said = f"{forecast['reserved_mib']:,.0f} MiB forecast for {part['gpu']}" if forecast else "no forecast"
        measure = f"error of the forecast of reserved GPU memory, {name}"
        found = _ratio(measure, Terms.load().intervals["half"][1] - 1, errors, f"{said}; none measured", said)
        yield replace(found, at_most=True, unit="share")


def _fitting(base: RunConfig, part: Part) -> Result:
    """The fastest setting under the memory aimed at, or where there is none the leanest."""
    name = f"GiB reserved and of the context, batch {TARGET_BATCH} at {TARGET_SIDE} px"
    settings = {}
    for setting in part["rounds"][0]:
        taken = [one[setting] for one in part["rounds"] if one[setting] and "context_mib" in one[setting]]
        if taken:
            gib = max(one["peak_mib"] + one["context_mib"] for one in taken) / 1024
            settings[setting] = gib, statistics.median(one["samples_per_s"] for one in taken)
    if not settings or (base.image_size, base.batch_size) != (TARGET_SIDE, TARGET_BATCH):
        return Result(name, None, TARGET_GIB, "GiB", at_most=True, note="no such step on a GPU")
    under = {setting: rate for setting, (gib, rate) in settings.items() if gib < TARGET_GIB}
    best = max(under, key=lambda one: under[one]) if under else min(settings, key=lambda one: settings[one][0])
    gib, rate = settings[best]
    note = f"with {best}, {rate:.3g} samples/s" + f"; the base has {settings['base'][0]:.3g} GiB" * ("base" in settings)
    return Result(name, gib, TARGET_GIB, "GiB", at_most=True, note=note)


# ---- the command


def main(words: Sequence[str]) -> int:
    """Measure what OUT.json lacks, write it and print the table; 2 where it cannot be measured."""
    if words[:1] == ["--here"]:
        print(json.dumps(trained(words[1], RunConfig().with_overrides(json.loads(words[2])))))
        return 0
    if words == ["--help"]:
        print(__doc__)
        return 0
    if complaint := _complaint(words):
        print(complaint, file=sys.stderr)
        return 2
    out, base = Path(words[0]), base_config(words[1:])
    if not torch.cuda.is_available():
        print("torch finds no GPU: small sizes on this CPU, which say nothing of a GPU.", file=sys.stderr)
    asked = {"gpu": machine()["gpu"], "config": base.as_dict()}
    found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"asked": asked, "parts": {}}
    if found["asked"] != asked:
        print(f"{out} is of another machine or config: name a new file.", file=sys.stderr)
        return 2
    for name, part in PARTS.items():
        if name not in found["parts"]:
            print(f"{name} ...", file=sys.stderr)
            found["parts"][name] = {"machine": machine(), **part(base)}
            out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    rows = [{**asdict(one), "verdict": one.verdict} for one in results(base, found["parts"])]
    out.write_text(json.dumps({**found, "results": rows}, indent=1) + "\n", encoding="utf-8")
    print(run.table({"machine": found["parts"]["pace"]["machine"], "results": rows, "broken": []}))
    return 0


def _complaint(words: Sequence[str]) -> str:
    """Why nothing can be measured; empty where it can."""
    if not words or "=" in words[0]:
        return "usage: python -m benchmarks.gpu_table OUT.json [KEY=VALUE]..."
    if importlib.util.find_spec("pytorch_lightning") is None:
        return (
            "Lightning, which is compared with, is not installed: pip install --no-deps --target .bench "
            "-r requirements-bench.txt, and set PYTHONPATH=.bench before this command."
        )
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

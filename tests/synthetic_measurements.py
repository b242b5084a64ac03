"""Measurements of simulated runs: what the criteria that compare steps, or data sets within a run, are tried on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from tests.synthetic_curves import Values, autocorrelated, loss_curve, utilisation_curve

from roofscale.config import RunConfig
from roofscale.measurement import Measurement, MemoryPoint, Outcome, ResourceSample, StepRecord, Validation
from roofscale.phases.criteria import CRITERIA, EarlierStep, Evidence
from roofscale.stats.curves import Finding

ROW_SECONDS = 2.0
HELD_MIB = 1000.0  # before the first step


@dataclass(frozen=True)
class Part:
    """Passes over one data set, and what the validation after it finds."""

    dataset: str = "rid"
    steps: int = 50
    pace: float = 0.5  # seconds a sample
    mib: float = 1600.0
    loss: Mapping[str, float] = field(default_factory=dict)  # mean of the validation losses; 0.7 where not said
    iou: Mapping[str, float] = field(default_factory=dict)  # 0.5 where not said


def simulate(
    random: np.random.Generator,
    parts: Sequence[Part] = (Part(),),
    *,
    batch: int = 2,
    step_sd: float = 0.08,
    run_sd: float = 0.02,
    slow_steps: float = 0.01,
    loss: float = 1.0,
    cpu: float = 0.6,
    io_wait: float = 0.02,
    gpu: float | None = None,
    samples: int = 40,
    **metrics: float,
) -> Measurement:
    """A run in passes over its parts.

    Args:
        random: seeded.
        parts: passes, one after the other.
        batch: samples a step.
        step_sd, run_sd: relative noise of a step's seconds, and of a whole run's.
        slow_steps: share of steps that take twice as long.
        loss: scale of the training loss.
        cpu, io_wait, gpu: mean use; no GPU where None.
        samples: validation samples of each data set.
        metrics: further ones, by ``memory__share`` for memory/share.
    """
    count = sum(part.steps for part in parts)
    pace = np.concatenate([np.full(part.steps, part.pace) for part in parts]) * np.exp(run_sd * random.normal())
    seconds = pace * batch * np.exp(step_sd * autocorrelated(random, count, 0.2))
    seconds[random.random(count) < slow_steps] *= 2
    firsts = np.cumsum([0, *(part.steps for part in parts[:-1])])
    seconds[firsts] *= 2
    steps = _steps(random, parts, batch, seconds, loss)
    found = {
        "memory/share": 0.3,
        "speed/data_stall": 0.03,
        "speed/loader_wait": 0.02,
        "speed/cached_seconds_per_sample": float(pace[-1]),
        "cpu/others": 0.02,
        **({} if gpu is None else {"gpu/utilisation": gpu, "gpu/memory_share": 0.3}),
        **{name.replace("__", "/"): value for name, value in metrics.items()},
    }
    rows = int(seconds.sum() // ROW_SECONDS)
    return Measurement(
        Outcome.OK,
        "",
        "0" * 12,
        steps,
        _validations(random, parts, samples),
        (MemoryPoint(0.0, HELD_MIB),),
        found,
        {},
        _resources(random, rows, cpu, io_wait, gpu),
    )


def _steps(
    random: np.random.Generator, parts: Sequence[Part], batch: int, seconds: Values, scale: float
) -> tuple[StepRecord, ...]:
    datasets = [(epoch, part) for epoch, part in enumerate(parts) for _ in range(part.steps)]
    seed_noise = np.exp(0.05 * random.normal())
    losses = scale * seed_noise * loss_curve(random, len(seconds), sd=0.3 * (2 / batch) ** 0.5, decay=0.3)
    memory = np.array([part.mib for _, part in datasets]) + random.normal(0, 15, len(seconds))
    memory[:2] -= [350.0, 60.0]
    ends = np.cumsum(seconds)
    return tuple(
        StepRecord(
            i + 1,
            epoch,
            part.dataset,
            batch * (i + 1),
            float(losses[i]),
            1.0,
            1e-3,
            float(seconds[i]),
            0.01,
            float(ends[i]),
            float(memory[i]),
        )
        for i, (epoch, part) in enumerate(datasets)
    )


def _validations(random: np.random.Generator, parts: Sequence[Part], samples: int) -> tuple[Validation, ...]:
    seen: dict[str, Values] = {}  # how hard each sample is, the same at every validation
    ids, found, step = tuple(map(str, range(samples))), [], 0
    for epoch, part in enumerate(parts):
        step += part.steps
        for name in part.dataset.split("+"):
            seen.setdefault(name, random.lognormal(0, 0.3, samples))
        for name, hard in seen.items():
            losses = part.loss.get(name, 0.7) * hard * random.lognormal(0, 0.15, samples)
            iou = part.iou.get(name, 0.5) + random.normal(0, 0.02)
            found.append(
                Validation(step, epoch, name, ids, tuple(losses.tolist()), (1.3,) * samples, {"iou": iou}, 1.0)
            )
    return tuple(found)


def _resources(
    random: np.random.Generator, rows: int, cpu: float, io_wait: float, gpu: float | None
) -> tuple[ResourceSample, ...]:
    series = {"cpu/utilisation": utilisation_curve(random, rows, cpu), "cpu/io_wait": np.full(rows, io_wait)}
    if gpu is not None:
        series["gpu/utilisation"] = utilisation_curve(random, rows, gpu)
    return tuple(
        ResourceSample((row + 1) * ROW_SECONDS, {name: float(values[row]) for name, values in series.items()})
        for row in range(rows)
    )


def ask(name: str, evidence: Evidence, **limits: float) -> Finding:
    """What a criterion says, under its default limits but for those given."""
    criterion = CRITERIA[name]
    return criterion.judge(evidence, {**{key: limit.default for key, limit in criterion.limits.items()}, **limits})


def against(base: Measurement, run: Measurement, *repeats: Measurement, **config: object) -> Evidence:
    """A second step after a base step; ``config`` is what the step changes."""
    changed = RunConfig().with_overrides(config)
    return Evidence(run, (base,), (base,), tuple(repeats), config=changed, history=(EarlierStep(RunConfig(), (base,)),))


def climb(runs: Sequence[Measurement], batches: Sequence[int]) -> Evidence:
    """The last of several steps that each have another batch size."""
    configs = [RunConfig(batch_size=batch) for batch in batches]
    history = tuple(EarlierStep(config, (run,)) for config, run in zip(configs[:-1], runs[:-1], strict=True))
    return Evidence(runs[-1], tuple(runs[-2:-1]), (runs[0],), config=configs[-1], history=history)


def mixed(run: Measurement) -> Measurement:
    """The same run, as if its data sets had been shuffled together in one pass."""
    names = sorted({step.dataset for step in run.steps})
    steps = [replace(step, epoch=0, dataset=names[i % len(names)]) for i, step in enumerate(run.steps)]
    last = run.steps[-1].step
    return replace(run, steps=tuple(steps), validations=tuple(v for v in run.validations if v.step == last))

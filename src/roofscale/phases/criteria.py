"""The criteria that a phase file may ask for: name, meaning, limits with their sources, and a pure function each.

The statistics live in ``train.health`` and ``train.leak``; here they meet a step's measurement, the ones it is
compared with, and the repeats of the same step under other seeds.

How repeats pool: validation losses are averaged per sample over the seeds before the paired test, because the losses
of one sample under several seeds are not independent; step times are pooled; memory counts by its worst run; curves
are judged run by run, where any failed run fails and a run without enough evidence weighs nothing beside one with it.
"""

import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from roofscale.config import RunConfig
from roofscale.measurement import Measurement, Outcome, Validation
from roofscale.phases.expectation import Expectation, compare, is_timed
from roofscale.train import health
from roofscale.train.health import Finding, Verdict, combine
from roofscale.train.leak import no_leak

# Share of the machine's time. A run that wants every core loses about as much of its speed; half the tightest tolerance
# of a shipped phase file (0.20).
BUSY = 0.10
DRIFT = 1.2  # ratio of paces; likewise half the tightest tolerance, either way


@dataclass(frozen=True)
class Limit:
    """A number that a phase file may set."""

    default: float
    meaning: str  # unit and source included


@dataclass(frozen=True)
class Rung:
    """An earlier step of the phase: the config and the measurement of the run that decided it."""

    config: RunConfig
    measurement: Measurement


@dataclass(frozen=True)
class Evidence:
    """All that a criterion may look at."""

    measurement: Measurement
    previous: Measurement | None = None  # the step before
    base: Measurement | None = None  # the first step of the phase
    repeats: tuple[Measurement, ...] = ()  # the same step under other seeds
    expect: tuple[Expectation, ...] = ()
    config: RunConfig | None = None  # of the measurement; None where nobody knows it
    history: tuple[Rung, ...] = ()  # the earlier steps of the phase, in order

    @property
    def runs(self) -> tuple[Measurement, ...]:
        """The measurement and its repeats."""
        return (self.measurement, *self.repeats)


@dataclass(frozen=True)
class Criterion:
    """One entry of CRITERIA."""

    meaning: str
    judge: Callable[[Evidence, Mapping[str, float]], Finding]
    limits: Mapping[str, Limit] = field(default_factory=dict)


def _completes(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    ended_early = [run for run in evidence.runs if run.outcome is not Outcome.OK]
    # an interruption says nothing about the config, so that any other outcome counts before it
    for run in sorted(ended_early, key=lambda run: run.outcome is Outcome.INTERRUPTED):
        stopped = run.outcome is Outcome.INTERRUPTED
        verdict = Verdict.INSUFFICIENT_EVIDENCE if stopped else Verdict.FAILED
        return Finding(verdict, f"{run.outcome}: {run.detail}")
    seconds = evidence.measurement.metric("speed/run_seconds")
    return Finding(Verdict.PASSED, "ran to its end" + (f" in {seconds:.0f} s" if math.isfinite(seconds) else ""))


def _memory_margin(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    shares = {"host": _worst_metric(evidence, "memory/share"), "GPU": _worst_metric(evidence, "gpu/memory_share")}
    if math.isnan(shares["GPU"]) and all(run.metrics.get("gpu/memory_share") is None for run in evidence.runs):
        del shares["GPU"]  # a run without a GPU
    if not all(map(math.isfinite, shares.values())):
        return Finding(Verdict.INSUFFICIENT_EVIDENCE, "peak memory was not measured")
    over = any(share >= limits["max_share"] for share in shares.values())
    peak = _worst_metric(evidence, "memory/peak_mib")
    text = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return Finding(
        Verdict.FAILED if over else Verdict.PASSED,
        f"peak memory {text} of the compute's"
        + (f", {peak:.0f} MiB" if math.isfinite(peak) else "")
        + f" (limit {limits['max_share']:.0%})",
        {f"{name.lower()}_share": share for name, share in shares.items()},
    )


def _data_stall(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Judged by what a cached batch saves and by the wait itself, because only together do they blame the loader.

    A step may be slower than a cached one because the machine was busy, without having waited; and a wait may be short
    where the batch would have been late anyway.
    """
    stall = float(np.median([run.metric("speed/data_stall") for run in evidence.runs]))
    wait = float(np.median([run.metric("speed/loader_wait") for run in evidence.runs]))
    if not (math.isfinite(stall) and math.isfinite(wait)):
        return Finding(Verdict.INSUFFICIENT_EVIDENCE, "the wait for the loader was not measured")
    finding = Finding(
        Verdict.FAILED if min(stall, wait) > limits["max_share"] else Verdict.PASSED,
        f"{wait:.0%} of the steps' time waiting for the loader; a cached batch saves {stall:.0%} (both over "
        f"{limits['max_share']:.0%} fails)",
        {"data_stall": stall, "loader_wait": wait},
    )
    return _unless_disturbed(finding, evidence.runs)


def _unless_disturbed(finding: Finding, runs: Sequence[Measurement]) -> Finding:
    """A failure by time is no evidence where the machine gave much of its time to other work, or changed its pace.

    The pace is that of the cached batch: no loader and no data set can change it, but a neighbour on a shared host can.
    """
    if finding.verdict is not Verdict.FAILED:
        return finding
    others = max((run.metric("cpu/others") for run in runs), default=math.nan)
    if others > BUSY:
        why = f"{others:.0%} of the machine went to other work (over {BUSY:.0%} proves nothing)"
        return Finding(Verdict.INSUFFICIENT_EVIDENCE, f"{finding.evidence}; but {why}", finding.numbers)
    paces = [run.metric("speed/cached_seconds_per_sample") for run in runs]
    drift = max(paces) / min(paces) if all(pace > 0 for pace in paces) else math.nan
    if drift > DRIFT:
        why = f"a cached batch took {drift:.2f} x as long in one run as in another (over {DRIFT:g} proves nothing)"
        return Finding(Verdict.INSUFFICIENT_EVIDENCE, f"{finding.evidence}; but {why}", finding.numbers)
    return finding


def _stable(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    return _each_run(
        evidence, lambda run: health.stable([s.loss for s in run.steps], [s.grad_norm for s in run.steps], **limits)
    )


def _smooth(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    return _each_run(evidence, lambda run: health.smooth([s.loss for s in run.steps], **limits))


def _no_leak(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    return _each_run(evidence, lambda run: no_leak(step_memory(run), **limits))


def _learning(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    joined = _each_dataset(evidence, lambda before, after, constant: health.learning(before, after, constant, **limits))
    losses = np.array([step.loss for step in evidence.measurement.steps])
    blocks = min(losses.size // health.ROUGH_BLOCK, health.KENDALL_BLOCKS)
    falls = health.trend(health.block_means(losses, blocks) if blocks else losses)
    if not math.isfinite(falls.slope):
        return joined
    trend = f"; training loss {falls.slope:+.3f} a block of steps (Mann-Kendall p={falls.p_down:.1g})"
    numbers = {**joined.numbers, "trend_slope": falls.slope, "trend_p": falls.p_down}
    return Finding(joined.verdict, joined.evidence + trend, numbers)


def _bounded(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    return _each_dataset(evidence, lambda before, after, constant: health.bounded(before, after, constant, **limits))


def _each_dataset(evidence: Evidence, judge: Callable[..., Finding]) -> Finding:
    """Judge the validation losses (before, after, constant) of each data set trained on; all must pass."""
    trained = {part for run in evidence.runs for step in run.steps for part in step.dataset.split("+")}
    if not trained:
        return Finding(Verdict.INSUFFICIENT_EVIDENCE, "no training step was recorded")
    tables = {dataset: _pool_validation(dataset, evidence.runs) for dataset in sorted(trained)}
    missing = Finding(Verdict.INSUFFICIENT_EVIDENCE, "not validated both before and after training")
    return _join({name: missing if table is None else judge(*table.T) for name, table in tables.items()})


def _pool_validation(dataset: str, runs: Sequence[Measurement]) -> health.Values | None:
    """Loss before, after and of the constant for each sample (rows), averaged over the runs that saw the sample."""
    pooled: dict[str, list[tuple[float, float, float]]] = {}
    for run in runs:
        mine = sorted((v for v in run.validations if v.dataset == dataset), key=lambda v: v.step)
        if not mine or mine[0].step != 0 or mine[-1].step == 0 or set(mine[0].sample_ids) != set(mine[-1].sample_ids):
            return None
        for sample, losses in _paired(mine[0], mine[-1]).items():
            pooled.setdefault(sample, []).append(losses)
    return np.array([np.mean(rows, axis=0) for rows in pooled.values()]).reshape(-1, 3)


def _paired(before: Validation, after: Validation) -> dict[str, tuple[float, float, float]]:
    """Sample id -> loss before, loss after, loss of the constant prediction."""
    first = dict(zip(before.sample_ids, before.losses, strict=True))
    rows = zip(after.sample_ids, after.losses, after.constant_losses, strict=True)
    return {sample: (first[sample], loss, constant) for sample, loss, constant in rows}


def _as_expected(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    references = {"previous": evidence.previous, "base": evidence.base, "absolute": None}
    findings = []
    for expected in evidence.expect:
        reference = references[expected.of]
        finding = compare(expected, evidence.runs, reference)
        runs = [*evidence.runs, *([reference] if reference else [])]
        findings.append(_unless_disturbed(finding, runs) if is_timed(expected.metric) else finding)
    return Finding(
        combine([f.verdict for f in findings]),
        "; ".join(f.evidence for f in findings),
        {name: value for f in findings for name, value in f.numbers.items()},
    )


def step_memory(run: Measurement) -> list[float]:
    """Memory of each step, MiB: the largest sample within it, so that the phase of a step does not show as noise.

    A step too short to hold a sample takes the one nearest its end.
    """
    times = np.array([point.time for point in run.memory])
    levels = np.array([point.mib for point in run.memory])
    series = []
    for step in run.steps:
        inside = levels[(times > step.time - step.seconds) & (times <= step.time)]
        series.append(float(inside.max()) if inside.size else step.memory_mib)
    return series


def _each_run(evidence: Evidence, judge: Callable[[Measurement], Finding]) -> Finding:
    """The finding that decides among those of the runs; one run's lack of evidence is made up by another's."""
    findings = [judge(run) for run in evidence.runs]
    decided = [f for f in findings if f.verdict is not Verdict.INSUFFICIENT_EVIDENCE]
    worst = next((f for f in decided if f.verdict is Verdict.FAILED), (decided or findings)[0])
    if len(findings) == 1:
        return worst
    return Finding(worst.verdict, f"{worst.evidence}; {len(findings)} seeds, {len(decided)} decided", worst.numbers)


def _join(findings: Mapping[str, Finding]) -> Finding:
    """All data sets must pass; names are shown only where there are several."""
    if len(findings) == 1:
        return next(iter(findings.values()))
    return Finding(
        combine([f.verdict for f in findings.values()]),
        "; ".join(f"{name}: {f.evidence}" for name, f in findings.items()),
        {f"{name}/{key}": value for name, f in findings.items() for key, value in f.numbers.items()},
    )


def _worst_metric(evidence: Evidence, name: str) -> float:
    """The largest value over the runs; NaN as soon as one run lacks it."""
    values = [run.metric(name) for run in evidence.runs]
    return max(values) if all(map(math.isfinite, values)) else math.nan


CRITERIA: Mapping[str, Criterion] = types.MappingProxyType(
    {
        "completes": Criterion("the run ends by itself: no OOM, no crash, no broken data", _completes),
        "memory_margin": Criterion(
            "the peak stays under a share of the compute's memory, host and GPU each",
            _memory_margin,
            {"max_share": Limit(0.80, "share of the memory; a fifth is kept for what the samples did not see")},
        ),
        "stable": Criterion(
            "every loss and gradient norm finite, few spikes, no significant rise in the last third",
            _stable,
            {
                "max_spike_share": Limit(0.05, "spikes (7 robust sigmas over a causal rolling median) over the steps"),
                "alpha": Limit(
                    0.005, "significance of the rise (Mann-Kendall, Hamed-Rao variance; short: Mann-Whitney)"
                ),
                "min_rise": Limit(0.10, "smallest rise that counts, share of the median loss of the last third"),
            },
        ),
        "bounded": Criterion(
            "validation does not blow up: after training its loss is not far above the constant prediction's",
            _bounded,
            {
                "max_ratio": Limit(
                    2.0, "median loss after, over the worse of untrained and constant; see health.bounded"
                )
            },
        ),
        "smooth": Criterion(
            "no spike at all, and little roughness from block to block",
            _smooth,
            {"max_roughness": Limit(0.30, "mean upward move of block means, log loss; noise of 0.4 a batch gives 0.1")},
        ),
        "learning": Criterion(
            "validation loss falls sample by sample, and below the best constant prediction",
            _learning,
            {
                "alpha": Limit(0.01, "significance of both paired one-sided Wilcoxon tests"),
                "min_drop": Limit(0.05, "median drop, share of the median loss before training"),
            },
        ),
        "no_leak": Criterion(
            "host memory does not keep growing after warm-up",
            _no_leak,
            {
                "max_mib_per_step": Limit(10.0, "lasting growth, MiB a step; twice this must be excluded to pass"),
                "max_growth_share": Limit(0.25, "lasting growth over the run, share of the plateau"),
            },
        ),
        "data_stall": Criterion(
            "the loader keeps up with training",
            _data_stall,
            {"max_share": Limit(0.20, "share of a step's time spent waiting for the loader")},
        ),
        "as_expected": Criterion("every expectation is borne out, noise of the steps allowed for", _as_expected),
    }
)

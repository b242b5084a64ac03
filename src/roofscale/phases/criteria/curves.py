"""Criteria on the curves of a run: training loss, validation losses, memory of the steps."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from roofscale.measurement import Measurement, Validation
from roofscale.phases.criteria.evidence import Criterion, Evidence, Limit, all_of, insufficient, judge_each_run
from roofscale.stats import curves, leak
from roofscale.stats.curves import Finding


def stable(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Judge the training loss and the gradient norms of each run; see ``stats.curves.stable``."""
    return judge_each_run(
        evidence, lambda run: curves.stable([s.loss for s in run.steps], [s.grad_norm for s in run.steps], **limits)
    )


def smooth(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Judge the roughness of each run's training loss; see ``stats.curves.smooth``."""
    return judge_each_run(evidence, lambda run: curves.smooth([s.loss for s in run.steps], **limits))


def no_leak(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Judge the growth of each run's memory; see ``stats.leak.no_leak``."""
    return judge_each_run(evidence, lambda run: leak.no_leak(step_memory(run), **limits))


def step_memory(run: Measurement) -> list[float]:
    """Return the memory of each step, MiB: the largest memory sample within it.

    The largest, because memory rises and falls within a step, so that single samples depend on their moment. A step too
    short for a memory sample has the one nearest its end.
    """
    times = np.array([point.time for point in run.memory])
    levels = np.array([point.mib for point in run.memory])
    series = []
    for step in run.steps:
        inside = levels[(times > step.time - step.seconds) & (times <= step.time)]
        series.append(float(inside.max()) if inside.size else step.memory_mib)
    return series


def learning(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Judge the validation losses of each data set trained on; see ``stats.curves.learning``.

    The trend of the training loss is shown as well and decides nothing.
    """
    joined = _each_dataset(evidence, lambda before, after, constant: curves.learning(before, after, constant, **limits))
    losses = np.array([step.loss for step in evidence.measurement.steps])
    blocks = min(losses.size // curves.ROUGH_BLOCK, curves.KENDALL_BLOCKS)
    falls = curves.trend(curves.block_means(losses, blocks) if blocks else losses)
    if not math.isfinite(falls.slope):
        return joined
    trend = f"; training loss {falls.slope:+.3f} a block of steps (Mann-Kendall p={falls.p_down:.1g})"
    numbers = {**joined.numbers, "trend_slope": falls.slope, "trend_p": falls.p_down}
    return Finding(joined.verdict, joined.evidence + trend, numbers)


def bounded(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Judge the validation losses of each data set trained on; see ``stats.curves.bounded``."""
    return _each_dataset(evidence, lambda before, after, constant: curves.bounded(before, after, constant, **limits))


def _each_dataset(evidence: Evidence, judge: Callable[..., Finding]) -> Finding:
    """Judge the validation losses (before, after, of the constant prediction) of each data set; all must pass."""
    trained = {part for run in evidence.runs for step in run.steps for part in step.dataset.split("+")}
    if not trained:
        return insufficient("no training step was recorded")
    tables = {dataset: _pool_validation(dataset, evidence.runs) for dataset in sorted(trained)}
    missing = insufficient("not validated both before and after training")
    return all_of({name: missing if table is None else judge(*table.T) for name, table in tables.items()})


def _pool_validation(dataset: str, runs: tuple[Measurement, ...]) -> curves.Values | None:
    """Return a table (samples, 3) of the losses before, after and of the constant prediction.

    Each is averaged over the runs that validated the sample. None if a run was not validated on the same samples before
    and after training.
    """
    pooled: dict[str, list[tuple[float, float, float]]] = {}
    for run in runs:
        own = sorted((v for v in run.validations if v.dataset == dataset), key=lambda v: v.step)
        if not own or own[0].step != 0 or own[-1].step == 0 or set(own[0].sample_ids) != set(own[-1].sample_ids):
            return None
        for sample, losses in _paired(own[0], own[-1]).items():
            pooled.setdefault(sample, []).append(losses)
    return np.array([np.mean(rows, axis=0) for rows in pooled.values()]).reshape(-1, 3)


def _paired(before: Validation, after: Validation) -> dict[str, tuple[float, float, float]]:
    """Return sample id -> loss before, loss after, loss of the constant prediction."""
    first = dict(zip(before.sample_ids, before.losses, strict=True))
    rows = zip(after.sample_ids, after.losses, after.constant_losses, strict=True)
    return {sample: (first[sample], loss, constant) for sample, loss, constant in rows}


CRITERIA = {
    "stable": Criterion(
        "every loss and gradient norm finite, few spikes, no significant rise in the last third",
        stable,
        {
            "max_spike_share": Limit(0.05, "spikes (7 robust sigmas over a causal rolling median) over the steps"),
            "alpha": Limit(0.005, "significance of the rise (Mann-Kendall, Hamed-Rao variance; short: Mann-Whitney)"),
            "min_rise": Limit(0.10, "smallest rise that counts, share of the median loss of the last third"),
        },
    ),
    "smooth": Criterion(
        "no spike at all, and little roughness from block to block",
        smooth,
        {"max_roughness": Limit(0.30, "mean upward move of block means, log loss; noise of 0.4 a batch gives 0.1")},
    ),
    "bounded": Criterion(
        "validation does not blow up: after training its loss is not far above the constant prediction's",
        bounded,
        {
            "max_ratio": Limit(
                2.0, "median loss after, over the larger of untrained and constant (stats.curves.bounded)"
            )
        },
    ),
    "learning": Criterion(
        "validation loss falls sample by sample, and below the best constant prediction",
        learning,
        {
            "alpha": Limit(0.01, "significance of both paired one-sided Wilcoxon tests"),
            "min_drop": Limit(0.05, "median drop, share of the median loss before training"),
        },
    ),
    "no_leak": Criterion(
        "host memory does not keep growing after warm-up",
        no_leak,
        {
            "max_mib_per_step": Limit(10.0, "lasting growth, MiB a step; twice this must be excluded to pass"),
            "max_growth_share": Limit(0.25, "lasting growth over the run, share of the plateau"),
        },
    ),
}

"""Criterion ``no_worse_loss``: losses of two steps at equal samples seen, which makes batch sizes comparable.

After equal numbers of steps, a batch eight times as large has seen eight times the data. After equal numbers of samples
both have seen the same, and only the effect of fewer, larger steps remains (Shallue et al. 2019, JMLR 20:1-49, compare
batch sizes in the same way).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from roofscale.measurement import Measurement, StepRecord, Validation
from roofscale.phases.criteria.evidence import Criterion, Evidence, Limit, all_of_merged, insufficient
from roofscale.runners.build_measurement import batch_samples
from roofscale.stats.curves import Finding
from roofscale.stats.intervals import (
    MIN_WINDOWS,
    Estimate,
    add_variance,
    compare_to_band,
    difference,
    interval,
    log_rate,
    mean,
)

WINDOW = 0.5  # share of the samples seen so far whose losses are averaged: of 7 steps at batch 16, the last four
SAME_SAMPLES = 0.05  # relative; a last batch of one is dropped, so that numbers of samples differ by less than a batch
# Standard deviation of log loss between seeds of one config: 0.04 to 0.06 in training (of which the batches' own noise
# 0.035), 0.03 to 0.06 in validation; five seeds each of batch 2, 4, 8 and 16, 100 generated roofs at 128 px, ResNet-18.
SEED_SPREAD = 0.05


def loss_at(runs: Sequence[Measurement], samples: int) -> Estimate | None:
    """Return the logarithm of the training loss of one config's runs after ``samples`` samples, seed noise included.

    The loss is the mean over the last WINDOW of these samples, weighted by the batch. None if a run has seen fewer
    samples, or if its losses are not finite.
    """
    if not runs or any(not run.steps or run.steps[-1].samples < samples for run in runs):
        return None
    loss = log_rate([_losses(run.steps, samples) for run in runs])
    return loss and add_variance(loss, SEED_SPREAD**2 / len(runs))


def _losses(steps: Sequence[StepRecord], samples: int) -> list[tuple[float, float]]:
    """Return (batch size, summed loss) of the steps in the window that ends at ``samples``."""
    sized = zip(steps, batch_samples(steps), strict=True)
    return [(size, step.loss * size) for step, size in sized if (1 - WINDOW) * samples < step.samples <= samples]


def no_worse_loss(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Judge whether the loss is worse than the base step's by more than a factor after equal samples.

    The ratio of training losses has the limit ``max_ratio``; the ratio of paired validation losses of each data set,
    if both steps were validated after the same number of samples, has the limit ``max_val_ratio``. Ratios are
    intervals (see ``stats.intervals.interval``) that include the spread of seeds; repeats of the step narrow them.
    """
    if not evidence.base:
        return insufficient("no base step to compare with")
    seen = [run.steps[-1].samples if run.steps else 0 for run in (*evidence.runs, *evidence.base)]
    ours, theirs = (loss_at(runs, min(seen)) for runs in (evidence.runs, evidence.base))
    if ours is None or theirs is None:
        return insufficient(f"no finite training losses of {MIN_WINDOWS} steps at {min(seen)} samples seen")
    findings = [_judge("training loss", difference(ours, theirs), min(seen), limits["max_ratio"])]
    for dataset in sorted({validation.dataset for run in evidence.base for validation in run.validations}):
        ratio, samples = _validation_ratio(dataset, evidence.runs, evidence.base)
        if ratio:
            findings.append(_judge(f"val/{dataset}/loss", ratio, samples, limits["max_val_ratio"]))
    return all_of_merged(findings)


def _judge(name: str, log_ratio: Estimate, samples: int, most: float) -> Finding:
    ratio = interval(log_ratio).exp()
    return Finding(
        compare_to_band(ratio.low, ratio.high, 0.0, most),
        f"{name} {ratio:.2f} x base at {samples} samples seen (limit {most:g})",
        {f"{name} ratio": ratio.centre, f"{name} ratio/low": ratio.low, f"{name} ratio/high": ratio.high},
    )


def _validation_ratio(
    dataset: str, runs: Sequence[Measurement], base: Sequence[Measurement]
) -> tuple[Estimate | None, int]:
    """Return the logarithm of the ratio of validation losses, seed noise included, and the samples seen by then.

    It is taken at the last validation of the base step for which every run of both steps has a validation within
    SAME_SAMPLES. None if there is no such validation, or if the losses cannot be compared.
    """
    for _, samples in reversed(_validated(base[0], dataset)):
        ours, theirs = ([_validation_near(run, dataset, samples) for run in side] for side in (runs, base))
        if None not in (*ours, *theirs):
            ratio = _paired_log_ratio(list(filter(None, ours)), list(filter(None, theirs)))
            return ratio and add_variance(ratio, SEED_SPREAD**2 * (1 / len(runs) + 1 / len(base))), samples
    return None, 0


def _validation_near(run: Measurement, dataset: str, samples: int) -> Validation | None:
    near = [validation for validation, seen in _validated(run, dataset) if abs(seen / samples - 1) < SAME_SAMPLES]
    return near[-1] if near else None


def _validated(run: Measurement, dataset: str) -> list[tuple[Validation, int]]:
    """Return the validations of a data set after training began, with the samples seen until then."""
    seen = {step.step: step.samples for step in run.steps}
    return [(v, seen[v.step]) for v in run.validations if v.dataset == dataset and v.step in seen]


def _paired_log_ratio(ours: Sequence[Validation], theirs: Sequence[Validation]) -> Estimate | None:
    """Return the logarithm of the ratio of mean losses over the samples that all have; None if these are too few."""
    tables = [dict(zip(v.sample_ids, v.losses, strict=True)) for v in (*ours, *theirs)]
    shared = sorted(set(tables[0]).intersection(*tables[1:]))
    losses = np.array([[table[sample] for sample in shared] for table in tables], dtype=np.float64)
    if not shared or not (np.isfinite(losses).all() and (losses > 0).all()):
        return None
    a, b = losses[: len(ours)].mean(axis=0), losses[len(ours) :].mean(axis=0)
    relative = mean(a / a.mean() - b / b.mean())  # its mean is zero; only its variance is used
    return relative and Estimate(math.log(a.mean() / b.mean()), relative.variance, relative.freedom)


CRITERIA = {
    "no_worse_loss": Criterion(
        "at equal samples seen, training and validation loss are not worse than the base step's by over a factor",
        no_worse_loss,
        {
            # An eighth of the steps alone, batch 16 against 2, gave ratios of 1.33 to 1.45 in training and of 1.45 to
            # 1.9 in validation, where batch norm's running averages lag too; 100 and 200 samples, as for SEED_SPREAD.
            "max_ratio": Limit(1.75, "training loss over the base step's"),
            "max_val_ratio": Limit(2.5, "validation loss over the base step's"),
        },
    ),
}

"""Criteria on a run over several data sets: the switch from one to the next, their consistency, and forgetting."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from roofscale.measurement import Measurement, StepRecord, Validation
from roofscale.phases.criteria.curves import step_memory
from roofscale.phases.criteria.evidence import (
    Criterion,
    Evidence,
    Limit,
    all_of,
    all_of_merged,
    insufficient,
    judge_each_run,
    unless_disturbed,
)
from roofscale.runners.build_measurement import baseline_mib, validations_since_trained, without_first_steps
from roofscale.stats.curves import Finding, Verdict, learning_min_samples, wilcoxon_p
from roofscale.stats.intervals import (
    MIN_WINDOWS,
    Estimate,
    Interval,
    Sized,
    Values,
    compare_to_band,
    difference,
    interval,
    log_pace,
    mean,
    windows,
)

LOSS_ALPHA = 0.05  # significance of a rise of the validation losses
PLATEAU_SHARE = 0.5  # the last half of a segment, after the loader's start and the first allocations


@dataclass(frozen=True)
class Segment:
    """Consecutive epochs on the same data sets."""

    name: str  # the data sets, joined by '+'
    steps: tuple[StepRecord, ...]
    timed: tuple[Sized, ...]  # without each epoch's first step; with the batch sizes
    memory: Values  # of the plateau's steps, MiB; without the copy that forked loader processes hold

    @property
    def end(self) -> int:
        """Number of optimiser steps at its end."""
        return self.steps[-1].step


def segments(run: Measurement) -> list[Segment]:
    """Split a run into segments; a run that mixes its data sets, or has only one, is a single segment."""
    trained: dict[int, set[str]] = {}
    for step in run.steps:
        trained.setdefault(step.epoch, set()).update(step.dataset.split("+"))
    memory = _memory_of_one_copy(run)
    timed = without_first_steps(run.steps)
    result = []
    for name, group in itertools.groupby(run.steps, lambda step: "+".join(sorted(trained[step.epoch]))):
        steps = tuple(group)
        inside = tuple(sized for sized in timed if steps[0].step <= sized[0].step <= steps[-1].step)
        plateau = steps[math.floor(len(steps) * PLATEAU_SHARE) :]
        result.append(Segment(name, steps, inside, np.array([memory[step.step] for step in plateau])))
    return result


def _memory_of_one_copy(run: Measurement) -> dict[int, float]:
    """Return step -> memory, MiB, without the copy of the training state that forked loader processes hold.

    Loader processes of the first epoch are forked before gradients and optimiser state exist, those of later epochs
    after. As training overwrites weights, gradients and optimiser state, the forked processes keep the old pages (copy
    on write), with any data set. Measured rise with the second epoch: 191 MiB (ResNet-18, 1 worker; the copy is
    219 MiB) and 410 MiB (ResNet-34, 3 workers; 373 MiB).
    """
    copied = max(0.0, run.metrics.get("memory/copied_mib", 0.0))
    steps = zip(run.steps, step_memory(run), strict=True)
    return {step.step: mib - (copied if step.epoch > run.steps[0].epoch else 0.0) for step, mib in steps}


def _judge_segments(evidence: Evidence, judge: Callable[[Measurement, list[Segment]], Finding]) -> Finding:
    """Judge each run by its segments; a run that mixes its data sets passes, as it has no switch."""

    def judge_run(run: Measurement) -> Finding:
        parts = segments(run)
        if len(parts) == 1 and "+" in parts[0].name:
            return Finding(Verdict.PASSED, f"{parts[0].name} mixed in every epoch: no switch")
        return judge(run, parts) if len(parts) > 1 else insufficient("no switch of data set within the run")

    return judge_each_run(evidence, judge_run)


def smooth_transition(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Judge memory, speed and the loss on the old data sets at each switch of data set within a run.

    Memory: the mean of the last half of the segment after the switch is at most 1 + ``max_rise`` times that of the
    segment before. Speed: samples per second from ``max_steps`` steps after the switch on are at least 1 -
    ``max_slowdown`` times those before it. Both ratios are intervals that must lie wholly within the limit. Loss: each
    old data set's mean validation loss after the first epoch on the new one is at most ``max_spike`` times that before
    it; above the limit, the run fails only if a paired signed-rank test shows that the rise is no noise.
    """

    def judge(run: Measurement, parts: Sequence[Segment]) -> Finding:
        findings = {}
        for count, (before, after) in enumerate(itertools.pairwise(parts), 1):
            speed = _speed_step(before, after, int(limits["max_steps"]), limits["max_slowdown"])
            old = sorted({segment.name for segment in parts[:count]})
            at_switch = [_memory_step(before, after, limits["max_rise"]), unless_disturbed(speed, evidence)]
            at_switch += [_loss_step(run, name, before.end, limits["max_spike"]) for name in old]
            findings[f"{before.name} to {after.name}"] = all_of_merged(at_switch)
        return all_of(findings)

    return _judge_segments(evidence, judge)


def _memory_step(before: Segment, after: Segment, max_rise: float) -> Finding:
    ratio = _ratio(mean(windows(np.log(after.memory))), mean(windows(np.log(before.memory))))
    if ratio is None:
        return insufficient(f"memory of fewer than {MIN_WINDOWS} steps on a plateau")
    verdict = compare_to_band(ratio.low, ratio.high, 0.0, 1 + max_rise)
    return Finding(verdict, f"memory {ratio:.2f} x (limit {1 + max_rise:g})", {"memory_ratio": ratio.centre})


def _speed_step(before: Segment, after: Segment, max_steps: int, max_slowdown: float) -> Finding:
    settled = [sized for sized in after.timed if sized[0].step > before.end + max_steps]
    ratio = _ratio(log_pace([before.timed]), log_pace([settled]))
    if ratio is None:
        return insufficient(
            f"fewer than {MIN_WINDOWS} timed steps before the switch, or from {max_steps} steps after it"
        )
    verdict = compare_to_band(ratio.low, ratio.high, 1 - max_slowdown, math.inf)
    text = f"samples/s {ratio:.2f} x from {max_steps} steps on (at least {1 - max_slowdown:g})"
    return Finding(verdict, text, {"speed_ratio": ratio.centre})


def _loss_step(run: Measurement, dataset: str, switch: int, max_spike: float) -> Finding:
    own = [v for v in run.validations if v.dataset == dataset and v.step > 0]
    before, after = [v for v in own if v.step <= switch], [v for v in own if v.step > switch]
    table = _losses([(before[-1], after[0])]) if before and after else None
    if table is None:
        return insufficient(f"{dataset} not validated before and after the switch, on the same samples")
    (old, new), p = table.mean(axis=0), wilcoxon_p(table[:, 1] - table[:, 0])
    text = f"{dataset}'s val loss {new / old:.2f} x (limit {max_spike:g}; rise p={p:.1g})"
    return Finding(_over(new / old, max_spike, p, len(table)), text, {f"{dataset}/loss_ratio": new / old})


def consistent(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Judge whether time and memory per sample of each data set are within a factor ``max_factor`` of the first one's.

    Memory per sample is the mean over the last half of the data set's steps, less the memory before the first step. The
    batch size is the same for all data sets, so it cancels out. Both ratios are intervals that must lie wholly within
    the factor.
    """
    factor = limits["max_factor"]

    def judge(run: Measurement, parts: Sequence[Segment]) -> Finding:
        first, *others = parts
        baseline = baseline_mib(run.steps, run.memory)
        findings = {}
        for other in others:
            memory = _ratio(_log_level(other.memory - baseline), _log_level(first.memory - baseline))
            speed = _ratio(log_pace([other.timed]), log_pace([first.timed]))
            findings[other.name] = all_of_merged(
                [
                    unless_disturbed(_within_factor("seconds", speed, first.name, factor), evidence),
                    _within_factor("memory", memory, first.name, factor),
                ]
            )
        return all_of(findings)

    return _judge_segments(evidence, judge)


def _within_factor(what: str, ratio: Interval | None, first: str, factor: float) -> Finding:
    if ratio is None:
        return insufficient(f"{what} a sample of fewer than {MIN_WINDOWS} steps")
    text = f"{what} a sample {ratio:.2f} x {first}'s (within a factor of {factor:g})"
    return Finding(compare_to_band(ratio.low, ratio.high, 1 / factor, factor), text, {f"{what}_ratio": ratio.centre})


def forgetting(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Judge whether the validation IoU of an earlier data set falls by more than ``max_drop`` as others are trained on.

    The drop is counted from the validation after the data set's last epoch to the end of the run, averaged over the
    runs. Above the limit, it fails only if a paired signed-rank test of the samples' losses shows that it is no noise.
    Mixing the data sets prevents forgetting (rehearsal; Robins 1995, Connection Sci. 7:123).
    """
    names = [[set(segment.name.split("+")) for segment in segments(run)] for run in evidence.runs]
    trained = {name for run in names for segment in run for name in segment}
    if len(trained) < 2:
        return insufficient(f"{len(trained)} data set trained on; forgetting needs a second")
    earlier = sorted({name for run in names for segment in run for name in segment - run[-1]})
    if not earlier:
        return Finding(Verdict.PASSED, "every data set was trained on to the end")
    pairs = [validations_since_trained(run.steps, run.validations) for run in evidence.runs]
    by_name = {name: [of_run[name] for of_run in pairs if name in of_run] for name in earlier}
    joined = all_of({name: _drop(name, of_name, limits["max_drop"]) for name, of_name in by_name.items()})
    if joined.verdict is not Verdict.FAILED:
        return joined
    return Finding(joined.verdict, f"{joined.evidence}; train them together: schedule=mixed", joined.numbers)


def _drop(dataset: str, pairs: Sequence[tuple[Validation, Validation]], max_drop: float) -> Finding:
    drops = [then.metrics.get("iou", math.nan) - end.metrics.get("iou", math.nan) for then, end in pairs]
    drop, table = float(np.mean(drops)) if drops else math.nan, _losses(pairs)
    if table is None or not math.isfinite(drop):
        return insufficient(f"no IoU of {dataset} on the same samples before and after the others")
    p = wilcoxon_p(table[:, 1] - table[:, 0])
    text = f"val IoU of {dataset} {-drop:+.3f} since it was last trained on (limit {-max_drop:+g}; loss rise p={p:.1g})"
    return Finding(_over(drop, max_drop, p, len(table)), text, {"drop": drop, "p": p})


def _over(value: float, limit: float, p: float, samples: int) -> Verdict:
    """Judge a value: failed if it is over the limit and the rise of the losses is significant.

    Over the limit without significance, or with too few samples to reach it, the evidence is insufficient.
    """
    if samples < learning_min_samples(LOSS_ALPHA) or not math.isfinite(value):
        return Verdict.INSUFFICIENT_EVIDENCE
    if value <= limit:
        return Verdict.PASSED
    return Verdict.FAILED if p < LOSS_ALPHA else Verdict.INSUFFICIENT_EVIDENCE


def _losses(pairs: Sequence[tuple[Validation, Validation]]) -> Values | None:
    """Return a table (samples, 2) of the losses before and after, averaged over the pairs.

    None if there is no pair, if the samples differ, or if a loss is not finite.
    """
    tables = [dict(zip(v.sample_ids, v.losses, strict=True)) for pair in pairs for v in pair]
    if not tables or any(table.keys() != tables[0].keys() for table in tables):
        return None
    losses = np.array([[table[sample] for sample in tables[0]] for table in tables], dtype=np.float64)
    if not np.isfinite(losses).all():
        return None
    return np.stack([losses[0::2].mean(axis=0), losses[1::2].mean(axis=0)], axis=1)


def _log_level(memory: Values) -> Estimate | None:
    return mean(windows(np.log(memory))) if (memory > 0).all() else None


def _ratio(a: Estimate | None, b: Estimate | None) -> Interval | None:
    """Return the interval of a ratio, given the logarithms of both terms; None if one is missing."""
    return interval(difference(a, b)).exp() if a and b else None


CRITERIA = {
    "smooth_transition": Criterion(
        "at a switch of data set memory does not rise for good, speed comes back, the old data's loss does not spike",
        smooth_transition,
        {
            # A loader process forked later, from a grown process, keeps about 25 MiB more: 8 % for three at 192 px.
            "max_rise": Limit(0.15, "rise of the memory's plateau, share of that before the switch"),
            "max_steps": Limit(5, "steps after the switch by which the speed is back"),
            "max_slowdown": Limit(0.20, "share of the samples a second before the switch that may be lost"),
            "max_spike": Limit(1.5, "mean validation loss of an old data set after the first new pass, over before"),
        },
    ),
    "consistent": Criterion(
        "seconds a sample and memory a sample of each data set are like the first one's",
        consistent,
        {"max_factor": Limit(1.5, "ratio to the first data set's, either way")},
    ),
    "forgetting": Criterion(
        "the validation IoU of an earlier data set does not fall once others are trained on",
        forgetting,
        {"max_drop": Limit(0.10, "drop of the mean IoU; 100 samples teach about 0.5")},
    ),
}

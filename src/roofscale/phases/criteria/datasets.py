"""What happens where a run goes on from one data set to the next: the switch, how alike they are, what is forgotten."""

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
PLATEAU_SHARE = 0.5  # the last half of a stretch: the loader's start and the first allocations lie before it


@dataclass(frozen=True)
class Segment:
    """Passes in a row over the same data sets."""

    name: str  # the data sets, joined by '+'
    steps: tuple[StepRecord, ...]
    timed: tuple[Sized, ...]  # each epoch's first step left out, with the samples of the batches
    memory: Values  # of the plateau's steps, MiB, less the copy that forked loader processes hold

    @property
    def end(self) -> int:
        """Optimiser steps done at its end."""
        return self.steps[-1].step


def segments(run: Measurement) -> list[Segment]:
    """The run in stretches; one that mixes the data sets, or has only one, is a single stretch."""
    trained: dict[int, set[str]] = {}
    for step in run.steps:
        trained.setdefault(step.epoch, set()).update(step.dataset.split("+"))
    memory = _memory_of_one_copy(run)
    timed = without_first_steps(run.steps)
    found = []
    for name, group in itertools.groupby(run.steps, lambda step: "+".join(sorted(trained[step.epoch]))):
        steps = tuple(group)
        inside = tuple(sized for sized in timed if steps[0].step <= sized[0].step <= steps[-1].step)
        plateau = steps[math.floor(len(steps) * PLATEAU_SHARE) :]
        found.append(Segment(name, steps, inside, np.array([memory[step.step] for step in plateau])))
    return found


def _memory_of_one_copy(run: Measurement) -> dict[int, float]:
    """Memory by step, MiB, less the copy of weights, gradients and optimiser's state that forked loader processes hold.

    Those of the first epoch are forked before there are any, those of every later one after it; what training then
    writes anew stays in their memory as it was, whatever the data set. With the second epoch memory rose by 191 MiB
    (ResNet-18, 1 worker; the copy is 219) and by 410 MiB (ResNet-34, 3 workers; 373).
    """
    copied = max(0.0, run.metrics.get("memory/copied_mib", 0.0))
    steps = zip(run.steps, step_memory(run), strict=True)
    return {step.step: mib - (copied if step.epoch > run.steps[0].epoch else 0.0) for step, mib in steps}


def _by_stretches(evidence: Evidence, judge: Callable[[Measurement, list[Segment]], Finding]) -> Finding:
    """Judge each run by its stretches, where it has several; where the data sets are mixed, nothing switches."""

    def judge_run(run: Measurement) -> Finding:
        found = segments(run)
        if len(found) == 1 and "+" in found[0].name:
            return Finding(Verdict.PASSED, f"{found[0].name} mixed in every epoch: no switch")
        return judge(run, found) if len(found) > 1 else insufficient("no switch of data set within the run")

    return judge_each_run(evidence, judge_run)


def smooth_transition(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """At each switch of data set within a run, nothing lasting happens to memory, speed or the old data sets' loss.

    Memory: the mean of the last half of the stretch after the switch is at most 1 + ``max_rise`` times that of the
    stretch before. Speed: samples a second from ``max_steps`` steps after the switch on are at least 1 -
    ``max_slowdown`` times those before it. Both are intervals that lie wholly within. Loss: each old data set's mean
    validation loss after the first pass over the new one is at most ``max_spike`` times that before it; above that, a
    paired signed-rank test tells whether it is noise.
    """

    def judge(run: Measurement, found: Sequence[Segment]) -> Finding:
        judged = {}
        for so_far, (before, after) in enumerate(itertools.pairwise(found), 1):
            speed = _speed_step(before, after, int(limits["max_steps"]), limits["max_slowdown"])
            old = sorted({stretch.name for stretch in found[:so_far]})
            parts = [_memory_step(before, after, limits["max_rise"]), unless_disturbed(speed, evidence)]
            parts += [_loss_step(run, name, before.end, limits["max_spike"]) for name in old]
            judged[f"{before.name} to {after.name}"] = all_of_merged(parts)
        return all_of(judged)

    return _by_stretches(evidence, judge)


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
    mine = [v for v in run.validations if v.dataset == dataset and v.step > 0]
    before, after = [v for v in mine if v.step <= switch], [v for v in mine if v.step > switch]
    table = _losses([(before[-1], after[0])]) if before and after else None
    if table is None:
        return insufficient(f"{dataset} not validated before and after the switch, on the same samples")
    (old, new), p = table.mean(axis=0), wilcoxon_p(table[:, 1] - table[:, 0])
    text = f"{dataset}'s val loss {new / old:.2f} x (limit {max_spike:g}; rise p={p:.1g})"
    return Finding(_over(new / old, max_spike, p, len(table)), text, {f"{dataset}/loss_ratio": new / old})


def consistent(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Seconds a sample and memory a sample of each data set are within ``max_factor`` of the first one's, either way.

    Memory a sample is the mean of the last half of the data set's steps, less what was held before the first step, over
    the batch size, which is the same. Both ratios are intervals that lie wholly within the factor.
    """
    factor = limits["max_factor"]

    def judge(run: Measurement, found: Sequence[Segment]) -> Finding:
        first, *others = found
        held = baseline_mib(run.steps, run.memory)
        judged = {}
        for other in others:
            memory = _ratio(_log_level(other.memory - held), _log_level(first.memory - held))
            speed = _ratio(log_pace([other.timed]), log_pace([first.timed]))
            judged[other.name] = all_of_merged(
                [
                    unless_disturbed(_alike("seconds", speed, first.name, factor), evidence),
                    _alike("memory", memory, first.name, factor),
                ]
            )
        return all_of(judged)

    return _by_stretches(evidence, judge)


def _alike(what: str, ratio: Interval | None, first: str, factor: float) -> Finding:
    if ratio is None:
        return insufficient(f"{what} a sample of fewer than {MIN_WINDOWS} steps")
    text = f"{what} a sample {ratio:.2f} x {first}'s (within a factor of {factor:g})"
    return Finding(compare_to_band(ratio.low, ratio.high, 1 / factor, factor), text, {f"{what}_ratio": ratio.centre})


def forgetting(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """The validation IoU of an earlier data set does not fall by over ``max_drop`` once others are trained on.

    The drop runs from the pass after which the data set was last trained on to the end of the run, averaged over the
    runs. Above the limit, a paired signed-rank test of the samples' losses tells whether it is noise. What is forgotten
    when data sets come one after the other is kept when they are mixed (rehearsal; Robins 1995, Connection Sci. 7:123).
    """
    names = [[set(stretch.name.split("+")) for stretch in segments(run)] for run in evidence.runs]
    trained = {name for run in names for stretch in run for name in stretch}
    if len(trained) < 2:
        return insufficient(f"{len(trained)} data set trained on; forgetting needs a second")
    left = sorted({name for run in names for stretch in run for name in stretch - run[-1]})
    if not left:
        return Finding(Verdict.PASSED, "every data set was trained on to the end")
    pairs = [validations_since_trained(run.steps, run.validations) for run in evidence.runs]
    drops = {name: [found[name] for found in pairs if name in found] for name in left}
    joined = all_of({name: _drop(name, found, limits["max_drop"]) for name, found in drops.items()})
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
    """Failed over the limit where the losses' rise is significant; too few samples to show one decide nothing."""
    if samples < learning_min_samples(LOSS_ALPHA) or not math.isfinite(value):
        return Verdict.INSUFFICIENT_EVIDENCE
    if value <= limit:
        return Verdict.PASSED
    return Verdict.FAILED if p < LOSS_ALPHA else Verdict.INSUFFICIENT_EVIDENCE


def _losses(pairs: Sequence[tuple[Validation, Validation]]) -> Values | None:
    """Losses of each sample (rows) then and later, averaged over the pairs; None where something is missing."""
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
    """The interval of a ratio from its two logarithms."""
    return interval(difference(a, b)).exp() if a and b else None


CRITERIA = {
    "smooth_transition": Criterion(
        "at a switch of data set memory does not rise for good, speed comes back, the old data's loss does not spike",
        smooth_transition,
        {
            # Loader processes forked from a process that has grown keep some 25 MiB more each: 8 %, three at 192 px.
            "max_rise": Limit(0.15, "rise of the memory's plateau, share of that before the switch"),
            "max_steps": Limit(5, "steps after the switch by which the speed is back"),
            "max_slowdown": Limit(0.20, "share of the samples a second before the switch that may be lost"),
            "max_spike": Limit(1.5, "mean validation loss of an old data set after the first new pass, over before"),
        },
    ),
    "consistent": Criterion(
        "seconds a sample and memory a sample of each data set are like the first one's",
        consistent,
        {"max_factor": Limit(1.5, "either way")},
    ),
    "forgetting": Criterion(
        "the validation IoU of an earlier data set does not fall once others are trained on",
        forgetting,
        {"max_drop": Limit(0.10, "drop of the mean IoU; 100 samples teach about 0.5")},
    ),
}

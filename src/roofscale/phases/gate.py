"""Gate before the GPU phase: what runs of the CPU phases must prove before money is spent. Pure, over tracked runs.

Evidence is the verdicts and metrics of single runs, not whether a phase passed as a whole: a batch of 8 that is no
faster on a CPU is still known to be stable there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from roofscale import invocation
from roofscale.config import DATASETS
from roofscale.phases.fallback import OUT_OF_MEMORY
from roofscale.tracking import RunRecord

# Required by the project's mission.
SAMPLES = 100
BATCH = 8
CPU_PHASES = (1, 2, 3, 4)

_SOUND = ("completes", "stable", "memory_margin")  # criteria that a run must have passed to prove a condition
_MEMORY = ("memory_margin", "no_leak")  # criteria that a deciding run must not have failed
Runs = Mapping[int, Sequence[RunRecord]]  # phase -> its judged runs, those of the newest attempt first
Proof = Callable[[RunRecord], bool]


@dataclass(frozen=True)
class Condition:
    """One condition of the gate."""

    name: str  # such as 'at least 100 samples'
    met: bool
    evidence: str  # one line with numbers: what proves it, or what is missing
    run_id: str = ""  # the MLflow run that proves it; empty if it is not met
    remedy: str = ""  # the command that would supply what is missing; empty if it is met


@dataclass(frozen=True)
class GateReport:
    """All conditions; the gate is open if every one is met."""

    conditions: tuple[Condition, ...]
    tracking_uri: str = ""

    @property
    def open(self) -> bool:
        """Whether phase 5 may begin."""
        return bool(self.conditions) and all(condition.met for condition in self.conditions)


def gate_report(runs: Runs, tracking_uri: str) -> GateReport:
    """Check the conditions of the gate against the judged runs of the CPU phases."""
    return GateReport((*_size_conditions(runs), _no_memory_trouble(runs), *_known_conditions(runs)), tracking_uri)


def _size_conditions(runs: Runs) -> Iterable[Condition]:
    """Check that training is stable on a CPU with enough samples, a large batch, all data sets, and all at once."""
    together = _climb(4, set=f"max_samples={SAMPLES} batch_size={BATCH}")  # set, as the last good may be smaller
    conditions: dict[str, tuple[Proof, str]] = {
        f"stable on a CPU with at least {SAMPLES} samples": (_enough_samples, _climb(1)),
        f"stable on a CPU with batches of at least {BATCH}": (_large_batch, _climb(2)),
        "stable on a CPU with all data sets": (_all_datasets, _climb(4)),
        "all of these in one run": (_all_sizes, together),
    }
    sound = [run for phase in sorted(runs, reverse=True) for run in runs[phase] if _is_sound(run)]
    for name, (holds, remedy) in conditions.items():
        proof = next((run for run in sound if holds(run)), None)
        if proof:
            yield Condition(name, True, _shown(proof), proof.run_id)
        else:
            yield Condition(name, False, f"none of {len(sound)} sound runs shows it", remedy=remedy)


def _is_sound(run: RunRecord) -> bool:
    passed = all(run.tags.get(f"verdict.{name}") == "passed" for name in _SOUND)
    return passed and run.tags.get("outcome") == "ok" and run.tags.get("device") == "cpu"


def _enough_samples(run: RunRecord) -> bool:
    max_samples = int(run.params["max_samples"])  # 0: all, as many as were trained on
    return (max_samples or run.metrics.get("train/samples", 0.0)) >= SAMPLES


def _large_batch(run: RunRecord) -> bool:
    return int(run.params["batch_size"]) >= BATCH


def _all_datasets(run: RunRecord) -> bool:
    return set(run.params["datasets"].split(",")) == set(DATASETS)


def _all_sizes(run: RunRecord) -> bool:
    return _enough_samples(run) and _large_batch(run) and _all_datasets(run)


def _shown(run: RunRecord) -> str:
    machine = run.tags.get("compute", run.params["compute"])
    return (
        f"phase {run.tags.get('phase', '?')} {run.tags.get('step', run.name)}: {run.params['max_samples']} samples of "
        f"{run.params['datasets']}, batch {run.params['batch_size']}, "
        f"memory {run.metrics.get('memory/share', float('nan')):.0%} of {machine}"
    )


def _no_memory_trouble(runs: Runs) -> Condition:
    """Check that no deciding run of the newest attempts ran out of memory, exceeded its margin or leaked.

    Runs that a fallback replaced do not count.
    """
    name = "no memory trouble"
    newest = {phase: _newest_attempt(runs.get(phase, ())) for phase in CPU_PHASES}
    for phase, decided in newest.items():
        if not decided:
            return Condition(name, False, f"phase {phase} has no judged step on record", remedy=_climb(phase))
        for run in decided:
            if reason := _memory_trouble(run):
                text = f"phase {phase} {run.tags.get('step', run.name)}: {reason} (run {run.run_id})"
                return Condition(name, False, text, remedy=_climb(phase, fresh=True))
    proving = newest[CPU_PHASES[-1]][-1]
    count = sum(map(len, newest.values()))
    return Condition(name, True, f"none in the {count} steps of the newest attempts", proving.run_id)


def _newest_attempt(runs: Sequence[RunRecord]) -> list[RunRecord]:
    return [run for run in runs if run.parent_id == runs[0].parent_id and run.tags.get("decides") == "true"]


def _memory_trouble(run: RunRecord) -> str:
    if run.tags.get("outcome") in OUT_OF_MEMORY:
        return f"ended as {run.tags['outcome']}"
    failed = [name for name in _MEMORY if run.tags.get(f"verdict.{name}") == "failed"]
    return "; ".join(f"{name} failed: {run.tags.get(f'evidence.{name}', '')}" for name in failed)


def _known_conditions(runs: Runs) -> Iterable[Condition]:
    """Check the quantities that must be known before the GPU phase: memory, batch, loading, and time."""
    yield _known(
        "memory a sample is known", runs, (4, 3, 2, 1), lambda run: _has(run, "memory/mib_per_sample"),
        lambda run: f"{run.metrics['memory/mib_per_sample']:,.0f} MiB a sample at {run.params['image_size']} px",
    )  # fmt: skip
    yield _known(
        "the best batch is known", runs, (3, 2), _proves_batch,
        lambda run: run.tags.get("evidence.knee", "") or f"batch {run.params['batch_size']} was searched for: "
        f"{run.tags.get('searched', '')}",
    )  # fmt: skip
    yield _known(
        "the loading pattern is known", runs, (3,), lambda run: run.tags.get("verdict.balanced") == "passed",
        lambda run: f"{run.params['num_workers']} workers: {run.tags.get('evidence.balanced', '')}",
    )  # fmt: skip
    yield _known(
        f"the training time at {SAMPLES} samples or more is known", runs, (4, 3, 2, 1),
        lambda run: _enough_samples(run) and _has(run, "speed/seconds_per_epoch"),
        lambda run: f"{run.metrics['speed/seconds_per_epoch']:,.0f} s an epoch of {run.params['max_samples']} samples "
        f"of {run.params['datasets']}",
    )  # fmt: skip


def _proves_batch(run: RunRecord) -> bool:
    """Return whether a run has found the knee of the batch sizes, or confirms the choice of a search."""
    confirmed = "searched" in run.tags and run.tags.get("verdict") == "passed"
    return confirmed or run.tags.get("verdict.knee") == "passed"


def _known(
    name: str, runs: Runs, phases: Sequence[int], holds: Proof, evidence: Callable[[RunRecord], str]
) -> Condition:
    for phase in phases:
        for run in runs.get(phase, ()):
            if run.tags.get("outcome") == "ok" and holds(run):
                return Condition(name, True, evidence(run), run.run_id)
    return Condition(name, False, "no run on record shows it", remedy=_climb(phases[0]))


def _has(run: RunRecord, metric: str) -> bool:
    return metric in run.metrics


def _climb(phase: int, **options: str | bool) -> str:
    return invocation.command("phase", phase, **options)

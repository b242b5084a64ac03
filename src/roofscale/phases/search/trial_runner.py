"""Runs a trial: a short training in its own process under its compute's memory, as an MLflow run under the search's."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from roofscale.config import RunConfig
from roofscale.errors import RoofscaleError
from roofscale.forecast import host_memory
from roofscale.measurement import FIRST_PASS_ONLY, Measurement, Outcome
from roofscale.memory_margin import MEMORY_MARGIN
from roofscale.phases.fallback import OUT_OF_MEMORY
from roofscale.phases.search.space import SearchSpace
from roofscale.phases.search.trial_result import TrialResult, from_measurement
from roofscale.runners import RunInterrupted, Runner
from roofscale.runners.supervise import Listener, Listeners
from roofscale.stats.intervals import TRIAL_SPREAD
from roofscale.tracking import TrackedRun, Tracker

MOST_STEPS = 24  # of a trial whose pace stays unsteady
_VALIDATED = 2  # samples; the loss of a trial is nobody's concern


class TrialFailed(RoofscaleError):
    """A trial ended for a reason that says nothing of its config's size."""


def shorten_for_trial(config: RunConfig, spec: SearchSpace, best_rate: float = math.nan) -> RunConfig:
    """The same training, ended once its pace is known, or known to be no match for the best: samples/s, NaN for none.

    It goes on over as many passes as it needs, so that it loads data in the way that the whole training would.
    """
    steps = max(1, config.max_samples // config.batch_size) if config.max_samples else MOST_STEPS
    below = (1 - spec.tolerance) * best_rate if math.isfinite(best_rate) else 0.0
    return dataclasses.replace(
        config,
        val_samples=_VALIDATED,
        epochs=max(config.epochs, math.ceil(MOST_STEPS / steps)),
        stop_precision=spec.precision,
        stop_below=below,
    )


class TrialObserver(Protocol):
    """Whoever follows the trials of a search."""

    def begin_trial(self, name: str, config: RunConfig) -> Listener:
        """A trial begins; return the listener for its events."""
        ...

    def tried(self, name: str, tried: TrialResult) -> None:
        """A trial has ended, or was skipped."""
        ...


@dataclass
class Trials:
    """Where trials run and are tracked."""

    tracker: Tracker
    parent: TrackedRun  # the search's
    folder: Path  # one folder a trial
    make_runner: Callable[[Path, Listener], Runner]
    spectator: TrialObserver
    tags: Mapping[str, str]
    max_share: float = MEMORY_MARGIN  # of the memory that a trial may take

    def run(self, number: int, config: RunConfig, trial: RunConfig, foreseen: Mapping[str, float]) -> TrialResult:
        """Run ``trial``, and say what that tells of ``config``; see ``study.TrialRunner``."""
        name = f"trial {number}"
        run = self._open(name, config, {"trial": str(number)})
        run.log_forecast(foreseen)
        listener = self.spectator.begin_trial(name, config)
        folder = self.folder / f"trial-{number:03d}"
        with run.system_metrics():
            measurement = self.make_runner(folder, Listeners(run, listener))(trial)
        run.log_summary(measurement)
        lacking = later_pass_mib(config, measurement)
        if lacking:
            run.set_tags({FIRST_PASS_ONLY: f"{lacking:.0f} MiB are added to its peak for later passes"})
        run.artifact(folder / "measurement.json")
        run.finish(measurement.outcome)
        for large in (*folder.glob("*.pt"), *folder.glob("*.npz")):
            large.unlink()
        if measurement.outcome is Outcome.INTERRUPTED:
            raise RunInterrupted(measurement.detail)
        if measurement.outcome is not Outcome.OK and measurement.outcome not in OUT_OF_MEMORY:
            raise TrialFailed(f"{name} ended as {measurement.outcome}: {measurement.detail} See {folder}/stderr.log.")
        tried = from_measurement(config, measurement, run.run_id, lacking, TRIAL_SPREAD, self.max_share)
        self.spectator.tried(name, tried)
        return tried

    def skip(self, number: int, tried: TrialResult) -> TrialResult:
        """Put a trial on record that was not run."""
        run = self._open(f"trial {number} (skipped)", tried.config, {"trial": str(number), "skipped": tried.why})
        run.finish(Outcome.OK)
        self.spectator.tried(f"trial {number}", tried)
        return dataclasses.replace(tried, run_id=run.run_id)

    def _open(self, name: str, config: RunConfig, tags: Mapping[str, str]) -> TrackedRun:
        run = self.tracker.start(name, {**self.tags, **tags, "fingerprint": config.fingerprint}, self.parent)
        run.log_params(config)
        return run


def later_pass_mib(config: RunConfig, measurement: Measurement) -> float:
    """What loader processes of later passes keep beyond those of the first, where only the first was seen."""
    passes = config.epochs * (1 if config.schedule == "mixed" else len(config.datasets))
    seen = {step.epoch for step in measurement.steps}
    copied = measurement.metric("memory/copied_mib")
    if not config.num_workers or passes < 2 or len(seen) > 1 or not math.isfinite(copied):
        return 0.0
    return (1 - host_memory.first_pass_copied_share(config)) * copied

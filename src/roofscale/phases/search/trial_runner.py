"""Trial runner: a trial is a short training in its own process with the compute's memory limit, and an MLflow run."""

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
from roofscale.phases.search.space import SearchSpec
from roofscale.phases.search.trial_result import TrialResult, from_measurement
from roofscale.runners import RunInterrupted, Runner
from roofscale.runners.supervise import Listener, Listeners
from roofscale.stats.intervals import TRIAL_SPREAD
from roofscale.tracking import TrackedRun, Tracker

MOST_STEPS = 24  # of a trial whose pace does not reach the precision
_VAL_SAMPLES = 2  # few, as the loss of a trial is not used


class TrialFailed(RoofscaleError):
    """A trial failed for another reason than memory."""


def shorten_for_trial(config: RunConfig, spec: SearchSpec, best_rate: float = math.nan) -> RunConfig:
    """Return the config of a trial: the same training, stopped once its pace is known or certainly below the best.

    It has enough epochs for MOST_STEPS steps over the same samples, so that it loads data as the whole training does.

    Args:
        config: of the whole training.
        spec: the space, with the precision and the tolerance.
        best_rate: samples per second of the fastest trial so far, NaN if there is none.
    """
    steps = max(1, config.max_samples // config.batch_size) if config.max_samples else MOST_STEPS
    below = (1 - spec.tolerance) * best_rate if math.isfinite(best_rate) else 0.0
    return dataclasses.replace(
        config,
        val_samples=_VAL_SAMPLES,
        epochs=max(config.epochs, math.ceil(MOST_STEPS / steps)),
        stop_precision=spec.precision,
        stop_below=below,
    )


class TrialObserver(Protocol):
    """Observer of the trials of a search."""

    def begin_trial(self, name: str, config: RunConfig) -> Listener:
        """Report that a trial begins; return the listener for its events."""
        ...

    def end_trial(self, name: str, result: TrialResult) -> None:
        """Report that a trial has ended or was skipped."""
        ...


@dataclass
class TrackedTrialRunner:
    """Runner of the trials of a search, which tracks them in MLflow."""

    tracker: Tracker
    parent: TrackedRun  # the search's
    folder: Path  # of the search; each trial has a folder in it
    make_runner: Callable[[Path, Listener], Runner]
    observer: TrialObserver
    tags: Mapping[str, str]
    max_share: float = MEMORY_MARGIN  # the memory margin of each trial

    def run(
        self, number: int, config: RunConfig, trial_config: RunConfig, forecast: Mapping[str, float]
    ) -> TrialResult:
        """Run the shortened config ``trial_config`` and return the result for ``config``; see ``study.TrialRunner``."""
        name = f"trial {number}"
        run = self._open(name, config, {"trial": str(number)})
        run.log_forecast(forecast)
        listener = self.observer.begin_trial(name, config)
        folder = self.folder / f"trial-{number:03d}"
        with run.closed_on_error(), run.system_metrics():
            measurement = self.make_runner(folder, Listeners(run, listener))(trial_config)
        run.log_summary(measurement)
        later_mib = later_pass_mib(config, measurement)
        if later_mib:
            run.set_tags({FIRST_PASS_ONLY: f"{later_mib:.0f} MiB are added to its peak for later passes"})
        run.artifact(folder / "measurement.json")
        run.finish(measurement.outcome, measurement.ended)
        for file in (*folder.glob("*.pt"), *folder.glob("*.npz")):  # large, and of no use after the trial
            file.unlink()
        if measurement.outcome is Outcome.INTERRUPTED:
            raise RunInterrupted(measurement.detail)
        if measurement.outcome is not Outcome.OK and measurement.outcome not in OUT_OF_MEMORY:
            raise TrialFailed(f"{name} ended as {measurement.outcome}: {measurement.detail} See {folder}/stderr.log.")
        result = from_measurement(config, measurement, run.run_id, later_mib, TRIAL_SPREAD, self.max_share)
        self.observer.end_trial(name, result)
        return result

    def skip(self, number: int, result: TrialResult) -> TrialResult:
        """Record a trial that was not run in MLflow; return its result with the run's id."""
        run = self._open(f"trial {number} (skipped)", result.config, {"trial": str(number), "skipped": result.why})
        run.finish(Outcome.OK)
        self.observer.end_trial(f"trial {number}", result)
        return dataclasses.replace(result, run_id=run.run_id)

    def _open(self, name: str, config: RunConfig, tags: Mapping[str, str]) -> TrackedRun:
        run = self.tracker.start(name, {**self.tags, **tags, "fingerprint": config.fingerprint}, self.parent)
        run.log_params(config)
        return run


def later_pass_mib(config: RunConfig, measurement: Measurement) -> float:
    """Return the memory, MiB, that loader processes of later epochs keep in addition to those of the first.

    0 if the trial ran more than one epoch, if the whole training has only one, without loader processes, or if the copy
    was not measured.
    """
    measured = {step.epoch for step in measurement.steps}
    copied = measurement.metric("memory/copied_mib")
    if not config.num_workers or config.passes < 2 or len(measured) > 1 or not math.isfinite(copied):
        return 0.0
    return (1 - host_memory.first_pass_copied_share(config)) * copied

"""What came of one trial, as plain data; and what it is worth to a search."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roofscale.config import RunConfig
from roofscale.measurement import Measurement, Outcome
from roofscale.memory_margin import MEMORY_MARGIN
from roofscale.phases.fallback import OUT_OF_MEMORY
from roofscale.runners.build_measurement import without_first_steps
from roofscale.stats.intervals import RUN_SPREAD, Estimate, log_pace

SKIPPED = "skipped"  # in place of an outcome: it was not run


@dataclass(frozen=True)
class TrialResult:
    """A config with its pace and its memory, from a trial, from a run of an earlier phase, or foreseen and skipped."""

    config: RunConfig
    outcome: str  # an Outcome, or SKIPPED
    share: float  # of the memory that there is, at its peak, host or GPU; for what ran out of it 1 at the least
    pace: Estimate | None = None  # logarithm of the seconds a sample; None where it was not measured
    peak_mib: float = math.nan  # of host memory
    copied_mib: float = math.nan  # see host.Point
    run_id: str = ""  # its MLflow run
    why: str = ""  # it ended or was skipped, one line
    samples: int = 0  # trained
    max_share: float = MEMORY_MARGIN  # of the memory that it may take

    @property
    def over_margin(self) -> float:
        """How far the peak lies over what it may take, as a share of that; not above 0 where it is within."""
        return self.share / self.max_share - 1

    @property
    def feasible(self) -> bool:
        """Whether it ran, and stayed within its memory."""
        return self.pace is not None and self.over_margin <= 0

    @property
    def rate(self) -> float:
        """Samples a second; NaN where that was not measured."""
        return math.exp(-self.pace.value) if self.pace else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the config."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "config"}

    @classmethod
    def from_dict(cls, config: RunConfig, raw: Mapping[str, Any]) -> "TrialResult":
        """Rebuild what ``as_dict`` gave."""
        return cls(config=config, **{**raw, "pace": Estimate(**raw["pace"]) if raw["pace"] else None})


def objective(tried: TrialResult, usd_per_hour: float | None) -> float:
    """What a search makes as large as it can: samples a second, or a dollar where the compute has a price.

    What goes over its memory is worth less than anything that does not, the less the further over it goes; it is never
    a bare failure, from which a search would learn nothing.
    """
    if tried.over_margin > 0:
        return -tried.over_margin
    return tried.rate if usd_per_hour is None else tried.rate * 3600 / usd_per_hour


def from_measurement(
    config: RunConfig,
    measurement: Measurement,
    run_id: str,
    lacking_mib: float = 0.0,
    between: float = RUN_SPREAD,
    max_share: float = MEMORY_MARGIN,
) -> TrialResult:
    """What a run came to.

    Args:
        config: that the trial is about.
        measurement: of the run.
        run_id: its MLflow run.
        lacking_mib: host memory that a whole training takes on top of what a short trial has shown.
        between: standard deviation of log pace between runs as long as this.
        max_share: of the memory that it may take.
    """
    peak = measurement.metric("memory/peak_mib")
    host = measurement.metric("memory/share") * (1 + lacking_mib / peak)
    share = max((one for one in (host, measurement.metric("gpu/memory_share")) if one == one), default=math.nan)
    ran_out = measurement.outcome in OUT_OF_MEMORY
    return TrialResult(
        config=config,
        outcome=measurement.outcome,
        share=max(1.0, share) if ran_out else share,
        pace=log_pace([without_first_steps(measurement.steps)], between) if measurement.outcome is Outcome.OK else None,
        peak_mib=math.nan if ran_out else peak + lacking_mib,
        copied_mib=measurement.metric("memory/copied_mib"),
        run_id=run_id,
        why=measurement.detail,
        samples=measurement.steps[-1].samples if measurement.steps else 0,
        max_share=max_share,
    )

"""Result of one trial as plain data, and the objective of a search with its out-of-memory penalty."""

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

SKIPPED = "skipped"  # instead of an outcome: the trial was not run


@dataclass(frozen=True)
class TrialResult:
    """A config with its pace and its memory: from a trial, from a run of an earlier phase, or forecast and skipped."""

    config: RunConfig
    outcome: str  # an Outcome, or SKIPPED
    share: float  # peak memory over the compute's, the larger of host and GPU; at least 1 if it ran out
    pace: Estimate | None = None  # logarithm of the seconds per sample; None if not measured
    peak_mib: float = math.nan  # of host memory
    copied_mib: float = math.nan  # see ``PeakObservation``
    run_id: str = ""  # its MLflow run
    why: str = ""  # why it ended or was skipped, one line
    samples: int = 0  # number of samples trained on
    max_share: float = MEMORY_MARGIN  # the memory margin

    @property
    def over_margin(self) -> float:
        """Excess of the peak over the memory margin, as a share of the margin; at most 0 if it is within."""
        return self.share / self.max_share - 1

    @property
    def feasible(self) -> bool:
        """Whether it ran and stayed within its memory margin."""
        return self.pace is not None and self.over_margin <= 0

    @property
    def rate(self) -> float:
        """Samples per second; NaN if not measured."""
        return math.exp(-self.pace.value) if self.pace else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the config."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "config"}

    @classmethod
    def from_dict(cls, config: RunConfig, raw: Mapping[str, Any]) -> "TrialResult":
        """Rebuild a result from ``as_dict``."""
        return cls(config=config, **{**raw, "pace": Estimate(**raw["pace"]) if raw["pace"] else None})


def objective(tried: TrialResult, usd_per_hour: float | None) -> float:
    """Return the value that a search maximises: samples per second, or per dollar if the compute has a price.

    The penalty: a config over its memory margin, or out of memory, has a negative value, the lower the larger its
    excess. So it ranks below every feasible one, and the sampler learns from it, unlike from a failed trial without a
    value.
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
    """Make the result of a run from its measurement.

    Args:
        config: whose trial it is; the run itself may have been shortened.
        measurement: of the run.
        run_id: its MLflow run.
        lacking_mib: host memory that a whole training takes in addition to the measured peak of a short trial, MiB.
        between: standard deviation of log pace between runs of this length.
        max_share: the memory margin.
    """
    peak = measurement.metric("memory/peak_mib")
    host = measurement.metric("memory/share") * (1 + lacking_mib / peak)
    share = max((s for s in (host, measurement.metric("gpu/memory_share")) if not math.isnan(s)), default=math.nan)
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

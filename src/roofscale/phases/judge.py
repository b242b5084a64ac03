"""The verdict of a step: what was measured, held against the step's criteria. Pure: no file, no clock, no tracking."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from roofscale.config import RunConfig
from roofscale.measurement import Measurement
from roofscale.phases.criteria import CRITERIA, Evidence, Rung
from roofscale.phases.plan import Step
from roofscale.train.health import Verdict, combine

__all__ = ["CriterionResult", "StepVerdict", "Verdict", "judge"]


@dataclass(frozen=True)
class CriterionResult:
    """One criterion's verdict with its evidence."""

    name: str  # of CRITERIA
    verdict: Verdict
    evidence: str  # one line with numbers, for a person
    numbers: Mapping[str, float] = field(default_factory=dict)  # the same for a script; finite values only


@dataclass(frozen=True)
class StepVerdict:
    """By the criteria that decide: failed if any failed, else insufficient evidence if any lacks it, else passed."""

    verdict: Verdict
    criteria: tuple[CriterionResult, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "StepVerdict":
        """Rebuild what ``as_dict`` gave, also after a trip through JSON."""
        criteria = (CriterionResult(**{**entry, "verdict": Verdict(entry["verdict"])}) for entry in raw["criteria"])
        return cls(Verdict(raw["verdict"]), tuple(criteria))

    def named(self, verdict: Verdict) -> list[str]:
        """Names of the criteria that came to ``verdict``."""
        return [result.name for result in self.criteria if result.verdict is verdict]


def judge(
    step: Step,
    measurement: Measurement,
    previous: Sequence[Measurement] = (),
    base: Sequence[Measurement] = (),
    repeats: Sequence[Measurement] = (),
    *,
    config: RunConfig | None = None,
    history: Sequence[Rung] = (),
) -> StepVerdict:
    """Judge a step.

    Args:
        step: whose criteria and expectations are asked.
        measurement: what the step's run yielded.
        previous: the measurements of the step before under all seeds, none for the first.
        base: those of the phase's first step, none for the first.
        repeats: measurements of the same step under other seeds; their evidence is pooled (see ``criteria``).
        config: the run config that yielded the measurement, None where nobody knows it.
        history: the runs that decided the earlier steps of the phase, in order.
    """
    evidence = Evidence(measurement, tuple(previous), tuple(base), tuple(repeats), step.expect, config, tuple(history))
    results, deciding = [], []
    for spec in step.criteria:
        criterion = CRITERIA[spec.name]
        finding = criterion.judge(evidence, spec.limits)
        decides = spec.decides and not (criterion.asks and len(repeats) >= step.most_repeats)
        numbers = {name: float(value) for name, value in finding.numbers.items() if math.isfinite(value)}
        said = finding.evidence if decides else f"(shown only) {finding.evidence}"
        results.append(CriterionResult(spec.name, finding.verdict, said, numbers))
        deciding += [finding.verdict] if decides else []
    return StepVerdict(combine(deciding), tuple(results))

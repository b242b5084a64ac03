"""The verdict of a step: what was measured, held against the step's criteria. Pure: no file, no clock, no tracking."""

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from roofscale.config import RunConfig
from roofscale.measurement import Measurement
from roofscale.phases.criteria import CRITERIA, Comparison, EarlierStep, Evidence, compare
from roofscale.phases.expectation import Expectation
from roofscale.phases.phase_file import Step
from roofscale.stats.curves import Verdict, combine

__all__ = ["CriterionResult", "Role", "StepVerdict", "Verdict", "judge"]


class Role(enum.StrEnum):
    """What hangs on a criterion."""

    DECIDES = "decides"  # the step's verdict, and with it the phase's
    FINDING = "finding"  # the step's verdict alone: for the phase it answers a question, whatever the answer is
    SHOWN = "shown"  # nothing


@dataclass(frozen=True)
class CriterionResult:
    """One criterion's verdict with its evidence."""

    name: str  # of CRITERIA
    verdict: Verdict
    evidence: str  # one line with numbers, for a person
    numbers: Mapping[str, float] = field(default_factory=dict)  # the same for a script; finite values only
    role: Role = Role.DECIDES


@dataclass(frozen=True)
class StepVerdict:
    """Failed if any criterion that counts failed, else insufficient evidence if any lacks it, else passed."""

    verdict: Verdict
    criteria: tuple[CriterionResult, ...]
    comparisons: tuple[Comparison, ...] = ()  # what was expected, reported beside the verdict

    @property
    def sound(self) -> Verdict:
        """The verdict without the findings: whether the run is one to go on from, whatever the change was worth."""
        deciding = [result.verdict for result in self.criteria if result.role is Role.DECIDES]
        return combine(deciding) if self.criteria else self.verdict

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "StepVerdict":
        """Rebuild what ``as_dict`` gave, also after a trip through JSON."""
        criteria = (
            CriterionResult(**{**entry, "verdict": Verdict(entry["verdict"]), "role": Role(entry["role"])})
            for entry in raw["criteria"]
        )
        comparisons = (
            Comparison(
                **{**entry, "verdict": Verdict(entry["verdict"]), "expectation": Expectation(**entry["expectation"])}
            )
            for entry in raw["comparisons"]
        )
        return cls(Verdict(raw["verdict"]), tuple(criteria), tuple(comparisons))

    def named(self, verdict: Verdict) -> list[str]:
        """Names of the criteria that count and came to ``verdict``."""
        return [r.name for r in self.criteria if r.verdict is verdict and r.role is not Role.SHOWN]


def judge(
    step: Step,
    measurement: Measurement,
    previous: Sequence[Measurement] = (),
    base: Sequence[Measurement] = (),
    repeats: Sequence[Measurement] = (),
    *,
    config: RunConfig | None = None,
    history: Sequence[EarlierStep] = (),
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
    results = []
    for spec in step.criteria:
        criterion = CRITERIA[spec.name]
        finding = criterion.judge(evidence, spec.limits)
        role = Role.SHOWN if not spec.decides else Role.FINDING if criterion.finding else Role.DECIDES
        numbers = {name: float(value) for name, value in finding.numbers.items() if math.isfinite(value)}
        said = f"(shown only) {finding.evidence}" if role is Role.SHOWN else finding.evidence
        results.append(CriterionResult(spec.name, finding.verdict, said, numbers, role))
    verdict = combine([result.verdict for result in results if result.role is not Role.SHOWN])
    return StepVerdict(verdict, tuple(results), tuple(compare(step.name, one, evidence) for one in step.expect))

"""Verdict of a step: its measurements judged by its criteria. Pure: no file, no clock, no tracking."""

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from roofscale.config import RunConfig
from roofscale.measurement import Measurement
from roofscale.phases.criteria import CRITERIA, Comparison, EarlierStep, Evidence, compare
from roofscale.phases.criteria.expectations import Expectation
from roofscale.phases.phase_file import Step
from roofscale.stats.curves import Verdict, combine

__all__ = ["CriterionResult", "Role", "StepVerdict", "Verdict", "judge"]


class Role(enum.StrEnum):
    """What a criterion's verdict counts for."""

    DECIDES = "decides"  # the verdicts of the step and of the phase
    FINDING = "finding"  # the verdict of the step only: for the phase, any result is an answer
    SHOWN = "shown"  # neither


@dataclass(frozen=True)
class CriterionResult:
    """One criterion's verdict with its evidence."""

    name: str  # of CRITERIA
    verdict: Verdict
    evidence: str  # one line with numbers, for people
    numbers: Mapping[str, float] = field(default_factory=dict)  # the same for programs; finite values only
    role: Role = Role.DECIDES


@dataclass(frozen=True)
class StepVerdict:
    """Verdict of a step with the results of its criteria.

    Failed if any criterion that counts failed, else insufficient evidence if any of them has that, else passed.
    """

    verdict: Verdict
    criteria: tuple[CriterionResult, ...]
    comparisons: tuple[Comparison, ...] = ()  # of the expectations; reported with the verdict, no part of it

    @property
    def without_findings(self) -> Verdict:
        """Verdict without the findings: whether later steps can build on the run, even if its change gained nothing."""
        deciding = [result.verdict for result in self.criteria if result.role is Role.DECIDES]
        return combine(deciding) if self.criteria else self.verdict

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "StepVerdict":
        """Rebuild a verdict from ``as_dict``, also after a round trip through JSON."""
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
        """Return the names of the criteria that count and have this verdict."""
        return [r.name for r in self.criteria if r.verdict is verdict and r.role is not Role.SHOWN]


def deciding_run(verdicts: Sequence[StepVerdict]) -> int:
    """Return the index of the run that decides a step: the last that passed, else the last that is sound, else 0.

    Args:
        verdicts: of the planned config, then of its fallbacks.
    """
    passed = [index for index, verdict in enumerate(verdicts) if verdict.verdict is Verdict.PASSED]
    sound = [index for index, verdict in enumerate(verdicts) if verdict.without_findings is Verdict.PASSED]
    return (passed or sound or [0])[-1]


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
    """Judge a step by its criteria, and compare it with its expectations.

    Args:
        step: its criteria and expectations.
        measurement: of the step's run.
        previous: the measurements of the step before under all seeds; empty for the first step.
        base: those of the phase's first step; empty for the first step.
        repeats: measurements of the same step under other seeds; their evidence is pooled (see ``criteria``).
        config: the run config of the measurement, None if unknown.
        history: the deciding runs of the earlier steps of the phase, in order.
    """
    evidence = Evidence(measurement, tuple(previous), tuple(base), tuple(repeats), config, tuple(history))
    results = []
    for spec in step.criteria:
        criterion = CRITERIA[spec.name]
        finding = criterion.judge(evidence, spec.limits)
        role = Role.SHOWN if not spec.decides else Role.FINDING if criterion.finding else Role.DECIDES
        numbers = {name: float(value) for name, value in finding.numbers.items() if math.isfinite(value)}
        text = f"(shown only) {finding.evidence}" if role is Role.SHOWN else finding.evidence
        results.append(CriterionResult(spec.name, finding.verdict, text, numbers, role))
    verdict = combine([result.verdict for result in results if result.role is not Role.SHOWN])
    comparisons = tuple(compare(step.name, expectation, evidence) for expectation in step.expect)
    return StepVerdict(verdict, tuple(results), comparisons)

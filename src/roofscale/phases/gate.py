"""The gate before the GPU: what has to be known from the CPU phases before money is spent. Pure, over runs as tracked."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Condition:
    """One condition of the gate."""

    name: str  # such as 'at least 100 samples'
    met: bool
    evidence: str  # one line with numbers: what proves it, or what is missing
    run_id: str = ""  # the MLflow run that proves it; empty where it is not met
    remedy: str = ""  # the command that would supply what is missing; empty where it is met


@dataclass(frozen=True)
class GateReport:
    """All conditions; the gate is open where every one is met."""

    conditions: tuple[Condition, ...]
    tracking_uri: str = ""

    @property
    def open(self) -> bool:
        """Whether phase 5 may begin."""
        return bool(self.conditions) and all(condition.met for condition in self.conditions)

"""Reads climbs back from the tracking server: the same plain data that the ladder made."""

from roofscale.phases.climb import ClimbResult


def read_climb(experiment: str, run_id: str) -> ClimbResult:
    """Rebuild an attempt from its MLflow run and those of its steps."""
    raise NotImplementedError


def newest_climb(phase: int) -> ClimbResult | None:
    """The newest attempt at a phase that judged at least one step; None where the server has none."""
    raise NotImplementedError

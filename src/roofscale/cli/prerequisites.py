"""Prerequisites of a phase: which phases are to be climbed first, whether they can be, and for how long."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from roofscale import invocation
from roofscale.cli import forecast_text
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.forecast import history
from roofscale.forecast.run_time import sum_forecasts
from roofscale.phases import starting_config
from roofscale.phases.fallback import ADVICE
from roofscale.phases.history import latest_result
from roofscale.phases.judge import Role, Verdict
from roofscale.phases.phase_file import Phase
from roofscale.phases.results import StepResult
from roofscale.report.phase_status import is_complete_base
from roofscale.stats.intervals import CONFIDENCE


def missing_phases(phase: Phase, load: Callable[[int], Phase], runs: Path) -> tuple[Phase, ...]:
    """Return the phases to climb before this one, lowest first: those not complete, or without a last good config."""
    if phase.needs is None or is_climbed(phase.needs, runs):
        return ()
    below = load(phase.needs)
    return (*missing_phases(below, load, runs), below)


def is_climbed(phase: int, runs: Path) -> bool:
    """Return whether later phases can start from a phase: by its newest attempt, or else by its last good config."""
    newest = latest_result(phase)
    return is_complete_base(newest) if newest else starting_config.last_good(phase, runs) is not None


def refuse_failed(phases: Iterable[Phase]) -> None:
    """Refuse to repeat a failed phase without ``--fresh``: it stopped before its last step, or no step passed.

    Raises:
        ConfigError: one of the phases failed; with the failed criteria and the known remedies.
    """
    for phase in phases:
        before = latest_result(phase.number)
        if before and not before.interrupted and not is_complete_base(before):
            stuck = [r for r in before.results if r.verdict.without_findings is not Verdict.PASSED]
            failed = ", ".join(f"{r.step.name} {r.verdict.verdict.label} ({unmet_criteria(r)})" for r in stuck)
            advice = (ADVICE[result.cause] for result in before.results if result.cause in ADVICE)
            helps = "; ".join(dict.fromkeys(advice)) or "a change of what these criteria measure"
            raise ConfigError(
                f"phase {phase.number} was climbed before, and nothing can stand on it: {failed}. What would help: "
                f"{helps}. Then climb it again: {invocation.command('phase', phase.number, fresh=True)}."
            )


def unmet_criteria(result: StepResult) -> str:
    """Return the criteria that a step did not pass, with their evidence; if it passed all, how its run ended."""
    counting = (c for c in result.verdict.criteria if c.role is not Role.SHOWN)
    texts = (f"{c.name}: {c.evidence}" for c in counting if c.verdict is not Verdict.PASSED)
    return "; ".join(texts) or result.measurement.detail


def time_needed(phases: Sequence[Phase], good: RunConfig, overrides_for: Callable[[Phase], Sequence[str]]) -> str:
    """Return a line with the forecast time of phases, the first from ``good``, each other from the last step before."""
    runs = history.timing_records()
    plan = []
    for phase in phases:
        plan += phase.resolve(good, overrides_for(phase))
        good = plan[-1][1]
    seconds = [found.run_seconds for _, config in plan if (found := history.forecast_time_of(config, runs))]
    which = numbered(phases)
    if not seconds:
        return f"No forecast of the time of {which} yet: no similar run is on record, and the first one makes one."
    trials = "; the trials of a search come on top" if any(step.search for step, _ in plan) else ""
    return (
        f"Forecast of {which}: {forecast_text.duration(sum_forecasts(seconds))}, {CONFIDENCE:.0%} interval, "
        f"for {len(seconds)} of {len(plan)} steps, each once{trials}."
    )


def numbered(phases: Sequence[Phase]) -> str:
    """Format the numbers of phases: 'phase 1', 'phases 1, 2 and 3'."""
    *first, last = (str(phase.number) for phase in phases)
    return f"phases {', '.join(first)} and {last}" if first else f"phase {last}"

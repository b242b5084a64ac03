"""The phases that another one stands on: which are still to be climbed, whether to, and how long that will take."""

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


def lacking(phase: Phase, load: Callable[[int], Phase], runs: Path) -> tuple[Phase, ...]:
    """The phases to climb before this one, the lowest first: not yet climbed to their end, or not to a last good."""
    if phase.needs is None or is_climbed(phase.needs, runs):
        return ()
    below = load(phase.needs)
    return (*lacking(below, load, runs), below)


def is_climbed(phase: int, runs: Path) -> bool:
    """Whether others can stand on a phase, by its newest attempt; by its last good alone where no server knows one."""
    newest = latest_result(phase)
    return is_complete_base(newest) if newest else starting_config.last_good(phase, runs) is not None


def refuse_failed(phases: Iterable[Phase]) -> None:
    """Refuse to climb again, unasked, what has failed before: it stopped before its last step, or no step passed.

    Raises:
        ConfigError: one of the phases did; says which steps failed by what, and what is known to help.
    """
    for phase in phases:
        before = latest_result(phase.number)
        if before and not before.interrupted and not is_complete_base(before):
            stuck = [r for r in before.results if r.verdict.sound is not Verdict.PASSED]
            failed = ", ".join(f"{r.step.name} {r.verdict.verdict.label} ({wanting(r)})" for r in stuck)
            known = (ADVICE[result.cause] for result in before.results if result.cause in ADVICE)
            helps = "; ".join(dict.fromkeys(known)) or "a change of what these criteria speak of"
            raise ConfigError(
                f"phase {phase.number} was climbed before, and nothing can stand on it: {failed}. What would help: "
                f"{helps}. Then climb it again: {invocation.command('phase', phase.number, fresh=True)}."
            )


def wanting(result: StepResult) -> str:
    """The criteria that a step did not pass, with their evidence; how its run ended, where it passed all that count."""
    counting = (c for c in result.verdict.criteria if c.role is not Role.SHOWN)
    said = (f"{c.name}: {c.evidence}" for c in counting if c.verdict is not Verdict.PASSED)
    return "; ".join(said) or result.measurement.detail


def time_to_go(phases: Sequence[Phase], good: RunConfig, words_for: Callable[[Phase], Sequence[str]]) -> str:
    """Say in a line how long these phases take, the first from ``good``, each other from the last step before it."""
    runs = history.timing_records()
    plan = []
    for phase in phases:
        plan += phase.resolve(good, words_for(phase))
        good = plan[-1][1]
    known = [found.run_seconds for _, config in plan if (found := history.forecast_time_of(config, runs))]
    which = numbered(phases)
    if not known:
        return f"No forecast of the time of {which} yet: no similar run is on record, and the first one makes one."
    trials = "; the trials of a search come on top" if any(step.search for step, _ in plan) else ""
    return (
        f"Forecast of {which}: {forecast_text.duration(sum_forecasts(known))}, {CONFIDENCE:.0%} "
        f"interval, for {len(known)} of "
        f"{len(plan)} steps, each once{trials}."
    )


def numbered(phases: Sequence[Phase]) -> str:
    """Phases in words: 'phase 1', 'phases 1, 2 and 3'."""
    *first, last = (str(phase.number) for phase in phases)
    return f"phases {', '.join(first)} and {last}" if first else f"phase {last}"

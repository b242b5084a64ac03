"""Search of batch size, workers and prefetch: for the steps of a phase that search, and for ``search --join``."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from roofscale import compute
from roofscale.cli.console import ProgressBar, console
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.forecast.probes import peak_observations, profile_for
from roofscale.phases.criteria.evidence import SAME_WORK
from roofscale.phases.history import read_measurement
from roofscale.phases.search.choice import format_config
from roofscale.phases.search.memory_guard import MemoryBudget
from roofscale.phases.search.space import SearchSpec
from roofscale.phases.search.step_search import SearchResult, StepSearch
from roofscale.phases.search.trial_result import SKIPPED, TrialResult, from_measurement
from roofscale.phases.search.trial_runner import later_pass_mib
from roofscale.provenance import git_state
from roofscale.report.figures.search import optuna_figures, pareto_figure
from roofscale.runners import registry
from roofscale.runners.job_pool import JobPool
from roofscale.runners.supervise import Listener
from roofscale.stats.intervals import MAX_OTHER_LOAD
from roofscale.tracking import RunRecord, TrackedRun, Tracker, check_server
from roofscale.tracking.history import SEARCH_EXPERIMENT, experiment_name, judged_runs_of, read_config, succeeded

_PRIOR_EXPERIMENTS = (*map(experiment_name, (1, 2, 3)), SEARCH_EXPERIMENT)  # whose runs train the same way as trials


def make_step_search(
    tracker: Tracker,
    make_runner: registry.MakeRunner,
    out: Console,
    tags: Mapping[str, str],
    url: str,
    pool: JobPool,
    runner: str,
) -> StepSearch:
    """Build the search that the steps of a phase use."""
    budget = partial(memory_budget, runner=runner)
    return StepSearch(tracker, make_runner, SearchReporter(out), tags, budget, prior_trials, pool, url)


def memory_budget(config: RunConfig, runner: str) -> MemoryBudget:
    """Return the memory that trials of a config have, with the recorded peaks of its profile."""
    size = compute.get(config.compute)
    try:
        kind = profile_for(runner)(config, size)
    except ConfigError:  # it trains on a GPU, whose memory is forecast without recorded peaks
        kind = None
    points = tuple(peak_observations()) if kind else ()
    return MemoryBudget(registry.host_memory_mib(runner, size), compute.shm_free_mib(size), kind, points)


def prior_trials(spec: SearchSpec, base: RunConfig) -> list[TrialResult]:
    """Return judged runs that did the same work at a point of the space, on a machine without other load."""
    trackers = (tracker for name in _PRIOR_EXPERIMENTS if (tracker := Tracker.find(name)))
    return [one for tracker in trackers for one in _prior_trials_in(tracker, spec, base)]


def _prior_trials_in(tracker: Tracker, spec: SearchSpec, base: RunConfig) -> Iterator[TrialResult]:
    for run in judged_runs_of(tracker):
        config = read_config(run)
        if _is_alike(run, config, base) and spec.contains(config):
            measurement = read_measurement(tracker, run)
            placed = spec.config_at(base, spec.values(config))
            result = from_measurement(placed, measurement, run.run_id, later_pass_mib(base, measurement))
            if result.pace:
                yield dataclasses.replace(result, samples=0, why=f"known from {tracker.experiment}")


def _is_alike(run: RunRecord, config: RunConfig, base: RunConfig) -> bool:
    same = all(getattr(config, knob) == getattr(base, knob) for knob in (*SAME_WORK, "data_root"))
    return same and succeeded(run) and run.metrics.get("cpu/others", 1.0) <= MAX_OTHER_LOAD


class SearchReporter:
    """Reporter of a search: prints it and logs its figures to MLflow."""

    def __init__(self, out: Console) -> None:
        self._out = out

    def begin_trial(self, name: str, config: RunConfig) -> Listener:
        """Draw a bar for a trial."""
        return ProgressBar(f"{name}: {format_config(config)}")

    def end_trial(self, name: str, result: TrialResult) -> None:
        """Print the result of a trial."""
        rate = f"{result.rate:.3g} samples/s, " if result.pace else ""
        said = result.why if result.outcome == SKIPPED else f"{rate}{result.share:.0%} of the memory"
        self._out.print(f"  {name}: {format_config(result.config)}: {result.outcome}: {escape(said)}")

    def announce_study(self, study_name: str) -> None:
        """Print how other workers join the study."""
        self._out.print(f"  join with the same --storage: roofscale search --join {study_name}", soft_wrap=True)

    def end_search(self, found: SearchResult, run: TrackedRun) -> None:
        """Log the figures and print the choice."""
        if figure := pareto_figure(found.tried, found.choice):
            run.figure(figure, "figures/pareto.png")
        for name, drawn in optuna_figures(found.study):
            run.figure(drawn, f"figures/optuna-{name}.png")
        self._out.print(pareto_table(found.tried, found))
        chosen = str(found.choice) if found.choice else "nothing, as no trial stayed within its memory"
        self._out.print(f"  [bold]chosen[/]: {escape(chosen)}")


def pareto_table(tried: Sequence[TrialResult], found: SearchResult) -> Table:
    """Return the Pareto front as a table, least memory first."""
    run = sum(1 for one in tried if one.samples)
    skipped = sum(1 for one in tried if one.outcome == SKIPPED)
    known = len(tried) - run - skipped
    title = f"Pareto front ({run} trials, {skipped} skipped, {known} known from earlier runs)"
    table = Table("config", "samples/s", "memory", title=title, title_justify="left")
    for one in found.choice.front if found.choice else ():
        table.add_row(format_config(one.config), f"{one.rate:.3g}", f"{one.share:.0%}")
    return table


def join_search(study: str, storage: str, runs: Path, to_json: bool, runner: str) -> None:
    """Run trials of a search that another process conducts, until none is left.

    Raises:
        ConfigError: there is no such study, or no storage that it could be in.
    """
    if not storage:
        raise ConfigError(
            f"--join {study}: expected the storage that the study is in; name it with --storage, or in "
            "ROOFSCALE_STORAGE, as the command does that conducts the search."
        )
    out = console(quiet=to_json)
    check_server()
    tracker = Tracker(SEARCH_EXPERIMENT, runs)
    folder = runs / SEARCH_EXPERIMENT / "joined"
    folder.mkdir(parents=True, exist_ok=True)
    where = registry.get_runner(runner)
    pool = JobPool(where.max_jobs, where.stop_request)
    make_step_search(tracker, where.make, out, git_state(Path.cwd()), storage, pool, runner).join(study, folder)
    tracker.close()

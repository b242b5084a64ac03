"""Plays ways of searching on a measured grid, each over many seeds, and says what they cost and how well they chose.

No trial is run: it is drawn from the grid, ends as early as it would have, and has run out of memory where its peak
lies above the limit. All methods are given the same trials; ``ours`` alone has its forecast, which stands on nothing
but what its own trials have shown.
"""

import dataclasses
import statistics
import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import optuna
from optuna.storages import InMemoryStorage

from benchmarks.search_comparison.grid import Grid, GridRun, Place
from roofscale.config import RunConfig
from roofscale.forecast.host_memory import MemoryProfile
from roofscale.measurement import Outcome
from roofscale.phases.search.choice import size_key
from roofscale.phases.search.memory_guard import MemoryBudget
from roofscale.phases.search.space import SearchSpec
from roofscale.phases.search.study import Search, open_study
from roofscale.phases.search.trial_result import TrialResult, objective
from roofscale.phases.search.trial_runner import shorten_for_trial
from roofscale.stats.intervals import TRIAL_SPREAD, add_variance
from roofscale.train.early_stop import stop_reason

NOTHING: Mapping[str, float] = types.MappingProxyType({})
TRIALS = 40  # of a method that does not end by itself
# What the search is held to.
LEAST_RATIO = 0.97  # of the chosen one's samples a second over those of the best that fits
MOST_SAMPLES = 0.25  # of those that the whole grid takes
MOST_RAN_OUT = 1


@dataclass(frozen=True)
class Contest:
    """What is searched, and in how much memory."""

    grid: Grid
    spec: SearchSpec
    base: RunConfig
    kind: MemoryProfile  # as the grid was measured
    memory_mib: float


@dataclass
class Replay:
    """A ``study.TrialRunner`` that draws its trials from a grid."""

    contest: Contest
    seed: int
    trials: int = field(default=0, init=False)
    ran_out: int = field(default=0, init=False)
    samples: int = field(default=0, init=False)  # trained

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def run(
        self, number: int, config: RunConfig, trial: RunConfig, forecast: Mapping[str, float] = NOTHING
    ) -> TrialResult:
        """Play a trial; one that runs out of memory is counted with one batch."""
        drawn = self.contest.grid.draw(size_key(config), self._rng)
        self.trials += 1
        if drawn.peak_mib > self.contest.memory_mib:
            self.ran_out += 1
            self.samples += config.batch_size
            return TrialResult(config, Outcome.HOST_OOM, 1.0, run_id=str(number), samples=config.batch_size)
        drawn = ended(drawn, trial)
        self.samples += drawn.samples
        peak = drawn.peak_mib + drawn.lacking_mib
        return TrialResult(
            config=config,
            outcome=Outcome.OK,
            share=peak / self.contest.memory_mib,
            pace=drawn.pace and add_variance(drawn.pace, TRIAL_SPREAD**2),
            peak_mib=peak,
            copied_mib=drawn.copied_mib,
            run_id=str(number),
            samples=drawn.samples,
        )

    def skip(self, number: int, tried: TrialResult) -> TrialResult:
        """Nothing is run."""
        return tried


@dataclass(frozen=True)
class Played:
    """Result of one study of one method."""

    method: str
    seed: int
    chosen: Place | None
    ratio: float  # of the chosen one's samples a second over those of the best that fits, as measured; 0: none chosen
    share: float  # of the memory that a whole training of the chosen one takes
    trials: int  # run
    ran_out: int  # of memory
    samples: int  # trained


def ended(run: GridRun, trial: RunConfig) -> GridRun:
    """A run as far as it would have gone under what ``trial`` calls enough."""
    for count in range(1, len(run.steps)):
        part = run.cut(count)
        if stop_reason(trial, part.timed):
            return part
    return run


def ours(contest: Contest, replay: Replay) -> RunConfig | None:
    """The search of Roofscale."""
    base = dataclasses.replace(contest.base, seed=replay.seed)
    budget = MemoryBudget(contest.memory_mib, None, contest.kind)
    choice = Search(contest.spec, base, budget, None, _study(), replay).run()
    return choice.chosen.config if choice else None


def tpe(contest: Contest, replay: Replay) -> RunConfig | None:
    """Optuna's TPE on the same penalty and constraint, without a forecast."""
    study = _study()
    study.sampler = optuna.samplers.TPESampler(seed=replay.seed, multivariate=True, constant_liar=True)
    return _by_optuna(contest, replay, study)


def at_random(contest: Contest, replay: Replay) -> RunConfig | None:
    """Optuna's random sampler."""
    study = _study()
    study.sampler = optuna.samplers.RandomSampler(seed=replay.seed)
    return _by_optuna(contest, replay, study)


def whole_grid(contest: Contest, replay: Replay) -> RunConfig | None:
    """Every config once, smallest first."""
    tried: list[TrialResult] = []
    for number, config in enumerate(contest.spec.configs(contest.base)):
        _run(contest, replay, number, config, tried)
    return _config(_fastest(tried))


METHODS: Mapping[str, Callable[[Contest, Replay], RunConfig | None]] = {
    "grid": whole_grid,
    "random": at_random,
    "tpe": tpe,
    "ours": ours,
}


def play(method: str, contest: Contest, seed: int) -> Played:
    """Let a method search once."""
    replay = Replay(contest, seed)
    config = METHODS[method](contest, replay)
    chosen = size_key(config) if config else None
    grid, memory = contest.grid, contest.memory_mib
    ratio = grid.rate(chosen) / grid.rate(grid.best(memory)) if chosen else 0.0
    share = grid.peak_mib(chosen) / memory if chosen else 0.0
    return Played(method, seed, chosen, ratio, share, replay.trials, replay.ran_out, replay.samples)


@dataclass(frozen=True)
class Summary:
    """Results of all studies of one method."""

    method: str
    studies: int
    ratio: tuple[float, float]  # median and least
    share: tuple[float, float]  # median and most
    samples: tuple[float, float]  # median and most, over the median of the whole grid's
    ran_out: tuple[float, int]  # mean and most
    trials: tuple[float, int]  # mean and most
    often: Place | None  # chosen most often
    chosen: int  # how often that was

    @property
    def met(self) -> bool:
        """Whether it keeps to the targets: the median of what it chose, and every study in what it took."""
        return self.ratio[0] >= LEAST_RATIO and self.samples[1] <= MOST_SAMPLES and self.ran_out[1] <= MOST_RAN_OUT


def summaries(played: Sequence[Played]) -> list[Summary]:
    """One for each method, in the order of METHODS; the whole grid has to be among them."""
    whole = statistics.median(one.samples for one in played if one.method == "grid")
    found = []
    for method in METHODS:
        same = [one for one in played if one.method == method]
        (often, count), *_ = Counter(one.chosen for one in same).most_common(1)
        found.append(
            Summary(
                method=method,
                studies=len(same),
                ratio=(statistics.median(one.ratio for one in same), min(one.ratio for one in same)),
                share=(statistics.median(one.share for one in same), max(one.share for one in same)),
                samples=(
                    statistics.median(one.samples for one in same) / whole,
                    max(one.samples for one in same) / whole,
                ),
                ran_out=(statistics.fmean(one.ran_out for one in same), max(one.ran_out for one in same)),
                trials=(statistics.fmean(one.trials for one in same), max(one.trials for one in same)),
                often=often,
                chosen=count,
            )
        )
    return found


def _study() -> optuna.Study:
    return open_study(InMemoryStorage(), "replay")


def _by_optuna(contest: Contest, replay: Replay, study: optuna.Study) -> RunConfig | None:
    tried: list[TrialResult] = []

    def play_trial(trial: optuna.Trial) -> float:
        values = {knob: trial.suggest_int(knob, *ends) for knob, ends in contest.spec.space.items()}
        one = _run(contest, replay, trial.number, contest.spec.config_at(contest.base, values), tried)
        trial.set_constraint("memory", one.over_margin)
        return objective(one, None)

    study.optimize(play_trial, n_trials=TRIALS)
    return _config(_fastest(tried))


def _run(contest: Contest, replay: Replay, number: int, config: RunConfig, tried: list[TrialResult]) -> TrialResult:
    """Run a trial that ends early where it is no match for the fastest so far, as those of ``ours`` do."""
    so_far = _fastest(tried)
    best = (so_far.rate,) if so_far else ()
    tried.append(replay.run(number, config, shorten_for_trial(config, contest.spec, *best)))
    return tried[-1]


def _fastest(tried: Sequence[TrialResult]) -> TrialResult | None:
    """Of those that stayed within the memory."""
    return max((one for one in tried if one.feasible), key=lambda one: one.rate, default=None)


def _config(one: TrialResult | None) -> RunConfig | None:
    return one.config if one else None

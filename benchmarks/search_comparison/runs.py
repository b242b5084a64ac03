"""The runs that a comparison of searches stands on, each in a process of its own, and kept: never run twice."""

import math
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.search_comparison.grid import Grid, GridRun, Place
from benchmarks.search_comparison.replay import Contest
from roofscale import compute
from roofscale.cli.console import SECONDS_BETWEEN_LINES
from roofscale.config import RunConfig
from roofscale.errors import RoofscaleError
from roofscale.measurement import Measurement, Outcome
from roofscale.phases.search.choice import format_config, size_key
from roofscale.phases.search.space import KNOBS, SearchSpec
from roofscale.phases.search.trial_runner import shorten_for_trial
from roofscale.runners import RunInterrupted
from roofscale.runners.build_measurement import batch_samples
from roofscale.runners.local import MEASUREMENT, TRAIN, LocalRunner
from roofscale.stats.intervals import MAX_OTHER_LOAD

AGAIN = 1 / 3  # of the grid's configs, measured again: how much runs of one differ is part of what is replayed
NEAR_BEST = 0.9  # of the best's samples/s: configs that may be the best, and a run or two do not tell
FINAL_ROUNDS = 3  # of these, by turns
TURNS = 5  # of the choice against the best of the grid
TRAININGS = 20  # of the choice, with validation
EDGE = 3  # configs on either side of the limit that are run under it
_CALM_TRIES = 3
_RIVALS_FILE = Path("benchmarks/search_rivals.py")  # not part of the package: what it compares with is not either
_LIBRARIES = Path(".bench")


@dataclass(frozen=True)
class Rival:
    """A tool that finds a batch size in the process that trains."""

    name: str  # as benchmarks/search_rivals.py knows it
    said: str
    library: str
    from_largest: bool = False  # of the space's batch sizes; else the smallest, which those that start elsewhere ignore

    def config(self, contest: Contest) -> RunConfig:
        """What it is given."""
        low, high = contest.spec.space["batch_size"]
        return contest.base.with_overrides({"batch_size": high if self.from_largest else low})


RIVALS = (
    Rival("lightning-power", "Lightning BatchSizeFinder, power", "pytorch_lightning"),
    Rival("lightning-binsearch", "Lightning BatchSizeFinder, binsearch", "pytorch_lightning"),
    Rival("accelerate", "find_executable_batch_size, from the space's largest", "accelerate", from_largest=True),
    Rival("accelerate-default", "find_executable_batch_size, from 128, its default", "accelerate"),
)


@dataclass(frozen=True)
class Bench:
    """Runs what is compared, each once: what was run lies in its folder."""

    folder: Path
    spec: SearchSpec

    def grid_runs(self, base: RunConfig) -> Iterator[GridRun]:
        """Every config of the space, some of them twice, on all the memory that this machine has."""
        configs = list(self.spec.configs(base.with_overrides({"compute": compute.LOCAL})))
        again = random.Random(0).sample(configs, math.ceil(AGAIN * len(configs)))  # not every third, all alike perhaps
        wanted = [*(("grid-1", one) for one in configs), *(("grid-2", one) for one in again)]
        for kind, config in bar(wanted, "grid"):
            yield self._grid_run(kind, config)

    def finalist_runs(self, grid: Grid, memory_mib: float, base: RunConfig) -> Iterator[GridRun]:
        """Further runs of what fits and may be the best, by turns: the one that seems fastest after a single run of
        each is above all the luckiest, and every choice would look bad beside it.
        """
        least = NEAR_BEST * grid.rate(grid.best(memory_mib))
        near = [one for one in grid.runs if grid.fits(one, memory_mib) and grid.rate(one) >= least]
        free = base.with_overrides({"compute": compute.LOCAL})
        rounds = [(f"final-{turn + 1}", one) for turn in range(FINAL_ROUNDS) for one in near[:: 1 if turn % 2 else -1]]
        for kind, one in bar(rounds, "finalists"):
            yield self._grid_run(kind, _at(free, one))

    def _grid_run(self, kind: str, config: RunConfig) -> GridRun:
        measurement = self._calm(kind, config)
        if measurement.outcome is not Outcome.OK:
            raise RoofscaleError(f"{format_config(config)} ended as {measurement.outcome}: {measurement.detail}")
        return GridRun.of(config, measurement)

    def rivals(self, contest: Contest) -> tuple[list[dict[str, Any]], list[Rival]]:
        """What came of each rival, and those that are not installed here."""
        where = [str(_LIBRARIES), *sys.path]
        able = [one for one in RIVALS if _RIVALS_FILE.exists() and PathFinder.find_spec(one.library, where)]
        found = []
        for rival in bar(able, "rivals"):
            command = (sys.executable, "-m", "benchmarks.search_rivals", rival.name)
            measurement = self._once(self.folder / "rivals" / rival.name, rival.config(contest), command)
            found.append(_of_rival(rival, measurement, contest))
        return found, [one for one in RIVALS if one not in able]

    def confirm(self, contest: Contest, chosen: Place) -> dict[str, Any]:
        """Run what was chosen against the best of the grid, then train it; and see that the limit is where it was
        taken to be."""
        best = contest.grid.best(contest.memory_mib)
        return {
            "chosen": chosen,
            "best": best,
            "turns": self._by_turns(contest, chosen, best),
            "trainings": self._trainings(contest, chosen),
            "edge": list(self._edge(contest)),
        }

    def _by_turns(self, contest: Contest, chosen: Place, best: Place) -> dict[str, list[float]]:
        """Samples a second of both, by turns; nothing where they are the same config."""
        rates: dict[str, list[float]] = {"chosen": [], "best": []}
        for turn in bar(range(TURNS if chosen != best else 0), "by turns"):
            pair = [("chosen", chosen), ("best", best)]
            for name, place in pair[:: 1 if turn % 2 else -1]:
                rates[name].append(_rate(self._calm(f"turn-{turn + 1}-{name}", _at(contest.base, place))))
        return rates

    def _trainings(self, contest: Contest, place: Place) -> dict[str, Any]:
        """Two passes with validation, each from another seed."""
        config = _at(contest.base, place).with_overrides({"epochs": 2})
        kept = []
        for seed in bar(range(TRAININGS), "trainings"):
            own = config.with_overrides({"seed": seed})
            kept.append(self._once(self.folder / "trainings" / own.fingerprint, own))
        shares = [one.metric("memory/share") for one in kept]
        outcomes = [str(one.outcome) for one in kept]
        return {"ok": outcomes.count("ok"), "outcomes": outcomes, "shares": shares}

    def _edge(self, contest: Contest) -> Iterator[dict[str, Any]]:
        """Whether those next to the limit die where the replay says so, and only those."""
        grid, limit = contest.grid, contest.memory_mib
        over = set(grid.over(limit))
        by_peak = sorted(grid.runs, key=grid.trial_mib)
        first = next((number for number, place in enumerate(by_peak) if place in over), len(by_peak))
        for place in bar(by_peak[max(0, first - EDGE) : first + EDGE], "edge"):
            trial = shorten_for_trial(_at(contest.base, place), self.spec)
            measurement = self._once(self.folder / "edge" / trial.fingerprint, trial)
            yield {
                "place": place,
                "share": grid.trial_mib(place) / limit,
                "expected": Outcome.HOST_OOM if place in over else Outcome.OK,
                "outcome": measurement.outcome,
                "samples": measurement.steps[-1].samples if measurement.steps else 0,
            }

    def _calm(self, kind: str, config: RunConfig) -> Measurement:
        """A trial while the machine did little else; of several tries the calmest."""
        trial = shorten_for_trial(config, self.spec)
        tries: list[Measurement] = []
        while len(tries) < _CALM_TRIES and not (tries and tries[-1].metric("cpu/others") <= MAX_OTHER_LOAD):
            tries.append(self._once(self.folder / kind / f"{trial.fingerprint}-{len(tries) + 1}", trial))
        return min(tries, key=lambda one: one.metric("cpu/others"))

    def _once(self, folder: Path, config: RunConfig, command: Sequence[str] = TRAIN) -> Measurement:
        """Run, or read what was run before.

        Raises:
            RunInterrupted: it was interrupted.
        """
        if (folder / MEASUREMENT).exists():
            return Measurement.load(folder / MEASUREMENT)
        shutil.rmtree(folder, ignore_errors=True)  # one that was stopped half way would go on, and take fewer steps
        measurement = LocalRunner(folder, command=command)(config)
        for large in (*folder.glob("*.pt"), *folder.glob("*.npz")):
            large.unlink()
        if measurement.outcome is Outcome.INTERRUPTED:
            (folder / MEASUREMENT).unlink()
            raise RunInterrupted(measurement.detail)
        return measurement


def bar(items: Sequence[Any], name: str) -> Iterator[Any]:
    """The items, with a progress bar."""
    yield from tqdm(items, desc=name, mininterval=SECONDS_BETWEEN_LINES)


def _at(base: RunConfig, place: Place) -> RunConfig:
    return base.with_overrides(dict(zip(KNOBS, place, strict=True)))


def _rate(measurement: Measurement) -> float:
    if measurement.outcome is not Outcome.OK:
        raise RoofscaleError(f"a run that had to end well ended as {measurement.outcome}: {measurement.detail}")
    return measurement.metric("speed/samples_per_s")


def _of_rival(rival: Rival, measurement: Measurement, contest: Contest) -> dict[str, Any]:
    """How it ended, what it found, and how good that is where the grid knows."""
    sizes = batch_samples(measurement.steps)
    batch = measurement.metric("search/batch_size")
    found = int(batch) if batch == batch else None
    place = size_key(contest.base.with_overrides({"batch_size": found})) if found else None
    known = place in contest.grid.runs if place else False
    grid, memory = contest.grid, contest.memory_mib
    return {
        "name": rival.name,
        "said": rival.said,
        "outcome": measurement.outcome,
        "detail": measurement.detail,
        "found": found,
        "largest_trained": max(sizes, default=0),
        "samples": sum(sizes),
        "seconds": measurement.metric("speed/run_seconds"),
        "ratio": grid.rate(place) / grid.rate(grid.best(memory)) if place and known else None,
        "share": grid.peak_mib(place) / memory if place and known else None,
    }

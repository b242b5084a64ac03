"""One worker of a shared search, as a process: ``python -m tests.phases.search_worker URL STUDY LOG [lead|join|hang]``.

Every trial that it begins and ends is a line of the log. ``hang`` never ends its first trial, until somebody kills it.
"""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.phases.synthetic_machine import BASE, KIND, LIMIT_MIB, SPEC, Invented, tensors_mib

from roofscale.config import RunConfig
from roofscale.forecast.host_memory import MemoryProfile
from roofscale.phases.search import step_search
from roofscale.phases.search.memory_guard import MemoryBudget
from roofscale.phases.search.study import Search, open_study
from roofscale.phases.search.trial_result import TrialResult

SECONDS = 0.7  # of a trial


class Slow(Invented):
    """Takes its time, and says what it does."""

    log: Path
    hangs: bool

    def run(self, number: int, config: RunConfig, trial: RunConfig, forecast: Mapping[str, float]) -> TrialResult:
        self._say("begins", number, config)
        time.sleep(3600 if self.hangs else SECONDS)
        tried = super().run(number, config, trial, forecast)
        self._say("ends", number, config)
        return tried

    def _say(self, what: str, number: int, config: RunConfig) -> None:
        with self.log.open("a", encoding="utf-8") as stream:
            place = f"{config.batch_size}/{config.num_workers}/{config.prefetch_factor}"
            stream.write(f"{what} {os.getpid()} {number} {place}\n")


def main(url: str, study_name: str, log: str, part: str) -> None:
    """Work until nothing is left."""
    MemoryProfile.tensors_mib = tensors_mib  # type: ignore[method-assign]
    step_search._HEARTBEAT_SECONDS, step_search._GRACE_SECONDS = 1, 3  # not so long as with real trials
    runner = Slow()
    runner.log, runner.hangs = Path(log), part == "hang"
    study = open_study(step_search.open_storage(url, Path(log).parent), study_name)
    budget = MemoryBudget(LIMIT_MIB, None, KIND)
    choice = Search(SPEC, BASE, budget, None, study, runner, shared=True, is_conductor=part == "lead").run()
    print(choice)


if __name__ == "__main__":
    main(*sys.argv[1:])

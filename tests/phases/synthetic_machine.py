"""An invented machine whose pace and memory are known exactly, for searches to be tried on in milliseconds."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import optuna

from roofscale.config import RunConfig
from roofscale.forecast.host_memory import MemoryProfile
from roofscale.measurement import Outcome
from roofscale.phases.search.memory_guard import MemoryBudget
from roofscale.phases.search.space import SearchSpec
from roofscale.phases.search.study import Search, open_study
from roofscale.phases.search.trial_result import TrialResult
from roofscale.stats.intervals import Estimate

SPEC = SearchSpec({"batch_size": (1, 16), "num_workers": (0, 3), "prefetch_factor": (1, 2)})
BASE = RunConfig(encoder="resnet18", image_size=64, batch_size=2, num_workers=2)
KIND = MemoryProfile.of(BASE, "fp32", 1)
LIMIT_MIB = 960.0  # a third of the space needs more


def rate(config: RunConfig) -> float:
    """Samples a second: a step costs something beside its samples, and loader processes cost some of the cores."""
    size, workers = config.batch_size, config.num_workers
    compute = 0.08 + 0.02 * size
    if not workers:
        return size / (compute + 0.012 * size)
    return size / max(compute * (1 + 0.06 * workers), 0.016 * size / workers)


def tensors_mib(_kind: MemoryProfile, batch: int) -> float:
    """In place of a trace of the model."""
    return 60.0 + 45.0 * batch


def peak_mib(config: RunConfig) -> float:
    """Linear in batch and workers, as it is."""
    return 440 + 1.02 * tensors_mib(KIND, config.batch_size) + 50 * config.num_workers


@dataclass
class Invented:
    """Runs trials on that machine, with noise; some configs may be told to end otherwise."""

    seed: int = 0
    noise: float = 0.02  # of the pace, from run to run
    endings: dict[int, Callable[[], Exception]] = field(default_factory=dict)  # by batch size
    ran: list[RunConfig] = field(default_factory=list)
    trials: list[RunConfig] = field(default_factory=list)
    skipped: list[TrialResult] = field(default_factory=list)
    forecast: list[Mapping[str, float]] = field(default_factory=list)
    died: int = 0

    def run(self, number: int, config: RunConfig, trial: RunConfig, forecast: Mapping[str, float]) -> TrialResult:
        """See ``TrialRunner``."""
        self.forecast.append(forecast)
        if config.batch_size in self.endings:
            raise self.endings[config.batch_size]()
        self.ran.append(config)
        self.trials.append(trial)
        rng = np.random.default_rng((self.seed, number))
        share = peak_mib(config) * math.exp(rng.normal(0, 0.01)) / LIMIT_MIB
        if share > 1:
            self.died += 1
            return TrialResult(config, Outcome.HOST_OOM, share, run_id=str(number))
        pace = Estimate(-math.log(rate(config)) + rng.normal(0, self.noise), 0.025**2, 20.0)
        return TrialResult(
            config, Outcome.OK, share, pace, share * LIMIT_MIB, run_id=str(number), samples=6 * config.batch_size
        )

    def skip(self, number: int, tried: TrialResult) -> TrialResult:
        """See ``TrialRunner``."""
        self.skipped.append(tried)
        return tried


def search(
    runner: Invented, study: optuna.Study | None = None, spec: SearchSpec = SPEC, known: tuple[TrialResult, ...] = ()
) -> Search:
    """A search of the invented machine."""
    study = study or open_study(optuna.storages.InMemoryStorage(), "invented")
    return Search(spec, BASE, MemoryBudget(LIMIT_MIB, None, KIND), None, study, runner, known)


def best_rate(spec: SearchSpec = SPEC) -> float:
    """Of what stays within 80 % of the memory."""
    return max(rate(config) for config in spec.configs(BASE) if peak_mib(config) <= 0.8 * LIMIT_MIB)

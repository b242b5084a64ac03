"""What trials tell of every config of a space: a Gaussian process over it.

Matern 5/2 (Rasmussen and Williams, Gaussian Processes for Machine Learning, ch. 4.2), its scales fitted to the trials.
Neighbours inform each other, so a config is known better than its own short trial could show.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from roofscale.config import RunConfig
from roofscale.phases.search.space import SearchSpace
from roofscale.stats.intervals import CONFIDENCE, Interval

Values = npt.NDArray[np.float64]
Known = tuple[RunConfig, float, float]  # a config with a value and the variance of that

_LEAST_DEVIATION = 1e-9  # rounding must not make it 0


class GaussianProcess:
    """A value over a space, as some configs show it.

    Args:
        known: one at the least.
        spec: the space.
        seed: of the fit's restarts.
    """

    def __init__(self, known: Sequence[Known], spec: SearchSpace, seed: int) -> None:
        configs, values, variances = zip(*known, strict=True)
        self._spec = spec
        self._level = float(np.mean(values))
        kernel = ConstantKernel(0.1, (1e-3, 10.0)) * Matern([0.5] * len(spec.space), (0.1, 10.0), nu=2.5)
        self._process = GaussianProcessRegressor(
            kernel, alpha=np.array(variances), n_restarts_optimizer=2, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a scale at its bound: the knob changes nothing
            self._process.fit(_features(configs, spec), np.array(values) - self._level)

    def predict(self, configs: Sequence[RunConfig]) -> tuple[Values, Values]:
        """Mean and standard deviation at some configs, each ``(configs,)``."""
        mean, deviation = self._process.predict(_features(configs, self._spec), return_std=True)
        return mean + self._level, np.maximum(deviation, _LEAST_DEVIATION)

    def ratio_to(self, configs: Sequence[RunConfig], other: RunConfig) -> list[Interval]:
        """By how much the value at each config exceeds that at another one."""
        mean, covariance = self._process.predict(_features([*configs, other], self._spec), return_cov=True)
        variance = np.diag(covariance)[:-1] + covariance[-1, -1] - 2 * covariance[-1, :-1]
        reach = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * np.sqrt(np.maximum(variance, 0.0))
        centres = (mean[:-1] - mean[-1]).tolist()
        return [Interval(c, c - r, c + r) for c, r in zip(centres, reach.tolist(), strict=True)]


def _features(configs: Sequence[RunConfig], spec: SearchSpace) -> Values:
    """Each knob over its range as 0 to 1, by its logarithm: twice the batch is the same step everywhere."""
    rows = []
    for config in configs:
        values = {**spec.values(config), **({} if config.num_workers else {"prefetch_factor": 0})}
        ends = {knob: (math.log1p(low), math.log1p(high)) for knob, (low, high) in spec.space.items()}
        rows.append([(math.log1p(values[k]) - low) / (high - low or 1.0) for k, (low, high) in ends.items()])
    return np.array(rows)

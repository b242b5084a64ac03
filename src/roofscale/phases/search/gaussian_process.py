"""Gaussian process over a search space, fitted to the trials.

Its kernel is Matern 5/2 (Rasmussen and Williams, Gaussian Processes for Machine Learning, ch. 4.2), with scales fitted
to the trials. Neighbouring configs inform each other, so a prediction is more precise than a single short trial.
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
from roofscale.phases.search.space import SearchSpec
from roofscale.stats.intervals import CONFIDENCE, Interval

Values = npt.NDArray[np.float64]
Known = tuple[RunConfig, float, float]  # a config with its value and the variance of the value

_LEAST_DEVIATION = 1e-9  # keeps rounding from making a deviation 0


class GaussianProcess:
    """Gaussian process of a value over a space.

    Args:
        known: observations, at least one.
        spec: the space.
        seed: of the restarts of the fit.
    """

    def __init__(self, known: Sequence[Known], spec: SearchSpec, seed: int) -> None:
        configs, values, variances = zip(*known, strict=True)
        self._spec = spec
        self._level = float(np.mean(values))
        kernel = ConstantKernel(0.1, (1e-3, 10.0)) * Matern([0.5] * len(spec.space), (0.1, 10.0), nu=2.5)
        self._process = GaussianProcessRegressor(
            kernel, alpha=np.array(variances), n_restarts_optimizer=2, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a scale at its bound: the knob has no effect
            self._process.fit(_features(configs, spec), np.array(values) - self._level)

    def predict(self, configs: Sequence[RunConfig]) -> tuple[Values, Values]:
        """Return mean and standard deviation of the value at some configs, each of shape (configs,)."""
        mean, deviation = self._process.predict(_features(configs, self._spec), return_std=True)
        return mean + self._level, np.maximum(deviation, _LEAST_DEVIATION)

    def ratio_to(self, configs: Sequence[RunConfig], other: RunConfig) -> list[Interval]:
        """Return the interval of each config's value minus that of ``other``; a log ratio if values are logarithms."""
        mean, covariance = self._process.predict(_features([*configs, other], self._spec), return_cov=True)
        variance = np.diag(covariance)[:-1] + covariance[-1, -1] - 2 * covariance[-1, :-1]
        half_width = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * np.sqrt(np.maximum(variance, 0.0))
        centres = (mean[:-1] - mean[-1]).tolist()
        return [Interval(c, c - h, c + h) for c, h in zip(centres, half_width.tolist(), strict=True)]


def _features(configs: Sequence[RunConfig], spec: SearchSpec) -> Values:
    """Return the logarithms of the knobs, scaled to 0 to 1 over their ranges, shape (configs, knobs)."""
    rows = []
    for config in configs:
        values = {**spec.values(config), **({} if config.num_workers else {"prefetch_factor": 0})}
        ends = {knob: (math.log1p(low), math.log1p(high)) for knob, (low, high) in spec.space.items()}
        rows.append([(math.log1p(values[k]) - low) / (high - low or 1.0) for k, (low, high) in ends.items()])
    return np.array(rows)

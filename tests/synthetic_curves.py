"""Simulated curves that look like real ones: what the criteria's error rates are counted on."""

import numpy as np
import numpy.typing as npt
from scipy import stats

Values = npt.NDArray[np.float64]


def autocorrelated(random: np.random.Generator, count: int, rho: float) -> Values:
    """Standard normal noise in which neighbours correlate by ``rho``."""
    noise = random.normal(size=count)
    for i in range(1, count):
        noise[i] = rho * noise[i - 1] + np.sqrt(1 - rho**2) * noise[i]
    return noise


def loss_curve(
    random: np.random.Generator,
    count: int,
    *,
    decays: bool = True,
    sd: float = 0.3,
    rho: float = 0.3,
    decay: float | None = None,
) -> Values:
    """A training loss: exponential decay (or a constant level) with noise that grows with the loss.

    Args:
        random: seeded.
        count: steps.
        decays: False for noise only.
        sd: relative noise of a batch loss; 0.2 to 0.4 for batches of two.
        rho: correlation of neighbouring steps.
        decay: share of the run in which the loss comes down to a third; drawn where None.
    """
    t = np.arange(count) / count
    level = 0.45 + 1.1 * np.exp(-t / (decay or random.uniform(0.15, 0.6))) if decays else np.ones(count)
    return level * np.exp(sd * (0.6 + 0.4 * t) * autocorrelated(random, count, rho))


def memory_curve(
    random: np.random.Generator, count: int, *, sd: float = 15.0, leak: float = 0.0, allocations: int = 0
) -> Values:
    """Host memory at each step, MiB: warm-up, plateau with noise, single allocations, a leak."""
    memory = 1600 + sd * random.normal(size=count) + leak * np.arange(count)
    memory[:2] -= [350.0, 60.0]
    for _ in range(allocations):
        memory[random.integers(4, count) :] += random.uniform(150, 400)
    return memory


def validation_losses(
    random: np.random.Generator, count: int = 40, *, gain: float = 0.5, spread: float = 1.0
) -> tuple[Values, Values, Values]:
    """Losses of each sample before, after and under the best constant prediction.

    Args:
        random: seeded.
        count: samples.
        gain: how far the net is below the constant; 0 where it learnt only how much roof there is.
        spread: scale of the noise between net and constant.
    """
    constant = random.normal(1.25, 0.1, count)
    after = constant - gain + spread * random.normal(0, 0.15, count)
    return constant + random.normal(0.2, 0.05, count), after, constant


def utilisation_curve(random: np.random.Generator, count: int, mean: float, *, sd: float = 0.06) -> Values:
    """Use of a resource at each look, as a share: a level with noise that lasts for some looks."""
    return np.clip(mean + sd * autocorrelated(random, count, 0.6), 0.0, 1.0)


def most_events(trials: int, rate: float) -> int:
    """The most events that chance gives at ``rate``, 999 times of 1000."""
    return int(stats.binom.ppf(0.999, trials, rate))

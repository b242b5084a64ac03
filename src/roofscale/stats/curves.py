"""Verdicts on the curves of one run, as pure functions of numbers: stability, smoothness, learning.

A function returns ``insufficient_evidence`` if its test cannot reach its significance level or its stated power, and
never ``passed`` on a value that is not finite.
"""

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

# Spikes
SPIKE_SIGMAS = 7.0  # robust standard deviations above the rolling median
SPIKE_WINDOW = 5  # steps of the causal rolling median
SPIKE_HISTORY = 3  # steps before the first that is judged
SIGMA_FLOOR = 0.02  # of log loss, so that rounding in a noiseless curve is no spike
SMALL_SAMPLE = 2.0  # sigma is inflated by 1 + this / number of residuals: under 1 % of noisy curves show a spike
MAD_TO_SIGMA = 1.4826  # of a normal distribution

# Trends
KENDALL_MIN = 10  # the normal approximation of Kendall's S holds from ten values (Kendall 1975, Rank Correlation)
KENDALL_BLOCKS = 20  # at most
RISE_REFERENCE_MIN = 6  # steps before a short last third: 4 against 6 is the first split that can reach p < 0.005

# Roughness
ROUGH_BLOCK = 5  # steps; a block mean has less than half the noise of a step
ROUGH_BLOCKS_MIN = 5
ROUGH_BLOCKS_MAX = 20

# Learning
LEARNING_POWER = 0.8
LEARNING_EFFECT = 0.8  # Cohen's d of the paired differences: "large" (Cohen 1988)


class Verdict(enum.StrEnum):
    """The verdict on a criterion or on a step."""

    PASSED = "passed"
    FAILED = "failed"
    INSUFFICIENT_EVIDENCE = "insufficient_evidence"

    @property
    def label(self) -> str:
        """The verdict in words, such as ``insufficient evidence``."""
        return self.value.replace("_", " ")


@dataclass(frozen=True)
class Finding:
    """A verdict with its evidence."""

    verdict: Verdict
    evidence: str  # one line with numbers, for reports
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trend:
    """Monotonic trend of a series; p values are one-sided."""

    slope: float  # Theil-Sen, per element of the series
    p_down: float
    p_up: float


def combine(verdicts: Sequence[Verdict]) -> Verdict:
    """Combine verdicts: failed if any failed; else insufficient evidence if any is or there is none; else passed."""
    if Verdict.FAILED in verdicts:
        return Verdict.FAILED
    if not verdicts or Verdict.INSUFFICIENT_EVIDENCE in verdicts:
        return Verdict.INSUFFICIENT_EVIDENCE
    return Verdict.PASSED


def stable(
    losses: Sequence[float],
    grad_norms: Sequence[float],
    *,
    max_spike_share: float = 0.05,
    alpha: float = 0.005,
    min_rise: float = 0.10,
) -> Finding:
    """Judge whether training is stable.

    Every loss and gradient norm is finite; the share of spikes (see ``spikes``) is at most ``max_spike_share``; the
    last third does not rise significantly (see ``late_rise``). Decidable from ten steps at the default ``alpha``, the
    shortest series whose test of the rise can reach it.

    Args:
        losses: training loss of each step.
        grad_norms: gradient norm of each step, before clipping.
        max_spike_share: largest share of spikes among the steps that can be judged.
        alpha: significance level of the rise.
        min_rise: smallest rise that counts, as a share of the median loss of the last third.
    """
    values, norms = _array(losses), _array(grad_norms)
    bad = int(np.sum(~np.isfinite(values)) + np.sum(~np.isfinite(norms)))
    if bad:
        return Finding(
            Verdict.FAILED,
            f"{bad} of {values.size + norms.size} losses and gradient norms not finite",
            {"not_finite": bad},
        )
    if values.size < _shortest_rise(alpha):
        return Finding(
            Verdict.INSUFFICIENT_EVIDENCE,
            f"{values.size} steps; a rise can be told from noise from {_shortest_rise(alpha)} steps",
            {"steps": values.size},
        )
    share = spike_share(values)
    p, size = late_rise(values)
    rising = p < alpha and size >= min_rise
    numbers = {"spike_share": share, "rise_p": p, "rise": size, "steps": float(values.size)}
    return Finding(
        Verdict.FAILED if share > max_spike_share or rising else Verdict.PASSED,
        f"all finite; spikes {share:.1%} of steps (limit {max_spike_share:.0%}); "
        f"last third {size:+.0%} (rise p={p:.2g}, limit {alpha:g})",
        numbers,
    )


def smooth(losses: Sequence[float], *, max_roughness: float = 0.30) -> Finding:
    """Judge whether the loss goes down smoothly: without a spike, and with roughness at most ``max_roughness``.

    Roughness is the mean upward move between neighbouring block means, in log loss (0.3: blocks rise by a third on
    average). Batches of two with a relative noise of 0.4 alone give about 0.1. Decidable from five blocks of five
    steps.
    """
    values = _array(losses)
    if not np.isfinite(values).all():
        return Finding(Verdict.FAILED, f"{int(np.sum(~np.isfinite(values)))} of {values.size} losses not finite")
    if values.size < ROUGH_BLOCK * ROUGH_BLOCKS_MIN:
        return Finding(
            Verdict.INSUFFICIENT_EVIDENCE,
            f"{values.size} steps; roughness needs {ROUGH_BLOCK * ROUGH_BLOCKS_MIN}",
            {"steps": values.size},
        )
    share, rough = spike_share(values), roughness(values)
    count = round(share * (values.size - SPIKE_HISTORY))
    return Finding(
        Verdict.FAILED if count or rough > max_roughness else Verdict.PASSED,
        f"{count} spikes (limit 0); roughness {rough:.2f} (limit {max_roughness:.2f})",
        {"spikes": count, "roughness": rough, "steps": values.size},
    )


def learning(
    before: Sequence[float],
    after: Sequence[float],
    constant: Sequence[float],
    *,
    alpha: float = 0.01,
    min_drop: float = 0.05,
) -> Finding:
    """Judge by paired tests of the validation losses whether the model has learnt.

    Two paired one-sided Wilcoxon signed-rank tests (Wilcoxon 1945): the loss after training is below that before, with
    a median drop of at least ``min_drop`` of the median before; and it is below the loss of the best constant
    prediction (class priors). The second is the harder one: an untrained net in eval mode is so bad that nearly any
    training beats it. Both must be significant at ``alpha``, so that noise alone passes with a probability of at most
    ``alpha``. With fewer samples than ``learning_min_samples`` the verdict is insufficient evidence.

    Args:
        before: loss of each validation sample before training.
        after: the same samples after training.
        constant: the same samples under the best constant prediction.
        alpha: significance level of each test.
        min_drop: smallest median drop, as a share of the median loss before training.
    """
    first, last, bar = _array(before), _array(after), _array(constant)
    if not all(np.isfinite(losses).all() for losses in (first, last, bar)):
        return Finding(Verdict.FAILED, "validation losses not finite")
    needed = learning_min_samples(alpha)
    if last.size < needed:
        return Finding(
            Verdict.INSUFFICIENT_EVIDENCE,
            f"{last.size} validation samples; the test needs {needed}",
            {"samples": last.size},
        )
    drop, p_before, p_constant = float(np.median(first - last)), wilcoxon_p(first - last), wilcoxon_p(bar - last)
    learnt = p_before < alpha and p_constant < alpha and drop >= min_drop * float(np.median(first))
    return Finding(
        Verdict.PASSED if learnt else Verdict.FAILED,
        f"val loss {np.median(first):.2f} -> {np.median(last):.2f} (median drop {drop:.2f}, p={p_before:.1g}); "
        f"constant {np.median(bar):.2f} (p={p_constant:.1g})",
        {
            "before": float(np.median(first)),
            "after": float(np.median(last)),
            "drop": drop,
            "p_before": p_before,
            "constant": float(np.median(bar)),
            "p_constant": p_constant,
            "samples": float(last.size),
        },
    )


def bounded(before: Sequence[float], after: Sequence[float], constant: Sequence[float], *, max_ratio: float) -> Finding:
    """Judge whether the validation loss has exploded, which the training loss may hide.

    With batch norm, a far too large learning rate moves the weights so fast that the running averages cannot follow:
    the loss on training batches falls while the loss in eval mode explodes. Measured on generated roofs at 256 px
    (ResNet-34 U-Net, AdamW, one-cycle, batches of two): at lr 1e-1 the median validation loss was 8 to 365 after 5
    steps (4 seeds), 1.4 to 2e6 after 10 (5), 1.0 to 17 after 25 (5) and 0.5 to 0.6 after 50 (2), at lr 1e-3 at most
    1.54, with 1.26 for the constant prediction and 1.5 before training; the training losses look alike. So the
    median after training must be at most ``max_ratio`` times the constant's, or times that before training if the
    untrained net is even worse. Long runs recover, so this is a criterion for short ones.

    Args:
        before: loss of each validation sample before training.
        after: the same samples after training.
        constant: the same samples under the best constant prediction.
        max_ratio: largest ratio of the median after training to the larger of the two other medians.
    """
    if not len(after):
        return Finding(Verdict.INSUFFICIENT_EVIDENCE, "no validation samples")
    if not all(np.isfinite(_array(losses)).all() for losses in (before, after, constant)):
        return Finding(Verdict.FAILED, "validation losses not finite")
    last, bar = float(np.median(after)), max(float(np.median(before)), float(np.median(constant)))
    return Finding(
        Verdict.PASSED if last <= max_ratio * bar else Verdict.FAILED,
        f"val loss {last:.3g} after training (limit {max_ratio:g} x {bar:.2f}, the worse of untrained and constant)",
        {"after": last, "bar": bar},
    )


def learning_min_samples(alpha: float, power: float = LEARNING_POWER, effect: float = LEARNING_EFFECT) -> int:
    """Compute the fewest pairs with which the signed-rank test finds a shift of ``effect`` standard deviations.

    n = (z_alpha + z_power)^2 / (3 (p' - 1/2)^2) with p' = P(X1 + X2 > 0) = Phi(sqrt(2) effect) for normal differences
    (Noether 1987, J. Am. Stat. Assoc. 82:645).
    """
    from scipy import stats  # takes seconds, so only where a test is made

    above_half = stats.norm.cdf(math.sqrt(2) * effect) - 0.5
    z_sum = float(stats.norm.isf(alpha) + stats.norm.ppf(power))
    return math.ceil(z_sum**2 / (3 * float(above_half) ** 2))


def wilcoxon_p(differences: Values) -> float:
    """Compute the one-sided signed-rank p value of "the differences are above zero"; 1 if all are zero."""
    from scipy import stats

    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences, alternative="greater").pvalue)


def spikes(losses: Values) -> npt.NDArray[np.bool_]:
    """Find the spikes: steps more than 7 robust sigmas above the median of the up to five steps before.

    In log loss, because the noise of a batch loss grows with the loss. Sigma is 1.4826 times the median absolute
    deviation of the residuals (Hampel 1974), inflated for short series.

    Returns:
        One bool for each step from the fourth on.
    """
    from scipy import stats

    if losses.size <= SPIKE_HISTORY:
        return np.zeros(0, dtype=np.bool_)
    logs = np.log(np.maximum(losses, np.finfo(float).tiny))
    history = np.concatenate([np.full(SPIKE_WINDOW, np.nan), logs])[:-1]  # nanmedian skips the padding
    windows = np.lib.stride_tricks.sliding_window_view(history, SPIKE_WINDOW)[SPIKE_HISTORY:]
    residuals = logs[SPIKE_HISTORY:] - np.nanmedian(windows, axis=1)
    sigma = max(SIGMA_FLOOR, MAD_TO_SIGMA * float(stats.median_abs_deviation(residuals)))
    is_spike: npt.NDArray[np.bool_] = residuals > SPIKE_SIGMAS * sigma * (1 + SMALL_SAMPLE / residuals.size)
    return is_spike


def spike_share(losses: Values) -> float:
    """Compute the share of spikes among the steps that can be judged; 0 if there is no such step."""
    is_spike = spikes(losses)
    return float(is_spike.mean()) if is_spike.size else 0.0


def late_rise(losses: Values) -> tuple[float, float]:
    """Test the last third for a rise: the one-sided p value, and the size as a share of the median loss of the third.

    From 28 steps on: Mann-Kendall on the last third (see ``trend``), size from its Theil-Sen slope. Below: exact
    Mann-Whitney of the last third against as many steps before it (at least six), size from their medians.
    """
    from scipy import stats

    count = math.ceil(losses.size / 3)
    last = losses[-count:]
    scale = max(float(np.median(np.abs(last))), float(np.finfo(float).tiny))
    if count >= KENDALL_MIN:
        blocks = block_means(last, min(count, KENDALL_BLOCKS))
        last_trend = trend(blocks)
        return last_trend.p_up, last_trend.slope * (blocks.size - 1) / scale
    reference = losses[-count - max(count, RISE_REFERENCE_MIN) : -count]
    p = float(stats.mannwhitneyu(last, reference, alternative="greater").pvalue)
    return p, float(np.median(last) - np.median(reference)) / scale


def _shortest_rise(alpha: float) -> int:
    """Return the fewest steps with which the exact test of ``late_rise`` can reach ``alpha``."""
    n = 4
    while 1 / math.comb(min(n, math.ceil(n / 3) + max(math.ceil(n / 3), RISE_REFERENCE_MIN)), math.ceil(n / 3)) > alpha:
        n += 1
    return n


def roughness(losses: Values) -> float:
    """Compute the mean upward move between neighbouring block means, in log loss.

    There are at most twenty blocks, each of five steps or more.
    """
    blocks = block_means(losses, min(losses.size // ROUGH_BLOCK, ROUGH_BLOCKS_MAX))
    moves = np.diff(np.log(np.maximum(blocks, np.finfo(float).tiny)))
    return float(np.maximum(moves, 0).mean())


def block_means(values: Values, count: int) -> Values:
    """Compute the means of ``count`` consecutive blocks of nearly equal length."""
    return np.array([block.mean() for block in np.array_split(values, count)])


def trend(values: Values) -> Trend:
    """Test for a monotonic trend: Mann-Kendall (Mann 1945) with Hamed-Rao's variance (1998), and Theil-Sen slope.

    The larger of the plain and the autocorrelation-corrected p value counts: on few values the correction may shrink
    the variance by chance. NaN with fewer than ten values, or if one is not finite.
    """
    import pymannkendall
    from scipy import stats

    if values.size < KENDALL_MIN or not np.isfinite(values).all():
        return Trend(math.nan, math.nan, math.nan)
    with np.errstate(invalid="ignore"):  # a negative corrected variance gives NaN, filtered below
        plain, corrected = pymannkendall.original_test(values), pymannkendall.hamed_rao_modification_test(values)
    z = [test.z for test in (plain, corrected) if math.isfinite(test.z)]
    return Trend(
        slope=float(plain.slope),
        p_down=max(float(stats.norm.cdf(value)) for value in z),
        p_up=max(float(stats.norm.sf(value)) for value in z),
    )


def _array(values: Sequence[float]) -> Values:
    return np.asarray(values, dtype=np.float64)

"""The test for a memory leak: a pure function of the host memory at each step."""

import math
from collections.abc import Sequence

import numpy as np

from roofscale.stats.curves import MAD_TO_SIGMA, Finding, Values, Verdict

LEAK_ALPHA = 0.01
LEAK_WARMUP = 3  # steps; the first shows 72-92 % of the plateau, because AdamW allocates its state at the end of it
LEAK_WARMUP_SHARE = 0.2  # of the steps, if that is more than LEAK_WARMUP
LEAK_POINTS_MAX = 200  # beyond these, block medians: the slope takes time and memory in the square of the points


def no_leak(memory_mib: Sequence[float], *, max_mib_per_step: float = 10.0, max_growth_share: float = 0.25) -> Finding:
    """Judge whether host memory keeps growing after warm-up.

    The test is the Theil-Sen slope over the steps after warm-up with its 98 % interval (Sen 1968), so that each bound
    errs at most once in a hundred; single allocations are removed first (``_without_jumps``). The limit is
    ``max_mib_per_step`` or, if that is less, the slope that adds ``max_growth_share`` of the plateau over the run.

    Failed: the slope is over the limit, significantly above zero, and over half the limit in both halves. Passed: the
    slope is within the limit, and a slope of twice the limit (20 MiB a step by default) is excluded. Otherwise the
    evidence is insufficient.

    Args:
        memory_mib: memory of the process tree at each step, MiB; NaN where it was not sampled.
        max_mib_per_step: largest lasting growth per step, MiB.
        max_growth_share: largest lasting growth over the run, as a share of the plateau.
    """
    from scipy import stats  # takes seconds, so only where a test is made

    x, y = _plateau(np.asarray(memory_mib, dtype=np.float64))
    needed = next(
        n for n in range(2, 20) if 1 / math.factorial(n) < LEAK_ALPHA
    )  # a rise in every step is one of n! orders
    if y.size < needed:
        text = f"memory of {y.size} steps after warm-up; the test needs {needed}"
        return Finding(Verdict.INSUFFICIENT_EVIDENCE, text, {"points": y.size})
    fit = stats.theilslopes(_without_jumps(y), x, alpha=1 - 2 * LEAK_ALPHA)
    limit = min(max_mib_per_step, max_growth_share * float(np.median(y)) / (x[-1] - x[0] + 1))
    slope, low, high = float(fit.slope), float(fit.low_slope), float(fit.high_slope)
    verdict = Verdict.INSUFFICIENT_EVIDENCE
    if slope > limit and low > 0 and _slope_of_flatter_half(x, y) > limit / 2:
        verdict = Verdict.FAILED
    elif slope <= limit and high < 2 * limit:
        verdict = Verdict.PASSED
    return Finding(
        verdict,
        f"memory {slope:+.1f} MiB a step (98 % interval {low:+.1f} to {high:+.1f}; limit {limit:.1f}) "
        f"over {y.size} points after warm-up",
        {"slope_mib": slope, "low_mib": low, "high_mib": high, "limit_mib": limit, "points": y.size},
    )


def _slope_of_flatter_half(x: Values, y: Values) -> float:
    """Return the smaller Theil-Sen slope of the two halves: a leak grows in both, a single allocation in one."""
    from scipy import stats

    middle = y.size // 2
    return min(float(stats.theilslopes(y[part], x[part]).slope) for part in (slice(middle), slice(middle, None)))


def _plateau(memory: Values) -> tuple[Values, Values]:
    """Return step indices and memory of the sampled steps after warm-up, as block medians if they are many."""
    warmup = max(LEAK_WARMUP, round(LEAK_WARMUP_SHARE * memory.size))
    x, y = np.arange(memory.size, dtype=float)[warmup:], memory[warmup:]
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if y.size <= LEAK_POINTS_MAX:
        return x, y
    blocks = zip(np.array_split(x, LEAK_POINTS_MAX), np.array_split(y, LEAK_POINTS_MAX), strict=True)
    pairs = np.array([(np.mean(steps), np.median(mib)) for steps, mib in blocks])
    return pairs[:, 0], pairs[:, 1]


def _without_jumps(memory: Values) -> Values:
    """Remove single allocations: moves over 5 robust sigmas from the median move, at most one in sixteen steps.

    A buffer that is allocated once is no leak; a leak grows in most steps and so remains.
    """
    moves = np.diff(memory)
    excess = moves - np.median(moves)
    sigma = MAD_TO_SIGMA * float(np.median(np.abs(excess)))
    largest = np.argsort(-np.abs(excess))[: max(1, memory.size // 16)]
    jumps = largest[np.abs(excess[largest]) > 5 * sigma]
    moves[jumps] = np.median(moves)
    return np.concatenate([memory[:1], memory[0] + np.cumsum(moves)])

"""Figures of a search: the Pareto front of speed against memory, and Optuna's own plots."""

import warnings
from collections.abc import Callable, Iterator, Sequence

import optuna
from matplotlib.figure import Figure
from optuna.visualization import matplotlib as plots

from roofscale.measurement import Outcome
from roofscale.phases.search.choice import Choice, format_config
from roofscale.phases.search.trial_result import SKIPPED, TrialResult
from roofscale.report.figures import style

_MAX_SHARE = 1.6  # of the memory; trials above it are drawn at it
_PLOTS: dict[str, Callable[[optuna.Study], object]] = {
    "history": plots.plot_optimization_history,
    "importances": plots.plot_param_importances,
    "slices": plots.plot_slice,
    "parallel": plots.plot_parallel_coordinate,
    "contour": plots.plot_contour,
}


def pareto_figure(tried: Sequence[TrialResult], choice: Choice | None) -> Figure | None:
    """Plot samples per second against the share of the memory, with the front, the choice and the skipped trials;
    None if fewer than two trials were timed."""
    timed = [trial for trial in tried if trial.pace]
    if len(timed) < 2:
        return None
    figure, axes = style.new_axes("Speed against memory", "peak, % of the memory", "samples a second")
    axes.plot([100 * t.share for t in timed], [t.rate for t in timed], "o", color=style.BESIDE, label="trials")
    if choice:
        front = choice.front
        axes.plot([100 * trial.share for trial in front], [trial.rate for trial in front], "o-", color=style.MEASURED,
                  label="Pareto front: none is faster with less memory")  # fmt: skip
        chosen = choice.chosen
        label = f"chosen: {format_config(chosen.config)}"
        axes.plot(100 * chosen.share, chosen.rate, "*", ms=16, color=style.WAITING, label=label)
    died = [trial for trial in tried if not trial.pace and trial.outcome not in (SKIPPED, Outcome.OK)]
    skipped = [trial for trial in tried if trial.outcome == SKIPPED]
    for group, mark, label in ((died, "x", "ran out of memory"), (skipped, "|", "skipped: known to be too large")):
        if group:
            shares = [100 * min(_MAX_SHARE, trial.share) for trial in group]
            axes.plot(shares, [0] * len(group), mark, ms=10, color=style.LINE, label=label)
    axes.axvline(100 * timed[0].max_share, ls="--", color=style.LINE, lw=1)
    axes.set_ylim(0, None)
    axes.legend(frameon=False, fontsize=9)
    return figure


def optuna_figures(study: optuna.Study) -> Iterator[tuple[str, Figure]]:
    """Yield Optuna's plots of a study with their names, without those that the study is too small for."""
    import matplotlib.pyplot as plt

    for name, draw in _PLOTS.items():
        with warnings.catch_warnings(), plt.rc_context():  # Optuna sets a style for all figures to come
            warnings.simplefilter("ignore")  # Optuna warns that these plots are experimental
            try:
                draw(study)
            except (ValueError, RuntimeError):  # too few trials, such as importances of a single one
                plt.close("all")
                continue
        yield name, plt.gcf()
        plt.close("all")

"""What a search found, drawn: the Pareto front of speed against memory, and Optuna's own plots."""

import warnings
from collections.abc import Callable, Iterator, Sequence

import optuna
from matplotlib.figure import Figure
from optuna.visualization import matplotlib as plots

from roofscale.measurement import Outcome
from roofscale.phases.search.choice import Choice, format_config
from roofscale.phases.search.trial_result import SKIPPED, TrialResult
from roofscale.report.figures import style

_WIDEST = 1.6  # times the memory; what is further over is drawn there
_PLOTS: dict[str, Callable[[optuna.Study], object]] = {
    "history": plots.plot_optimization_history,
    "importances": plots.plot_param_importances,
    "slices": plots.plot_slice,
    "parallel": plots.plot_parallel_coordinate,
    "contour": plots.plot_contour,
}


def pareto_figure(tried: Sequence[TrialResult], choice: Choice | None) -> Figure | None:
    """Samples a second against the share of the memory, with the front, the choice and what was never run."""
    ran = [one for one in tried if one.pace]
    if len(ran) < 2:
        return None
    figure, axes = style.new_axes("Speed against memory", "peak, % of the memory", "samples a second")
    axes.plot([100 * one.share for one in ran], [one.rate for one in ran], "o", color=style.BESIDE, label="trials")
    if choice:
        front = choice.front
        axes.plot([100 * one.share for one in front], [one.rate for one in front], "o-", color=style.MEASURED,
                  label="Pareto front: none is faster with less memory")  # fmt: skip
        chosen = choice.chosen
        said = f"chosen: {format_config(chosen.config)}"
        axes.plot(100 * chosen.share, chosen.rate, "*", ms=16, color=style.WAITING, label=said)
    died = [one for one in tried if not one.pace and one.outcome not in (SKIPPED, Outcome.OK)]
    skipped = [one for one in tried if one.outcome == SKIPPED]
    for group, mark, said in ((died, "x", "ran out of memory"), (skipped, "|", "skipped: known to be too large")):
        if group:
            shares = [100 * min(_WIDEST, one.share) for one in group]
            axes.plot(shares, [0] * len(group), mark, ms=10, color=style.LINE, label=said)
    axes.axvline(100 * ran[0].max_share, ls="--", color=style.LINE, lw=1)
    axes.set_ylim(0, None)
    axes.legend(frameon=False, fontsize=9)
    return figure


def optuna_figures(study: optuna.Study) -> Iterator[tuple[str, Figure]]:
    """Optuna's plots of a study, by name; those that the study is too small for are left out."""
    import matplotlib.pyplot as plt

    for name, draw in _PLOTS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the plots are experimental
            try:
                draw(study)
            except (ValueError, RuntimeError):  # such as importances of a single trial
                plt.close("all")
                continue
        yield name, plt.gcf()
        plt.close("all")

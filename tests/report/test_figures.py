"""The figures of runs and climbs: drawn only where there is evidence, and showing just what was measured."""

import math
from collections.abc import Sequence
from dataclasses import replace

import matplotlib
import numpy as np
import optuna
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from tests.report.synthetic_results import BATCHES, climb, measured, passed_samples, phase, rolled_back, run

from roofscale.measurement import Measurement, MemoryPoint, Outcome, StepRecord, Validation
from roofscale.phases.judge import Verdict
from roofscale.phases.results import PhaseResult, StepResult
from roofscale.report.figures import style
from roofscale.report.figures.phase import CAPTIONS, ladder_figure, phase_figures
from roofscale.report.figures.run import run_figures, running_median
from roofscale.report.figures.scaling import runs_by_knob
from roofscale.report.figures.search import optuna_figures

BATCH_PLAN = phase(BATCHES)
DATASETS = phase("""
phase: 4
name: data-sets
steps:
  - {name: one, set: {datasets: rid}, criteria: {completes: }}
  - {name: two, set: {datasets: "rid,airs"}, criteria: {completes: }}
""")
WORKERS = phase("""
phase: 3
name: workers
steps:
  - {name: none, set: {num_workers: 0}, criteria: {completes: }}
  - {name: two, set: {num_workers: 2}, criteria: {completes: , data_stall: {max_share: 0.3}}}
""")


def lines(figure: Figure) -> dict[str, dict[float, float]]:
    """Every labelled line as y by x."""
    (axes,) = figure.axes
    found = {line.get_label(): line for line in axes.lines}
    found |= {group.get_label(): group.lines[0] for group in axes.containers if hasattr(group, "lines")}
    return {
        str(label): {float(x): float(y) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}
        for label, line in found.items()
        if not str(label).startswith("_")
    }


def memory(found: PhaseResult) -> dict[str, dict[float, float]]:
    """What the figure of memory by batch shows."""
    return lines(phase_figures(found)["memory_by_batch.png"])


def fits(drawn: dict[str, dict[float, float]]) -> list[str]:
    """The labels of fitted lines."""
    return [label for label in drawn if label.startswith("fit")]


def texts(figure: Figure) -> list[str]:
    """Every word beside the axes' ticks' numbers."""
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def timed(result: StepResult, seconds: Sequence[float], batch: int) -> StepResult:
    """The same result with steps that took these seconds."""
    steps = tuple(
        StepRecord(i, 0, "rid", i * batch, 1.0, 1.0, 1e-3, s, 0.0, float(i)) for i, s in enumerate(seconds, 1)
    )
    return replace(result, measurement=replace(result.measurement, steps=steps))


def batches(*metrics: dict[str, float]) -> PhaseResult:
    """Batch 4, 8 and 16 with these metrics; each step took as long as its batch over samples/s says."""
    results: list[StepResult] = []
    for place, found in enumerate(metrics):
        size = (4, 8, 16)[place]
        seconds = np.full(12, size / found["speed/samples_per_s"]) * np.linspace(0.98, 1.02, 12)
        results.append(timed(run(BATCH_PLAN, place, found, before=results), seconds, size))
    return climb(BATCH_PLAN, *results)


def test_a_climb_without_evidence_has_no_figure() -> None:
    assert phase_figures(climb(BATCH_PLAN)) == {}


def test_every_figure_that_can_be_drawn_has_a_caption_and_its_units() -> None:
    found = [phase_figures(c) for c in (batches(measured(3000, 1.5), measured(5000, 2.0)), passed_samples())]
    assert set(found[0]) == {"ladder.png", "expected.png", "memory_by_batch.png", "throughput_by_batch.png"}
    assert set(found[1]) == {"ladder.png", "expected.png"}  # the batch is the same in every step
    assert all(set(figures) <= set(CAPTIONS) for figures in found)
    axes = found[0]["memory_by_batch.png"].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("batch size, samples", "peak, MiB")


def test_memory_is_fitted_from_three_batches_on_and_held_against_the_limit() -> None:
    assert not fits(memory(batches(measured(1400), measured(1800))))
    drawn = memory(batches(measured(1400), measured(1800), measured(2600)))
    assert drawn["fit: 1,000 MiB + 100 MiB a sample"] == pytest.approx({0: 1000, 16: 2600})
    assert "far above: limit 10,000 MiB, 80 % of it 8,000 MiB" in drawn
    near = memory(batches(measured(3000), measured(5000), measured(9000)))
    assert set(near["limit 10,000 MiB"].values()) == {10_000}
    assert set(near["80 % of it, 8,000 MiB"].values()) == {8_000}
    assert near["failed"] == {16: 9000}


def test_a_run_out_of_memory_stands_at_the_limit_and_not_in_the_fit() -> None:
    *held, last = batches(measured(3000), measured(5000), measured(9990)).results
    burst = replace(last, measurement=replace(last.measurement, outcome=Outcome.HOST_OOM))
    drawn = memory(climb(BATCH_PLAN, *held, burst))
    assert drawn["ran out of memory"] == pytest.approx({16: 10_000})
    assert drawn["passed"] == {4: 3000, 8: 5000}
    assert not fits(drawn)


def test_a_run_that_was_only_ruled_out_is_no_point() -> None:
    found = rolled_back()  # its runs at 16 and 14 have no metrics
    assert [(p.x, p.was_run) for p in runs_by_knob(found, "batch_size")] == [
        (4, True), (8, True), (16, False), (14, False), (12, True),
    ]  # fmt: skip
    assert "ran out of memory" not in memory(found)


def test_a_run_that_differs_in_more_than_the_batch_is_hollow_and_not_in_the_fit() -> None:
    *held, last = batches(measured(3000), measured(5000), measured(9000)).results
    mixed = climb(BATCH_PLAN, *held, replace(last, config=last.config.with_overrides({"prefetch_factor": 1})))
    drawn = memory(mixed)
    assert drawn["failed, other knobs changed too"] == {16: 9000}
    assert not fits(drawn)
    assert set(lines(phase_figures(mixed)["throughput_by_batch.png"])["mean and 90 % interval"]) == {4, 8}


def test_a_seed_or_another_number_of_samples_is_no_other_setting() -> None:
    four, eight = batches(measured(3000), measured(5000)).results
    other = eight.config.with_overrides({"seed": 5, "max_samples": 50, "lr": 1e-4})
    found = runs_by_knob(climb(BATCH_PLAN, four, replace(eight, config=other)), "batch_size")
    assert [point.alike for point in found] == [True, True]


@pytest.mark.parametrize(("rates", "knee"), [((1.0, 2.0, 2.05), 8), ((1.0, 2.0, 3.0), 16), ((2.0, 2.0, 2.0), 4)])
def test_the_knee_is_marked_at_the_smallest_batch_near_the_best(rates: tuple[float, ...], knee: int) -> None:
    figure = phase_figures(batches(*(measured(3000, rate) for rate in rates)))["throughput_by_batch.png"]
    (marked,) = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert set(marked.get_xdata()) == {knee}
    assert lines(figure)["mean and 90 % interval"] == pytest.approx(dict(zip((4, 8, 16), rates, strict=True)), rel=0.01)
    assert any("knee" in text for text in texts(figure))


def test_a_batch_over_the_memory_limit_is_no_knee() -> None:
    figure = phase_figures(batches(measured(3000, 1.0), measured(5000, 2.0), measured(9000, 3.0)))
    (marked,) = [line for line in figure["throughput_by_batch.png"].axes[0].lines if line.get_linestyle() == "--"]
    assert set(marked.get_xdata()) == {8}


def test_the_loader_is_shown_by_workers_in_percent() -> None:
    metrics = [{"speed/data_stall": 0.3, "speed/loader_wait": 0.4, "cpu/utilisation": 0.5}, {"speed/data_stall": 0.1}]
    found = climb(WORKERS, *(run(WORKERS, place, values) for place, values in enumerate(metrics)))
    drawn = lines(phase_figures(found)["stall_by_workers.png"])
    assert drawn["data stall: what a cached batch saves"] == pytest.approx({0: 30, 2: 10})
    assert drawn["waiting for the loader"] == pytest.approx({0: 40})  # not measured with two
    assert set(drawn["a stall and a wait both over 30 % fail"].values()) == {30}


def switched(datasets: Sequence[str] = ("rid", "airs"), each: int = 6) -> StepResult:
    """A run of one data set after the other, with the untrained net's validation loss far off."""
    steps, validations = [], []
    for place, name in enumerate(datasets):
        for _ in range(each):
            number = len(steps) + 1
            steps.append(StepRecord(number, place, name, number * 2, 1.0 / number, 1.0, 1e-3, 1.0, 0.0, float(number)))
        for seen in datasets[: place + 1]:
            validations.append(Validation(len(steps), place, seen, ("a",), (0.5,), (1.0,), {"loss": 0.5}, 1.0))
    first = Validation(0, 0, datasets[0], ("a",), (90.0,), (1.0,), {"loss": 90.0}, 1.0)
    result = run(DATASETS, 1, {})
    return replace(
        result, measurement=replace(result.measurement, steps=tuple(steps), validations=(first, *validations))
    )


def test_losses_are_coloured_by_data_set_with_the_switch_marked() -> None:
    figure = phase_figures(climb(DATASETS, run(DATASETS, 0, {}), switched()))["loss_by_dataset.png"]
    (axes,) = figure.axes  # the step with one data set has no panel
    assert axes.get_title(loc="left") == "two"
    coloured = {line.get_color() for line in axes.lines} - {style.LINE}
    assert coloured == {style.dataset_colour("rid"), style.dataset_colour("airs")}
    (switch,) = [line for line in axes.lines if line.get_color() == style.LINE]
    assert set(switch.get_xdata()) == {6.5}
    assert texts(figure) == [" airs begins"]
    assert axes.get_ylim()[1] < 2  # the untrained net's 90 would press everything flat
    validated = {tuple(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "--"}
    assert validated == {(0, 6, 12), (12,)}


def test_a_mixture_of_data_sets_is_drawn_as_one() -> None:
    mixed = switched(("rid+airs", "airs", "airs+rid"), each=2)  # as the batches happen to be composed
    mixed = replace(mixed, config=mixed.config.with_overrides({"schedule": "mixed"}))
    figure = phase_figures(climb(DATASETS, run(DATASETS, 0, {}), mixed))["loss_by_dataset.png"]
    (medians,) = [line for line in figure.axes[0].lines if line.get_color() == style.MIXED and line.get_ls() == "-"]
    assert list(medians.get_xdata()) == [1, 2, 3, 4, 5, 6]
    assert texts(figure) == []


def test_optunas_plots_leave_the_style_of_other_figures_alone() -> None:
    study = optuna.create_study(directions=["maximize"])
    for size in (1, 2, 3):
        distributions = {"batch_size": optuna.distributions.IntDistribution(1, 4)}
        trial = optuna.trial.create_trial(params={"batch_size": size}, distributions=distributions, values=[size])
        study.add_trial(trial)
    before = dict(matplotlib.rcParams)
    assert dict(optuna_figures(study))
    assert dict(matplotlib.rcParams) == before


def test_the_ladder_shows_every_run_the_steps_not_reached_and_why_one_failed() -> None:
    figure = ladder_figure([passed_samples(), replace(rolled_back(), results=rolled_back().results[:2])])
    assert figure is not None
    ladder, time, shares = figure.axes
    assert [label.get_text() for label in ladder.get_yticklabels()] == [
        "few", "many", "Phase 1: more-samples", "batch-4", "batch-8", "batch-16", "Phase 2: larger-batches",
    ]  # fmt: skip
    said = [text.get_text() for text in ladder.texts]
    assert said == ["passed", "passed", "passed", "failed\nmemory_margin", "not reached"]
    assert [text.get_text() for text in shares.texts] == ["20%", "21%", "30%", "70%"]
    assert [text.get_text() for text in time.texts] == ["1.0"] * 4


def test_a_fallback_is_a_shorter_rung_above_what_the_step_asked_for() -> None:
    figure = ladder_figure([rolled_back()])
    assert figure is not None
    ladder = figure.axes[0]
    labels = [label.get_text() for label in ladder.get_yticklabels()]
    assert labels[2:5] == ["batch-16", "↳ batch_size=14", "↳ batch_size=12"]
    asked, *fallbacks = ladder.patches[2:5]
    assert all(rung.get_width() < asked.get_width() for rung in fallbacks)
    colours = [style.VERDICT_COLOUR[v] for v in (Verdict.FAILED, Verdict.FAILED, Verdict.PASSED)]
    assert [to_hex(rung.get_facecolor()) for rung in (asked, *fallbacks)] == colours
    assert ladder.texts[3].get_text() == "failed\nhost_oom, ruled out"


def test_what_was_expected_is_compared_where_a_run_was_held_to_it() -> None:
    found = rolled_back().comparisons
    assert [(c.step, c.expectation.metric, c.verdict) for c in found] == [("batch-8", "memory/peak_mib", "failed")]
    assert found[0].measured == pytest.approx(7 / 3)
    figure = phase_figures(rolled_back())["expected.png"]
    bar = next(iter(figure.axes[0].patches))
    assert (bar.get_x(), bar.get_x() + bar.get_width()) == pytest.approx((0.8, 1.2))


def test_an_expectation_that_was_not_measured_is_told_but_not_drawn() -> None:
    four = run(BATCH_PLAN, 0, measured(3000))
    found = climb(BATCH_PLAN, four, run(BATCH_PLAN, 1, {}, before=[four]))
    assert [math.isnan(c.measured) for c in found.comparisons] == [True]
    assert "expected.png" not in phase_figures(found)


def test_a_run_that_diverged_is_still_drawn() -> None:
    losses = (1.0, 2.0, math.inf)
    steps = tuple(StepRecord(i, 0, "rid", i, loss, 1.0, 1e-3, 1.0, 0.0, float(i)) for i, loss in enumerate(losses, 1))
    levels = tuple(MemoryPoint(float(i), 100.0) for i in range(3))
    metrics = {"memory/peak_mib": 100.0, "memory/share": 0.1}
    figures = run_figures(Measurement(Outcome.DIVERGED, "", "f", steps, memory=levels, metrics=metrics))
    assert set(figures) == {"loss.png", "memory.png", "throughput.png"}
    assert figures["loss.png"].axes[0].get_ylim() == (0, pytest.approx(2.2))


def test_a_run_without_steps_has_no_figure() -> None:
    assert run_figures(Measurement(Outcome.CRASHED, "", "f")) == {}


def test_the_running_median_ignores_a_spike() -> None:
    values = [1.0] * 9 + [100.0] + [1.0] * 10
    assert running_median(values) == [1.0] * 20


def test_colours_of_verdicts_and_data_sets_are_all_different() -> None:
    used = [*style.VERDICT_COLOUR.values(), *style.DATASET_COLOUR.values(), style.MIXED, style.MEASURED, style.WAITING]
    assert len(set(used)) == len(used)
    assert set(style.VERDICT_MARK) == set(style.VERDICT_COLOUR) == set(Verdict)

"""What the search costs, and how well it chooses, beside other ways.

The whole grid is measured with real trials, once; ways of searching are then replayed on what was measured, so that
each can be judged over many seeds. Tools that search in the process that trains are run for real, and so is what the
search has chosen. Everything that was run is kept: the same command goes on where it was stopped.
"""

import dataclasses
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
from rich.markup import escape
from rich.table import Table

from benchmarks.search_comparison import replay
from benchmarks.search_comparison.grid import Grid, GridRun, Place
from benchmarks.search_comparison.replay import METHODS, Contest, Played, Summary, play, summaries
from benchmarks.search_comparison.runs import TRAININGS, Bench, Rival, bar
from roofscale import compute
from roofscale.cli.console import console, plain
from roofscale.config import RunConfig
from roofscale.data.sources import resolve_data
from roofscale.files import write_json
from roofscale.forecast.probes import local_profile
from roofscale.memory_margin import MEMORY_MARGIN
from roofscale.phases.search.space import KNOBS, SearchSpec
from roofscale.provenance import git_state
from roofscale.report.format import as_json

SEEDS = 20  # studies of each method
LEFT_OUT = 1 / 3  # of the grid, by the default limit


def compare_searches(
    spec: SearchSpec, base: RunConfig, folder: Path, cache: Path, to_json: bool = False, seeds: int = SEEDS
) -> int:
    """Measure, replay, run rivals, confirm; and leave all of it in ``comparison.json``.

    Args:
        spec: the space.
        base: what every trial stands on. Its compute is the limit, such as local:1.05; where it names none (local), a
            third of the space is left out.
        folder: where everything is kept.
        cache: of generated data.
        to_json: for a script on standard output.
        seeds: studies of each method.

    Returns:
        0 where the search met its targets, 1 where it did not.

    Raises:
        ConfigError: it would train on a GPU, or nothing fits.
        RunInterrupted: the user stopped a run; the same command continues there.
    """
    out = console(quiet=to_json)
    base = resolve_data([base], cache, plain(out))[0]
    bench = Bench(folder, spec)
    runs = list(bench.grid_runs(base))
    contest = _contest(Grid(runs), spec, base)
    runs += bench.finalist_runs(contest.grid, contest.memory_mib, base)
    contest = dataclasses.replace(contest, grid=Grid(runs))
    out.print(escape(_said_of_grid(contest)))
    played = _play_all(contest, seeds)
    found = summaries(played)
    out.print(_methods_table(found))
    ours = found[-1]
    assert ours.method == "ours"
    rivals, missing = bench.rivals(contest)
    out.print(_rivals_table(rivals, missing))
    confirmed = bench.confirm(contest, ours.often) if ours.often else {}
    for line in _confirmed_lines(confirmed):
        out.print(escape(line))
    content = _content(contest, runs, played, found, rivals, confirmed)
    write_json(folder / "comparison.json", content)
    if to_json:
        print(as_json(content))
    out.print(f"All of it: {folder / 'comparison.json'}")
    return 0 if ours.met and confirmed["trainings"]["ok"] == TRAININGS else 1


def _contest(grid: Grid, spec: SearchSpec, base: RunConfig) -> Contest:
    size = compute.get(base.compute)
    kind = local_profile(base, size)
    if base.compute == compute.LOCAL:
        gib = round(grid.memory_that_leaves_out(LEFT_OUT) / 1024, 2)
        base = base.with_overrides({"compute": f"{compute.LOCAL}:{gib:.2f}"})
    memory = compute.resource_limits(compute.get(base.compute)).memory_bytes / compute.MIB
    return Contest(grid, spec, base, kind, memory)


def _play_all(contest: Contest, seeds: int) -> list[Played]:
    studies = [(method, seed) for method in METHODS for seed in range(seeds)]
    return [play(method, contest, seed) for method, seed in bar(studies, "replay")]


def _said_of_grid(contest: Contest) -> str:
    grid, limit = contest.grid, contest.memory_mib
    best, over = grid.best(limit), len(grid.over(limit))
    fit = sum(grid.fits(place, limit) for place in grid.runs)
    runs = sum(map(len, grid.runs.values()))
    return (
        f"Grid: {len(grid.runs)} configs, measured in {runs} runs; those of one differ by {grid.pace_spread:.1%} "
        f"in pace and {grid.peak_spread:.1%} in memory. Of {limit:,.0f} MiB {over} run out, and {fit} stay within "
        f"{MEMORY_MARGIN:.0%}. The best of these: {_named(best)}, {grid.rate(best):.3g} samples/s."
    )


def _methods_table(found: Sequence[Summary]) -> Table:
    title = f"{found[0].studies} studies of each method, replayed on the measured grid: no trial of these was run anew"
    table = Table("method", "samples/s over best", "its memory", title=title, title_justify="left")
    for column in ("trials", "ran out", "samples over grid's", "chosen most often"):
        table.add_column(column)
    for one in found:
        table.add_row(
            one.method,
            f"{one.ratio[0]:.3f}, worst {one.ratio[1]:.3f}",
            f"{one.share[0]:.0%}, most {one.share[1]:.0%}",
            f"{one.trials[0]:.1f}, most {one.trials[1]}",
            f"{one.ran_out[0]:.1f}, most {one.ran_out[1]}",
            f"{one.samples[0]:.0%}, most {one.samples[1]:.0%}",
            f"{_named(one.often)} ({one.chosen})" if one.often else "nothing",
        )
    wanted = f">= {replay.LEAST_RATIO}", "", "", f"<= {replay.MOST_RAN_OUT}", f"<= {replay.MOST_SAMPLES:.0%}"
    table.add_section()
    table.add_row("wanted of ours", *wanted)
    return table


def _rivals_table(found: Sequence[Mapping[str, Any]], missing: Sequence[Rival]) -> Table:
    title = "Tools that search in the process that trains, run for real under the limit (batch size only)"
    table = Table("tool", "outcome", "found", "largest batch trained", "samples", title=title, title_justify="left")
    for one in found:
        ratio = f", {one['ratio']:.3f} of the best at {one['share']:.0%} of the memory" if one["ratio"] else ""
        batch = "nothing" if one["found"] is None else f"{one['found']}{ratio}"
        table.add_row(one["said"], one["outcome"], batch, str(one["largest_trained"]), str(one["samples"]))
    for rival in missing:
        table.add_row(rival.said, f"left out: {rival.library} or benchmarks/ is not here (make bench)")
    return table


def _confirmed_lines(confirmed: Mapping[str, Any]) -> Iterator[str]:
    """What was run for real of the search's choice."""
    if not confirmed:
        yield "The search mostly chose nothing, so there is nothing to confirm."
        return
    said, turns = _named(confirmed["chosen"]), confirmed["turns"]
    if turns["chosen"]:
        ratios = [a / b for a, b in zip(turns["chosen"], turns["best"], strict=True)]
        yield (
            f"Run for real under the limit, by turns, {len(ratios)} rounds: {said} over {_named(confirmed['best'])}: "
            f"median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})."
        )
    else:
        yield f"{said} is the best of the grid itself."
    trained = confirmed["trainings"]
    yield (
        f"Trained for two passes with validation under the limit: {trained['ok']} of {len(trained['outcomes'])} ended "
        f"well, at most at {max(trained['shares']):.0%} of the memory."
    )
    edge = confirmed["edge"]
    right = sum(one["expected"] == one["outcome"] for one in edge)
    yield f"Next to the limit, {right} of {len(edge)} configs ended under it as the replay says."


def _content(
    contest: Contest,
    runs: Sequence[GridRun],
    played: Sequence[Played],
    found: Sequence[Summary],
    rivals: Sequence[Mapping[str, Any]],
    confirmed: Mapping[str, Any],
) -> dict[str, Any]:
    grid, limit = contest.grid, contest.memory_mib
    return {
        "how": "methods are replayed on measured cells; rivals, turns, trainings and edge were run for real",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "optuna": optuna.__version__,
            **git_state(Path.cwd()),
        },
        "kind": dataclasses.asdict(contest.kind),
        "base": contest.base.with_overrides({"data_root": ""}).diff(RunConfig()),
        "spec": dataclasses.asdict(contest.spec),
        "memory_mib": limit,
        "grid": {
            "configs": len(grid.runs),
            "over_limit": len(grid.over(limit)),
            "fit": sum(grid.fits(place, limit) for place in grid.runs),
            "best": grid.best(limit),
            "pace_spread": grid.pace_spread,
            "peak_spread": grid.peak_spread,
        },
        "summaries": [{**dataclasses.asdict(one), "met": one.met} for one in found],
        "rivals": rivals,
        "confirmed": confirmed,
        "played": [dataclasses.asdict(one) for one in played],
        "runs": [dataclasses.asdict(one) for one in runs],
    }


def _named(place: Place) -> str:
    return " ".join(f"{knob}={value}" for knob, value in zip(KNOBS, place, strict=True))

"""Climbing: a phase, all of them, or the search of phase 3."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from roofscale.cli.options import (
    GENERATED,
    PHASES,
    RUNS,
    dry_run_option,
    json_option,
    project_run,
    runner_option,
    words_of,
)


def climb_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that climbs."""
    options = [
        click.option("--overlay", default="", help="Overlay whose knobs and policies win, such as smoke.yaml."),
        click.option("--set", "more", multiple=True, help="KEY=VALUE words for every step, several in one text."),
        click.option("--compute", default="", help="Where to run, such as ml.m5.xlarge."),
        runner_option,
        switch("--from-defaults", "Start from the defaults, not from what the phase before has learnt."),
        switch("--fresh", "Begin a new attempt even if one was left half done, and forget what ran out of memory."),
        switch("--force", "Go on where a requirement of the phase, such as the gate, is not met; it is recorded."),
        dry_run_option,
        json_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def switch(name: str, text: str) -> Callable[..., Any]:
    """A switch that an MLproject can pass a value to as well: --fresh, or --fresh true."""
    return click.option(name, type=bool, is_flag=False, flag_value=True, default=False, help=text)


@click.command()
@click.argument("number", type=click.IntRange(1, 5))
@click.option("--file", type=click.Path(path_type=Path), help="Phase file; else experiments/phase<N>.yaml.")
@climb_options
def phase(number: int, file: Path | None, dry_run: bool, **wishes: Any) -> None:
    """Climb a phase: run its steps, judge each, and write down what was found."""
    from roofscale.commands import phase as commands

    with project_run() as results_are_in:
        order = commands.Order(**_order(**wishes))
        if dry_run:
            commands.preview(order.load(number, file), order)
            return
        climbed = commands.climb_phase(number, order, file)
        if climbed:
            results_are_in(climbed.run_id)
    sys.exit(commands.exit_code(climbed) if climbed else 1)


@click.command()
@climb_options
def climb(dry_run: bool, **wishes: Any) -> None:
    """Climb all phases in order, each from what the one before has learnt."""
    from roofscale.commands import phase as commands

    with project_run() as results_are_in:
        order = commands.Order(**_order(**wishes))
        if dry_run:
            commands.preview_all(order)
            return
        climbs, code = commands.climb_all(order)
        for climbed in climbs[-1:]:
            results_are_in(climbed.run_id)
    sys.exit(code)


@click.command()
@click.option("--file", type=click.Path(path_type=Path), help="Phase file; else experiments/phase3.yaml.")
@click.option(
    "--storage",
    default="",
    envvar="ROOFSCALE_STORAGE",
    help="URL of an Optuna database that several workers share, such as postgresql+psycopg2://user@host/name.",
)
@click.option("--join", default="", help="Run trials of the study of this name, which another process conducts.")
@click.option("--compare", is_flag=True, help="Measure every config of the space, and compare ways of searching it.")
@climb_options
def search(file: Path | None, storage: str, join: str, compare: bool, dry_run: bool, **wishes: Any) -> None:
    """Search batch size, workers and prefetch by short trials, and confirm what is chosen by a whole run."""
    if join:
        from roofscale.commands.search import join_search

        join_search(join, storage, RUNS, wishes["as_json"], wishes["runner"])
        return
    from roofscale.commands import phase as commands
    from roofscale.phases.record import SEARCHING

    if compare:
        from roofscale.commands.search import compare_search

        sys.exit(compare_search(commands.Order(**_order(**wishes)), file))
    with project_run() as results_are_in:
        order = commands.Order(**_order(**wishes), storage=storage)
        if dry_run:
            commands.preview(order.load(SEARCHING, file).searching(), order)
            return
        climbed = commands.climb_search(order, file)
        if climbed:
            results_are_in(climbed.run_id)
    sys.exit(commands.exit_code(climbed) if climbed else 1)


def _order(
    more: Sequence[str],
    compute: str,
    runner: str,
    overlay: str,
    from_defaults: bool,
    fresh: bool,
    force: bool,
    as_json: bool,
) -> dict[str, Any]:
    """What ``commands.phase.Order`` takes, from the options of ``climb_options``."""
    return {
        "overrides": words_of(more, compute),
        "experiments": PHASES,
        "runs": RUNS,
        "cache": GENERATED,
        "overlay": Path(overlay) if overlay else None,
        "from_defaults": from_defaults,
        "fresh": fresh,
        "force": force,
        "runner": runner,
        "to_json": as_json,
    }

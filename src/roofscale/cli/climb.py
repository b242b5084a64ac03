"""Commands that climb: one phase, all phases, the search of phase 3, and the gate.

Phase files and overrides are checked before ``run_phase`` is imported, which takes seconds because of MLflow.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from roofscale.cli.options import (
    EXPERIMENTS,
    GENERATED,
    RUNS,
    adopt_project_run,
    dry_run_option,
    json_option,
    knob_options,
    runner_option,
    split_overrides,
)
from roofscale.invocation import PHASES, SEARCHING

if TYPE_CHECKING:
    from roofscale.cli.climb_options import ClimbOptions


def climb_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options shared by all commands that climb."""
    options = [
        click.option("--overlay", default="", help="Overlay whose knobs and policies win, such as smoke.yaml."),
        click.option("--set", "more", multiple=True, help="KEY=VALUE words for every step, several in one text."),
        click.option("--compute", default="", help="Where the CPU phases run, such as ml.m5.xlarge."),
        click.option("--gpu-compute", default="", help="Where phase 5 runs, such as ml.g5.2xlarge."),
        runner_option,
        bool_option(
            "--from-defaults", "Start from the defaults, and not from the last good configuration of the phases before."
        ),
        bool_option("--fresh", "Begin a new attempt even if one was interrupted, and forget what ran out of memory."),
        bool_option("--force", "Go on where a requirement of the phase, such as the gate, is not met; it is recorded."),
        dry_run_option,
        json_option,
    ]
    for option in reversed(options):
        command = option(command)
    return knob_options(command)


def bool_option(name: str, text: str) -> Callable[..., Any]:
    """Return a switch that also takes a value, as an MLproject passes it: --fresh, or --fresh true."""
    return click.option(name, type=bool, is_flag=False, flag_value=True, default=False, help=text)


@click.command()
@click.argument("number", type=click.IntRange(PHASES[0], PHASES[-1]))
@click.option("--file", type=click.Path(path_type=Path), help="Phase file; else experiments/phase<N>.yaml.")
@climb_options
def phase(number: int, file: Path | None, dry_run: bool, **wishes: Any) -> None:
    """Climb a phase, after the phases it needs: run its steps, judge each, and record the results."""
    options = _parse_options(f"phase{number}", **wishes)
    phase = options.load(number, file)
    options = options.for_gpu(phase)
    options.require_valid(phase)
    from roofscale.cli import run_phase as commands

    if dry_run:
        commands.preview(phase, options)
        return
    climbed = commands.climb_phase(number, options, file)
    sys.exit(commands.exit_code(climbed) if climbed else 1)


@click.command()
@climb_options
def climb(dry_run: bool, **wishes: Any) -> None:
    """Climb all phases in order, each from the last good configuration of the one before."""
    options = _parse_options("main", **wishes)
    for phase in map(options.load, PHASES):
        (options if dry_run else options.in_climb(phase)).require_valid(phase)
    from roofscale.cli import run_phase as commands

    if dry_run:
        commands.preview_all(options)
        return
    sys.exit(commands.climb_all(options))


@click.command()
@click.option("--file", type=click.Path(path_type=Path), help="Phase file; else experiments/phase3.yaml.")
@click.option(
    "--storage",
    default="",
    envvar="ROOFSCALE_STORAGE",
    help="URL of an Optuna database that several workers share, such as postgresql+psycopg2://user@host/name.",
)
@click.option("--join", default="", help="Run trials of the study of this name, which another process conducts.")
@climb_options
def search(file: Path | None, storage: str, join: str, dry_run: bool, **wishes: Any) -> None:
    """Search batch size, workers and prefetch by short trials, and confirm what is chosen by a whole run."""
    if join:
        from roofscale.cli.run_search import join_search

        join_search(join, storage, RUNS, wishes["as_json"], wishes["runner"])
        return
    options = _parse_options("search", **wishes, storage=storage)
    phase = options.load(SEARCHING, file).searching()
    options.require_valid(phase)
    from roofscale.cli import run_phase as commands

    if dry_run:
        commands.preview(phase, options)
        return
    climbed = commands.climb_search(options, file)
    sys.exit(commands.exit_code(climbed) if climbed else 1)


@click.command()
@climb_options
def gate(dry_run: bool, **wishes: Any) -> None:
    """Climb the CPU phases that are missing, and report whether the GPU phase may begin, with the evidence.

    With --dry-run nothing is climbed.
    """
    options = _parse_options("gate", **wishes)
    from roofscale.cli import run_phase as commands
    from roofscale.cli.run_gate import print_gate

    stopped = None if dry_run else commands.climb_missing(options)
    if stopped:
        sys.exit(commands.exit_code(stopped))
    sys.exit(int(not print_gate(options.to_json, lambda: commands.last_step(options))))


def _parse_options(
    entry_point: str, more: Sequence[str], compute: str, overlay: str, as_json: bool, **wishes: Any
) -> "ClimbOptions":
    """Return the options of a climb, from the entry point of MLproject and the options of ``climb_options``."""
    from roofscale.cli.climb_options import ClimbOptions

    return ClimbOptions(
        project_run=adopt_project_run(entry_point),
        overrides=split_overrides(more, compute),
        experiments=EXPERIMENTS,
        runs=RUNS,
        cache=GENERATED,
        overlay=Path(overlay) if overlay else None,
        to_json=as_json,
        **wishes,
    )

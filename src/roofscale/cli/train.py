"""The command that runs one training."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from roofscale.cli.options import (
    GENERATED,
    RUNS,
    adopt_project_run,
    dry_run_option,
    json_option,
    knob_options,
    runner_option,
    split_overrides,
)


@click.command()
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--config", "file", type=click.Path(path_type=Path), help="YAML file of knobs; KEY=VALUE wins over it.")
@click.option("--set", "more", multiple=True, help="Further KEY=VALUE words, several in one text.")
@click.option("--compute", default="", help="Where to run, such as ml.m5.xlarge; short for compute=...")
@runner_option
@click.option("--fresh", is_flag=True, help="Start again even if the same run is unfinished.")
@dry_run_option
@json_option
@knob_options
def train(
    overrides: Sequence[str],
    file: Path | None,
    more: Sequence[str],
    compute: str,
    runner: str,
    fresh: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run one training under its compute's memory limit, measured and tracked."""
    from roofscale import compute as computes
    from roofscale import config

    project_run = adopt_project_run("train")
    resolved = config.load(file, [*split_overrides(more, compute), *overrides])
    computes.get(resolved.compute)  # refused here, before MLflow is imported, which takes seconds
    resolved.require_batch()
    if dry_run:
        from roofscale.cli.dry_run import print_run
        from roofscale.cli.preflight import plan_jobs
        from roofscale.tracking.history import TRAIN_EXPERIMENT

        folder = RUNS / TRAIN_EXPERIMENT / f"{resolved.fingerprint}-001"
        print_run(resolved, as_json, plan_jobs(runner, {folder: resolved}))
        return
    from roofscale.cli import run_train

    run_id, code = run_train.run_training(resolved, RUNS, GENERATED, fresh, as_json, runner)
    if project_run:
        project_run.point_to(run_id)
    sys.exit(code)

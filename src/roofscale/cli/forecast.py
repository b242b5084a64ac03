"""Commands that forecast the memory and the time of a run."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from roofscale.cli.group import ErrorGroup
from roofscale.cli.options import GENERATED, RUNS, json_option, split_overrides


@click.group(cls=ErrorGroup)
def forecast() -> None:
    """Forecast the memory and the time of a run before it is made."""


def forecast_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options shared by all forecasts."""
    options = [
        click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]..."),
        click.option("--set", "more", multiple=True, help="Further KEY=VALUE words, several in one text."),
        click.option("--compute", default="", help="Where it would run, such as ml.g5.xlarge."),
        json_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@forecast.command()
@forecast_options
@click.option("--figure", type=click.Path(path_type=Path), help="Draw memory over two steps into this .svg or .png.")
@click.option(
    "--model", default="", help="package.module:function that returns the step of another model; runs its code."
)
@click.option("--batch-size", default="", help="The same as batch_size=.")
def gpu(
    overrides: Sequence[str], more: Sequence[str], compute: str, figure: Path | None, model: str, batch_size: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Forecast GPU memory, on a machine without a GPU: peak, verdict, largest batch, and the parts of the peak."""
    from roofscale import config
    from roofscale.cli.run_forecast_gpu import forecast_gpu

    batch = [f"batch_size={batch_size}"] if batch_size else []
    resolved = config.load(None, [*split_overrides(more, compute), *overrides, *batch])
    sys.exit(forecast_gpu(resolved, figure, as_json, model))


@forecast.command()
@forecast_options
@click.option("--probe", is_flag=True, help="Run a few small trainings if the records do not suffice.")
def host(overrides: Sequence[str], more: Sequence[str], compute: str, probe: bool, as_json: bool) -> None:
    """Forecast host memory from small runs: peak, verdict, largest batch, and the most informative next probe."""
    from roofscale import config
    from roofscale.cli.run_forecast_host import forecast_host

    resolved = config.load(None, [*split_overrides(more, compute), *overrides])
    sys.exit(forecast_host(resolved, RUNS, GENERATED, probe, as_json))


@forecast.command()
@forecast_options
@click.option("--by", default="", help="Only instances that need so many hours at most, such as 24h.")
@click.option("--budget", default="", help="Only instances that cost so many dollars at most.")
def instances(overrides: Sequence[str], more: Sequence[str], compute: str, by: str, budget: str, as_json: bool) -> None:
    """Compare every instance with a GPU and a price for a run on all samples: memory, time, dollars, data stall."""
    from roofscale import config
    from roofscale.cli.run_forecast_instances import forecast_instances

    forecast_instances(config.load(None, [*split_overrides(more, compute), *overrides]), by, budget, as_json)


@forecast.command("time")
@forecast_options
def time_of_run(overrides: Sequence[str], more: Sequence[str], compute: str, as_json: bool) -> None:
    """Forecast seconds and dollars of a run, an epoch and the full data set, from runs on record or a GPU's peaks."""
    from roofscale import config
    from roofscale.cli.run_forecast_time import forecast_time

    forecast_time(config.load(None, [*split_overrides(more, compute), *overrides]), as_json)

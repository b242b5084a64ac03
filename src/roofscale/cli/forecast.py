"""Commands that forecast the memory and the time of a run."""

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from roofscale.cli.group import ErrorGroup
from roofscale.cli.options import GENERATED, RUNS, json_option, knob_options, split_overrides

if TYPE_CHECKING:
    from roofscale.config import RunConfig


@click.group(cls=ErrorGroup)
def forecast() -> None:
    """Forecast the memory and the time of a run before it is made."""


def forecast_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options shared by all forecasts; the command gets the run config that they resolve to."""

    @functools.wraps(command)
    def with_config(overrides: Sequence[str], more: Sequence[str], compute: str, **others: Any) -> None:
        from roofscale import compute as computes
        from roofscale import config

        resolved = config.load(None, [*split_overrides(more, compute), *overrides])
        computes.get(resolved.compute)  # refused here, before a forecast imports MLflow or PyTorch, which takes seconds
        command(resolved, **others)

    options = [
        click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]..."),
        click.option("--set", "more", multiple=True, help="Further KEY=VALUE words, several in one text."),
        click.option("--compute", default="", help="Where it would run, such as ml.g5.xlarge."),
        json_option,
    ]
    for option in reversed(options):
        with_config = option(with_config)
    return knob_options(with_config)


@forecast.command()
@forecast_options
@click.option("--figure", type=click.Path(path_type=Path), help="Draw memory over two steps into this .svg or .png.")
@click.option(
    "--model", default="", help="package.module:function that returns the step of another model; runs its code."
)
def gpu(config: "RunConfig", figure: Path | None, model: str, as_json: bool) -> None:
    """Forecast GPU memory, on a machine without a GPU: peak, verdict, largest batch, and the parts of the peak."""
    from roofscale.cli.run_forecast_gpu import forecast_gpu

    sys.exit(forecast_gpu(config, figure, as_json, model))


@forecast.command()
@forecast_options
@click.option("--probe", is_flag=True, help="Run a few small trainings if the records do not suffice.")
def host(config: "RunConfig", probe: bool, as_json: bool) -> None:
    """Forecast host memory from small runs: peak, verdict, largest batch, and the most informative next probe."""
    from roofscale.cli.run_forecast_host import forecast_host

    sys.exit(forecast_host(config, RUNS, GENERATED, probe, as_json))


@forecast.command()
@forecast_options
@click.option("--by", default="", help="Only instances that need so many hours at most, such as 24h.")
@click.option("--budget", default="", help="Only instances that cost so many dollars at most.")
def instances(config: "RunConfig", by: str, budget: str, as_json: bool) -> None:
    """Compare every instance with a GPU and a price for a run on all samples: memory, time, dollars, data stall."""
    from roofscale.cli.run_forecast_instances import forecast_instances

    forecast_instances(config, by, budget, as_json)


@forecast.command("time")
@forecast_options
def time_of_run(config: "RunConfig", as_json: bool) -> None:
    """Forecast seconds and dollars of a run, an epoch and the full data set, from runs on record or a GPU's peaks."""
    from roofscale.cli.run_forecast_time import forecast_time

    forecast_time(config, as_json)

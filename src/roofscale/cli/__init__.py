"""The command line. Heavy modules are imported inside the commands, so that --help is fast."""

import click

from roofscale import __version__
from roofscale.cli import climb, data, forecast, models, records, train
from roofscale.cli.group import ErrorGroup


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Scale a segmentation training from a small CPU instance to GPUs, one judged step at a time."""


for command in (
    train.train,
    climb.phase,
    climb.climb,
    climb.search,
    climb.gate,
    forecast.forecast,
    models.predict,
    models.evaluate,
    models.register,
    records.report,
    records.status,
    records.logs,
    records.sync,
    data.data,
):
    main.add_command(command)

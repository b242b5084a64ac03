"""What several commands share: the folders that they work in, their options, and the words of an override."""

import functools
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from roofscale.config import FIELDS
from roofscale.errors import ConfigError

RUNS = Path("runs")
GENERATED = Path("data/generated")
PHASES = Path("experiments")

RUNNERS = ("local", "sagemaker")  # runners.choose has them too, but would load what --help can do without

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a script on standard output.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would run, and run nothing.")
runner_option = click.option(
    "--runner",
    type=click.Choice(RUNNERS),
    default=RUNNERS[0],
    show_default=True,
    envvar="ROOFSCALE_RUNNER",
    help="On this machine, held to the size of the compute; or as training jobs on SageMaker.",
)


def words_of(more: Sequence[str], compute: str) -> list[str]:
    """Overrides from --set texts, split like a shell splits words, and from --compute."""
    words = [word for text in more for word in _split(text)]
    return [*words, f"compute={compute}"] if compute else words


def _split(text: str) -> list[str]:
    """The words of a text, as a shell splits them.

    Raises:
        ConfigError: a quotation mark is opened and not closed.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(
            f"--set {text!r}: a quotation mark is not closed; expected words as a shell takes them. Quote a value that "
            "holds one, such as --set 'data_root=\"l\\'aquila\"'."
        ) from error


def knob_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Every knob as an option behind the words of ``more``, hidden but for ``--knobs``, which lists them.

    ``mlflow run`` passes a parameter that MLproject does not list on as ``--weight_decay 0.1``.
    """
    names = [name for name in FIELDS if name != "compute"]  # which the commands have themselves

    @functools.wraps(command)
    def with_knobs(knobs: bool, more: Sequence[str], **wishes: Any) -> None:
        given = [shlex.quote(f"{name}={value}") for name in names if (value := wishes.pop(name))]
        if knobs:
            from roofscale.cli.dry_run import print_knobs

            print_knobs(wishes["as_json"])
        else:
            command(more=(*more, *given), **wishes)

    for name in names:
        with_knobs = click.option(f"--{name}", default="", hidden=True)(with_knobs)
    text = "List every knob with its default and meaning; each is an option too, such as --batch_size 4."
    return click.option("--knobs", is_flag=True, help=text)(with_knobs)

"""Folders, options and overrides shared by the commands, and the run of ``mlflow run``."""

import functools
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from roofscale import invocation
from roofscale.config import FIELDS
from roofscale.errors import ConfigError

if TYPE_CHECKING:
    from roofscale.tracking import MlflowProjectRun

RUNS = Path("runs")
GENERATED = Path("data/generated")
EXPERIMENTS = Path("experiments")

RUNNERS = ("local", "sagemaker")  # as in runners.registry, whose imports would slow --help down

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a script on standard output.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Print what would run, and run nothing.")
runner_option = click.option(
    "--runner",
    type=click.Choice(RUNNERS),
    default=RUNNERS[0],
    show_default=True,
    envvar="ROOFSCALE_RUNNER",
    help="On this machine, held to the size of the compute; or as training jobs on SageMaker.",
)


def adopt_project_run(entry_point: str) -> "MlflowProjectRun | None":
    """Return the run that ``mlflow run`` has opened for an entry point of MLproject; None if there is none.

    MLflow, whose import takes seconds, is imported only if the environment names a run.
    """
    run_id = invocation.take_mlflow_run()
    if not run_id:
        return None
    from roofscale.tracking import MlflowProjectRun

    return MlflowProjectRun.adopt(run_id, entry_point)


def split_overrides(more: Sequence[str], compute: str) -> list[str]:
    """Return the overrides of --set texts, split as a shell splits words, and of --compute.

    Raises:
        ConfigError: a quotation mark in a --set text is not closed.
    """
    words = [word for text in more for word in _split(text)]
    return [*words, f"compute={compute}"] if compute else words


def _split(text: str) -> list[str]:
    """Split a text into words as a shell does.

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
    """Add a hidden option for every knob, appended to the words of ``more``, and ``--knobs``, which lists them.

    ``mlflow run`` passes a parameter that MLproject does not list on as ``--weight_decay 0.1``.
    """
    names = [name for name in FIELDS if name != "compute"]  # the commands define --compute themselves

    @functools.wraps(command)
    def with_knobs(knobs: bool, more: Sequence[str], **wishes: Any) -> None:
        given = [shlex.quote(f"{name}={value}") for name in names if (value := wishes.pop(name))]
        if knobs:
            from roofscale.cli.dry_run import print_knobs

            print_knobs(wishes["as_json"])
        else:
            command(more=(*more, *given), **wishes)

    for name in names:
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        with_knobs = click.option(*spellings, name, default="", hidden=True)(with_knobs)
    text = "List every knob with its default and meaning; each is an option too, such as --batch_size 4."
    return click.option("--knobs", is_flag=True, help=text)(with_knobs)

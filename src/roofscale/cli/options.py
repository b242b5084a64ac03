"""What several commands share: the folders that they work in, their options, and the words of an override."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

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
    words = [word for text in more for word in shlex.split(text)]
    return [*words, f"compute={compute}"] if compute else words


@contextmanager
def project_run() -> Iterator[Any]:
    """Inside ``mlflow run``: point its own run to the one that holds the results, and let the empty one go."""
    pointers: list[str] = []
    if "MLFLOW_RUN_ID" not in os.environ:
        yield pointers.append
        return
    from roofscale.tracking import ProjectRun

    around = ProjectRun.take_over()
    try:
        yield pointers.append
    finally:
        around.settle(pointers[-1] if pointers else "")

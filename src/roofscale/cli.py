"""The command line: parse, call, print. What is heavy is imported inside the commands, so that --help is quick."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from roofscale import __version__
from roofscale.errors import DISK_FULL, RoofscaleError

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


@contextmanager
def _plain_errors() -> Iterator[None]:
    """A user's error is one clear message and exit 2, not a traceback."""
    try:
        yield
    except RoofscaleError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        where = f"{error.filename or Path.cwd()}: the disk is full ({error.strerror})"
        raise click.ClickException(f"{where}; make room, and the same command goes on where it stopped.") from error


class Group(click.Group):
    """Commands whose user errors are printed plainly."""

    def invoke(self, ctx: click.Context) -> Any:
        with _plain_errors():
            return super().invoke(ctx)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Scale a segmentation training from a small CPU instance to GPUs, one judged step at a time."""


@main.command()
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--config", "file", type=click.Path(path_type=Path), help="YAML file of knobs; KEY=VALUE wins over it.")
@click.option("--set", "more", multiple=True, help="Further KEY=VALUE words, several in one text.")
@click.option("--compute", default="", help="Where to run, such as ml.m5.xlarge; short for compute=...")
@click.option("--knobs", is_flag=True, help="List every knob with its default and meaning.")
@runner_option
@click.option("--fresh", is_flag=True, help="Begin anew even if the same run was left half done.")
@dry_run_option
@json_option
def train(
    overrides: Sequence[str],
    file: Path | None,
    more: Sequence[str],
    compute: str,
    knobs: bool,
    runner: str,
    fresh: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run one training, held to its compute's memory, measured and tracked."""
    from roofscale import config
    from roofscale.commands import show

    if knobs:
        show.print_knobs(as_json)
        return
    with _project_run() as results_are_in:
        resolved = config.load(file, [*_words(more, compute), *overrides])
        if dry_run:
            show.print_run(resolved, as_json)
            return
        from roofscale.commands import run

        run_id, code = run.train_once(resolved, RUNS, GENERATED, fresh, as_json, runner)
        results_are_in(run_id)
    sys.exit(code)


@main.command()
@click.argument("number", type=click.IntRange(1, 5))
@click.option("--file", type=click.Path(path_type=Path), help="Phase file; else experiments/phase<N>.yaml.")
@climb_options
def phase(number: int, file: Path | None, dry_run: bool, **wishes: Any) -> None:
    """Climb a phase: run its steps, judge each, and write down what was found."""
    from roofscale.commands import phase as commands

    with _project_run() as results_are_in:
        order = commands.Order(**_order(**wishes))
        if dry_run:
            commands.preview(order.load(number, file), order)
            return
        climbed = commands.climb_phase(number, order, file)
        if climbed:
            results_are_in(climbed.run_id)
    sys.exit(commands.exit_code(climbed) if climbed else 1)


@main.command()
@climb_options
def climb(dry_run: bool, **wishes: Any) -> None:
    """Climb all phases in order, each from what the one before has learnt."""
    from roofscale.commands import phase as commands

    with _project_run() as results_are_in:
        order = commands.Order(**_order(**wishes))
        if dry_run:
            commands.preview_all(order)
            return
        climbs, code = commands.climb_all(order)
        for climbed in climbs[-1:]:
            results_are_in(climbed.run_id)
    sys.exit(code)


@main.command()
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

    if compare:
        from roofscale.commands.search import compare_search

        sys.exit(compare_search(commands.Order(**_order(**wishes)), file))
    with _project_run() as results_are_in:
        order = commands.Order(**_order(**wishes), storage=storage)
        if dry_run:
            commands.preview(order.load(commands.SEARCHING, file).searching(), order)
            return
        climbed = commands.climb_search(order, file)
        if climbed:
            results_are_in(climbed.run_id)
    sys.exit(commands.exit_code(climbed) if climbed else 1)


@main.group(cls=Group)
def forecast() -> None:
    """Foresee the memory and the time of a run before it is made."""


def forecast_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every forecast is asked with."""
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
def gpu(overrides: Sequence[str], more: Sequence[str], compute: str, figure: Path | None, as_json: bool) -> None:
    """Foresee GPU memory, on a machine without one: peak, verdict, largest batch and where the memory goes."""
    from roofscale import config
    from roofscale.commands.forecast_gpu import forecast_gpu

    resolved = config.load(None, [*_words(more, compute), *overrides])
    sys.exit(forecast_gpu(resolved, figure, as_json))


@forecast.command()
@forecast_options
@click.option("--probe", is_flag=True, help="Run a few small trainings where what is on record does not suffice.")
def host(overrides: Sequence[str], more: Sequence[str], compute: str, probe: bool, as_json: bool) -> None:
    """Foresee host memory from small runs: peak, verdict, largest batch, and the probe that would tell most."""
    from roofscale import config
    from roofscale.commands.forecast_host import forecast_host

    resolved = config.load(None, [*_words(more, compute), *overrides])
    sys.exit(forecast_host(resolved, RUNS, GENERATED, probe, as_json))


@forecast.command("time")
@forecast_options
def time_of_run(overrides: Sequence[str], more: Sequence[str], compute: str, as_json: bool) -> None:
    """Foresee seconds and dollars of a run, an epoch and the full data set, from runs on record or a GPU's peaks."""
    from roofscale import config
    from roofscale.commands.forecast_time import forecast_time

    forecast_time(config.load(None, [*_words(more, compute), *overrides]), as_json)


@main.command()
@json_option
def gate(as_json: bool) -> None:
    """Say whether the GPU phase may begin: each condition with the run that proves it, or what would supply it."""
    from roofscale.commands.gate import print_gate

    sys.exit(0 if print_gate(as_json) else 1)


@main.command()
@json_option
def report(as_json: bool) -> None:
    """Write up what the tracking server has: strategy document, notebook, and a record and a page of each phase."""
    from roofscale.commands.report import print_report

    print_report(PHASES, as_json)


@main.command()
@json_option
def status(as_json: bool) -> None:
    """Show where every phase stands: attempts, steps, verdicts, and what is half done."""
    from roofscale.commands import show

    show.print_status(RUNS, as_json)


@main.command()
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@json_option
def sync(dry_run: bool, as_json: bool) -> None:
    """Send what was kept while the tracking server was away."""
    from roofscale.commands import sync as commands

    sys.exit(0 if commands.sync(RUNS, dry_run, as_json) else 1)


@main.group(cls=Group)
def data() -> None:
    """Generate, fetch and check data sets."""


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--datasets", default="rid,roofline,airs", show_default=True, help="Which to write.")
@click.option("--train", default=100, show_default=True, help="RID training images.")
@click.option("--val", default=40, show_default=True, help="RID validation images.")
@click.option("--test", default=20, show_default=True, help="RID test images.")
@click.option("--roofline-samples", default=400, show_default=True, help="Roofline images.")
@click.option("--airs-tiles", default=(7, 3, 1), show_default=True, nargs=3, type=int, help="AIRS train, val, test.")
@click.option("--airs-tile-px", default=2048, show_default=True, help="Side of an AIRS tile; the real ones: 10000.")
@click.option("--image-px", default=512, show_default=True, help="Side of a RID image.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same pixels.")
@click.option("--join", type=click.Path(path_type=Path), help="imdb.mat whose samples follow Roofline's own.")
@dry_run_option
@json_option
def generate(folder: Path, datasets: str, join: Path | None, dry_run: bool, as_json: bool, **amounts: Any) -> None:
    """Write generated data sets into FOLDER, in the layouts of the real ones."""
    from roofscale.commands import data as commands
    from roofscale.data.generate import GenerateSpec

    spec = GenerateSpec(datasets=tuple(datasets.split(",")), **amounts)
    commands.generate_data(folder, spec, join, dry_run, as_json)


@data.command()
@click.argument("dataset")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--url", default="", help="Another address, such as that of a mirror.")
@click.option("--sha256", default="", help="What the download has to be, as sha256sum prints it.")
@dry_run_option
@json_option
def fetch(dataset: str, folder: Path, url: str, sha256: str, dry_run: bool, as_json: bool) -> None:
    """Download DATASET (rid, roofline, airs) into FOLDER, or say where to get it; goes on where it was stopped."""
    from roofscale.commands import data as commands

    commands.fetch_data(dataset, folder, url, sha256, dry_run, as_json)


@data.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@json_option
def check(folder: Path, as_json: bool) -> None:
    """Recognise the data sets in FOLDER and name every file that is broken, missing, mismatched, empty or leaking."""
    from roofscale.commands import data as commands

    sys.exit(0 if commands.check_data(folder, as_json) else 1)


def _words(more: Sequence[str], compute: str) -> list[str]:
    """Overrides from --set texts, split like a shell splits words, and from --compute."""
    words = [word for text in more for word in shlex.split(text)]
    return [*words, f"compute={compute}"] if compute else words


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
        "overrides": _words(more, compute),
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


@contextmanager
def _project_run() -> Iterator[Any]:
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


if __name__ == "__main__":
    main()

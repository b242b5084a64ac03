"""Commands for data sets: generate, fetch, upload, check."""

import sys
from pathlib import Path
from typing import Any

import click

from roofscale.cli.group import ErrorGroup
from roofscale.cli.options import dry_run_option, json_option


@click.group(cls=ErrorGroup)
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
    from roofscale.cli import run_data as commands
    from roofscale.data.synthetic import GenerateSpec

    spec = GenerateSpec(datasets=tuple(datasets.split(",")), **amounts)
    commands.generate_data(folder, spec, join, dry_run, as_json)


@data.command()
@click.argument("dataset")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--url", default="", help="Another URL, such as that of a mirror.")
@click.option("--sha256", default="", help="Expected checksum of the download, as sha256sum prints it.")
@dry_run_option
@json_option
def fetch(dataset: str, folder: Path, url: str, sha256: str, dry_run: bool, as_json: bool) -> None:
    """Download DATASET (rid, roofline, airs) into FOLDER, or print where to get it; resumes an interrupted download."""
    from roofscale.cli import run_data as commands

    commands.fetch_data(dataset, folder, url, sha256, dry_run, as_json)


@data.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.argument("uri", metavar="S3://BUCKET/PREFIX")
@click.option("--all", "everything", is_flag=True, help="Hidden files too, and AIRS's copies for viewing.")
@dry_run_option
@json_option
def upload(folder: Path, uri: str, everything: bool, dry_run: bool, as_json: bool) -> None:
    """Copy the data sets in FOLDER to S3, where training jobs read them; files that S3 already has are skipped."""
    from roofscale.cli.run_data import upload_data

    upload_data(folder, uri, everything, dry_run, as_json)


@data.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@json_option
def check(folder: Path, as_json: bool) -> None:
    """Recognise the data sets in FOLDER and name every file that is broken, missing, mismatched, empty or leaking."""
    from roofscale.cli import run_data as commands

    sys.exit(0 if commands.check_data(folder, as_json) else 1)

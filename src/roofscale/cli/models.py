"""Commands for trained models: predict, evaluate, register."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from roofscale.cli.options import json_option


def segment_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options shared by the commands that run a model on images."""
    options = [
        click.option("--model", default="", help="Run id, name@alias or name/version; else the champion."),
        click.option(
            "--threshold",
            type=click.FloatRange(0, 1),
            default=0.5,
            show_default=True,
            help="Smallest probability that counts as positive.",
        ),
        click.option("--window", default=0, help="Side of the sliding window, px; else the run's image_size."),
        click.option("--overlap", default=-1, help="Smallest overlap of windows, px; else a quarter of a window."),
        click.option(
            "--scale",
            default=1.0,
            show_default=True,
            help="Enlarge the image for the model, where its px are larger on the ground than those it was trained on "
            "(2: twice as large), or shrink it (0.5).",
        ),
        json_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("image", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The mask, a GeoTIFF.")
@click.option("--geojson", type=click.Path(path_type=Path), help="Outlines too, in longitude and latitude.")
@click.option("--channel", default="roof", show_default=True, help="What to find: roof, eave, ridge or hip.")
@segment_options
def predict(image: Path, output: Path, geojson: Path | None, as_json: bool, **wishes: Any) -> None:
    """Write the mask of IMAGE, of any size: 1 is roof, 0 is not, 255 is an empty part of the image.

    The image is used at its own resolution; see --scale.
    """
    from roofscale.cli import run_predict as commands

    commands.predict_image(image, output, geojson, commands.InferenceOptions(**wishes), as_json)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--part", default="val", show_default=True, help="Of the data set: train, val or test.")
@segment_options
def evaluate(folder: Path, part: str, as_json: bool, **wishes: Any) -> None:
    """Evaluate a model on the whole AIRS tiles under FOLDER: IoU, F1 and accuracy of roofs."""
    from roofscale.cli import run_predict as commands

    commands.evaluate_folder(folder, part, commands.InferenceOptions(**wishes), as_json)


@click.command()
@click.argument("run")
@click.option("--alias", default="champion", show_default=True, help="Points to this model from now on.")
@click.option("--name", default="roofscale", show_default=True, help="Of the registered model.")
@json_option
def register(run: str, alias: str, name: str, as_json: bool) -> None:
    """Register the model of RUN, an MLflow run id, under a name with an alias."""
    from roofscale.cli.run_records import register_run

    register_run(run, alias, name, as_json)

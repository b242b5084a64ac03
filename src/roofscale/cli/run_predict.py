"""Predict and evaluate commands: inference on whole images with a trained model."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from roofscale.cli.console import SECONDS_BETWEEN_LINES, console
from roofscale.config import RunConfig
from roofscale.data import airs, folders, rid, roofline
from roofscale.data.locate import find_dataset
from roofscale.data.sample import CHANNELS
from roofscale.errors import ConfigError, DataError
from roofscale.files import require_output
from roofscale.predict.raster import is_mask, new_mask, open_image
from roofscale.predict.sliding_window import Tiling, default_overlap
from roofscale.predict.vectorize import is_outlines, require_ground, write_geojson
from roofscale.report.format import as_json

if TYPE_CHECKING:
    from roofscale.predict.inference import InferenceSettings  # imports PyTorch
    from roofscale.tracking import StoredModel  # imports MLflow

_ROOF = CHANNELS[0]
_LABELS = {  # of each data set
    "rid": rid.RidSource.labelled,
    "roofline": roofline.RooflineSource.labelled,
    "airs": airs.AirsSource.labelled,
}
_LABELLED = tuple(channel == _ROOF for channel in CHANNELS)


@dataclass(frozen=True)
class InferenceOptions:
    """Options of inference, as the user gave them."""

    model: str = ""  # as ``tracking.find_model`` takes it
    channel: str = _ROOF
    threshold: float = 0.5  # smallest probability that counts as found
    window: int = 0  # px for the model; 0: as it was trained
    overlap: int = -1  # px for the model; -1: a quarter of the window
    scale: float = 1.0  # enlargement of the image before inference

    def tiling(self, config: RunConfig) -> Tiling:
        """Return the windows for a model of this config."""
        window = self.window or config.image_size
        return Tiling.of(window, default_overlap(window) if self.overlap < 0 else self.overlap, self.scale)


def predict_image(image: Path, output: Path, geojson: Path | None, wish: InferenceOptions, to_json: bool) -> None:
    """Run ``segment_image`` and print the result."""
    out = console(quiet=to_json)
    found = segment_image(image, output, geojson, wish, out)
    if to_json:
        print(as_json(found))
        return
    out.print(f"{escape(str(output))}: {found['share']:.1%} {wish.channel}, {found['seconds']:.1f} s")
    if geojson:
        out.print(f"{escape(str(geojson))}: {found['outlines']} outlines")


def segment_image(
    image: Path, output: Path, geojson: Path | None, wish: InferenceOptions, out: Console
) -> dict[str, Any]:
    """Write the mask of an image, and its outlines if ``geojson`` is given.

    Returns:
        JSON for a script: the files, the share of the px that belong to the channel, model, windows and seconds.

    Raises:
        ConfigError: an output cannot be written, or there is no such model.
        DataError: the image cannot be used.
    """
    with open_image(image) as opened:
        _check_outputs(image, output, geojson, opened.files)
        if geojson:
            require_ground(opened)
        model, inference = _load(wish, out)
        from roofscale.predict.inference import predict_mask

        begun = time.perf_counter()
        windows = inference.tiling.count(opened.height, opened.width)
        with _bar(image.name, windows) as bar, new_mask(output, opened, wish.channel, _tags(model, wish)) as mask:
            shares = predict_mask(opened, inference, mask, bar.update)
    outlines = write_geojson(output, geojson) if geojson else None
    return {
        "mask": str(output),
        "share": shares.share,
        "geojson": str(geojson) if geojson else None,
        "outlines": outlines,
        **_described(model, inference),
        "seconds": time.perf_counter() - begun,
    }


def evaluate_folder(folder: Path, part: str, wish: InferenceOptions, to_json: bool) -> None:
    """Evaluate a model on whole AIRS tiles: scores of each, and of all together.

    Raises:
        ConfigError: there is no such model.
        DataError: there are no such tiles, or a file of them cannot be used.
    """
    out = console(quiet=to_json)
    tiles = airs.tiles_of(find_dataset("airs", folder), part)
    if not tiles:
        raise DataError(f"{folder}: AIRS has no tile in its split {part!r} here; expected images in {part}/image.")
    model, inference = _load(wish, out)
    import torch

    from roofscale.predict.inference import whole_image_counts
    from roofscale.train.scores import scores

    with _bar(f"{part} of airs", _count_windows(tiles, inference.tiling)) as bar:
        counts = {tile.id: whole_image_counts(tile.image, tile.label, inference, bar.update) for tile in tiles}
    by_tile = {tile: scores(counts_4K, _LABELLED) for tile, counts_4K in counts.items()}
    together = scores(torch.stack(list(counts.values())).sum(0), _LABELLED)
    if to_json:
        print(as_json({"part": part, **_described(model, inference), "metrics": together, "tiles": by_tile}))
        return
    table = Table("tile", "IoU", "F1", "accuracy", title=f"{_ROOF}, whole tiles of {part}", title_justify="left")
    for name, result in [*by_tile.items(), ("all together", together)]:
        table.add_row(escape(name), *(f"{result[ratio]:.3f}" for ratio in ("iou", "f1", "accuracy")))
    out.print(table)


def _load(wish: InferenceOptions, out: Console) -> "tuple[StoredModel, InferenceSettings]":
    """Load the model and print it with its windows.

    MLflow and PyTorch, whose imports take seconds, are imported here: the image and the outputs were checked before.
    """
    from roofscale.tracking import find_model, read_weights
    from roofscale.tracking.history import read_config

    model = find_model(wish.model)
    config = read_config(model.run)
    _check_channel(wish.channel, model, config)
    from roofscale.predict.inference import InferenceSettings, Segmenter

    tiling = wish.tiling(config)
    window = wish.window or config.image_size
    segmenter = Segmenter(config, read_weights(model), [wish.channel], window)
    out.print(
        f"Model {escape(model.named)}: {config.encoder} {config.decoder} of run {model.run.run_id}, trained at "
        f"{config.image_size} px; {segmenter.execution.why}. Windows of {tiling.window} px, {tiling.overlap} px or "
        f"more of each in common{'' if tiling.scale == 1 else f', seen at {tiling.scale:.3g} times their size'}."
    )
    return model, InferenceSettings(segmenter, tiling, wish.threshold)


def _check_channel(channel: str, model: "StoredModel", config: RunConfig) -> None:
    labelled = zip(*(_LABELS[name] for name in config.datasets), strict=True)
    known = [name for name, has in zip(CHANNELS, labelled, strict=True) if any(has)]
    if channel not in known:
        raise ConfigError(
            f"channel={channel}: model {model.named} was trained on {', '.join(config.datasets)}, which label "
            f"{', '.join(known)}. Choose one of these, or another model."
        )


def _check_outputs(image: Path, output: Path, geojson: Path | None, of_image: Iterable[Path]) -> None:
    """Refuse outputs that would overwrite each other or the image, before inference."""
    taken = {**dict.fromkeys(of_image, "a file of the image"), image: "the image itself"}
    require_output("-o", output, folders.TIFF, taken, is_mask)
    if geojson:
        require_output("--geojson", geojson, (".geojson", ".json"), {**taken, output: "the mask"}, is_outlines)


def _count_windows(tiles: Sequence[airs.Tile], tiling: Tiling) -> int:
    total = 0
    for tile in tiles:
        with open_image(tile.image) as image:
            total += tiling.count(image.height, image.width)
    return total


def _bar(name: str, windows: int) -> "tqdm[None]":
    return tqdm(total=windows, desc=name, unit="window", mininterval=SECONDS_BETWEEN_LINES)


def _tags(model: "StoredModel", wish: InferenceOptions) -> dict[str, str]:
    """Return the tags of a mask: its model and threshold."""
    return {"model": model.named, "run_id": model.run.run_id, "threshold": f"{wish.threshold:g}"}


def _described(model: "StoredModel", inference: "InferenceSettings") -> dict[str, object]:
    return {
        "model": model.named,
        "run_id": model.run.run_id,
        "threshold": inference.threshold,
        "window": inference.tiling.window,
        "overlap": inference.tiling.overlap,
        "scale": inference.tiling.scale,
    }

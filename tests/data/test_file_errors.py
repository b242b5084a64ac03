"""Each fault of a file, on its way through the loader: ends the run by name, or is left out by name."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from PIL import Image

from roofscale.config import RunConfig
from roofscale.data.loader import BatchLoader, make_loader
from roofscale.data.sources import open_sources
from roofscale.errors import DataError

Copy = Callable[[str], Path]
SAMPLES = 6


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def repaint(file: Path, value: int) -> None:
    mask = np.array(Image.open(file))
    mask[5, 7] = value
    Image.fromarray(mask).save(file)


def relabel(file: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    with rasterio.open(file) as raster:
        profile, label = raster.profile, change(raster.read(1))
    profile.update(height=label.shape[0], width=label.shape[1])
    with rasterio.open(file, "w", **profile) as raster:
        raster.write(label, 1)


def set_value(array: str, value: float) -> Callable[[Path], None]:
    """Change one value of a sample of an imdb.mat."""

    def change(file: Path) -> None:
        with h5py.File(file, "r+") as handle:
            handle[f"imdb/{array}"][row_to_break(file), 1, 10, 10] = value

    return change


def damage_stored(file: Path) -> None:
    """Overwrite the stored bytes of one image of an imdb.mat, as a bad disk would."""
    with h5py.File(file, "r") as handle:
        chunk = handle["imdb/images"].id.get_chunk_info_by_coord((row_to_break(file), 0, 0, 0))
    with file.open("r+b") as raw:
        raw.seek(chunk.byte_offset)  # counted from the start of the file, MATLAB's header included
        raw.write(b"\xff" * chunk.size)


def config_for(dataset: str, **knobs: object) -> RunConfig:
    defaults = {"datasets": (dataset,), "max_samples": SAMPLES, "image_size": 96, "num_workers": 0, "split": "random"}
    return RunConfig(**{**defaults, **knobs})  # type: ignore[arg-type]


def row_to_break(file: Path) -> int:
    """A training sample of the run, as the file numbers them."""
    source = open_sources(config_for("roofline"), file.parent)["roofline"].train
    return int(source.indices[2])  # type: ignore[attr-defined]


FAULTS: dict[str, tuple[str, int, Callable[[Path], None], str]] = {
    # data set, which of the sample's files, what is done to it, what is said of it
    "rid, image cut short": ("rid", 0, truncate, "broken file"),
    "rid, mask cut short": ("rid", 1, truncate, "broken file"),
    "rid, mask of another size": (
        "rid",
        1,
        lambda f: Image.open(f).crop((0, 0, 50, 60)).save(f),
        "the mask is 50x60 px",
    ),
    "rid, unknown id": ("rid", 1, lambda f: repaint(f, 200), "unknown class id 200; expected 0 to 17"),
    "airs, image cut short": ("airs", 0, truncate, "broken file"),
    "airs, label cut short": ("airs", 1, truncate, "broken file"),
    "airs, label of another size": ("airs", 1, lambda f: relabel(f, lambda a: a[:200]), "the mask is 272x200 px"),
    "airs, unknown id": ("airs", 1, lambda f: relabel(f, lambda a: a + 7), "unknown class id"),
    "roofline, NaN in an image": ("roofline", 0, set_value("images", np.nan), "image values from nan to nan"),
    "roofline, infinity in an image": ("roofline", 0, set_value("images", np.inf), "image values from"),
    "roofline, NaN in a mask": ("roofline", 0, set_value("elements", np.nan), "an element mask holds nan"),
    "roofline, unknown id": ("roofline", 0, set_value("elements", 3), "an element mask holds 3"),
    "roofline, damaged bytes": ("roofline", 0, damage_stored, "broken file"),
}


def broken(copy_of: Copy, fault: str) -> tuple[Path, Path]:
    """A root with the fault in one sample's file, and that file."""
    dataset, which, damage, _ = FAULTS[fault]
    root = copy_of(dataset)
    file = open_sources(config_for(dataset), root)[dataset].train.files(2)[which]
    damage(file)
    return root, file


def loader_of(root: Path, fault: str, **knobs: object) -> BatchLoader:
    config = config_for(FAULTS[fault][0], **knobs)
    (split,) = open_sources(config, root).values()
    return make_loader(config, [split.train], epoch=0, train=True)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_ends_the_run_by_name(copy_of: Copy, fault: str, workers: int) -> None:
    root, file = broken(copy_of, fault)
    with pytest.raises(DataError) as caught:
        list(loader_of(root, fault, num_workers=workers))
    assert str(caught.value).startswith(f"{file}: ")
    assert FAULTS[fault][3] in str(caught.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_left_out_by_name_and_the_rest_is_trained_on(copy_of: Copy, fault: str) -> None:
    root, file = broken(copy_of, fault)
    loader = loader_of(root, fault, on_bad_sample="skip")
    ids = [id_ for batch in loader for id_ in batch.ids]
    expected = windows_of(root, file) if FAULTS[fault][0] == "airs" else 1
    assert len(loader.skipped) == expected
    assert len(ids) == SAMPLES - expected
    assert all(complaint.startswith(f"{file}: ") and FAULTS[fault][3] in complaint for complaint in loader.skipped)


def windows_of(root: Path, file: Path) -> int:
    """How many of the run's windows lie on a tile, or on the tile of a label."""
    source = open_sources(config_for("airs"), root)["airs"].train
    return sum(file in source.files(index) for index in range(len(source)))


def another_shape(file: Path) -> None:
    with h5py.File(file, "r+") as handle:
        elements = handle["imdb/elements"][:, :, :32]
        del handle["imdb/elements"]
        handle["imdb/elements"] = elements


@pytest.mark.parametrize("damage", [truncate, another_shape])
def test_a_fault_of_the_one_file_of_roofline_cannot_be_left_out(copy_of: Copy, damage: Callable[[Path], None]) -> None:
    root = copy_of("roofline")
    file = root / "roofline" / "imdb.mat"
    damage(file)
    with pytest.raises(DataError) as caught:
        open_sources(config_for("roofline", on_bad_sample="skip"), root)
    assert str(caught.value).startswith(f"{file}: ")

"""GeoTIFFs whose compressed blocks are known to be as they were written.

TIFF has no checksums, and what its codecs bring is not looked at: of 40 bits flipped in a block, one at a time, libtiff
read wrong pixels without a word for 10 with deflate and for 35 with zstd (LERC finds all, and takes four times as long
to read). So a CRC-32 of each block, and one of all that stands before and behind them, is appended to the file, where
GDAL does not look.
"""

import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from rasterio.windows import Window

from roofscale.data import geotiff
from roofscale.data.problem import FileProblem, Kind
from roofscale.data.sample import Pixels

_Sums = npt.NDArray[np.uint32]  # of what is no block, then of the blocks, row by row


def seal(file: Path) -> None:
    """Append the checksums to a file that is written and closed."""
    with geotiff.opened(file) as dataset, file.open("r+b") as stream:
        rows, columns = _grid(dataset)
        blocks = [_block_sum(stream, dataset, row, column) for row in range(rows) for column in range(columns)]
        sums = np.array([_rest_sum(stream, dataset, file.stat().st_size), *blocks], np.uint32)
        stream.seek(0, 2)
        stream.write(sums.tobytes() + _own_sum(sums))


def read(file: Path, dataset: Any, window: Window) -> Pixels:
    """Read a window of a sealed file, opened as ``dataset``, after looking at the blocks that it touches: (C,H,W).

    Raises:
        FileProblem: some of what the pixels come from is not as it was written.
    """
    with file.open("rb") as stream:
        if not _is_sound(stream, dataset, window):
            raise FileProblem(Kind.BROKEN, file, "it is not as it was written. Remove the file.")
    pixels: Pixels = dataset.read(window=window)
    return pixels


def _is_sound(stream: BinaryIO, dataset: Any, window: Window) -> bool:
    rows, columns = _grid(dataset)
    height, width = dataset.block_shapes[0]
    sums = _sums(stream, rows * columns + 1)
    if sums is None or sums[0] != _rest_sum(stream, dataset, stream.seek(0, 2) - sums.nbytes - 4):
        return False
    return all(
        _block_sum(stream, dataset, row, column) == sums[1 + row * columns + column]
        for row in range(window.row_off // height, -(-(window.row_off + window.height) // height))
        for column in range(window.col_off // width, -(-(window.col_off + window.width) // width))
    )


def _sums(stream: BinaryIO, count: int) -> _Sums | None:
    """What was appended, where it is sound itself."""
    size = 4 * (count + 1)
    if stream.seek(0, 2) < size:
        return None
    stream.seek(-size, 2)
    found = stream.read()
    sums = np.frombuffer(found[:-4], np.uint32)
    return sums if _own_sum(sums) == found[-4:] else None


def _own_sum(sums: _Sums) -> bytes:
    return zlib.crc32(sums.tobytes()).to_bytes(4, "little")


def _grid(dataset: Any) -> tuple[int, int]:
    """Rows and columns of blocks."""
    rows, columns = (-(-size // block) for size, block in zip(dataset.shape, dataset.block_shapes[0], strict=True))
    return rows, columns


def _block_sum(stream: BinaryIO, dataset: Any, row: int, column: int) -> int:
    start, size = _place(dataset, row, column)
    stream.seek(start)
    return zlib.crc32(stream.read(size))


def _rest_sum(stream: BinaryIO, dataset: Any, end: int) -> int:
    """Of the header before the first block, and of what stands behind the last one."""
    rows, columns = _grid(dataset)
    places = [_place(dataset, 0, 0), _place(dataset, rows - 1, columns - 1)]
    stream.seek(0)
    before = zlib.crc32(stream.read(min(start for start, _ in places)))
    behind = max(start + size for start, size in places)
    stream.seek(behind)
    return zlib.crc32(stream.read(max(0, end - behind)), before)


def _place(dataset: Any, row: int, column: int) -> tuple[int, int]:
    """Where a block begins in the file, and how many bytes it has; (0, 0) where the header says nothing sensible."""
    found = [dataset.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", bidx=1) for what in ("OFFSET", "SIZE")]
    return (0, 0) if None in found else (int(found[0]), int(found[1]))

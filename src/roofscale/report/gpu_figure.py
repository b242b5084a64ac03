"""The figure of a forecast of GPU memory."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from roofscale.forecast.allocator import MIB
from roofscale.forecast.fit import MAX_SHARE
from roofscale.forecast.gpu import Held
from roofscale.forecast.gpu_forecast import GpuForecast
from roofscale.report import style

_CREATOR = "roofscale"
_HEAD_BYTES = 4096  # hold the metadata of either format


def gpu_memory_figure(found: GpuForecast, timeline: Sequence[Held]) -> Figure:
    """What is allocated and reserved after each birth and death of two training steps, with the GPU's limit."""
    config = found.config
    title = f"GPU memory, forecast: {config.encoder}, {config.image_size} px, batch {config.batch_size}"
    figure, axes = style.new_axes(title, "births and deaths of tensors over two training steps", "MiB")
    events = range(len(timeline))
    axes.fill_between(events, [p.allocated / MIB for p in timeline], color=style.MEASURED, lw=0, label="allocated")
    axes.plot(events, [p.reserved / MIB for p in timeline], color=style.WAITING, label="reserved")
    axes.axhline(MAX_SHARE * found.usable_mib, color=style.LINE, ls="--", label=f"{MAX_SHARE:.0%} of what is usable")
    axes.set_ylim(0)
    axes.legend(frameon=False)
    return figure


def write_figure(figure: Figure, file: Path) -> None:
    """Write a figure as .svg or .png, with our name in it."""
    figure.savefig(file, metadata={"Software" if file.suffix.lower() == ".png" else "Creator": _CREATOR})


def is_figure(file: Path) -> bool:
    """Whether a file is one that ``write_figure`` has written."""
    with file.open("rb") as stream:
        return _CREATOR.encode() in stream.read(_HEAD_BYTES)

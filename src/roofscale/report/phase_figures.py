"""All figures of a climb, by file name; one that lacks its evidence is not among them."""

import types
from collections.abc import Mapping

from matplotlib.figure import Figure

from roofscale.phases.climb import ClimbResult
from roofscale.report.dataset_figure import loss_by_dataset
from roofscale.report.ladder_figures import expected_figure, ladder_figure
from roofscale.report.scaling_figures import GPU, HOST, memory_by_batch, stall_by_workers, throughput_by_batch

CAPTIONS: Mapping[str, str] = types.MappingProxyType(  # file name: what a reader sees there
    {
        "ladder.png": "Every run, the first at the bottom. Short rungs are tries with a remedy.",
        "expected.png": "Measured over expected; the grey bar is the tolerance that was stated beforehand.",
        "memory_by_batch.png": "Peak host memory of each run; the line is fitted to the runs that ended well.",
        "gpu_memory_by_batch.png": "Peak GPU memory of each run; the line is fitted to the runs that ended well.",
        "throughput_by_batch.png": "Samples a second; the knee is the smallest batch close to the best.",
        "stall_by_workers.png": "What the loader costs, and how busy the CPU is, by the number of loader processes.",
        "loss_by_dataset.png": "Loss by data set; a vertical line is a switch to the next one.",
    }
)


def phase_figures(climb: ClimbResult) -> dict[str, Figure]:
    """The figures that the climb carries evidence for, by file name, in the order of CAPTIONS."""
    drawn = {
        "ladder.png": ladder_figure([climb]),
        "expected.png": expected_figure(climb),
        "memory_by_batch.png": memory_by_batch(climb, HOST),
        "gpu_memory_by_batch.png": memory_by_batch(climb, GPU),
        "throughput_by_batch.png": throughput_by_batch(climb),
        "stall_by_workers.png": stall_by_workers(climb),
        "loss_by_dataset.png": loss_by_dataset(climb),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}

"""The import of torchvision with any build of torch.

timm and segmentation-models-pytorch import torchvision, though neither uses its compiled operators. PyPI's torchvision
for Linux is built against CUDA; with a CPU-only torch its operators do not load, and the import fails when it registers
their shape functions: ``operator torchvision::nms does not exist``.
"""

import importlib
import sys
import threading
from typing import Any

TRACING = threading.Lock()  # held by the thread that traces a model; PyTorch's tracers serve one at a time
# The schema that torchvision itself declares for both (torchvision/csrc/ops).
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("torchvision::nms", "torchvision::qnms")


def import_torchvision() -> None:
    """Import torchvision; if its operators are missing, declare the two that the import needs and import again.

    Not declared in advance: a build whose operators load registers the same names itself.

    Raises:
        ImportError, RuntimeError: torchvision cannot be imported for another reason.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if not _is_missing_operator(error):
            raise
        _forget_torchvision()
        _declare_operators()
        importlib.import_module("torchvision")


def _is_missing_operator(error: RuntimeError) -> bool:
    return any(f"operator {operator} does not exist" in str(error) for operator in _OPERATORS)


def _forget_torchvision() -> None:
    """Remove the modules of the failed import, which the second one would reuse half initialised."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


def _declare_operators() -> None:
    import torch

    for operator in _OPERATORS:
        torch.library.define(operator, _SCHEMA)  # torch keeps the definition alive for the life of the process


def segmentation_models() -> Any:
    """Import segmentation_models_pytorch with any build of torchvision, and return the module."""
    import_torchvision()
    return importlib.import_module("segmentation_models_pytorch")

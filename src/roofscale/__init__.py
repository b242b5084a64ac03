"""Roofscale: scale a segmentation training from a small CPU instance to GPUs, one judged step at a time."""

__version__ = "1.0.0"

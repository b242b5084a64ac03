"""Runners: the interface between commands, which need measurements, and the machines that execute the runs."""

from collections.abc import Callable

from roofscale.config import RunConfig
from roofscale.measurement import Measurement

Runner = Callable[[RunConfig], Measurement]


class RunInterrupted(Exception):
    """Interruption of a run by the user, a full disk or a fault of the service, not judged; the message says why."""

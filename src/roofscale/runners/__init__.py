"""How a run config becomes a measurement; the one seam between where runs execute and all that asks for them."""

from collections.abc import Callable

from roofscale.config import RunConfig
from roofscale.measurement import Measurement

Runner = Callable[[RunConfig], Measurement]


class RunInterrupted(Exception):
    """A run ended by the user, a full disk or a fault of the service; it is not judged. The message says why."""

"""How a run config becomes a measurement; the one seam between where runs execute and all that asks for them."""

from collections.abc import Callable

from roofscale.config import RunConfig
from roofscale.measurement import Measurement

Runner = Callable[[RunConfig], Measurement]

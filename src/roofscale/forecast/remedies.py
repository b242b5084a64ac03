"""What a config that does not fit its GPU could change, each change with its own forecast."""

import contextlib
import math
from dataclasses import replace

from roofscale.errors import ConfigError
from roofscale.forecast.fit import Fit
from roofscale.forecast.gpu import ALLOCATOR_VARIABLES, GpuForecaster
from roofscale.forecast.gpu_forecast import GpuForecast

_LIGHTER_DECODERS = ("fpn", "linknet")


def remedies(forecaster: GpuForecaster, largest: int) -> list[tuple[str, GpuForecast]]:
    """What would take less than the config asked for, each with its own forecast: what to set, and what comes of it.

    Args:
        forecaster: of the config.
        largest: batch that surely fits, as ``largest_batch`` has found.
    """
    config, where = forecaster.config, forecaster.where
    changes: list[dict[str, object]] = []
    if forecaster.precision == "fp32":
        changes.append({"precision": "auto"})
    if not config.channels_last:
        changes.append({"channels_last": True})
    if not config.activation_checkpointing:
        changes.append({"activation_checkpointing": True})
    changes += [{"decoder": name} for name in _LIGHTER_DECODERS if name != config.decoder]
    found = _in_parts(forecaster)
    if 0 < largest < config.batch_size:
        found.append((f"batch_size={largest}", forecaster.at(largest)))
    if not forecaster.settings.expandable_segments:
        expandable = forecaster.with_settings(replace(forecaster.settings, expandable_segments=True))
        found.append((f"{ALLOCATOR_VARIABLES[0]}=expandable_segments:True", expandable.at(config.batch_size)))
    for change in changes:
        other = GpuForecaster(config.with_overrides(change), where, forecaster.terms, forecaster.settings)
        words = " ".join(f"{key}={other.config.written()[key]}" for key in change)
        with contextlib.suppress(ConfigError):  # an encoder that cannot do it, or not be traced while it does
            found.append((words, other.at(config.batch_size)))
    asked = forecaster.at(config.batch_size)
    return [(words, forecast) for words, forecast in found if forecast.total_mib < asked.total_mib]


def _in_parts(forecaster: GpuForecaster) -> list[tuple[str, GpuForecast]]:
    """The same batch in as few parts as surely fit, which takes the same optimiser steps; nothing where none do."""
    batch, now = forecaster.config.batch_size, forecaster.config.micro_batches
    most = batch // (forecaster.config.least_batch // now or 1)  # parts
    if most < 2:
        return []
    cut = forecaster.in_parts(max(2, now))
    sizes = dict.fromkeys(math.ceil(batch / parts) for parts in range(max(2, now + 1), most + 1))
    for parts in (math.ceil(batch / size) for size in sizes):
        if (found := cut.in_parts(parts).at(batch)).fit is Fit.FITS:
            return [(f"micro_batches={parts}", found)]
    return []

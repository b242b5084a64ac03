"""Forecast command for the duration and cost of a run."""

from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from roofscale import compute
from roofscale.cli import forecast_text
from roofscale.cli.console import console
from roofscale.config import RunConfig
from roofscale.forecast import history
from roofscale.forecast.run_time import TimeForecast
from roofscale.report.format import as_json
from roofscale.stats.intervals import CONFIDENCE

_SHOWN_SOURCES = 5


def forecast_time(config: RunConfig, to_json: bool) -> None:
    """Print the forecast duration and cost of a run and an epoch, on its samples and on the full data sets.

    Raises:
        ConfigError: no recorded run is comparable.
    """
    runs = history.timing_records()
    found = history.require_time_forecast(config, runs)
    full = history.require_time_forecast(history.with_all_samples(config), runs)
    if to_json:
        content = {
            "amounts": asdict(history.dataset_sizes_cached(config)),
            "full_data": forecast_text.as_dict(full),
            "notes": _notes(config, found),
        }
        print(as_json({"config": config.as_dict(), **(forecast_text.as_dict(found) or {}), **content}))
        return
    _print(console(), config, found, full)


def _print(out: Console, config: RunConfig, found: TimeForecast, full: TimeForecast) -> None:
    asked = f"{config.image_size} px, batch {config.batch_size}, {config.num_workers} workers on {config.compute}"
    table = Table(f"time, {forecast_text.basis(found)}", f"{CONFIDENCE:.0%} interval", "cost",
                  title=f"{config.decoder} on {config.encoder}, {asked}", title_justify="left")  # fmt: skip
    for words, forecast in (("", found), (", all samples", full)):
        passes = config.passes
        table.add_row(f"an epoch{words}", forecast_text.duration(forecast.epoch_seconds),
                      forecast_text.cost(forecast.epoch_usd))  # fmt: skip
        table.add_row(f"a run, {passes} pass{'es' * (passes > 1)}{words}", forecast_text.duration(forecast.run_seconds),
                      forecast_text.cost(forecast.usd), end_section=True)  # fmt: skip
    parts = found.parts
    for name, seconds in (("start", parts.start), ("each pass's start", parts.passes), ("training", parts.training),
                          ("validation", parts.validation), ("last steps, cached", parts.cached)):  # fmt: skip
        table.add_row(name, f"{seconds:,.1f} s", f"{seconds / parts.total:.0%}")
    table.add_section()
    if found.estimate:
        table.add_row("a step", f"{found.estimate.seconds:.3g} s", f"{found.estimate.arithmetic_share:.0%} arithmetic")
    table.add_row("a sample", f"{found.seconds_per_sample:.3g} s", found.bound)
    out.print(table)
    for line in _notes(config, found):
        out.print(escape(line))


def _notes(config: RunConfig, found: TimeForecast) -> list[str]:
    lines = list(forecast_text.notes(found))
    if not found.estimate:
        lines.insert(0, _where_from(found))
    counts = history.dataset_sizes_cached(config)
    sizes = ", ".join(f"{name} {train:,} and {val:,} to validate" for name, (train, val) in counts.samples.items())
    lines.append(f"All samples, {counts.source}: {sizes}.")
    lines.append("This assumes a machine without other load. The boot of an instance is not included.")
    where = compute.get(config.compute)
    if not where.gpu and (note := compute.resource_limits(where).note):
        lines.append(f"Measured as a run on this machine: {note}.")
    return lines


def _where_from(found: TimeForecast) -> str:
    shown = ", ".join(found.sources[:_SHOWN_SOURCES])
    more = len(found.sources) - _SHOWN_SOURCES
    return (
        f"Scaled from {shown}{f' and {more} more' if more > 0 else ''}, where the loader held a step up for "
        f"{found.loader_share:.0%} of its time: that part goes with the workers, the rest with the model."
    )

"""Forecast command for the host memory of a CPU training, from recorded runs and probes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from roofscale import compute
from roofscale.cli.console import ProgressBar, console, plain
from roofscale.config import RunConfig
from roofscale.errors import ConfigError, ExitCode
from roofscale.forecast import host_memory
from roofscale.forecast.host_memory import HostForecast, HostModel, PeakObservation
from roofscale.forecast.probes import Probes, local_profile, peak_observations, probe_config
from roofscale.memory_margin import MEMORY_MARGIN, MemoryFit
from roofscale.report.format import as_json
from roofscale.runners import RunInterrupted
from roofscale.stats.intervals import CONFIDENCE

_STYLE = {MemoryFit.FITS: "green", MemoryFit.TOO_LARGE: "bold red", MemoryFit.UNCERTAIN: "yellow"}


def forecast_host(config: RunConfig, runs: Path, cache: Path, probe: bool, to_json: bool) -> int:
    """Print the forecast of a run's host memory, after the missing probes if asked for; return the exit code.

    It is 0 if the run fits its compute, 1 if it does not or is uncertain, 130 if a probe was interrupted.

    Raises:
        ConfigError: too few runs are recorded, or the compute trains on a GPU.
    """
    out = console(quiet=to_json)
    size = compute.get(config.compute)
    probes = Probes(runs / "probes", local_profile(config, size))
    limits = size.memory_gib * 1024, compute.shm_free_mib(size)
    points = [*peak_observations(), *probes.points()]
    if probe:
        try:
            probes.run(_useful_probes(config, probes, points, limits), cache, plain(out), ProgressBar)
        except RunInterrupted:
            out.print("Stopped. What was measured is kept: the same command goes on from there.")
            return ExitCode.INTERRUPTED
        points = [*peak_observations(), *probes.points()]
    try:
        model = host_memory.fit_host_model(probes.kind, points)
        forecast = model.forecast(config, *limits)
    except ConfigError as error:
        if lost := probes.out_of_memory(config):
            raise _out_of_memory(probes, lost, limits[0]) from error
        raise
    if to_json:
        print(as_json(_content(config, model, forecast)))
    else:
        _print_forecast(out, config, model, forecast)
    return 0 if forecast.fit is MemoryFit.FITS else 1


def _useful_probes(
    config: RunConfig, probes: Probes, points: Sequence[PeakObservation], limits: tuple[float, float | None]
) -> list[RunConfig]:
    """Return the missing probes; if none is missing and the forecast is uncertain, the one that narrows it most."""
    if missing := probes.missing(config, points):
        return missing
    try:
        forecast = host_memory.fit_host_model(probes.kind, points).forecast(config, *limits)
    except ConfigError:  # too little came of those that were made
        return []
    best = forecast.next_probe if forecast.fit is MemoryFit.UNCERTAIN else None
    return [probe_config(config, best.batch_size, best.num_workers)] if best else []


def _out_of_memory(probes: Probes, lost: Sequence[RunConfig], memory_mib: float) -> ConfigError:
    """Build the error for probes that ran out of memory, where more probes would not help."""
    named = ", ".join(f"batch_size={one.batch_size} num_workers={one.num_workers}" for one in lost)
    return ConfigError(
        f"{probes.kind}: no forecast, because {lost[0].compute} with its {memory_mib:,.0f} MiB was too small for the "
        f"probe{'s' * (len(lost) > 1)} {named}. Expected probes that end well: name a compute with more memory "
        "(--compute), or ask for a smaller image_size or a lighter encoder."
    )


def _content(config: RunConfig, model: HostModel, forecast: HostForecast) -> dict[str, Any]:
    """Convert model and forecast to JSON for a script."""
    points = [
        {
            "batch_size": point.config.batch_size,
            "num_workers": point.config.num_workers,
            "peak_mib": point.peak_mib,
            "source": point.source,
        }
        for point in model.points
    ]
    return {
        "config": config.as_dict(),
        "kind": dataclasses.asdict(model.kind),
        **dataclasses.asdict(forecast),
        "share": forecast.peak.mib / forecast.memory_mib,
        "confidence": CONFIDENCE,
        "spread": model.spread,
        "points": points,
        "notes": _notes(config, model),
    }


def _print_forecast(out: Console, config: RunConfig, model: HostModel, forecast: HostForecast) -> None:
    asked = f"batch_size={config.batch_size} num_workers={config.num_workers} on {config.compute}"
    table = Table("host memory", asked, title=escape(str(model.kind)), title_justify="left")
    peak, share = forecast.peak, 1 / forecast.memory_mib
    interval = f"({CONFIDENCE:.0%} interval {peak.low_mib:,.0f} to {peak.high_mib:,.0f})"
    table.add_row("peak", f"{peak.mib:,.0f} MiB {interval}")
    shares = f"{peak.mib * share:.0%} ({peak.low_mib * share:.0%} to {peak.high_mib * share:.0%})"
    table.add_row("share", f"{shares} of {forecast.memory_mib:,.0f} MiB")
    table.add_row(f"under {MEMORY_MARGIN:.0%}?", f"[{_STYLE[forecast.fit]}]{forecast.fit}[/]")
    table.add_row("largest batch", _largest(forecast), end_section=True)
    for name, text in _parts(config, forecast).items():
        table.add_row(name, text)
    table.add_section()
    table.add_row("based on", f"{len(model.points)} runs: {_sources(model)}")
    table.add_row("next probe", _next_probe(forecast))
    out.print(table)
    for note in _notes(config, model):
        out.print(escape(note))


def _largest(forecast: HostForecast) -> str:
    if not forecast.largest_batch:
        return f"none stays under {MEMORY_MARGIN:.0%} with confidence"
    beyond = ", and no forecast goes further" if forecast.largest_batch == forecast.furthest_batch else ""
    return f"{forecast.largest_batch} stays under {MEMORY_MARGIN:.0%} with confidence{beyond}"


def _parts(config: RunConfig, forecast: HostForecast) -> dict[str, str]:
    parts, free = forecast.parts, forecast.shm_free_mib
    room = "size of its /dev/shm not known" if free is None else f"{free:,.0f} MiB free in /dev/shm"
    found = {
        "base": f"{parts.base:,.0f} MiB",
        "tensors": f"{parts.tensors:,.0f} MiB, traced: weights, gradients, optimiser's state, activations, gaps",
        "workers": f"{parts.workers:,.0f} MiB",
        "shared memory": f"at most {parts.shared:,.0f} MiB ({room})",
    }
    if parts.copied:
        found["copied"] = f"{parts.copied:,.0f} MiB, which loader processes keep of what training has overwritten"
    return found


def _sources(model: HostModel) -> str:
    return ", ".join(
        f"{escape(point.source)} (batch {point.config.batch_size}, {point.config.num_workers} workers)"
        for point in model.points
    )


def _next_probe(forecast: HostForecast) -> str:
    probe, peak = forecast.next_probe, forecast.peak
    if probe is None:
        return "none of the cheap ones is left"
    return (
        f"batch_size={probe.batch_size} num_workers={probe.num_workers} would narrow the interval from "
        f"+-{peak.high_mib - peak.mib:,.0f} to +-{probe.reach_mib:,.0f} MiB"
        f"{'; --probe runs it' if forecast.fit is MemoryFit.UNCERTAIN else ''}"
    )


def _notes(config: RunConfig, model: HostModel) -> list[str]:
    """Return a note if the compute is another machine, whose CPU may compute otherwise."""
    if config.compute.startswith(compute.LOCAL) or config.precision != "auto" or model.kind.precision == "fp32":
        return []
    return [
        f"precision=auto was measured as {model.kind.precision}, which this CPU computes natively. If {config.compute} "
        "does not, it takes fp32 and about half as much memory again: ask again with precision=fp32."
    ]

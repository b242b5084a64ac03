"""Forecast command for the GPU memory of a run."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from roofscale import compute
from roofscale.cli.console import console
from roofscale.config import RunConfig
from roofscale.files import require_output
from roofscale.forecast.gpu_memory import GpuForecaster, suggest_lighter_configs
from roofscale.forecast.results import GpuForecast
from roofscale.forecast.roofline_model import MEAN_ERROR, StepEstimate
from roofscale.memory_margin import MEMORY_MARGIN, MemoryFit
from roofscale.report.format import as_json

_SHOWN_MODULES = 8


def forecast_gpu(config: RunConfig, figure: Path | None, to_json: bool) -> int:
    """Print the forecast GPU memory of a config; return 0 if it fits with confidence, else 1."""
    if figure is not None:
        from roofscale.report.figures import run  # imports matplotlib

        require_output("--figure", figure, (".svg", ".png"), {}, run.is_figure)
    forecaster = GpuForecaster(config, compute.get(config.compute))
    found = forecaster.forecast(config.batch_size)
    sure, expected = forecaster.largest_batch(), forecaster.largest_batch(for_sure=False)
    lighter = suggest_lighter_configs(forecaster, sure) if found.fit() is not MemoryFit.FITS else []
    if figure is not None:
        drawn = run.gpu_memory_figure(found, forecaster.timeline(config.batch_size))
        run.write_figure(drawn, figure)
    if to_json:
        content = {"largest_batch": {"for_sure": sure, "expected": expected}, "step": asdict(_step(forecaster))}
        print(as_json({**_as_dict(found), **content, "remedies": {words: _as_dict(f) for words, f in lighter}}))
    else:
        _print(console(), forecaster, found, sure, expected, lighter)
        if figure is not None:
            console().print(f"Memory over two training steps: {escape(str(figure))}")
    return 0 if found.fit() is MemoryFit.FITS else 1


def _step(forecaster: GpuForecaster) -> StepEstimate:
    return forecaster.step(forecaster.config.batch_size)


def _as_dict(found: GpuForecast) -> dict[str, Any]:
    derived = {name: getattr(found, name) for name in ("total_mib", "low_mib", "high_mib", "share")}
    return {**asdict(found), "config": found.config.as_dict(), **derived, "fit": found.fit()}


def _print(
    out: Console,
    forecaster: GpuForecaster,
    found: GpuForecast,
    sure: int,
    expected: int,
    lighter: list[tuple[str, GpuForecast]],
) -> None:
    config, where = found.config, forecaster.where
    out.print(
        f"[bold]{config.encoder} {config.decoder}, {config.image_size} px, batch {config.batch_size}, "
        f"{found.precision}[/] on {where.name} ({where.gpu}, {found.usable_mib:,.0f} MiB usable)"
    )
    out.print(_totals(found))
    out.print(_parts(found))
    out.print(f"Largest batch under {MEMORY_MARGIN:.0%}: {sure} for sure, {expected} as expected.")
    if lighter:
        out.print(_remedies(lighter))
    step = _step(forecaster)
    out.print(
        f"A step takes {step.seconds:.3g} s by a roofline estimate, {step.samples / step.seconds:.3g} samples/s; "
        f"others find one {MEAN_ERROR:.0%} off on average. Time and cost of a run: roofscale forecast time"
    )
    if not found.calibrated_on:
        out.print(
            f"[bold yellow]Not validated on a GPU:[/] context and workspace are assumed, and the interval is "
            f"+-{found.spread:.0%} until measured. Measure with: python -m benchmarks.gpu_memory"
        )


def _totals(found: GpuForecast) -> Table:
    styles = {MemoryFit.FITS: "green", MemoryFit.TOO_LARGE: "bold red", MemoryFit.UNCERTAIN: "yellow"}
    table = Table("what", "MiB", "interval", "of usable", title="GPU memory, forecast", title_justify="left")
    table.add_row("allocated, peak", f"{found.allocated_mib:,.0f}", "", f"{found.allocated_mib / found.usable_mib:.0%}")
    table.add_row("reserved, peak", f"{found.reserved_mib:,.0f}", "", f"{found.reserved_mib / found.usable_mib:.0%}")
    table.add_row("context (assumed)" if not found.calibrated_on else "context", f"{found.context_mib:,.0f}", "", "")
    interval = f"{found.low_mib:,.0f} to {found.high_mib:,.0f}"
    table.add_row("[bold]total[/]", f"[bold]{found.total_mib:,.0f}[/]", interval, f"[bold]{found.share:.0%}[/]")
    table.add_row(f"under {MEMORY_MARGIN:.0%}?", "", f"[{styles[found.fit()]}]{found.fit()}[/]", "")
    return table


def _parts(found: GpuForecast) -> Table:
    table = Table("at the peak", "MiB", title="Where the memory goes", title_justify="left")
    for kind, mib in found.kinds.items():
        table.add_row(kind, f"{mib:,.0f}")
        if kind == "activations":
            modules = list(found.modules.items())
            for module, part in modules[:_SHOWN_MODULES]:
                table.add_row(f"  {escape(module)}", f"{part:,.0f}", style="dim")
            if rest := modules[_SHOWN_MODULES:]:
                table.add_row(f"  {len(rest)} others", f"{sum(part for _, part in rest):,.0f}", style="dim")
    return table


def _remedies(lighter: list[tuple[str, GpuForecast]]) -> Table:
    table = Table("set", "total, MiB", "of usable", f"under {MEMORY_MARGIN:.0%}?", title="What would take less",
                  title_justify="left")  # fmt: skip
    for words, forecast in lighter:
        table.add_row(words, f"{forecast.total_mib:,.0f}", f"{forecast.share:.0%}", forecast.fit())
    return table

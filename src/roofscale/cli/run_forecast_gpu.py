"""Forecast command for the GPU memory of a run, or of the training step of any model."""

import importlib
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from roofscale import compute
from roofscale.cli import forecast_text
from roofscale.cli.console import console
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.files import require_output
from roofscale.forecast.results import GpuForecast, require_gpu
from roofscale.memory_margin import MEMORY_MARGIN, MemoryFit
from roofscale.report.format import as_json

if TYPE_CHECKING:  # both import PyTorch
    from roofscale.forecast.gpu_memory import GpuForecaster
    from roofscale.forecast.training_step import TrainingStep

_SHOWN_MODULES = 8


def forecast_gpu(config: RunConfig, figure: Path | None, to_json: bool, model: str = "") -> int:
    """Print the forecast GPU memory of a config; return 0 if it fits with confidence, else 1.

    The answer is printed before the remedies are traced. ``model`` names a function that returns the step of another
    model, for which ``batch_size`` and ``compute`` alone count.
    """
    if figure is not None:
        from roofscale.report.figures import run  # imports matplotlib

        require_output("--figure", figure, (".svg", ".png"), {}, run.is_figure)
    where = compute.get(config.compute)
    require_gpu(where)
    from roofscale.forecast.gpu_memory import GpuForecaster, suggest_lighter_configs  # imports PyTorch

    forecaster = GpuForecaster.of_step(_import_step(model), where) if model else GpuForecaster.of_run(config, where)
    found = forecaster.forecast(config.batch_size)
    sure, expected = forecaster.largest_batch(), forecaster.largest_batch(for_sure=False)
    if not to_json:
        _print(console(), forecaster, found, sure, expected)
    if figure is not None:
        drawn = run.gpu_memory_figure(found, forecaster.timeline(config.batch_size))
        run.write_figure(drawn, figure)
        if not to_json:
            console().print(f"Memory over two training steps: {escape(str(figure))}")
    fits = found.fit() is MemoryFit.FITS
    lighter = [] if model or fits else list(suggest_lighter_configs(config, forecaster, sure))
    if to_json:
        step = asdict(forecaster.step(config.batch_size))
        content = {"largest_batch": {"for_sure": sure, "expected": expected}, "step": step}
        print(as_json({**_as_dict(found), **content, "remedies": {words: _as_dict(f) for words, f in lighter}}))
    elif lighter:
        console().print(_remedies(lighter))
    return 0 if fits else 1


def _import_step(path: str) -> "TrainingStep":
    """Import a function that returns a training step, and call it; both run the user's code.

    Raises:
        ConfigError: the module or the function cannot be imported, or it returns something else.
    """
    from roofscale.forecast.training_step import TrainingStep

    module, _, function = path.partition(":")
    print(f"--model {path}: importing {module} runs its code on this machine.", file=sys.stderr)
    sys.path.insert(0, os.getcwd())
    try:
        step = getattr(importlib.import_module(module), function)()
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(
            f"--model {path}: expected a function without arguments, written package.module:function, and it cannot be "
            f"imported or fails ({type(error).__name__}: {error}). Run from the folder that has the package."
        ) from error
    if not isinstance(step, TrainingStep):
        raise ConfigError(
            f"--model {path}: returned a {type(step).__name__}; expected a TrainingStep, which "
            "roofscale.forecast.training_step.TrainingStep.of makes from net, inputs, loss and optimizer."
        )
    return step


def _as_dict(found: GpuForecast) -> dict[str, Any]:
    derived = {name: getattr(found, name) for name in ("total_mib", "low_mib", "high_mib", "share")}
    return {**asdict(found), **derived, "fit": found.fit()}


def _print(out: Console, forecaster: "GpuForecaster", found: GpuForecast, sure: int, expected: int) -> None:
    where = forecaster.where
    out.print(
        f"[bold]{escape(found.name)}, batch {found.batch}, {found.precision}[/] on {where.name} "
        f"({where.gpu}, {found.usable_mib:,.0f} MiB usable)"
    )
    out.print(_totals(found))
    out.print(_parts(found))
    out.print(f"Largest batch under {MEMORY_MARGIN:.0%}: {sure} for sure, {expected} as expected.")
    step = forecaster.step(found.batch)
    out.print(f"A step takes {forecast_text.step(step)}. Time and cost of a run: roofscale forecast time")
    out.print(f"The memory's interval: {found.evidence} cudnn.benchmark is taken as off, as the trainer leaves it.")


def _totals(found: GpuForecast) -> Table:
    styles = {MemoryFit.FITS: "green", MemoryFit.TOO_LARGE: "bold red", MemoryFit.UNCERTAIN: "yellow"}
    table = Table("what", "MiB", "interval", "of usable", title="GPU memory, forecast", title_justify="left")
    table.add_row("allocated, peak", f"{found.allocated_mib:,.0f}", "", f"{found.allocated_mib / found.usable_mib:.0%}")
    table.add_row("gaps between blocks", f"{found.gaps_mib:,.0f}", "", "")
    table.add_row("CUDA context", f"{found.context_mib:,.0f}", "", "")
    interval = f"{found.low_mib:,.0f} to {found.high_mib:,.0f}"
    table.add_row("[bold]held at once[/]", f"[bold]{found.total_mib:,.0f}[/]", interval, f"[bold]{found.share:.0%}[/]")
    table.add_row(f"under {MEMORY_MARGIN:.0%}?", "", f"[{styles[found.fit()]}]{found.fit()}[/]", "", end_section=True)
    reserved = f"{found.reserved_mib:,.0f}", "", f"{found.reserved_mib / found.usable_mib:.0%}"
    table.add_row("reserved, peak (its cache is given back)", *reserved, style="dim")
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

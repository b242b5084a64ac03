"""Gate command, and the requirements of a phase: the gate and a GPU."""

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from roofscale import compute, invocation
from roofscale.cli import run_forecast_instances
from roofscale.cli.console import console
from roofscale.config import RunConfig
from roofscale.forecast import history
from roofscale.forecast.instances import offers
from roofscale.monitoring.nvml import GpuMonitor
from roofscale.phases.gate import CPU_PHASES, GateReport, gate_report
from roofscale.phases.phase_file import Phase
from roofscale.report.format import as_json
from roofscale.runners import registry
from roofscale.tracking import tracking_uri
from roofscale.tracking.history import judged_runs


def read_gate() -> GateReport:
    """Evaluate the gate on the runs of the tracking server."""
    return gate_report({phase: judged_runs(phase) for phase in CPU_PHASES}, tracking_uri())


def print_gate(to_json: bool, last_step: Callable[[], RunConfig]) -> bool:
    """Print every condition with its proof or its remedy; return whether the gate is open.

    If it is, the instances for the last step of the GPU phase are compared.
    """
    report = read_gate()
    found = offers(last_step(), history.timing_records()) if report.open else []
    if to_json:
        conditions = [vars(condition) for condition in report.conditions]
        content = {"open": report.open, "tracking_uri": report.tracking_uri, "conditions": conditions}
        print(as_json({**content, "instances": [run_forecast_instances.as_dict(offer) for offer in found]}))
    else:
        _print_report(console(), report)
        if found:
            console().print(run_forecast_instances.table(found))
    return report.open


def closed(phase: Phase, out: Console) -> list[str]:
    """Print the gate if a phase requires it; return the message that it is closed, or no message."""
    if "gate" not in phase.requires:
        return []
    report = read_gate()
    _print_report(out, report)
    on = f"see above; {invocation.option('force')} goes on all the same, and is recorded"
    return [] if report.open else [f"the gate is closed ({on})"]


def lacks_gpu(phase: Phase, overrides: Sequence[str] = (), runner: str = registry.LOCAL) -> list[str]:
    """Return the message that a required GPU is missing, on this machine or in the compute of the jobs; else none."""
    if "gpu" not in phase.requires:
        return []
    computes = [config.compute for _, config in phase.resolve(overrides=overrides)]
    without = [name for name in computes if not compute.get(name).gpu]
    again = invocation.command("phase", phase.number)
    if registry.runs_on_this_machine(runner):
        such = compute.GPU_EXAMPLE if without else computes[0]
        return [] if GpuMonitor() else [
            f"this machine has no GPU. On a machine that has one, such as {such}, with the same tracking server "
            f"(MLFLOW_TRACKING_URI): {again}; or as SageMaker jobs: ROOFSCALE_RUNNER=sagemaker {again}"
        ]  # fmt: skip
    choice = invocation.option("gpu_compute", compute.GPU_EXAMPLE)
    return [f"compute={without[0]} has no GPU; choose one that has, such as {choice}"] if without else []


def _print_report(out: Console, report: GateReport) -> None:
    table = Table(
        "condition", "met", Column("evidence, or what supplies it", overflow="fold"), Column("run", no_wrap=True),
        title=f"Gate before the GPU: {'open' if report.open else 'closed'} ({report.tracking_uri})",
        title_justify="left",
    )  # fmt: skip
    for condition in report.conditions:
        text = condition.evidence if condition.met else f"{condition.evidence}. Supply it with: {condition.remedy}"
        style = "green" if condition.met else "bold red"
        table.add_row(condition.name, f"[{style}]{'yes' if condition.met else 'no'}[/]", escape(text), condition.run_id)
    out.print(table)

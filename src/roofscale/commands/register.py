"""The command that names a model in MLflow's registry."""

from rich.markup import escape

from roofscale.report.console import as_json, console
from roofscale.tracking import register, tracking_uri


def register_run(run_id: str, alias: str, name: str, to_json: bool) -> None:
    """Register the model of a run, point an alias to it, and say what it is called now."""
    model = register(run_id, alias, name)
    if to_json:
        print(as_json({"run_id": model.run.run_id, "version": model.named, "alias": alias}))
        return
    named = f"{name}@{alias}"
    console().print(f"{escape(named)} is {escape(model.named)}, of run {model.run.run_id} ({escape(tracking_uri())}).")

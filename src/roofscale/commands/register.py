"""How a model comes by its name in MLflow's registry: by command, or by the last phase."""

from rich.console import Console
from rich.markup import escape

from roofscale.phases.judge import Verdict
from roofscale.phases.results import PhaseResult
from roofscale.report.console import as_json, console
from roofscale.tracking import CHAMPION, Tracker, register, tracking_uri


def register_run(run_id: str, alias: str, name: str, to_json: bool) -> None:
    """Register the model of a run, point an alias to it, and say what it is called now."""
    model = register(run_id, alias, name)
    if to_json:
        print(as_json({"run_id": model.run.run_id, "version": model.named, "alias": alias}))
        return
    named = f"{name}@{alias}"
    console().print(f"{escape(named)} is {escape(model.named)}, of run {model.run.run_id} ({escape(tracking_uri())}).")


def name_champion(climbed: PhaseResult, tracker: Tracker, out: Console) -> None:
    """Make the model of a phase's last step the champion, if all of the phase passed.

    A server that is away is told later, like everything else that is logged.
    """
    if climbed.verdict is Verdict.PASSED:
        best = climbed.results[-1]
        tracker.open(best.run_id).set_aliases(CHAMPION)
        out.print(f"The model of {best.step.name}, run {best.run_id}, is the {CHAMPION} now: roofscale predict IMAGE")

"""Puts a climb on the tracking server as the phase runner leaves it there, without running anything."""

import json
from dataclasses import asdict
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from roofscale.phases.results import PhaseResult, StepResult


def seed(climb: PhaseResult, folder: Path) -> str:
    """Write a climb; artifacts go under ``folder``. Returns the parent's run id."""
    client = MlflowClient()
    known = client.get_experiment_by_name(climb.experiment)
    place = (folder / "artifacts" / climb.experiment).as_uri()
    experiment = known.experiment_id if known else client.create_experiment(climb.experiment, artifact_location=place)
    tags = {"phase": str(climb.phase.number), "created": climb.created, "git_commit": climb.commit}
    tags |= {"notes": json.dumps(climb.notes), **({} if climb.interrupted else {"verdict": climb.verdict})}
    parent = client.create_run(experiment, tags=tags, run_name="attempt").info.run_id
    for name, text in climb.phase.as_yaml().items():
        client.log_text(parent, text, name)
    for number, result in enumerate(climb.results, 1):
        for run in result.runs:
            _seed_run(client, experiment, parent, number, run, run is result)
    client.set_terminated(parent)
    return parent


def _seed_run(client: MlflowClient, experiment: str, parent: str, number: int, run: StepResult, decides: bool) -> None:
    measured, name = run.measurement, client.get_experiment(experiment).name
    tags = {"mlflow.parentRunId": parent, "phase": name[-1], "step": run.step.name, "step_number": str(number)}
    tags |= {"verdict": run.verdict.verdict, "outcome": measured.outcome, "outcome_detail": measured.detail}
    tags |= {"fingerprint": run.config.fingerprint, "decides": str(decides).lower(), **measured.facts}
    tags |= {f"verdict.{c.name}": c.verdict for c in run.verdict.criteria}
    tags |= {"failure": run.cause} if run.cause else {}
    if run.fallback:
        tags |= {"retry_of": run.fallback.retry_of, "cause": run.fallback.cause, "changed": run.fallback.changed}
        tags |= {"fallback": str(run.config.batch_size)}  # any number tells fallbacks apart
    run_id = client.create_run(experiment, run_name=run.step.name).info.run_id
    client.log_batch(
        run_id,
        metrics=[Metric(key, value, 0, 0) for key, value in measured.metrics.items()],
        params=[Param(key, value) for key, value in run.config.to_strings().items()],
        tags=[RunTag(key, str(value)) for key, value in tags.items()],
    )
    client.log_text(run_id, json.dumps(run.verdict.as_dict()), "verdict.json")
    client.log_text(run_id, json.dumps(asdict(measured)), "measurement.json")
    client.set_terminated(run_id)

"""Preflight: refuse, before anything runs, configs that the runner cannot run or the budget does not cover."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from roofscale.addresses import S3
from roofscale.cli import forecast_text
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.forecast import history
from roofscale.forecast.run_time import sum_forecasts
from roofscale.runners.registry import LOCAL
from roofscale.runners.sagemaker import settings
from roofscale.runners.torchrun import Nodes, check_nodes


def preflight(runner: str, configs: Sequence[RunConfig], out: Console) -> None:
    """Print where configs will run and what that may cost.

    Raises:
        ConfigError: the runner cannot run one of them, or the forecast of their cost exceeds the budget.
    """
    if runner == LOCAL:
        for config in configs:
            check_nodes(config, Nodes())
            if config.data_root.startswith(S3):
                raise ConfigError(
                    f"data_root={config.data_root}: data in S3 is read by jobs, and this runs on this machine. Add "
                    "--runner sagemaker, or copy the data here and name its folder."
                )
        return
    from roofscale.runners.sagemaker.runner import instance_of, synthetic_specs
    from roofscale.tracking.server import job_logs_itself, tracking_uri

    wanted = settings.load()
    for config in configs:
        instance_of(config)
        synthetic_specs(config)
    computes = ", ".join(dict.fromkeys(config.compute for config in configs))
    if wanted.local_mode:
        out.print(f"Runs as containers on this machine, held to {computes}, with {escape(wanted.prefix)}.")
    else:
        out.print(
            f"Runs as SageMaker training jobs on {computes}, with s3://{escape(wanted.bucket)}/{escape(wanted.prefix)}."
        )
        text = f"The launcher logs to {tracking_uri()}: a job cannot reach it. Runs are logged while this command runs."
        if job_logs_itself(wanted.logged_by):
            text = f"Each job logs to {tracking_uri()} itself, also while no launcher runs."
        out.print(escape(text))
    if wanted.budget_usd:
        _check_budget(wanted, configs, out)


def plan_jobs(runner: str, configs: Mapping[Path, RunConfig]) -> dict[str, Any]:
    """Return the requests to SageMaker for a run in each folder (none without jobs), and the settings with origins.

    Raises:
        ConfigError: settings are missing, or SageMaker would refuse a request.
    """
    if runner == LOCAL:
        return {"requests": []}
    from roofscale.runners.sagemaker import request
    from roofscale.runners.sagemaker.job import new_job, tags_of
    from roofscale.runners.sagemaker.runner import instance_of
    from roofscale.tracking.server import job_environment

    wanted = settings.load()
    for config in configs.values():
        instance_of(config)
    variables = job_environment("set at the launch", wanted.logged_by)
    requests = [
        request.build_request(config, wanted, new_job(folder), tags_of(folder), environment=variables)
        for folder, config in configs.items()
    ]
    return {"requests": requests, "settings": wanted.described()}


def _check_budget(wanted: settings.SageMakerSettings, configs: Sequence[RunConfig], out: Console) -> None:
    """Compare the upper end of the cost forecast with the budget, which also limits the jobs' maximum runtime."""
    runs = history.timing_records()
    costs = [found.usd for config in configs if (found := history.forecast_time_of(config, runs)) and found.usd]
    if not costs:
        out.print(f"No forecast of the cost; the jobs end once {wanted.budget_usd:g} USD are used up.")
        return
    total = sum_forecasts(costs)
    text = f"{len(costs)} of {len(configs)} runs: {forecast_text.cost(total)}"
    if total.high > wanted.budget_usd:
        raise ConfigError(
            f"budget_usd={wanted.budget_usd:g}: the forecast of {text} goes beyond it. Raise it in sagemaker.yaml, or "
            "choose fewer samples, fewer steps or a cheaper compute."
        )
    out.print(f"Forecast of {text}, of a budget of {wanted.budget_usd:g} USD.")

"""Outcome and cost of a training job that is over. Pure functions over the answer of DescribeTrainingJob.

The order of the evidence: first the service's own status, if the service ended the job (a limit, a stop), because the
job cannot know the reason; then the measurement that the job left; then FailureReason, if it left none.
"""

import re
from collections.abc import Mapping
from typing import Any

from roofscale.measurement import Measurement, Outcome
from roofscale.runners.outcome import LESS_MEMORY, PEER_FAILED

RUNNING = ("InProgress", "Stopping")
FAILURE_CHARACTERS = 1024  # of /opt/ml/output/failure, which the service repeats as FailureReason

_GO_ON = "the same command goes on from the last checkpoint"
# Patterns of FailureReason; the first match wins. Faults of the service say nothing about the config and must not be
# judged, so they count as interrupted.
_REASONS: tuple[tuple[re.Pattern[str], Outcome, str], ...] = (
    (
        re.compile(r"CapacityError|InsufficientInstanceCapacity|Unable to provision requested ML compute capacity"),
        Outcome.INTERRUPTED,
        "AWS has none of these instances free at the moment; run the same command again later, or choose another "
        "compute, region or subnet",
    ),
    (
        re.compile(r"Cannot pull algorithm container|Requested image not found|ImageNotFound"),
        Outcome.CRASHED,
        "the image is not there, or the job's role may not pull it; build and push it, or correct the setting image",
    ),
    (re.compile(r"InternalServerError"), Outcome.INTERRUPTED, f"a fault of the service, not of the run; {_GO_ON}"),
    (
        re.compile(r"instance type with more memory|\bOOM\b|exit code: 137\b"),
        Outcome.HOST_OOM,
        f"the instance's memory ran out; {LESS_MEMORY}",
    ),
    (
        re.compile(r"Data download failed|No S3 objects found|S3 URL"),
        Outcome.DATA_ERROR,
        "the job's data could not be copied from S3; correct data_root, or let the job's role read it "
        "(deploy/iam/job-role.json)",
    ),
)
_FROM_JOB = re.compile(rf"\b({'|'.join(Outcome)}): ((?:.|\n)*)")  # see failure_text
_EXIT_CODE = re.compile(r", exit code: -?\d+\s*$")


def failure_text(measurement: Measurement) -> str:
    """Return the text for FailureReason, ``<outcome>: <detail>``, cut to the service's limit."""
    return f"{measurement.outcome}: {measurement.detail}"[:FAILURE_CHARACTERS]


def job_outcome(described: Mapping[str, Any], own: Measurement | None) -> tuple[Outcome, str]:
    """Return the outcome of a job that is over, and one line with the cause and the remedy.

    Args:
        described: the answer of DescribeTrainingJob.
        own: the measurement that the job left; None if it left none.
    """
    if own and own.outcome is Outcome.OK:
        return own.outcome, own.detail
    reason = str(described.get("FailureReason", ""))
    return _ended_by_service(described) or _from_measurement(own, reason) or _from_failure_reason(reason)


def _ended_by_service(described: Mapping[str, Any]) -> tuple[Outcome, str] | None:
    secondary, stopping = described.get("SecondaryStatus"), described.get("StoppingCondition", {})
    if secondary == "MaxRuntimeExceeded":
        seconds = stopping.get("MaxRuntimeInSeconds", "?")
        return Outcome.TIMEOUT, (
            f"SageMaker stopped it after its longest time, {seconds} s; raise max_runtime_seconds, timeout_seconds or "
            f"budget_usd, whichever set it, or train on fewer samples; {_GO_ON}"
        )
    if secondary == "MaxWaitTimeExceeded":
        return Outcome.INTERRUPTED, (
            f"no spot capacity within {stopping.get('MaxWaitTimeInSeconds', '?')} s; raise max_wait_seconds, or set "
            f"spot to false; {_GO_ON}"
        )
    if described.get("TrainingJobStatus") == "Stopped":
        return Outcome.INTERRUPTED, f"the job was stopped; {_GO_ON}"
    return None


def _from_measurement(own: Measurement | None, reason: str) -> tuple[Outcome, str] | None:
    """Return the measurement's outcome; None if it only reports that another machine, which left none, had ended.

    Such a machine lost its peer or was asked to stop; not by a user, as the job has failed and was not stopped.
    """
    if own is None:
        return None
    followed = own.detail.startswith(PEER_FAILED) or own.outcome is Outcome.INTERRUPTED
    if followed and reason and PEER_FAILED not in reason:
        return None
    return own.outcome, own.detail


def _from_failure_reason(reason: str) -> tuple[Outcome, str]:
    """Return the outcome by FailureReason: the job's own text, else a known text of the service, else a crash."""
    if own := _FROM_JOB.search(reason):
        return Outcome(own[1]), _EXIT_CODE.sub("", own[2]) or "no cause given"
    for pattern, outcome, remedy in _REASONS:
        if pattern.search(reason):
            return outcome, f"{remedy}: {reason}"
    cause = reason or "the job ended well, but left no measurement; was its image made by the Dockerfile?"
    return Outcome.CRASHED, f"{cause} (see the job's log in CloudWatch)"


def cost_metrics(described: Mapping[str, Any], usd_per_hour: float | None) -> dict[str, float]:
    """Return the ``cost/...`` metrics of a job, as far as the service reports them.

    Billed seconds of a spot job already contain the saving, so ``cost/usd`` is at the full price per hour.
    Source: https://docs.aws.amazon.com/sagemaker/latest/dg/model-managed-spot-training.html
    """
    metrics: dict[str, float] = {}
    billable, ran = described.get("BillableTimeInSeconds"), described.get("TrainingTimeInSeconds")
    if billable is not None:
        metrics["cost/billable_seconds"] = float(billable)
        if usd_per_hour is not None:
            metrics["cost/usd"] = billable / 3600 * usd_per_hour
    if described.get("EnableManagedSpotTraining") and billable is not None and ran:
        metrics["cost/spot_saving"] = 1 - billable / ran
    if "TrainingStartTime" in described and "CreationTime" in described:
        metrics["cost/start_seconds"] = (described["TrainingStartTime"] - described["CreationTime"]).total_seconds()
    return metrics

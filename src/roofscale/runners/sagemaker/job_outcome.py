"""What a training job that is over came to, seen from outside. Pure functions over what DescribeTrainingJob says.

Where the job has left its own measurement, that counts: it saw the run. What the service says comes first only where it
ended the job for a reason that the job cannot know, and last where the job had no time to speak.
"""

import re
from collections.abc import Mapping
from typing import Any

from roofscale.measurement import Measurement, Outcome
from roofscale.runners.outcome import PEER_FAILED

RUNNING = ("InProgress", "Stopping")
FAILURE_CHARACTERS = 1024  # of /opt/ml/output/failure, which the service repeats as FailureReason

_GO_ON = "the same command goes on from the last checkpoint"
# What FailureReason says, the first that fits. The service's own faults are no result of the run: nothing is judged by
# them, so they count as interrupted.
_SAID: tuple[tuple[re.Pattern[str], Outcome, str], ...] = (
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
        "the instance's memory ran out; lower batch_size, image_size or num_workers, or choose a compute with more "
        "memory",
    ),
    (
        re.compile(r"Data download failed|No S3 objects found|S3 URL"),
        Outcome.DATA_ERROR,
        "the job's data could not be copied from S3; correct data_root, or let the job's role read it "
        "(deploy/iam/job-role.json)",
    ),
)
_OWN = re.compile(rf"\b({'|'.join(Outcome)}): ((?:.|\n)*)")
_EXIT = re.compile(r", exit code: -?\d+\s*$")


def failure_text(measurement: Measurement) -> str:
    """What the job leaves for FailureReason: the outcome and its cause."""
    return f"{measurement.outcome}: {measurement.detail}"[:FAILURE_CHARACTERS]


def job_outcome(described: Mapping[str, Any], own: Measurement | None) -> tuple[Outcome, str]:
    """The outcome of a job that is over, and one line that says what happened and what to do.

    Args:
        described: DescribeTrainingJob's answer.
        own: the measurement that the job has left.
    """
    if own and own.outcome is Outcome.OK:
        return own.outcome, own.detail
    reason = str(described.get("FailureReason", ""))
    return _ended_by_service(described) or _told(own, reason) or _read(reason)


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


def _told(own: Measurement | None, reason: str) -> tuple[Outcome, str] | None:
    """What the job's measurement says; nothing where the machines that left one only followed one that left none.

    They missed it, or were asked to stop for it; that was not by a user, as the job failed and was not stopped.
    """
    if own is None:
        return None
    followed = own.detail.startswith(PEER_FAILED) or own.outcome is Outcome.INTERRUPTED
    if followed and reason and PEER_FAILED not in reason:
        return None
    return own.outcome, own.detail


def _read(reason: str) -> tuple[Outcome, str]:
    """What the reason says: the job's own words, or those of the service."""
    if own := _OWN.search(reason):
        return Outcome(own[1]), _EXIT.sub("", own[2]) or "no cause given"
    for pattern, outcome, remedy in _SAID:
        if pattern.search(reason):
            return outcome, f"{remedy}: {reason}"
    said = reason or "the job ended well, but left no measurement; was its image made by the Dockerfile?"
    return Outcome.CRASHED, f"{said} (see the job's log in CloudWatch)"


def cost_metrics(described: Mapping[str, Any], usd_per_hour: float | None) -> dict[str, float]:
    """What a job cost. Of a spot job the service bills fewer seconds than it ran, so the saving is in them already.

    Source: https://docs.aws.amazon.com/sagemaker/latest/dg/model-managed-spot-training.html
    """
    found: dict[str, float] = {}
    billable, ran = described.get("BillableTimeInSeconds"), described.get("TrainingTimeInSeconds")
    if billable is not None:
        found["cost/billable_seconds"] = float(billable)
        if usd_per_hour is not None:
            found["cost/usd"] = billable / 3600 * usd_per_hour
    if described.get("EnableManagedSpotTraining") and billable is not None and ran:
        found["cost/spot_saving"] = 1 - billable / ran
    if "TrainingStartTime" in described and "CreationTime" in described:
        found["cost/start_seconds"] = (described["TrainingStartTime"] - described["CreationTime"]).total_seconds()
    return found

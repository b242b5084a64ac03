"""What a job that is over came to: every rule, and that the job's own word counts where it could speak."""

import dataclasses
from typing import Any

import pytest
from tests.runners.sagemaker_settings import described

from roofscale.measurement import Measurement, Outcome
from roofscale.runners.outcome import PEER_FAILED
from roofscale.runners.sagemaker.job_outcome import cost_metrics, failure_text, job_outcome


def own(outcome: Outcome, detail: str = "as the job saw it") -> Measurement:
    return Measurement(outcome, detail, "abc")


# As the service words them, and as the job itself writes them into /opt/ml/output/failure.
@pytest.mark.parametrize(
    ("reason", "outcome", "said"),
    [
        (
            "ClientError: Please use an instance type with more memory, or reduce the size of job data processed on an "
            "instance., exit code: 137",
            Outcome.HOST_OOM,
            "choose a compute with more memory",
        ),
        ("AlgorithmError: , exit code: 137", Outcome.HOST_OOM, "lower batch_size"),
        ("AlgorithmError: cuda_oom: the GPU's memory ran out, exit code: 1", Outcome.CUDA_OOM, "the GPU's memory ran"),
        ("AlgorithmError: shm_full: /dev/shm is full; lower x\nsecond line, exit code: 1", Outcome.SHM_FULL, "second"),
        ("AlgorithmError: data_error: rid/1.tif: broken, exit code: 1", Outcome.DATA_ERROR, "rid/1.tif: broken"),
        (
            "ClientError: Cannot pull algorithm container. Either the image does not exist or its permissions are "
            "incorrect.",
            Outcome.CRASHED,
            "build and push it",
        ),
        ("AlgorithmError: diverged: loss is nan, exit code: 1", Outcome.DIVERGED, "loss is nan"),
        ("AlgorithmError: timeout: ended after 5 s, exit code: 1", Outcome.TIMEOUT, "ended after 5 s"),
        (
            'ClientError: Data download failed:No S3 objects found under S3 URL "s3://b/rid/" given in input data '
            "source.",
            Outcome.DATA_ERROR,
            "correct data_root",
        ),
        (
            "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML "
            "instance type.",
            Outcome.INTERRUPTED,
            "AWS has none of these instances free",
        ),
        ("InternalServerError: We encountered an internal error. Please try again.", Outcome.INTERRUPTED, "service"),
        ("AlgorithmError: , exit code: 1", Outcome.CRASHED, "AlgorithmError"),
        ("ClientError: CannotStartContainerError. exec: python: not found", Outcome.CRASHED, "python: not found"),
        ("", Outcome.CRASHED, "left no measurement"),
    ],
)
def test_a_job_that_could_not_speak(reason: str, outcome: Outcome, said: str) -> None:
    found, detail = job_outcome(described("Failed", FailureReason=reason), None)
    assert found is outcome
    assert said in detail
    assert not detail.endswith("exit code: 1") or outcome is Outcome.CRASHED


@pytest.mark.parametrize("outcome", [one for one in Outcome if one is not Outcome.OK])
def test_what_a_job_leaves_for_failure_reason_is_read_back(outcome: Outcome) -> None:
    reason = f"AlgorithmError: {failure_text(own(outcome, 'why: ' + 'x' * 2000))}, exit code: 1"
    found, detail = job_outcome(described("Failed", FailureReason=reason), None)
    assert found is outcome
    assert detail.startswith("why: xxx")
    assert len(failure_text(own(outcome, "x" * 2000))) == 1024


@pytest.mark.parametrize(
    ("answer", "theirs", "outcome", "said"),
    [
        (described(), own(Outcome.OK), Outcome.OK, "as the job saw it"),
        (described("Failed", FailureReason="AlgorithmError: , exit code: 137"), own(Outcome.CUDA_OOM), Outcome.CUDA_OOM,
         "as the job saw it"),
        (described("Stopped"), own(Outcome.OK), Outcome.OK, "as the job saw it"),
        (described("Stopped"), own(Outcome.INTERRUPTED), Outcome.INTERRUPTED, "goes on from the last checkpoint"),
        (described("Stopped"), None, Outcome.INTERRUPTED, "the job was stopped"),
        (described("Stopped", "MaxRuntimeExceeded"), own(Outcome.INTERRUPTED), Outcome.TIMEOUT, "900 s"),
        (described("Stopped", "MaxRuntimeExceeded"), None, Outcome.TIMEOUT, "max_runtime_seconds"),
        (described("Stopped", "MaxWaitTimeExceeded", StoppingCondition={"MaxWaitTimeInSeconds": 7}), None,
         Outcome.INTERRUPTED, "no spot capacity within 7 s"),
    ],
)  # fmt: skip
def test_who_is_believed(answer: dict[str, Any], theirs: Measurement | None, outcome: Outcome, said: str) -> None:
    found, detail = job_outcome(answer, theirs)
    assert found is outcome
    assert said in detail


def test_what_a_job_cost() -> None:
    found = cost_metrics(described(), 0.36)
    assert found == {"cost/billable_seconds": 60.0, "cost/usd": pytest.approx(0.006), "cost/start_seconds": 30.0}
    assert "cost/usd" not in cost_metrics(described(), None)
    assert cost_metrics(described("InProgress"), 0.36) == {}


def test_the_saving_of_a_spot_job() -> None:
    spot = described(EnableManagedSpotTraining=True, BillableTimeInSeconds=15)
    assert cost_metrics(spot, 0.36)["cost/spot_saving"] == 0.75
    assert cost_metrics(spot, 0.36)["cost/usd"] == pytest.approx(0.0015)


def test_a_measurement_survives_the_text() -> None:
    assert failure_text(dataclasses.replace(own(Outcome.CRASHED), detail="ü\n'\"")) == "crashed: ü\n'\""


def test_machines_that_only_followed_do_not_hide_why_one_ended_that_left_nothing() -> None:
    followed = Measurement(Outcome.CRASHED, f"{PEER_FAILED}: closed by peer", "abc")
    killed = described("Failed", FailureReason="ClientError: use an instance type with more memory, exit code: 137")
    assert job_outcome(killed, followed)[0] is Outcome.HOST_OOM
    assert job_outcome(described("Failed", FailureReason=""), followed) == (followed.outcome, followed.detail)
    asked = Measurement(Outcome.INTERRUPTED, "asked to stop before it was done", "abc")  # as another had ended
    assert job_outcome(killed, asked)[0] is Outcome.HOST_OOM
    itself = described("Failed", FailureReason=f"AlgorithmError: {failure_text(asked)}, exit code: 1")
    assert job_outcome(itself, asked) == (asked.outcome, asked.detail)

"""What is asked of AWS: S3 on moto, SageMaker's faults by botocore's own stub, nothing over any network."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from botocore.stub import Stubber
from moto import mock_aws
from sagemaker.core.utils.utils import SageMakerClient as SdkClient
from tests.runners.sagemaker_settings import ARN, BEGUN, CONFIG, SETTINGS, full_description, packed

from roofscale.errors import ConfigError
from roofscale.runners.sagemaker.aws_errors import CloudError, is_transient, retry_transient, to_aws_user_error
from roofscale.runners.sagemaker.job import Job
from roofscale.runners.sagemaker.jobs_api import SageMakerClient
from roofscale.runners.sagemaker.request import build_request

HERE = dataclasses.replace(SETTINGS, region="eu-west-1")


@pytest.fixture
def waited() -> list[float]:
    return []


@pytest.fixture
def cloud(waited: list[float], monkeypatch: pytest.MonkeyPatch) -> Iterator[SageMakerClient]:
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        found = SageMakerClient(HERE, waited.append)
        found._s3.create_bucket(Bucket="roofs", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        yield found


def fault(code: str, status: int = 400, message: str = "what AWS says") -> ClientError:
    content = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(content, "DescribeTrainingJob")  # type: ignore[arg-type]


def test_the_credentials_are_the_tests_own(cloud: SageMakerClient) -> None:
    assert boto3.client("sts", region_name="eu-west-1").get_caller_identity()["Account"] == "123456789012"


def test_an_object_is_read_as_it_grows(cloud: SageMakerClient) -> None:
    uri = "s3://roofs/a b/ü.jsonl"
    assert cloud.read_from(uri, 0) == b""
    cloud.write(uri, b"one\n")
    assert cloud.read_from(uri, 0) == b"one\n"
    assert cloud.read_from(uri, 4) == b""
    cloud.write(uri, b"one\ntwo\n")
    assert cloud.read_from(uri, 4) == b"two\n"


def test_a_run_folder_is_fetched_but_for_what_is_left_out(cloud: SageMakerClient, tmp_path: Path) -> None:
    for name in ("stderr.log", "sheets/1.png", "config.json", ".best.pt.partial", "../outside"):
        cloud.write(f"s3://roofs/run/folder/{name}", name.encode())
    cloud.write("s3://roofs/run/folder-of-another/x", b"")
    cloud.fetch("s3://roofs/run/folder", tmp_path / "into", ["config.json"])
    found = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert found == {"into/stderr.log", "into/sheets/1.png"}
    assert cloud.size("s3://roofs/run/folder/stderr.log") == len("stderr.log")


def test_one_file_of_what_the_service_packed(cloud: SageMakerClient) -> None:
    cloud.write("s3://roofs/output.tar.gz", packed("measurement.json", b"{}"))
    assert cloud.read_packed("s3://roofs/output.tar.gz", "measurement.json") == b"{}"
    assert cloud.read_packed("s3://roofs/output.tar.gz", "other.json") is None
    assert cloud.read_packed("s3://roofs/none.tar.gz", "measurement.json") is None


def test_what_is_uploaded_is_encrypted_with_the_users_key(cloud: SageMakerClient) -> None:
    cloud = SageMakerClient(dataclasses.replace(HERE, kms_key="key-1"))
    cloud.write("s3://roofs/secret", b"x")
    head = cloud._s3.head_object(Bucket="roofs", Key="secret")
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "key-1")


def test_a_wrong_bucket_is_named(cloud: SageMakerClient) -> None:
    with pytest.raises(ConfigError, match=r"to write s3://none/x: .*NoSuchBucket.*correct the setting bucket"):
        cloud.write("s3://none/x", b"")


def sdk_client(cloud: SageMakerClient) -> Any:
    """The boto3 client that the SDK's classes use for this session."""
    region = cloud._session.region_name
    return SdkClient(session=cloud._session, region_name=region).get_client("sagemaker")


def job(name: str) -> dict[str, Any]:
    """A job as AWS lists it."""
    return {"TrainingJobName": name, "TrainingJobArn": ARN + name, "CreationTime": BEGUN,
            "TrainingJobStatus": "InProgress"}  # fmt: skip


def stubbed(cloud: SageMakerClient, operation: str, *codes: tuple[str, int]) -> Stubber:
    stub = Stubber(sdk_client(cloud))
    for code, status in codes:
        stub.add_client_error(operation, code, "what AWS says", status)
    stub.activate()
    return stub


def test_throttling_is_waited_out_twice_as_long_each_time(
    cloud: SageMakerClient, waited: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    stub = stubbed(cloud, "describe_training_job", *[("ThrottlingException", 400)] * 3, ("Whatever", 503))
    stub.add_client_error("describe_training_job", "ValidationException", "Requested resource not found.")
    assert cloud.describe("job") is None
    assert waited == [1.0, 2.0, 4.0, 8.0]
    (said,) = caplog.messages
    assert "(ThrottlingException)" in said
    assert "for up to 60 minutes" in said
    stub.assert_no_pending_responses()


def test_a_job_that_is_over_is_not_stopped_again(cloud: SageMakerClient) -> None:
    stubbed(cloud, "stop_training_job", ("ValidationException", 400))
    cloud.stop("job")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("ResourceLimitExceeded", "quota"),
        ("AccessDeniedException", "deploy/iam/launcher.json"),
        ("ExpiredTokenException", "sign in again"),
        ("ValidationException", "correct the settings"),
        ("ConflictException", "see the message"),
    ],
)
def test_a_refusal_says_what_to_do(cloud: SageMakerClient, code: str, said: str) -> None:
    stubbed(cloud, "create_training_job", (code, 400))
    with pytest.raises(ConfigError, match=rf"refused to create the job job: what AWS says \({code}\).*{said}"):
        create(cloud)


def create(cloud: SageMakerClient) -> None:
    cloud.submit({"TrainingJobName": "job", "RoleArn": HERE.role, "OutputDataConfig": {"S3OutputPath": "s3://x"}})


def test_a_job_that_exists_by_its_name_is_the_one_whose_answer_was_lost(
    cloud: SageMakerClient, waited: list[float]
) -> None:
    stub = stubbed(cloud, "create_training_job", ("InternalFailure", 500), ("ResourceInUse", 400))
    create(cloud)
    assert waited == [1.0]
    stub.assert_no_pending_responses()


HELD = "The account-level service limit 'ml.m5.xlarge for training job usage' is 2 Instances, with current utilization"


def test_instances_that_other_jobs_hold_are_waited_for_and_a_quota_of_zero_is_not(
    cloud: SageMakerClient, waited: list[float]
) -> None:
    stub = Stubber(sdk_client(cloud))
    for held in (2, 2):
        said = f"{HELD} of {held} Instances and a request delta of 1 Instances."
        stub.add_client_error("create_training_job", "ResourceLimitExceeded", said, 400)
    stub.add_response("create_training_job", {"TrainingJobArn": f"{ARN}job"})
    stub.add_response("describe_training_job", full_description("job"))
    stub.add_client_error("create_training_job", "ResourceLimitExceeded", f"{HELD} of 0 Instances.", 400)
    stub.activate()
    create(cloud)
    assert waited == [1.0, 2.0]
    with pytest.raises(ConfigError, match="set max_parallel_jobs lower"):
        create(cloud)


def test_running_jobs_are_found_with_their_tags(cloud: SageMakerClient) -> None:
    stub = Stubber(sdk_client(cloud))
    names = ("roofscale-a-1", "of-another-user-roofscale-a", "roofscale-a-2", "other-roofscale-a")
    listed = [job(name) for name in names]
    stub.add_response("list_training_jobs", {"TrainingJobSummaries": listed[:2], "NextToken": "more"})
    stub.add_response("describe_training_job", full_description(names[0]))
    stub.add_client_error("describe_training_job", "AccessDeniedException", "what AWS says", 400)
    stub.add_response("list_training_jobs", {"TrainingJobSummaries": listed[2:]})
    stub.add_response("describe_training_job", full_description(names[2], "Completed"))
    stub.add_response("describe_training_job", full_description(names[3]))
    stub.add_response("list_tags", {"Tags": [{"Key": "roofscale:run", "Value": "a"}]}, {"ResourceArn": ARN + names[0]})
    stub.activate()
    assert cloud.running("roofscale-a") == {"roofscale-a-1": {"roofscale:run": "a"}}
    stub.assert_no_pending_responses()


def test_who_may_not_list_jobs_is_told(cloud: SageMakerClient) -> None:
    stubbed(cloud, "list_training_jobs", ("AccessDeniedException", 400))
    with pytest.raises(ConfigError, match=r"launcher\.json"):
        cloud.running("roofscale-a")


def test_a_running_job_is_found_whose_tags_nobody_tells(
    cloud: SageMakerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud, "_wait", lambda _: True)
    stub = Stubber(sdk_client(cloud))
    stub.add_response("list_training_jobs", {"TrainingJobSummaries": [job("roofscale-a-1")]})
    stub.add_response("describe_training_job", full_description("roofscale-a-1"))
    stub.add_client_error("list_tags", "InternalFailure", http_status_code=500)
    stub.activate()
    assert cloud.running("roofscale-a") == {"roofscale-a-1": {}}


def test_the_sdk_sends_the_request_as_it_was_built(cloud: SageMakerClient) -> None:
    """With all that a request may hold; an attribute whose value counts as false must not be lost on the way."""
    settings = dataclasses.replace(HERE, spot=True, kms_key="key-1", subnets=("subnet-1",), security_groups=("sg-1",),
                                   tags={"team": "roofs"})  # fmt: skip
    for chosen in (settings, dataclasses.replace(HERE, keep_alive_seconds=60)):
        request = build_request(CONFIG, chosen, Job("roofscale-a"), {"step": "one"})
        stub = Stubber(sdk_client(cloud))
        stub.add_response("create_training_job", {"TrainingJobArn": f"{ARN}roofscale-a-1"}, request)
        stub.add_response("describe_training_job", full_description("roofscale-a-1"))
        with stub:
            cloud.submit(request)
        stub.assert_no_pending_responses()


def test_a_description_has_the_names_of_the_api(cloud: SageMakerClient) -> None:
    ran = {"BillableTimeInSeconds": 60, "TrainingTimeInSeconds": 70, "EnableManagedSpotTraining": True,
           "FailureReason": "why", "TrainingStartTime": BEGUN, "Environment": {"MLFLOW_RUN_ID": "abc"}}  # fmt: skip
    stub = Stubber(sdk_client(cloud))
    stub.add_response("describe_training_job", {**full_description("job", "Failed"), **ran})
    stub.activate()
    found = cloud.describe("job")
    assert found == {**full_description("job", "Failed"), **ran}


def test_who_does_not_want_to_wait_any_longer_is_told_at_once() -> None:
    tried: list[int] = []

    def away() -> None:
        tried.append(1)
        raise EndpointConnectionError(endpoint_url="https://x")

    with pytest.raises(EndpointConnectionError):
        retry_transient(away, lambda seconds: True)
    assert tried == [1]


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (fault("ThrottlingException"), True),
        (fault("Whatever", 500), True),
        (fault("ValidationException"), False),
        (EndpointConnectionError(endpoint_url="https://x"), True),
        (ReadTimeoutError(endpoint_url="https://x"), True),
        (NoCredentialsError(), False),
    ],
)
def test_what_passes(error: Exception, passes: bool) -> None:
    assert is_transient(error) is passes


def test_patience_ends() -> None:
    waited: list[float] = []

    def away() -> None:
        raise EndpointConnectionError(endpoint_url="https://x")

    with pytest.raises(EndpointConnectionError):
        retry_transient(away, waited.append, patience=200)
    assert waited == [1, 2, 4, 8, 16, 32, 60, 60]


def test_no_credentials_and_a_network_that_is_away() -> None:
    assert "aws configure" in str(to_aws_user_error(NoCredentialsError(), "to write"))
    lost = to_aws_user_error(EndpointConnectionError(endpoint_url="https://x"), "to look after the job j")
    assert isinstance(lost, CloudError)
    assert "the same command finds it again" in str(lost)
    page = to_aws_user_error(fault("500", 500, "<!doctype html>\n" + "<p>sorry</p>\n" * 99), "to look after the job j")
    assert (len(str(page)) < 400, "\n" in str(page)) == (True, False)


def test_no_region(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="set region in sagemaker"):
        SageMakerClient(SETTINGS)


def test_the_log_of_a_job_is_read_from_where_the_last_reading_ended(cloud: SageMakerClient) -> None:
    logs = boto3.client("logs", region_name="eu-west-1")
    read = cloud.log_reader("job")
    assert read() == []
    group, stream = {"logGroupName": "/aws/sagemaker/TrainingJobs"}, {"logStreamName": "job/algo-1-1"}
    logs.create_log_group(**group)
    logs.create_log_stream(**group, **stream)
    for text in ("one", "two"):
        now = int(time.time() * 1000)
        logs.put_log_events(**group, **stream, logEvents=[{"timestamp": now, "message": text}])
        assert read() == [text]
    assert cloud.log_reader("job")() == ["one", "two"]

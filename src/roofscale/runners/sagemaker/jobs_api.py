"""Client of SageMaker for training jobs, through the resource classes of the SageMaker SDK; S3 through boto3."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from botocore.exceptions import ClientError
from sagemaker.core.resources import Tag, TrainingJob
from sagemaker.core.utils import utils as sdk
from sagemaker.core.utils.logs import CloudWatchLogsClient, MultiLogStreamHandler

from roofscale.runners.sagemaker.aws_errors import Wait, code_of, is_transient, translating_errors
from roofscale.runners.sagemaker.checks import check_request
from roofscale.runners.sagemaker.job_outcome import RUNNING
from roofscale.runners.sagemaker.s3 import S3Client
from roofscale.runners.sagemaker.settings import SageMakerSettings


class SageMakerClient(S3Client):
    """S3 and SageMaker for one launcher; thread-safe."""

    def __init__(self, settings: SageMakerSettings, wait: Wait = time.sleep) -> None:
        super().__init__(settings.region, settings.kms_key, wait)
        self._checked: set[str] = set()  # instance types
        self._at: dict[str, Any] = {"session": self._session, "region": self._session.region_name}
        with translating_errors("to reach AWS"):  # the client that the SDK's classes share; made here, by one thread
            sdk.SageMakerClient(session=self._session, region_name=self._session.region_name)

    def check(self, request: Mapping[str, Any]) -> None:
        """Check role, bucket and image of a request, once for each instance; see ``checks``."""
        kind = request["ResourceConfig"]["InstanceType"]
        if kind not in self._checked:
            check_request(self._client, request, str(self._session.region_name))
            self._checked.add(kind)

    def submit(self, request: Mapping[str, Any]) -> None:
        """Create a training job; waits while other jobs hold all instances of the account's quota.

        An existing job of this name is taken for this one: an attempt can succeed although its answer is lost.

        Raises:
            ConfigError: AWS refuses the request, or has had no instance within the quota for an hour.
            CloudError: no answer for an hour.
        """
        create = partial(TrainingJob.create, **to_snake_case(request), **self._at)
        self._call(f"to create the job {request['TrainingJobName']}", create, absent=("ResourceInUse",))

    def running(self, begins: str) -> dict[str, dict[str, str]]:
        """Return the tags of each job under way, by its name, for names that begin with ``begins``."""
        jobs = self._call("to look for running jobs", lambda: list(self._jobs(begins)))
        with translating_errors("to look for the tags of running jobs"):
            return {job.training_job_name: self._tags(job.training_job_arn) for job in jobs}

    def _jobs(self, begins: str) -> Iterator[Any]:
        """Yield the jobs under way whose names begin with ``begins``.

        The SDK lists names that contain it, and describes each: these credentials may not describe other users' jobs.
        """
        jobs = TrainingJob.get_all(name_contains=begins, status_equals=RUNNING[0], **self._at)
        while True:
            try:
                job = next(jobs)
            except StopIteration:
                return
            except ClientError as error:
                if code_of(error) != "AccessDeniedException" or not jobs.summary_list:
                    raise
                continue
            if job.training_job_name.startswith(begins) and job.training_job_status in RUNNING:
                yield job

    def _tags(self, arn: str) -> dict[str, str]:
        """Return a job's tags; empty if the service does not know the job, or does not answer at once."""
        try:
            # not retried: not worth an hour of waiting
            return {tag.key: tag.value for tag in Tag.get_all(resource_arn=arn, **self._at)}
        except ClientError as error:
            if code_of(error) not in ("ValidationException", "ResourceNotFound") and not is_transient(error):
                raise
            return {}

    def describe(self, name: str) -> dict[str, Any] | None:
        """Return the answer of DescribeTrainingJob; None if there is no such job. Retries transient errors.

        Raises:
            CloudError: no answer for an hour.
        """
        get = partial(TrainingJob.get, training_job_name=name, **self._at)
        job = self._call(f"to describe the job {name}", get, absent=("ValidationException",), words="not found")
        answer: dict[str, Any] | None = sdk.serialize(job) if job else None
        return answer

    def log_reader(self, name: str, hosts: int = 1) -> Callable[[], list[str]]:
        """Return a function that returns the lines of a job's log since its last call.

        Args:
            hosts: number of machines whose logs must have begun before anything is returned.
        """
        CloudWatchLogsClient.client = self._client("logs")  # the SDK's own knows neither our region nor our retries
        streams = MultiLogStreamHandler("/aws/sagemaker/TrainingJobs", name, hosts)

        def read() -> list[str]:
            with translating_errors(f"to read the log of the job {name}"):
                return [event["message"] for _, event in streams.get_latest_log_events()]

        return read

    def stop(self, name: str) -> None:
        """Ask a job to stop; no error if it is over already."""
        job = TrainingJob(training_job_name=name)._set_client_context(**self._at)
        self._call(f"to stop the job {name}", job.stop, absent=("ValidationException",))


def to_snake_case(request: Any, key: str = "") -> Any:
    """Return a request with its keys as the SDK's classes name them; the names of environment variables stay."""
    if isinstance(request, list):
        return [to_snake_case(entry) for entry in request]
    if isinstance(request, Mapping) and key != "Environment":
        return {sdk.convert_to_snake_case(name): to_snake_case(value, name) for name, value in request.items()}
    return request

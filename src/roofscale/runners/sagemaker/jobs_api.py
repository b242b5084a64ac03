"""Client of the SageMaker API for training jobs."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from botocore.exceptions import ClientError

from roofscale.runners.sagemaker.aws_errors import Wait, code_of, is_transient, translating_errors
from roofscale.runners.sagemaker.job_outcome import RUNNING
from roofscale.runners.sagemaker.s3 import S3Client
from roofscale.runners.sagemaker.settings import SageMakerSettings


class SageMakerClient(S3Client):
    """S3 and SageMaker for one launcher; thread-safe."""

    def __init__(self, settings: SageMakerSettings, wait: Wait = time.sleep) -> None:
        super().__init__(settings.region, settings.kms_key, wait)
        self._sagemaker = self._client("sagemaker")

    def submit(self, request: Mapping[str, Any]) -> None:
        """Create a training job; waits while other jobs hold all instances of the account's quota.

        An existing job of this name is taken for this one: an attempt can succeed although its answer is lost.

        Raises:
            ConfigError: AWS refuses the request, or has had no instance within the quota for an hour.
            CloudError: no answer for an hour.
        """
        with translating_errors(f"to create the job {request['TrainingJobName']}"):
            try:
                self._patiently(lambda: self._sagemaker.create_training_job(**request))
            except ClientError as error:
                if code_of(error) != "ResourceInUse":
                    raise

    def running(self, begins: str) -> dict[str, dict[str, str]]:
        """Return the tags of each job under way, by its name, for names that begin with ``begins``."""
        with translating_errors("to look for running jobs"):
            pages = self._patiently(lambda: list(self._pages(begins)))
            jobs = [job for page in pages for job in page["TrainingJobSummaries"]]
            return {
                job["TrainingJobName"]: self._tags(job["TrainingJobArn"])
                for job in jobs
                if job["TrainingJobName"].startswith(begins) and job["TrainingJobStatus"] in RUNNING
            }

    def _pages(self, begins: str) -> Iterable[Mapping[str, Any]]:
        pages: Iterable[Mapping[str, Any]] = self._sagemaker.get_paginator("list_training_jobs").paginate(
            NameContains=begins, StatusEquals=RUNNING[0]
        )
        return pages

    def _tags(self, arn: str) -> dict[str, str]:
        """Return a job's tags; empty if the service does not know the job, or does not answer at once."""
        try:
            tags = self._sagemaker.list_tags(ResourceArn=arn)["Tags"]  # not retried: not worth an hour of waiting
        except ClientError as error:
            if code_of(error) not in ("ValidationException", "ResourceNotFound") and not is_transient(error):
                raise
            return {}
        return {tag["Key"]: tag["Value"] for tag in tags}

    def describe(self, name: str) -> dict[str, Any] | None:
        """Return the answer of DescribeTrainingJob; None if there is no such job. Retries transient errors.

        Raises:
            CloudError: no answer for an hour.
        """
        with translating_errors(f"to describe the job {name}"):
            try:
                answer: dict[str, Any] = self._patiently(
                    lambda: self._sagemaker.describe_training_job(TrainingJobName=name)
                )
            except ClientError as error:
                if code_of(error) == "ValidationException" and "not found" in str(error):
                    return None
                raise
        return answer

    def stop(self, name: str) -> None:
        """Ask a job to stop; no error if it is over already."""
        with translating_errors(f"to stop the job {name}"):
            try:
                self._patiently(lambda: self._sagemaker.stop_training_job(TrainingJobName=name))
            except ClientError as error:
                if code_of(error) != "ValidationException":
                    raise

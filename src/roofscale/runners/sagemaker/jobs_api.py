"""All that is asked of AWS for training jobs. Only this module, ``store`` and ``faults`` know boto3."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from botocore.exceptions import ClientError

from roofscale.runners.sagemaker.aws_errors import Wait, code_of, is_transient, translating_errors
from roofscale.runners.sagemaker.job_outcome import RUNNING
from roofscale.runners.sagemaker.s3 import S3Client
from roofscale.runners.sagemaker.settings import SageMakerSettings


class SageMakerClient(S3Client):
    """S3 and SageMaker for one launcher; several threads may use it."""

    def __init__(self, settings: SageMakerSettings, wait: Wait = time.sleep) -> None:
        super().__init__(settings.region, settings.kms_key, wait)
        self._sagemaker = self._client("sagemaker")

    def submit(self, request: Mapping[str, Any]) -> None:
        """Create a training job; one of this name is this one, as a try may get through whose answer is lost.

        Waits while other jobs hold all the instances that the account may have.

        Raises:
            ConfigError: refused.
            CloudError: no answer, or no instance, for an hour.
        """
        with translating_errors(f"to create the job {request['TrainingJobName']}"):
            try:
                self._patiently(lambda: self._sagemaker.create_training_job(**request))
            except ClientError as error:
                if code_of(error) != "ResourceInUse":
                    raise

    def running(self, begins: str) -> dict[str, dict[str, str]]:
        """The tags of each job under way whose name begins so."""
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
        """A job's tags; none where the service has no account of them, or does not say."""
        try:
            found = self._sagemaker.list_tags(ResourceArn=arn)["Tags"]  # not worth a wait of hours
        except ClientError as error:
            if code_of(error) not in ("ValidationException", "ResourceNotFound") and not is_transient(error):
                raise
            return {}
        return {tag["Key"]: tag["Value"] for tag in found}

    def describe(self, name: str) -> dict[str, Any] | None:
        """What SageMaker says of a job, None where there is none; waits as long as the network or the service is away.

        Raises:
            CloudError: no answer for an hour.
        """
        with translating_errors(f"to look after the job {name}"):
            try:
                found: dict[str, Any] = self._patiently(
                    lambda: self._sagemaker.describe_training_job(TrainingJobName=name)
                )
            except ClientError as error:
                if code_of(error) == "ValidationException" and "not found" in str(error):
                    return None
                raise
        return found

    def stop(self, name: str) -> None:
        """Ask a job to stop; one that is over already is left alone."""
        with translating_errors(f"to stop the job {name}"):
            try:
                self._patiently(lambda: self._sagemaker.stop_training_job(TrainingJobName=name))
            except ClientError as error:
                if code_of(error) != "ValidationException":
                    raise

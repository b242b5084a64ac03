"""Builds the request for a training job, by nothing but the run config, the settings and the job's name.

The run config travels as a file in a channel, never as hyperparameters: SageMaker's own containers hand these to a
shell, where a quote breaks the job or runs as code.
"""

import math
import re
from functools import cache
from typing import Any

import botocore.session
from botocore.validate import ParamValidator

from roofscale import compute
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.runners.sagemaker.job import Job
from roofscale.runners.sagemaker.settings import SageMakerSettings

S3 = "s3://"
TAG = "roofscale:"  # how the keys of our own tags begin
CONFIG_CHANNEL = "config"
# Exec form: Python is process 1. Behind a shell or the toolkit's `train`, SIGTERM would never reach the training.
ENTRYPOINT = ("python", "-u", "-m", "roofscale.runners.sagemaker.entry")
CHECKPOINTS = "/opt/ml/checkpoints"
# The run ends itself at timeout_seconds; the service's own limit is for one that no longer can.
_SLACK_SECONDS = 600
_LONGEST_SECONDS = 28 * 86_400  # https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_StoppingCondition.html
_FREE_SHARE = 1.2  # of the data's size, kept on the volume
_TAG_REFUSES = re.compile(r"[^\w .:/=+\-@]")


def build_request(
    config: RunConfig,
    settings: SageMakerSettings,
    job: Job,
    tags: dict[str, str],
    *,
    data_bytes: int = 0,
    most_seconds: float = math.inf,
) -> dict[str, Any]:
    """The request for one job.

    Args:
        tags: where the run belongs, such as its phase and step.
        data_bytes: of the data sets, which File mode copies to the volume.
        most_seconds: what a budget leaves for this job to run.

    Raises:
        ConfigError: by the names, types and least lengths of botocore's model, SageMaker would refuse the request; says
            every reason. Patterns and greatest lengths are left to the service, which refuses before any cost.
    """
    named = {**tags, "fingerprint": config.fingerprint, "run": job.key, "number": str(job.number)}
    request: dict[str, Any] = {
        "TrainingJobName": job.name,
        "RoleArn": settings.role,
        "AlgorithmSpecification": {
            "TrainingImage": settings.image,
            "TrainingInputMode": settings.input_mode,
            "ContainerEntrypoint": list(ENTRYPOINT),
            "ContainerArguments": ["--fingerprint", config.fingerprint],
        },
        "InputDataConfig": _channels(config, settings, job),
        "OutputDataConfig": _with_key({"S3OutputPath": f"{_top(settings)}/output"}, "KmsKeyId", settings),
        "CheckpointConfig": {"S3Uri": folder_uri(settings, job), "LocalPath": CHECKPOINTS},
        "ResourceConfig": _resources(config, settings, data_bytes),
        "StoppingCondition": _stopping(config, settings, most_seconds),
        "EnableManagedSpotTraining": settings.spot,
        "Tags": _tags({**settings.tags, **{f"{TAG}{name}": text for name, text in named.items()}}),
    }
    if settings.subnets:
        request["VpcConfig"] = {"Subnets": [*settings.subnets], "SecurityGroupIds": [*settings.security_groups]}
    wrong = ParamValidator().validate(request, _request_shape())
    if wrong.has_errors():
        reasons = wrong.generate_report().replace("\n", "; ")
        raise ConfigError(
            f"SageMaker would refuse the job {job.name}: {reasons}. Correct the settings or the run config."
        )
    return request


@cache
def _request_shape() -> Any:
    """The service's own model of the request, as botocore ships it."""
    model = botocore.session.get_session().get_service_model("sagemaker")
    return model.operation_model("CreateTrainingJob").input_shape


def config_uri(settings: SageMakerSettings, job: Job) -> str:
    """Where the job finds its run config."""
    return f"{_top(settings)}/{job.key}/config"


def folder_uri(settings: SageMakerSettings, job: Job) -> str:
    """Where the run folder lies between the jobs of a run, and while one goes on."""
    return f"{_top(settings)}/{job.key}/folder"


def output_uri(settings: SageMakerSettings, job: Job) -> str:
    """What this job alone has left; the service packs it."""
    return f"{_top(settings)}/output/{job.name}/output/output.tar.gz"


def max_runtime(config: RunConfig, settings: SageMakerSettings, most_seconds: float = math.inf) -> int:
    """Seconds after which the service stops the job."""
    own = settings.max_runtime_seconds or math.ceil(config.timeout_seconds) + _SLACK_SECONDS
    return max(1, math.floor(min(own, most_seconds, _LONGEST_SECONDS)))


def _top(settings: SageMakerSettings) -> str:
    return f"{S3}{settings.bucket}/{settings.prefix.strip('/')}".rstrip("/")


def _channel(name: str, uri: str, mode: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "InputMode": mode}


def _channels(config: RunConfig, settings: SageMakerSettings, job: Job) -> list[dict[str, Any]]:
    """The run config, and each data set that lies in S3; the folder of all channels is the job's data root."""
    data = [_channel(name, uri, settings.input_mode) for name, uri in data_uris(config).items()]
    return [_channel(CONFIG_CHANNEL, config_uri(settings, job), "File"), *data]


def data_uris(config: RunConfig) -> dict[str, str]:
    """Where in S3 each data set lies; empty where the data root is not in S3. The last slash keeps rid from rid-old."""
    if not config.data_root.startswith(S3):
        return {}
    return {name: f"{config.data_root.rstrip('/')}/{name}/" for name in config.datasets}


def _resources(config: RunConfig, settings: SageMakerSettings, data_bytes: int) -> dict[str, Any]:
    """Instances and their storage.

    Raises:
        ConfigError: the data does not fit the disks of an instance that takes no volume beside them.
    """
    copied, disk_gb = data_bytes if settings.input_mode == "File" else 0, compute.get(config.compute).disk_gb
    found: dict[str, Any] = {
        "InstanceType": config.compute,
        "InstanceCount": config.instance_count,
        "VolumeSizeInGB": settings.volume_gb + math.ceil(_FREE_SHARE * copied / 1e9),
    }
    if settings.keep_alive_seconds:
        found["KeepAlivePeriodInSeconds"] = settings.keep_alive_seconds
    if not disk_gb:
        return _with_key(found, "VolumeKmsKeyId", settings)
    if found["VolumeSizeInGB"] > disk_gb:
        raise ConfigError(
            f"{found['VolumeSizeInGB']} GB of storage for {copied / 1e9:.3g} GB of data: {config.compute} has disks of "
            f"{disk_gb} GB, and no volume beside them. Set input_mode=FastFile, or choose a compute with larger disks."
        )
    return found  # such disks are encrypted by themselves, and SageMaker refuses a key for them


def _stopping(config: RunConfig, settings: SageMakerSettings, most_seconds: float) -> dict[str, int]:
    longest = max_runtime(config, settings, most_seconds)
    waiting = {"MaxWaitTimeInSeconds": longest + settings.max_wait_seconds} if settings.spot else {}
    return {"MaxRuntimeInSeconds": longest, **waiting}


def _with_key(found: dict[str, Any], name: str, settings: SageMakerSettings) -> dict[str, Any]:
    return {**found, name: settings.kms_key} if settings.kms_key else found


def _tags(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": tag_value(value)} for key, value in tags.items()]


def tag_value(text: str) -> str:
    """A text as the service takes it in a tag: what its pattern refuses becomes an underscore."""
    return _TAG_REFUSES.sub("_", text)[:256]

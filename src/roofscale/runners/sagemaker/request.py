"""The request for a training job, a function of run config, settings and job.

The job gets the run config as a file in a channel, never as hyperparameters: SageMaker's own containers hand these to a
shell, where a quote breaks the job or runs as code.
"""

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from roofscale import compute
from roofscale.addresses import DATA_SOURCE, S3
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.runners.sagemaker.job import Job
from roofscale.runners.sagemaker.settings import SageMakerSettings

TAG = "roofscale:"  # prefix of the keys of our own tags
CONFIG_CHANNEL = "config"
CONFIG = "config.json"  # in that channel
GENERATED = "generated.json"  # in that channel, by data set: the spec of the images that the job has to generate
ONLY = "only"  # key in such a spec: the images that the run reads; the others are not generated
RUN_ID = "MLFLOW_RUN_ID"  # variable of a job that logs itself: the MLflow run of its launcher
# Exec form: Python is process 1. Behind a shell or the toolkit's `train`, SIGTERM would never reach Python.
ENTRYPOINT = ("python", "-u", "-m", "roofscale.training_job")
CHECKPOINTS = "/opt/ml/checkpoints"
# The runner ends the run at timeout_seconds; the service's limit comes later, for a job whose runner hangs.
_SLACK_SECONDS = 600
_LONGEST_SECONDS = 28 * 86_400  # https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_StoppingCondition.html
_VOLUME_PER_DATA = 1.2  # volume per byte of copied data, so that a fifth more stays free
_TAG_REFUSES = re.compile(r"[^\w .:/=+\-@]")


def build_request(
    config: RunConfig,
    settings: SageMakerSettings,
    job: Job,
    tags: dict[str, str],
    *,
    data_bytes: int = 0,
    most_seconds: float = math.inf,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the arguments of CreateTrainingJob for one job.

    Args:
        tags: location and owner of the run, see ``job.tags_of``.
        data_bytes: size of the data sets in S3, which File mode copies to the volume.
        most_seconds: runtime that the budget leaves for this job.
        environment: variables of the job, see ``tracking.server.job_environment``.

    Raises:
        ConfigError: the data does not fit the local disks of the instance.
    """
    uris = data_uris(config)
    source = f"{config.data_root.rstrip('/')}/{{name}}/" if uris else f"{config_uri(settings, job)}/{GENERATED}"
    data = [_channel(name, uri, settings.input_mode) for name, uri in uris.items()]
    own_seconds = settings.max_runtime_seconds or math.ceil(config.timeout_seconds) + _SLACK_SECONDS
    seconds = max(1, math.floor(min(own_seconds, most_seconds, _LONGEST_SECONDS)))
    own_tags = {**tags, "fingerprint": config.fingerprint, "run": job.key, "number": str(job.number)}
    all_tags = {**settings.tags, **{f"{TAG}{name}": text for name, text in own_tags.items()}}
    request: dict[str, Any] = {
        "TrainingJobName": job.name,
        "RoleArn": settings.role,
        "AlgorithmSpecification": {
            "TrainingImage": settings.image,
            "TrainingInputMode": settings.input_mode,
            "ContainerEntrypoint": list(ENTRYPOINT),
            "ContainerArguments": ["--fingerprint", config.fingerprint],
        },
        # The common folder of all channels is the job's data root.
        "InputDataConfig": [_channel(CONFIG_CHANNEL, config_uri(settings, job), "File"), *data],
        "OutputDataConfig": {"S3OutputPath": f"{_top(settings)}/output"},
        "CheckpointConfig": {"S3Uri": folder_uri(settings, job), "LocalPath": CHECKPOINTS},
        "ResourceConfig": _resources(config, settings, data_bytes),
        "StoppingCondition": {"MaxRuntimeInSeconds": seconds},
        "EnableManagedSpotTraining": settings.spot,
        "Environment": {DATA_SOURCE: source, **environment},
        "Tags": [{"Key": key, "Value": tag_value(value)} for key, value in all_tags.items()],
    }
    if settings.kms_key:
        request["OutputDataConfig"]["KmsKeyId"] = settings.kms_key
    if settings.spot:
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = seconds + settings.max_wait_seconds
    if settings.subnets:
        request["VpcConfig"] = {"Subnets": [*settings.subnets], "SecurityGroupIds": [*settings.security_groups]}
    return request


def config_uri(settings: SageMakerSettings, job: Job) -> str:
    """Return the prefix of the job's channel ``config``."""
    return f"{_top(settings)}/{job.key}/config"


def folder_uri(settings: SageMakerSettings, job: Job) -> str:
    """Return the prefix of the run folder, which all jobs of a run share and the service keeps up to date."""
    return f"{_top(settings)}/{job.key}/folder"


def output_uri(settings: SageMakerSettings, job: Job) -> str:
    """Return the archive that the service makes of this job's /opt/ml/output/data."""
    return f"{_top(settings)}/output/{job.name}/output/output.tar.gz"


def _top(settings: SageMakerSettings) -> str:
    return f"{S3}{settings.bucket}/{settings.prefix.strip('/')}".rstrip("/")


def _channel(name: str, uri: str, mode: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "InputMode": mode}


def data_uris(config: RunConfig) -> dict[str, str]:
    """Return the prefix of each data set; empty if the data root is not in S3."""
    if not config.data_root.startswith(S3):
        return {}
    # With the last slash, the prefix rid/ does not match rid-old/.
    return {name: f"{config.data_root.rstrip('/')}/{name}/" for name in config.datasets}


def _resources(config: RunConfig, settings: SageMakerSettings, data_bytes: int) -> dict[str, Any]:
    """Return ResourceConfig: instances and their storage."""
    copied, disk_gb = data_bytes if settings.input_mode == "File" else 0, compute.get(config.compute).disk_gb
    resources: dict[str, Any] = {
        "InstanceType": config.compute,
        "InstanceCount": config.instance_count,
        "VolumeSizeInGB": settings.volume_gb + math.ceil(_VOLUME_PER_DATA * copied / 1e9),
    }
    if settings.keep_alive_seconds:
        resources["KeepAlivePeriodInSeconds"] = settings.keep_alive_seconds
    if disk_gb and resources["VolumeSizeInGB"] > disk_gb:
        raise ConfigError(
            f"{resources['VolumeSizeInGB']} GB of storage for {copied / 1e9:.3g} GB of data: {config.compute} has "
            f"disks of {disk_gb} GB, and takes no volume in addition. Set input_mode=FastFile, or choose a compute "
            "with larger disks."
        )
    if settings.kms_key and not disk_gb:  # an instance encrypts its local disks, and SageMaker takes no key for them
        resources["VolumeKmsKeyId"] = settings.kms_key
    return resources


def tag_value(text: str) -> str:
    """Return a valid tag value: characters that the service refuses become underscores; cut to 256 characters."""
    return _TAG_REFUSES.sub("_", text)[:256]

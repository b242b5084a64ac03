"""The settings of SageMaker jobs: the defaults of the SageMaker SDK, one YAML file, and environment variables.

Each overrides the ones before. No secret belongs here: credentials come from boto3's own chain (profile, environment,
SSO, instance role).
"""

import dataclasses
import logging
import os
import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roofscale.addresses import S3
from roofscale.errors import ConfigError, did_you_mean, one_line
from roofscale.files import naming, read_yaml

# It would tell on stderr, at each reading, which defaults files it has read.
logging.getLogger("sagemaker.config").setLevel(logging.WARNING)

FILE = Path("sagemaker.yaml")
FILE_VARIABLE = "ROOFSCALE_SAGEMAKER"  # names another file
VARIABLE_PREFIX = "ROOFSCALE_SAGEMAKER_"  # ROOFSCALE_SAGEMAKER_BUCKET=..., for every setting
HERE = "local"  # the bucket whose keys are paths on this machine, in local mode
# S3's rules (docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html).
_BUCKET = re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_MOST_KEEP_ALIVE = 21_600  # seconds; botocore's model of KeepAlivePeriodInSeconds


def setting(meaning: str, default: Any = dataclasses.MISSING, *, low: float = 0, choices: tuple[str, ...] = ()) -> Any:
    """Return a dataclass field with its meaning (unit included) and the values that it accepts."""
    metadata = {"meaning": meaning, "low": low, "choices": choices}
    if default is dict:
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class SageMakerSettings:
    """The settings of a training job, in addition to the run config.

    Raises:
        ConfigError: a value is out of range or not among the choices, or two values exclude each other.
    """

    role: str = setting("ARN of the IAM role that the job runs as (deploy/iam/job-role.json)")
    bucket: str = setting("S3 bucket for configs, checkpoints and results")
    image: str = setting("image that the Dockerfile makes, in ECR")
    prefix: str = setting("prefix of all keys in the bucket", "roofscale")
    local_mode: bool = setting("run the image with Docker on this machine: no account, no S3; needs only image", False)
    region: str = setting("AWS region; empty: that of the profile or of AWS_DEFAULT_REGION", "")
    subnets: tuple[str, ...] = setting("subnets of the VPC to run in; none: SageMaker's own network", ())
    security_groups: tuple[str, ...] = setting("security groups in that VPC", ())
    kms_key: str = setting("ID or ARN of the KMS key of volume, output and uploads; empty: the service's own", "")
    tags: Mapping[str, str] = setting("further tags of every job, such as a cost centre", dict)
    input_mode: str = setting(
        "File copies a data set before the job trains, FastFile streams it", "File", choices=("File", "FastFile")
    )
    volume_gb: int = setting("least storage of the instance, GB; data copied in File mode comes on top", 30, low=1)
    max_runtime_seconds: int = setting("most seconds a job may run; 0: the config's timeout_seconds and ten minutes", 0)
    spot: bool = setting("run on spare capacity, which is cheaper and may be taken away and given back", False)
    max_wait_seconds: int = setting("most seconds that a spot job may wait for capacity, beyond its running time", 3600)
    keep_alive_seconds: int = setting(
        "seconds that a warm pool holds the instance for the next job, billed, outside budget_usd; 0: no pool", 0
    )
    max_parallel_jobs: int = setting(
        "how many jobs of one command may run at a time: trials of a search, and independent steps", 1, low=1
    )
    budget_usd: float = setting(
        "most that the jobs of one attempt at a phase, or of one training, may cost, USD; 0: no limit", 0.0
    )
    on_interrupt: str = setting(
        "what Ctrl-C does to a running job: ask, stop it, or detach, so that it runs on; without a terminal, ask stops",
        "ask",
        choices=("ask", "stop", "detach"),
    )
    logged_by: str = setting(
        "who logs to MLflow: the job, or launcher; auto: the job if it can reach the server (ARN, https, no password)",
        "auto",
        choices=("auto", "job", "launcher"),
    )
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)  # by setting, unless default

    def __post_init__(self) -> None:
        if self.bucket and self.bucket != HERE and not _BUCKET.fullmatch(self.bucket):
            bare = self.bucket.removeprefix(S3).partition("/")
            folder = f", and prefix: {bare[2]}" if bare[2] else ""
            raise ConfigError(
                f"bucket={self.bucket}: expected the plain name of an S3 bucket: 3 to 63 of a-z, 0-9, hyphen and dot, "
                f"without s3:// and without a folder. Set bucket: {bare[0].lower().replace('_', '-')}{folder}, if that "
                "is its name."
            )
        for name, field in FIELDS.items():
            value, choices = getattr(self, name), field.metadata["choices"]
            if choices and value not in choices:
                raise ConfigError(f"{name}={value}: expected {' or '.join(choices)}.{did_you_mean(value, choices)}")
            if isinstance(value, int | float) and value < field.metadata["low"]:
                raise ConfigError(f"{name}={value}: expected at least {field.metadata['low']:g}.")
        if bool(self.subnets) != bool(self.security_groups):
            raise ConfigError("subnets and security_groups: a VPC needs both; name both, or neither.")
        if "alias/" in self.kms_key:
            raise ConfigError(
                f"kms_key={self.kms_key}: SageMaker takes no alias for a volume; give the key's ID or ARN (aws kms "
                f"describe-key --key-id {self.kms_key} shows both)."
            )
        if self.keep_alive_seconds > _MOST_KEEP_ALIVE:
            raise ConfigError(f"keep_alive_seconds={self.keep_alive_seconds}: expected at most {_MOST_KEEP_ALIVE}.")
        if self.spot and self.keep_alive_seconds:
            raise ConfigError(
                "spot and keep_alive_seconds: SageMaker keeps no warm pool of spot instances; choose one of the two."
            )

    def described(self) -> dict[str, dict[str, Any]]:
        """Return by setting its value, and where that comes from."""
        return {name: {"value": getattr(self, name), "from": self.origins.get(name, "default")} for name in FIELDS}


FIELDS = {field.name: field for field in dataclasses.fields(SageMakerSettings) if field.metadata}
REQUIRED = ("role", "bucket", "image")
# In local mode: fillers for what a request must contain, and settings that mean nothing without an account.
_IN_LOCAL_MODE = {"role": "arn:aws:iam::000000000000:role/nobody", "bucket": HERE, "spot": False, "budget_usd": 0.0,
                  "keep_alive_seconds": 0, "kms_key": "", "logged_by": "launcher"}  # fmt: skip
# By setting: its places in the SDK's defaults file, the first of which wins, as for the SDK's ModelTrainer.
_SDK_PLACES = {
    "role": ("PythonSDK.Modules.ModelTrainer.Role", "TrainingJob.RoleArn"),
    "image": ("PythonSDK.Modules.ModelTrainer.TrainingImage",),
    "bucket": ("PythonSDK.Modules.Session.DefaultS3Bucket",),
    "prefix": ("PythonSDK.Modules.Session.DefaultS3ObjectKeyPrefix",),
    "subnets": ("TrainingJob.VpcConfig.Subnets",),
    "security_groups": ("TrainingJob.VpcConfig.SecurityGroupIds",),
    "kms_key": ("TrainingJob.OutputDataConfig.KmsKeyId", "TrainingJob.ResourceConfig.VolumeKmsKeyId"),
    "tags": ("TrainingJob.Tags",),
}
_SDK_FILE = "defaults file of the SageMaker SDK"
_TYPES = typing.get_type_hints(SageMakerSettings)
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def is_configured() -> bool:
    """Whether there is a settings file or any variable of SageMaker settings."""
    return FILE.exists() or any(name.startswith(FILE_VARIABLE) for name in os.environ)


def load(
    environment: Mapping[str, str] = os.environ, folder: Path = Path(), required: Sequence[str] = REQUIRED
) -> SageMakerSettings:
    """Read the settings: the defaults, those of the SageMaker SDK, the file, then the environment.

    On a SageMaker notebook a missing role and bucket are those of the notebook. Local mode needs nothing of the SDK.

    Args:
        required: settings that must have a value; the rest of ``REQUIRED`` may be empty.

    Raises:
        ConfigError: an unreadable file, an unknown key, an invalid value, or a missing one.
    """
    file = folder / (environment.get(FILE_VARIABLE) or FILE)
    from_file = read_yaml(file, "bucket: my-bucket") if file.exists() or FILE_VARIABLE in environment else {}
    from_environment = {key.removeprefix(VARIABLE_PREFIX).lower(): text for key, text in environment.items() if text
             and key.startswith(VARIABLE_PREFIX)}  # fmt: skip
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for given, source in ((from_file, str(file)), (from_environment, "environment")):
        with naming(file if given is from_file else None):
            values |= {key: _convert(key, value) for key, value in given.items()}
        origins |= dict.fromkeys(given, source)
    if values.get("local_mode"):
        values |= {**_IN_LOCAL_MODE, "prefix": str((folder / "runs/containers").absolute())}
    else:
        _add_sdk_defaults(values, origins, required)
    missing = [name for name in required if not values.get(name)]
    if missing:
        what = "; ".join(f"{name}: {FIELDS[name].metadata['meaning']}" for name in missing)
        raise ConfigError(
            f"SageMaker needs {', '.join(missing)} ({what}). Write them into {file} as lines like 'bucket: my-bucket', "
            f"or set {VARIABLE_PREFIX}{missing[0].upper()}; or run on this machine, without --runner sagemaker."
        )
    with naming(file if from_file and not from_environment else None):
        return SageMakerSettings(**{**dict.fromkeys(REQUIRED, ""), **values}, origins=origins)


def _add_sdk_defaults(values: dict[str, Any], origins: dict[str, str], required: Sequence[str]) -> None:
    """Add what the SDK knows of the settings that have no value; its tags are added to ours."""
    defaults = {key: _convert(key, value) for key, value in _read_sdk_defaults().items()}
    prefix = defaults.pop("prefix", "")
    if "bucket" not in values and "prefix" not in values and prefix:  # it is that of the SDK's own bucket
        defaults["prefix"] = f"{prefix.strip('/')}/roofscale"
    if "tags" in defaults and "tags" in values:
        values["tags"] = {**defaults["tags"], **values["tags"]}
        origins["tags"] += f", {_SDK_FILE}"
    added = {key: value for key, value in defaults.items() if key not in values}
    values |= added
    origins |= dict.fromkeys(added, _SDK_FILE)
    if missing := [name for name in required if not values.get(name)]:
        of_notebook = _notebook_settings(missing, values.get("region", ""))
        values |= of_notebook
        origins |= dict.fromkeys(of_notebook, "this SageMaker notebook")


def _read_sdk_defaults() -> dict[str, Any]:
    """Return the settings in the SDK's defaults files, of the administrator and of the user."""
    from sagemaker.core.config.config_manager import SageMakerConfig  # takes seconds to import

    manager = SageMakerConfig()
    try:
        content = manager.load_sagemaker_config()
    except Exception as error:  # of YAML, of JSON Schema, of S3, or a ValueError for a missing file
        raise ConfigError(
            f"The SageMaker SDK cannot read its defaults file ({one_line(error)}). Correct it, or unset "
            "SAGEMAKER_USER_CONFIG_OVERRIDE and SAGEMAKER_ADMIN_CONFIG_OVERRIDE if one of them names it."
        ) from error
    defaults = {
        name: next(filter(None, (manager.get_config_value(f"SageMaker.{place}", content) for place in places)), None)
        for name, places in _SDK_PLACES.items()
    }
    if defaults["tags"]:
        defaults["tags"] = {tag["Key"]: tag["Value"] for tag in defaults["tags"]}
    return {name: value for name, value in defaults.items() if value}


def _notebook_settings(missing: Collection[str], region: str) -> dict[str, str]:
    """Return the missing role and bucket as those of this SageMaker notebook; empty if this machine is none."""
    from sagemaker.core.helper import session_helper

    if not Path(session_helper.NOTEBOOK_METADATA_FILE).exists():
        return {}
    import boto3

    from roofscale.runners.sagemaker.aws_errors import translating_errors

    with translating_errors("to ask for the role and the bucket of this notebook"):
        session = session_helper.Session(boto3.Session(region_name=region or None))
        ask = {"role": lambda: session_helper.get_execution_role(session), "bucket": session.default_bucket}
        return {name: str(ask[name]()) for name in missing if name in ask}


def _convert(key: str, value: Any) -> Any:
    """Return the value, from YAML or an environment variable, in the setting's type."""
    if key not in FIELDS:
        raise ConfigError(f"{key!r} is no setting of SageMaker.{did_you_mean(str(key), FIELDS)}")
    convert, expected = _CONVERSIONS[_TYPES[key]]
    try:
        return convert(value)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{key}={value!r}: expected {expected} ({FIELDS[key].metadata['meaning']}).") from error


def _words(value: Any) -> list[str]:
    return [word.strip() for word in (value.split(",") if isinstance(value, str) else map(str, value)) if word.strip()]


def _pairs(value: Any) -> dict[str, str]:
    if isinstance(value, Mapping):
        return {str(key): str(text) for key, text in value.items()}
    return {key.strip(): text.strip() for key, text in (word.split("=", 1) for word in _words(value))}


# By type of a setting: the conversion, and what it expects in words.
_CONVERSIONS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    bool: (lambda value: _BOOLEANS[str(value).strip().lower()], "true or false"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (lambda value: str(value).strip(), "a text"),
    tuple[str, ...]: (lambda value: tuple(_words(value)), "a list"),
    Mapping[str, str]: (_pairs, "pairs, such as team=roofs,project=scale"),
}

"""Settings that a user of the SageMaker SDK has made already: its defaults files; role and bucket of a notebook."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from roofscale.errors import ConfigError, one_line

# It would tell on stderr, at each reading, which files it has read.
logging.getLogger("sagemaker.config").setLevel(logging.WARNING)

SOURCE = "defaults file of the SageMaker SDK"
MACHINE = "this SageMaker notebook"
# By setting: its places in the file, the first of which wins, as for the SDK's ModelTrainer.
_PLACES = {
    "role": ("PythonSDK.Modules.ModelTrainer.Role", "TrainingJob.RoleArn"),
    "image": ("PythonSDK.Modules.ModelTrainer.TrainingImage",),
    "bucket": ("PythonSDK.Modules.Session.DefaultS3Bucket",),
    "prefix": ("PythonSDK.Modules.Session.DefaultS3ObjectKeyPrefix",),
    "subnets": ("TrainingJob.VpcConfig.Subnets",),
    "security_groups": ("TrainingJob.VpcConfig.SecurityGroupIds",),
    "kms_key": ("TrainingJob.OutputDataConfig.KmsKeyId", "TrainingJob.ResourceConfig.VolumeKmsKeyId"),
    "tags": ("TrainingJob.Tags",),
}


def read_defaults() -> dict[str, Any]:
    """Return the settings in the SDK's defaults files, of the administrator and of the user.

    Raises:
        ConfigError: a file is missing, or the SDK refuses its content.
    """
    from sagemaker.core.config.config_manager import SageMakerConfig  # takes seconds to import

    manager = SageMakerConfig()
    try:
        content = manager.load_sagemaker_config()
    except Exception as error:  # of YAML, of JSON Schema, of S3, or a ValueError for a missing file
        raise ConfigError(
            f"The SageMaker SDK cannot read its defaults file ({one_line(error)}). Correct it, or unset "
            "SAGEMAKER_USER_CONFIG_OVERRIDE and SAGEMAKER_ADMIN_CONFIG_OVERRIDE if one of them names it."
        ) from error
    found = {
        name: next(filter(None, (manager.get_config_value(f"SageMaker.{place}", content) for place in places)), None)
        for name, places in _PLACES.items()
    }
    if found["tags"]:
        found["tags"] = {tag["Key"]: tag["Value"] for tag in found["tags"]}
    return {name: value for name, value in found.items() if value}


def of_this_machine(missing: Collection[str], region: str) -> dict[str, str]:
    """Return the execution role and the default bucket if this machine is a SageMaker notebook; else nothing.

    Args:
        missing: the settings that have no value yet.

    Raises:
        ConfigError: AWS refuses to name them.
    """
    from sagemaker.core.helper import session_helper

    if not Path(session_helper.NOTEBOOK_METADATA_FILE).exists():
        return {}
    import boto3

    from roofscale.runners.sagemaker.aws_errors import translating_errors

    with translating_errors("to ask for the role and the bucket of this notebook"):
        session = session_helper.Session(boto3.Session(region_name=region or None))
        ask = {"role": lambda: session_helper.get_execution_role(session), "bucket": session.default_bucket}
        return {name: str(ask[name]()) for name in missing if name in ask}

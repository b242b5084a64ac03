"""Settings of SageMaker: precedence, strictness, and messages that name the remedy."""

import json
from pathlib import Path

import pytest
from moto import mock_aws

from roofscale.errors import ConfigError
from roofscale.runners.sagemaker.settings import FIELDS, VARIABLE_PREFIX, SageMakerSettings, load

NEEDED = "role: arn:aws:iam::123456789012:role/R\nbucket: roofs\nimage: roofscale\n"


def write(folder: Path, more: str = "") -> Path:
    (folder / "sagemaker.yaml").write_text(NEEDED + more, encoding="utf-8")
    return folder


def test_the_environment_wins_over_the_file_and_that_over_the_defaults(tmp_path: Path) -> None:
    write(tmp_path, "spot: true\nmax_wait_seconds: 7200\nsubnets: [a, b]\nsecurity_groups: c\ntags: {team: roofs}\n")
    found = load({f"{VARIABLE_PREFIX}MAX_WAIT_SECONDS": "60", f"{VARIABLE_PREFIX}TAGS": "team=x, of=y=z"}, tmp_path)
    assert (found.spot, found.max_wait_seconds, found.prefix) == (True, 60, "roofscale")
    assert (found.subnets, found.security_groups) == (("a", "b"), ("c",))
    assert found.tags == {"team": "x", "of": "y=z"}


def test_the_environment_alone_is_enough(tmp_path: Path) -> None:
    named = {f"{VARIABLE_PREFIX}{name}": "xyz" for name in ("ROLE", "BUCKET", "IMAGE")}
    assert load(named, tmp_path) == SageMakerSettings("xyz", "xyz", "xyz")


def test_another_file_can_be_named(tmp_path: Path) -> None:
    write(tmp_path).joinpath("sagemaker.yaml").rename(tmp_path / "mine.yaml")
    assert load({"ROOFSCALE_SAGEMAKER": str(tmp_path / "mine.yaml")}).bucket == "roofs"
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        load({"ROOFSCALE_SAGEMAKER": str(tmp_path / "none.yaml")})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            "bucket: s3://roofs/data\n",
            "bucket=s3://roofs/data: expected the plain name .* Set bucket: roofs, and prefix: data",
        ),
        ("bucket: My_Roofs\n", "bucket=My_Roofs: .* Set bucket: my-roofs"),
        ("bucket: ab\n", "bucket=ab: expected the plain name"),
        ("buckett: x\n", "'buckett' is no setting of SageMaker. Did you mean 'bucket'"),
        ("spot: maybe\n", "spot='maybe': expected true or false"),
        ("volume_gb: lots\n", "volume_gb='lots': expected a whole number"),
        ("volume_gb: 0\n", "volume_gb=0: expected at least 1"),
        ("budget_usd: -1\n", "budget_usd=-1.0: expected at least 0"),
        ("input_mode: Pipe\n", "input_mode=Pipe: expected File or FastFile"),
        ("tags: [a]\n", r"tags=\['a'\]: expected pairs"),
        ("subnets: [a]\n", "a VPC needs both"),
        ("security_groups: [a]\n", "a VPC needs both"),
        ("kms_key: alias/roofs\n", r"kms_key=alias/roofs: .* no alias for a volume; give the key's ID"),
        ("spot: true\nkeep_alive_seconds: 60\n", "no warm pool of spot"),
        ("keep_alive_seconds: 30000\n", "keep_alive_seconds=30000: expected at most 21600"),
        ("keep_alive_seconds: -1\n", "keep_alive_seconds=-1: expected at least 0"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load({}, write(tmp_path, more))


def test_what_is_lacking_is_named_with_every_way_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as lacking:
        load({f"{VARIABLE_PREFIX}BUCKET": "roofs"}, tmp_path)
    for words in ("role, image", "sagemaker.yaml", f"{VARIABLE_PREFIX}ROLE", "without --runner sagemaker"):
        assert words in str(lacking.value)


def test_no_setting_asks_for_a_secret() -> None:
    assert not [name for name in FIELDS if any(word in name for word in ("secret", "token", "password", "access"))]


SDK = """
SchemaVersion: '1.0'
SageMaker:
  TrainingJob:
    RoleArn: arn:aws:iam::123456789012:role/FromSdk
    VpcConfig: {Subnets: [subnet-1], SecurityGroupIds: [sg-1]}
    OutputDataConfig: {KmsKeyId: key-1}
    Tags: [{Key: cost-centre, Value: "7"}, {Key: team, Value: sdk}]
  PythonSDK:
    Modules:
      Session: {DefaultS3Bucket: sdk-bucket, DefaultS3ObjectKeyPrefix: mine/}
      ModelTrainer: {TrainingImage: "sdk-image:1"}
"""


@pytest.fixture
def sdk_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's defaults file of the SageMaker SDK."""
    file = tmp_path / "sdk.yaml"
    file.write_text(SDK)
    monkeypatch.setenv("SAGEMAKER_USER_CONFIG_OVERRIDE", str(file))
    return file


@pytest.mark.usefixtures("sdk_file")
def test_what_the_sdk_has_as_defaults_is_taken_and_named(tmp_path: Path) -> None:
    found = load({f"{VARIABLE_PREFIX}SPOT": "true"}, tmp_path)
    assert (found.role, found.bucket, found.image) == (
        "arn:aws:iam::123456789012:role/FromSdk", "sdk-bucket", "sdk-image:1",
    )  # fmt: skip
    assert (found.subnets, found.security_groups, found.kms_key) == (("subnet-1",), ("sg-1",), "key-1")
    assert found.prefix == "mine/roofscale"
    described = found.described()
    assert described["role"] == {"value": found.role, "from": "defaults file of the SageMaker SDK"}
    assert described["spot"] == {"value": True, "from": "environment"}
    assert described["volume_gb"] == {"value": 30, "from": "default"}
    assert described.keys() == FIELDS.keys()


@pytest.mark.usefixtures("sdk_file")
def test_our_settings_win_over_the_sdks_and_its_tags_are_added(tmp_path: Path) -> None:
    found = load({}, write(tmp_path, "tags: {team: ours}\nkms_key: ours\n"))
    assert (found.role, found.bucket, found.image) == ("arn:aws:iam::123456789012:role/R", "roofs", "roofscale")
    assert (found.kms_key, found.subnets) == ("ours", ("subnet-1",))
    assert found.tags == {"cost-centre": "7", "team": "ours"}
    assert found.prefix == "roofscale", "the SDK's prefix belongs to its own bucket"
    assert found.origins["role"] == str(tmp_path / "sagemaker.yaml")


@pytest.mark.parametrize("content", ["- no mapping\n", "SageMaker: {TrainingJob: {RoleArn: none}}\n", "{", None])
def test_a_defaults_file_that_the_sdk_refuses_is_an_error_with_a_remedy(
    content: str | None, sdk_file: Path, tmp_path: Path
) -> None:
    if content is None:
        sdk_file.unlink()
    else:
        sdk_file.write_text(content)
    with pytest.raises(ConfigError, match=r"cannot read its defaults file .* unset SAGEMAKER_USER_CONFIG_OVERRIDE"):
        load({}, write(tmp_path))


def test_on_a_notebook_the_role_and_the_bucket_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = tmp_path / "metadata.json"
    role = "arn:aws:iam::123456789012:role/Notebook"
    metadata.write_text(json.dumps({"ResourceName": "mine", "ExecutionRoleArn": role}))
    monkeypatch.setattr("sagemaker.core.helper.session_helper.NOTEBOOK_METADATA_FILE", str(metadata))
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    given = {f"{VARIABLE_PREFIX}IMAGE": "i", f"{VARIABLE_PREFIX}REGION": "eu-west-1"}
    with mock_aws():
        found = load(given, tmp_path)
        assert load({**given, f"{VARIABLE_PREFIX}BUCKET": "mine"}, tmp_path).bucket == "mine"
    assert (found.role, found.bucket) == (role, "sagemaker-eu-west-1-123456789012")
    assert found.origins["bucket"] == "this SageMaker notebook"

"""Settings of SageMaker: precedence, strictness, and messages that name the remedy."""

from pathlib import Path

import pytest

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

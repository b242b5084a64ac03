"""deploy/: Terraform that hangs together, and plain commands that do what its README says, against moto."""

import itertools
import json
import os
import re
import shlex
import shutil
import string
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import hcl2
import pytest
from moto.server import ThreadedMotoServer
from tests.runners.aws_schema import problems

from roofscale.runners.sagemaker import settings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
README = (DEPLOY / "README.md").read_text(encoding="utf-8")
TERRAFORM = (DEPLOY / "terraform/main.tf").read_text(encoding="utf-8")


def commands(under: str) -> str:
    """The shell commands below a heading of the README."""
    section = README.split(f"\n## {under}\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL))


def blocks(kind: str) -> dict[str, Any]:
    """The blocks of a kind in the Terraform file, by name: resources as ``type.name``."""
    found: dict[str, Any] = {}
    for block in hcl2.loads(TERRAFORM).get(kind, []):
        for first, body in block.items():
            inner = {f"{first}.{name}": one for name, one in body.items() if isinstance(one, dict)}
            found |= inner if kind in ("resource", "data") else {first: body}
    return {name.replace('"', ""): body for name, body in found.items()}


def test_all_that_terraform_refers_to_is_there() -> None:
    code = re.sub(r"#.*", "", TERRAFORM)
    assert {f"var.{name}" for name in blocks("variable")} == set(re.findall(r"var\.\w+", code))
    resources = set(blocks("resource"))
    assert set(re.findall(r"(?<!data\.)\baws_\w+\.\w+", code)) <= resources
    assert {f"data.{name}" for name in blocks("data")} == set(re.findall(r"data\.aws_\w+\.\w+", code))
    assert not re.findall(r"local\.(?!filled_in|for_people)\w+", code)


def test_terraform_makes_the_policies_of_the_files() -> None:
    named = set(re.findall(r"iam/([\w-]+)\.json", TERRAFORM)) | set(
        re.findall(r'"(launcher|uploader|mlflow-user)"', TERRAFORM)
    )
    assert named == {file.stem for file in (DEPLOY / "iam").glob("*.json")}
    filled_in = set(re.findall(r"^ +([A-Z]+) +=", TERRAFORM, re.MULTILINE))
    used = {token for file in (DEPLOY / "iam").glob("*.json") for token in re.findall(r"\$\{(\w+)\}", file.read_text())}
    assert used == filled_in


def test_terraform_shuts_the_bucket() -> None:
    shut = blocks("resource")["aws_s3_bucket_public_access_block.roofscale"]
    assert [shut[name] for name in ("block_public_acls", "block_public_policy", "ignore_public_acls",
                                    "restrict_public_buckets")] == [True] * 4  # fmt: skip
    assert "aws_s3_bucket_server_side_encryption_configuration.roofscale" in blocks("resource")


@pytest.mark.skipif(not shutil.which("terraform"), reason="Terraform is not on this machine")
def test_terraform_is_written_as_terraform_would() -> None:
    done = subprocess.run(
        ["terraform", "fmt", "-check", "-diff", DEPLOY / "terraform"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_what_terraform_says_is_a_settings_file(tmp_path: Path) -> None:
    text = re.search(r"<<-Y\n(.*?)\n +Y", TERRAFORM, re.DOTALL)
    assert text
    (tmp_path / settings.FILE).write_text(re.sub(r"\$\{.*?\}", "xyz", text[1]))
    assert settings.load({}, tmp_path).budget_usd == 5


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment of a shell whose AWS is moto, and whose docker writes down what it is told."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    calls = shlex.quote(str(tmp_path / "docker-calls"))
    (tmp_path / "docker").write_text(f'#!/bin/sh\necho "$@" >>{calls}\n[ "$1" != login ] || cat >/dev/null\n')
    (tmp_path / "docker").chmod(0o755)
    named = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    yield {**os.environ, **named}
    server.stop()


@pytest.mark.skipif(not shutil.which("aws"), reason="the AWS CLI is not on this machine")
def test_the_plain_commands_do_what_they_say(aws: dict[str, str], tmp_path: Path) -> None:
    script = f"set -euo pipefail\n{commands('By plain commands')}\n{commands('Run')}"
    script = re.sub(r"^roofscale .*", "", script, flags=re.MULTILINE)  # a run would follow
    script = script.replace(">sagemaker.yaml", f">{shlex.quote(str(tmp_path))}/sagemaker.yaml")
    done = subprocess.run(
        ["bash", "-c", script], cwd=DEPLOY.parent, env=aws, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = settings.load({}, tmp_path)
    s3, iam = (boto3.client(service, region_name="eu-west-1") for service in ("s3", "iam"))
    assert all(s3.get_public_access_block(Bucket=made.bucket)["PublicAccessBlockConfiguration"].values())
    assert s3.get_bucket_location(Bucket=made.bucket)["LocationConstraint"] == "eu-west-1"
    role = iam.get_role(RoleName=made.role.rpartition("/")[2])["Role"]
    assert role["Arn"] == made.role
    assert "${" not in json.dumps(role, default=str)
    policies = {p["PolicyName"] for p in iam.list_policies(Scope="Local")["Policies"]}
    assert policies == {"roofscale-launcher", "roofscale-uploader"}
    calls = (tmp_path / "docker-calls").read_text().splitlines()
    assert calls[-2:] == [f"build -t {made.image} .", f"push {made.image}"]
    setup = commands("By plain commands").split("aws s3api create-bucket")[0]
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{setup}\n{commands('What to delete afterwards')}"],
        cwd=DEPLOY.parent, env=aws, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not s3.list_buckets()["Buckets"]
    assert not iam.list_roles()["Roles"]
    assert not iam.list_policies(Scope="Local")["Policies"]


def test_the_command_for_an_mlflow_app_is_one_that_the_service_takes() -> None:
    line = re.search(r"aws sagemaker create-mlflow-app (.*?) --query", commands("MLflow"), re.DOTALL)
    assert line
    filled_in = string.Template(line[1].replace("\\\n", " ")).substitute(
        ACCOUNT="123456789012", BUCKET="roofs", ROLE="Job"
    )
    words = shlex.split(filled_in)
    request = {
        "".join(map(str.capitalize, name.strip("-").split("-"))): value
        for name, value in zip(words[::2], words[1::2], strict=True)
    }
    assert problems("CreateMlflowApp", request) == []


def test_every_setting_that_the_readme_names_is_one() -> None:
    for line in itertools.chain.from_iterable(
        text.splitlines() for text in re.findall(r"<<Y\n(.*?)\nY", README, re.DOTALL)
    ):
        assert line.split(":")[0] in settings.FIELDS
    for name in re.findall(r"ROOFSCALE_SAGEMAKER_(\w+)", README):
        assert name.lower() in settings.FIELDS

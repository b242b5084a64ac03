"""Copying data sets to S3, on moto: what is copied and what is not, checksums in parts too, and the way back."""

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from moto import mock_aws

from roofscale import cli
from roofscale.data.locate import describe_origin, find_dataset
from roofscale.data.synthetic import GenerateSpec, generate
from roofscale.errors import ConfigError, DataError
from roofscale.runners.sagemaker import s3 as s3_module
from roofscale.runners.sagemaker.s3 import S3Client
from roofscale.runners.sagemaker.upload import FileToUpload, checksum_of, files_to_upload, upload_files

URI = "s3://roofs/the data/ü"
PART = 5 * 2**20  # the smallest that S3 takes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    generate(folder, GenerateSpec(("rid", "airs"), train=2, val=1, test=1, image_px=32, airs_tiles=(1, 1, 1),
                                  airs_tile_px=64))  # fmt: skip
    return folder


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Client]:
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    with mock_aws():
        found = S3Client("eu-west-1")
        found._s3.create_bucket(Bucket="roofs", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        yield found


def names(found: tuple[list[FileToUpload], list[FileToUpload]]) -> tuple[list[str], list[str]]:
    copied, there = found
    return [one.path for one in copied], [one.path for one in there]


def test_what_comes_back_is_the_same_data_sets(made: Path, s3: S3Client, tmp_path: Path) -> None:
    files = files_to_upload(made)
    found = upload_files(files, URI, s3)
    assert names(found) == ([one.path for one in files], [])
    s3.fetch(URI, tmp_path)
    for name in ("rid", "airs"):
        folder = find_dataset(name, tmp_path)
        assert describe_origin(folder) == "GENERATED", "the note that they are generated has come along"
    assert {one.path for one in files} == {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.*")}


def test_a_second_try_copies_what_is_lacking_or_differs(made: Path, s3: S3Client) -> None:
    files = files_to_upload(made)
    upload_files(files, URI, s3)
    gone, other, short = (files[place].path for place in (0, 1, 2))
    s3._s3.delete_object(Bucket="roofs", Key=f"the data/ü/{gone}")
    s3._s3.put_object(Bucket="roofs", Key=f"the data/ü/{other}", Body=b"x" * files[1].size, ChecksumAlgorithm="SHA256")
    s3._s3.put_object(Bucket="roofs", Key=f"the data/ü/{short}", Body=b"")
    would = upload_files(files, URI, s3, dry_run=True)
    assert names(would)[0] == [gone, other, short]
    assert names(upload_files(files, URI, s3)) == names(would)
    assert names(upload_files(files, URI, s3))[0] == []


def test_an_object_that_was_copied_without_a_checksum_is_copied_again(made: Path, s3: S3Client) -> None:
    one = files_to_upload(made)[0]
    s3._s3.put_object(Bucket="roofs", Key=f"the data/ü/{one.path}", Body=one.file.read_bytes())
    assert names(upload_files([one], URI, s3)) == ([one.path], [])
    assert names(upload_files([one], URI, s3)) == ([], [one.path])


def test_twins_for_looking_at_and_hidden_files_stay_behind(made: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(made)
    airs = find_dataset("airs", made)
    hidden, twin = airs / ".DS_Store", next(airs.rglob("*/image/*.tif")).with_name("x_vis.tif")
    for file in (hidden, twin):
        file.write_bytes(b"x")
    try:
        few, all_of_them = files_to_upload(tmp_path / "data"), files_to_upload(tmp_path / "data", everything=True)
    finally:
        for file in (hidden, twin):
            file.unlink()
    assert not [one for one in few if "_vis" in one.path or ".DS_Store" in one.path]
    assert {hidden, twin} <= {one.file for one in all_of_them}


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART + 3])
def test_the_checksum_is_the_one_that_s3_has(
    size: int, s3: S3Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "PART_BYTES", PART)
    file = tmp_path / "file"
    file.write_bytes(os.urandom(size))
    s3 = S3Client("eu-west-1")
    sent: list[int] = []
    s3.upload(file, "s3://roofs/file", sent.append)
    assert s3.checksum("s3://roofs/file") == checksum_of(file, PART)
    assert sum(sent) == size


def test_of_a_small_file_it_is_plain_sha_256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"roof")
    assert checksum_of(tmp_path / "file") == base64.b64encode(hashlib.sha256(b"roof").digest()).decode()


def test_progress_ends_at_the_total(made: Path, s3: S3Client) -> None:
    files, total = files_to_upload(made), sum(one.size for one in files_to_upload(made))
    for _ in range(2):
        sent: list[int] = []
        upload_files(files, URI, s3, sent.append)
        assert sum(sent) == total


def test_the_first_error_ends_it(made: Path, s3: S3Client, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NoSuchBucket"):
        upload_files(files_to_upload(made), "s3://no-such-bucket/data", s3)
    gone = FileToUpload("rid", tmp_path / "gone.tif", "rid/gone.tif", 3)
    with pytest.raises(DataError, match=r"gone\.tif: cannot be read \(No such file"):
        upload_files([gone, *files_to_upload(made)], URI, s3)
    with pytest.raises(ConfigError, match="expected a folder with data sets"):
        files_to_upload(tmp_path)


@pytest.fixture
def command(s3: S3Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli.main, ["data", "upload", *words])
        return done.exit_code, done.output if done.exit_code else done.stdout

    return call


def test_the_command_needs_no_other_setting(made: Path, command: Callable[..., tuple[int, str]]) -> None:
    total = len(files_to_upload(made))
    for words, copied, there in ((["--dry-run"], total, 0), ([], total, 0), ([], 0, total)):
        code, out = command(str(made), "s3://roofs/data", "--json", *words)
        assert code == 0, out
        found = json.loads(out)
        sums = [sum(one[what] for one in found["datasets"].values()) for what in ("copied", "there_already")]
        assert sums == [copied, there]
    code, out = command(str(made), "s3://roofs/data")
    assert "data_root=s3://roofs/data datasets=rid,airs" in out


def test_what_is_no_address_in_s3_is_said(made: Path, command: Callable[..., tuple[int, str]]) -> None:
    for wrong in ("roofs/data", "s3://", "s3:///data"):
        code, out = command(str(made), wrong)
        assert (code, "expected where to copy to, such as s3://BUCKET/data" in out) == (2, True)

"""The command that copies data sets to S3."""

from collections import Counter
from pathlib import Path

from rich.markup import escape
from tqdm import tqdm

from roofscale.errors import ConfigError
from roofscale.report.console import SECONDS_BETWEEN_LINES, as_json, console
from roofscale.runners.sagemaker import settings
from roofscale.runners.sagemaker.upload import files_to_upload, upload_files

_SCHEME = "s3://"


def upload_data(folder: Path, uri: str, everything: bool, dry_run: bool, to_json: bool) -> None:
    """Copy the data sets of a folder, or say what would be copied, and say how to train on them.

    Raises:
        ConfigError: no address in S3, no data set in the folder, or AWS refuses.
        DataError: a file cannot be read.
    """
    bucket = uri.removeprefix(_SCHEME).partition("/")[0]
    if not uri.startswith(_SCHEME) or not bucket:
        raise ConfigError(f"{uri}: expected where to copy to, such as s3://BUCKET/data.")
    files = files_to_upload(folder, everything)
    from roofscale.runners.sagemaker.s3 import S3Client  # boto3: only those who copy pay for it

    place = settings.load(required=())
    total = sum(one.size for one in files)
    with tqdm(total=total, unit="B", unit_scale=True, desc="upload", mininterval=SECONDS_BETWEEN_LINES) as bar:
        done = upload_files(
            files, uri, S3Client(place.region, place.kms_key), lambda sent: _advance(bar, sent), dry_run
        )
    counts = {
        name: {
            "copied": sum(one.dataset == name for one in done.copied),
            "copied_bytes": sum(one.size for one in done.copied if one.dataset == name),
            "there_already": sum(one.dataset == name for one in done.there),
        }
        for name in Counter(one.dataset for one in files)
    }
    if to_json:
        print(as_json({"data_root": uri, "dry_run": dry_run, "datasets": counts}))
        return
    out, verb = console(), "would be copied" if dry_run else "copied"
    for name, found in counts.items():
        out.print(
            f"[bold]{name}[/]: {found['copied']:,} files, {found['copied_bytes'] / 1e6:,.1f} MB {verb}; "
            f"{found['there_already']:,} there already"
        )
    if not dry_run:
        names = ",".join(counts)
        line = f"roofscale train --runner sagemaker data_root={uri} datasets={names} compute=ml.m5.xlarge"
        out.print(escape(f"Train on them with: {line}"), soft_wrap=True)


def _advance(bar: "tqdm[None]", sent: int) -> None:
    with bar.get_lock():
        bar.update(sent)

"""Data commands: generate, check, fetch and upload."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from tqdm import tqdm

from roofscale.addresses import S3
from roofscale.cli.console import SECONDS_BETWEEN_LINES, console
from roofscale.data.check import check
from roofscale.data.dataset_cards import dataset_card
from roofscale.data.fetch import fetch, source_url
from roofscale.data.file_error import FileError
from roofscale.data.leaks import LeakRate
from roofscale.data.synthetic import GenerateSpec, generate
from roofscale.errors import ConfigError
from roofscale.report.format import as_json
from roofscale.runners.sagemaker import settings
from roofscale.runners.sagemaker.upload import files_to_upload, upload_files

_SHOWN = 20  # problems of one kind


def generate_data(folder: Path, spec: GenerateSpec, join: Path | None, dry_run: bool, to_json: bool) -> None:
    """Generate data sets, with real samples appended where asked; a dry run only prints them."""
    written = [] if dry_run else [str(path) for path in generate(folder, spec, join)]
    if to_json:
        print(as_json({"spec": asdict(spec), "written": written}))
        return
    out = console()
    for name in spec.datasets:
        verb = "would write" if dry_run else "generated"
        joined = f", and behind them the samples of {join}" if join and name == "roofline" else ""
        out.print(f"{verb} {folder / name}: {escape(spec.describe(name))}, seed {spec.seed}{escape(joined)}")
    if not dry_run:
        out.print(f"Use it with: roofscale train data_root={folder} datasets={','.join(spec.datasets)}")


def check_data(folder: Path, to_json: bool) -> bool:
    """Check the data sets in a folder and print the problems; return whether there are none."""
    report = check(folder)
    if to_json:
        print(as_json(report.as_dict()))
        return report.ok
    out = console()
    for dataset in report.datasets:
        splits = ", ".join(f"{name} {count}" for name, count in dataset.splits.items())
        out.print(f"[bold]{dataset.name}[/] in {dataset.folder}: {dataset.samples} samples ({splits})")
        for note in dataset.notes:
            out.print(f"  {escape(note)}")
        _print_leaks(out, dataset.leaks)
        _print_problems(out, dataset.problems)
    out.print(f"{len(report.problems)} problems." if report.problems else "No problem found.")
    return report.ok


def fetch_data(name: str, folder: Path, url: str, sha256: str, dry_run: bool, to_json: bool) -> None:
    """Print the card of a data set and download it into a data root; a dry run only prints."""
    card, out = dataset_card(name), console(quiet=to_json)
    out.print(f"[bold]{escape(card.title)}[/], {escape(card.authors)} {card.year}: {escape(card.size)}")
    facts = {
        "where": card.landing,
        "by hand": card.by_hand,
        "licence": card.licence,
        "cite": card.citation,
        "unsure": "; ".join(card.unverified),
    }
    for what, text in facts.items():
        out.print(f"  {what:8} {escape(text)}", soft_wrap=True)
    address = source_url(name, folder, url)
    out.print(
        f"{'would download' if dry_run else 'downloading'} {escape(address)} into {folder / name}", soft_wrap=True
    )
    fetched = None if dry_run else fetch(name, folder, url, sha256)
    if to_json:
        found = asdict(fetched) if fetched else {"folder": folder / name, "url": address}
        print(as_json({"card": asdict(card), "fetched": bool(fetched and fetched.url), **found}))
    elif fetched and not fetched.url:
        out.print(f"It is there already: {fetched.folder}. Nothing was downloaded.")
    elif fetched:
        out.print(f"SHA-256 {fetched.sha256}, compared with {fetched.checked}.", soft_wrap=True)
        out.print(f"Look at every file of it with: roofscale data check {folder}")


def _print_problems(out: Console, problems: Sequence[FileError]) -> None:
    """Print the first problems of each kind: a published split may have thousands of leaks."""
    if not problems:
        return
    table = Table("kind", Column("path", overflow="fold"), "what is wrong")
    seen: Counter[str] = Counter()
    for problem in problems:
        seen[problem.kind] += 1
        if seen[problem.kind] <= _SHOWN:
            table.add_row(problem.kind, escape(str(problem.path)), escape(problem.text))
    out.print(table)
    for kind, count in seen.items():
        if count > _SHOWN:
            out.print(f"  and {count - _SHOWN} more of kind {kind}; --json lists all")


def _print_leaks(out: Console, leaks: Sequence[LeakRate]) -> None:
    """Print each split that leaks, and the others in one line: 'published 1 2, spatial 1 2 3 4 5'."""
    clean: dict[str, list[str]] = {}
    for rate in leaks:
        if rate.pairs or rate.left_out:
            out.print(f"  {rate}")
        else:
            kind, _, number = rate.split.partition(" ")
            clean.setdefault(kind, []).append(number)
    if clean:
        named = ", ".join(" ".join([kind, *numbers]).strip() for kind, numbers in clean.items())
        out.print(f"  nothing is shared by two parts of these splits: {named}")


def upload_data(folder: Path, uri: str, everything: bool, dry_run: bool, to_json: bool) -> None:
    """Copy the data sets of a folder to S3 and print how to train on them; a dry run only prints.

    Raises:
        ConfigError: no address in S3, no data set in the folder, or AWS refuses.
        DataError: a file cannot be read.
    """
    bucket = uri.removeprefix(S3).partition("/")[0]
    if not uri.startswith(S3) or not bucket:
        raise ConfigError(f"{uri}: expected where to copy to, such as s3://BUCKET/data.")
    files = files_to_upload(folder, everything)
    from roofscale.runners.sagemaker.s3 import S3Client  # imports boto3

    options = settings.load(required=())
    s3, total = S3Client(options.region, options.kms_key), sum(file.size for file in files)
    with tqdm(total=total, unit="B", unit_scale=True, desc="upload", mininterval=SECONDS_BETWEEN_LINES) as bar:
        copied, there = upload_files(files, uri, s3, lambda sent: _advance(bar, sent), dry_run)
    counts = {
        name: {
            "copied": sum(file.dataset == name for file in copied),
            "copied_bytes": sum(file.size for file in copied if file.dataset == name),
            "there_already": sum(file.dataset == name for file in there),
        }
        for name in dict.fromkeys(file.dataset for file in files)
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

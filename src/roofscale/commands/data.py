"""Commands about data sets: generate and check."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from roofscale.data.check import check
from roofscale.data.generate import GenerateSpec, generate
from roofscale.data.leaks import LeakRate
from roofscale.report.console import as_json, console


def generate_data(folder: Path, spec: GenerateSpec, dry_run: bool, to_json: bool) -> None:
    """Write generated data sets, or say what would be written."""
    written = [] if dry_run else [str(path) for path in generate(folder, spec)]
    if to_json:
        print(as_json({"spec": asdict(spec), "written": written}))
        return
    out = console()
    for name in spec.datasets:
        verb = "would write" if dry_run else "generated"
        out.print(f"{verb} {folder / name}: {escape(spec.describe(name))}, seed {spec.seed}")
    if not dry_run:
        out.print(f"Use it with: roofscale train data_root={folder} datasets={','.join(spec.datasets)}")


def check_data(folder: Path, to_json: bool) -> bool:
    """Check the data sets in a folder and print what was found; return whether all is well."""
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
        if dataset.problems:
            table = Table("kind", Column("path", overflow="fold"), "what is wrong")
            for problem in dataset.problems:
                table.add_row(problem.kind, escape(str(problem.path)), escape(problem.text))
            out.print(table)
    out.print(f"{len(report.problems)} problems." if report.problems else "No problem found.")
    return report.ok


def _print_leaks(out: Console, leaks: Sequence[LeakRate]) -> None:
    """The splits that leak one by one, and those that do not in one line: 'published 1 2, spatial 1 2 3 4 5'."""
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

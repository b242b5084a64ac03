"""Keeps ``launch.ipynb`` up to date: Roofscale's own cells are found by their tags, everything else stays as it is."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat

from roofscale.errors import ConfigError
from roofscale.files import read_text, write_text
from roofscale.phases.gate import GateReport
from roofscale.phases.phase_file import Phase
from roofscale.report.format import markdown
from roofscale.report.notebook_cells import Cell, notebook_cells
from roofscale.report.phase_status import Climbs

_PARAMETERS = "parameters"  # the tag that papermill looks for
_KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def update_notebook(file: Path, climbs: Climbs, phases: Sequence[Phase], gate: GateReport | None) -> None:
    """Bring Roofscale's cells up to date, in place; a cell of it that is missing is put where it belongs.

    Raises:
        ConfigError: the file is no notebook of format 4; it is left as it is.
    """
    text = read_text(file) if file.exists() else ""
    try:
        book = _read(text) if file.exists() else _new_book()
    except ValueError as error:
        raise ConfigError(
            f"{file}: cannot be read as a notebook ({error}); expected JSON of notebook format 4. Mend it, or move it "
            "away and run `roofscale report` for a new one. It was left as it is."
        ) from error
    _renew_cells(book, notebook_cells(climbs, phases, gate))
    # Not through nbformat's own writer, which would sort keys and join lines in cells that are not ours.
    indent = re.match(r"\{\r?\n( +)", text)
    written = json.dumps(book, indent=len(indent[1]) if indent else 1, ensure_ascii=False)
    write_text(file, written if text and not text.endswith("\n") else f"{written}\n")


def _read(text: str) -> dict[str, Any]:
    book = json.loads(text)
    if not isinstance(book, dict) or book.get("nbformat") != 4:
        raise ValueError("it does not say 'nbformat: 4'")
    copy = nbformat.from_dict(book)  # type: ignore[no-untyped-call]
    try:
        nbformat.validate(copy)  # which may mend what it sees
    except nbformat.ValidationError as error:
        raise ValueError(error.message) from error
    return book


def _new_book() -> dict[str, Any]:
    book: dict[str, Any] = nbformat.v4.new_notebook(metadata=_KERNEL)  # type: ignore[no-untyped-call]
    return book


def _renew_cells(book: dict[str, Any], wanted: Sequence[Cell]) -> None:
    """Renew each cell where it stands; one that is not there goes behind the one that comes before it."""
    cells, at = book["cells"], -1
    for cell in wanted:
        found = next((place for place, known in enumerate(cells) if cell.tag in _tags(known)), None)
        if found is None:
            found = at + 1
            cells.insert(found, _make(cell, book))
        else:
            cells[found] = _renew(cells[found], cell)
        at = found


def _tags(cell: dict[str, Any]) -> list[str]:
    tags: list[str] = cell["metadata"].get("tags", [])
    return tags


def _make(cell: Cell, book: dict[str, Any]) -> dict[str, Any]:
    """A new cell; its id is its tag, so that making it again makes the same."""
    make: Any = nbformat.v4.new_code_cell if cell.kind == "code" else nbformat.v4.new_markdown_cell
    tags = [_PARAMETERS, cell.tag] if cell.tag.endswith(_PARAMETERS) else [cell.tag]
    made = _renew(make(id=cell.tag, metadata={"tags": tags}), cell)
    if book["nbformat_minor"] < 5:  # which knows no ids
        del made["id"]
    return dict(sorted(made.items()))


def _renew(known: dict[str, Any], cell: Cell) -> dict[str, Any]:
    """The cell with what it should say now; where that is another thing, what it has put out is gone."""
    rows: dict[str, Any] = known["metadata"].get("roofscale", {}).get("rows", {})
    if cell.headers:  # rows of a phase that the server no longer knows are kept
        rows = rows | {str(phase): [list(row) for row in found] for phase, found in cell.rows.items()}
        known = {**known, "metadata": {**known["metadata"], "roofscale": {"rows": rows}}}
    source = _source(cell, rows)
    if known["cell_type"] == cell.kind and "".join(known["source"]) == source:
        return known
    renewed = {**known, "cell_type": cell.kind, "source": source.splitlines(keepends=True)}
    if cell.kind == "code":
        return {**renewed, "outputs": [], "execution_count": None}
    return {key: value for key, value in renewed.items() if key not in ("outputs", "execution_count")}


def _source(cell: Cell, rows: dict[str, Any]) -> str:
    if not cell.headers:
        return cell.source
    ordered = [row for _, found in sorted(rows.items(), key=lambda item: int(item[0])) for row in found]
    return f"{cell.source}\n\n" + (markdown(cell.headers, ordered) if ordered else "None yet.")

"""Update of ``launch.ipynb``: Roofscale's own cells are found by their tags, all others stay untouched."""

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
    """Update Roofscale's cells in place; a missing one is inserted after its predecessor.

    Raises:
        ConfigError: the file is no notebook of format 4; it is left unchanged.
    """
    text = read_text(file) if file.exists() else ""
    try:
        book = _read(text) if file.exists() else nbformat.v4.new_notebook(metadata=_KERNEL)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ConfigError(
            f"{file}: cannot be read as a notebook ({error}); expected JSON of notebook format 4. Mend it, or move it "
            "away and run `roofscale report` for a new one. It was left as it is."
        ) from error
    _renew_cells(book, notebook_cells(climbs, phases, gate))
    # Not by nbformat's writer, which would sort keys and join lines in the user's cells.
    indent = re.match(r"\{\r?\n( +)", text)
    written = json.dumps(book, indent=len(indent[1]) if indent else 1, ensure_ascii=False)
    write_text(file, written if text and not text.endswith("\n") else f"{written}\n")


def _read(text: str) -> dict[str, Any]:
    book = json.loads(text)
    if not isinstance(book, dict) or book.get("nbformat") != 4:
        raise ValueError("it does not say 'nbformat: 4'")
    copy = nbformat.from_dict(book)  # type: ignore[no-untyped-call]
    try:
        nbformat.validate(copy)  # on a copy, because it may repair what it validates
    except nbformat.ValidationError as error:
        raise ValueError(error.message) from error
    return book


def _renew_cells(book: dict[str, Any], wanted: Sequence[Cell]) -> None:
    """Renew each cell at its position; insert a missing one after its predecessor."""
    cells, position = book["cells"], -1
    for cell in wanted:
        index = next((i for i, existing in enumerate(cells) if cell.tag in _tags(existing)), None)
        if index is None:
            index = position + 1
            cells.insert(index, _make(cell, book))
        else:
            cells[index] = _renew(cells[index], cell)
        position = index


def _tags(cell: dict[str, Any]) -> list[str]:
    tags: list[str] = cell["metadata"].get("tags", [])
    return tags


def _make(cell: Cell, book: dict[str, Any]) -> dict[str, Any]:
    """Return a new cell; its id is its tag, so that the result is reproducible."""
    make: Any = nbformat.v4.new_code_cell if cell.kind == "code" else nbformat.v4.new_markdown_cell
    tags = [_PARAMETERS, cell.tag] if cell.tag.endswith(_PARAMETERS) else [cell.tag]
    made = _renew(make(id=cell.tag, metadata={"tags": tags}), cell)
    if book["nbformat_minor"] < 5:  # cells have ids since 4.5
        del made["id"]
    return dict(sorted(made.items()))


def _renew(existing: dict[str, Any], cell: Cell) -> dict[str, Any]:
    """Return the cell with its current source; if that differs from the old one, its outputs are dropped."""
    rows: dict[str, Any] = existing["metadata"].get("roofscale", {}).get("rows", {})
    if cell.headers:  # keep the rows of phases that the server no longer has
        rows = rows | {str(phase): [list(row) for row in new] for phase, new in cell.rows.items()}
        existing = {**existing, "metadata": {**existing["metadata"], "roofscale": {"rows": rows}}}
    source = _source(cell, rows)
    if existing["cell_type"] == cell.kind and "".join(existing["source"]) == source:
        return existing
    renewed = {**existing, "cell_type": cell.kind, "source": source.splitlines(keepends=True)}
    if cell.kind == "code":
        return {**renewed, "outputs": [], "execution_count": None}
    return {key: value for key, value in renewed.items() if key not in ("outputs", "execution_count")}


def _source(cell: Cell, rows: dict[str, Any]) -> str:
    if not cell.headers:
        return cell.source
    ordered = [row for _, of_phase in sorted(rows.items(), key=lambda item: int(item[0])) for row in of_phase]
    return f"{cell.source}\n\n" + (markdown(cell.headers, ordered) if ordered else "None yet.")

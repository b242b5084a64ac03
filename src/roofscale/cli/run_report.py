"""Report command: strategy document, notebook, and a page and a record of each phase, from the tracking server."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from roofscale.cli.console import console
from roofscale.cli.run_gate import read_gate
from roofscale.errors import ConfigError
from roofscale.files import naming, read_text, write_text
from roofscale.invocation import PHASES
from roofscale.phases.history import latest_result
from roofscale.phases.phase_file import Phase, load_phase
from roofscale.report.calibration import ForecastOutcome, calibrate, calibration_record, forecast_outcomes
from roofscale.report.format import as_json
from roofscale.report.notebook import update_notebook
from roofscale.report.phase_html import phase_html
from roofscale.report.phase_json import climb_record
from roofscale.report.phase_status import Climbs, following
from roofscale.report.strategy import strategy_document
from roofscale.tracking import tracking_uri
from roofscale.tracking.history import recorded_runs, recorded_trials

STRATEGY = "STRATEGY.md"
NOTEBOOK = "launch.ipynb"
RESULTS = "results"
CALIBRATION = "calibration.json"


def write_report(experiments: Path, out: Console) -> list[Path]:
    """Write the documents on the newest result of each phase, in the folder of the phase files.

    Returns:
        The documents that are about all phases: the strategy document and the notebook.

    Raises:
        ConfigError: the server has no climb of any phase, a phase file is wrong, or a document that would be rewritten
            cannot be read; then nothing is written.
    """
    climbs = {number: climb for number in PHASES if (climb := latest_result(number))}
    if not climbs:
        raise ConfigError(
            f"{tracking_uri()}: expected a climb of a phase on this tracking server, found none, so nothing was "
            "written. Climb one first (roofscale phase 1), or name the server that has one in MLFLOW_TRACKING_URI."
        )
    phases, gate = _read_phases(experiments), read_gate()
    outcomes = list(forecast_outcomes([*recorded_runs(), *recorded_trials()]))
    strategy, notebook = experiments / STRATEGY, experiments / NOTEBOOK
    old = read_text(strategy) if strategy.exists() else ""
    with naming(strategy):
        document = strategy_document(phases, climbs, gate, old, calibrate(outcomes))
    update_notebook(notebook, climbs, phases, gate)  # refuses what it cannot read before anything is written
    write_text(strategy, document)
    written = [strategy, notebook, *_write_results(experiments / RESULTS, climbs, phases, outcomes)]
    out.print(f"Written from {tracking_uri()}: {', '.join(map(str, written))}")
    return [strategy, notebook]


def print_report(experiments: Path, to_json: bool) -> None:
    """Write the documents and print their paths."""
    documents = write_report(experiments, console(quiet=to_json))
    if to_json:
        print(as_json({"tracking_uri": tracking_uri(), "documents": [str(file) for file in documents]}))


def _read_phases(experiments: Path) -> list[Phase]:
    files = {number: experiments / f"phase{number}.yaml" for number in PHASES}
    return [load_phase(file) for file in files.values() if file.exists()]


def _write_results(
    folder: Path, climbs: Climbs, phases: Sequence[Phase], outcomes: Sequence[ForecastOutcome]
) -> Iterator[Path]:
    """Write the calibration of forecasts, and a JSON record and an HTML page of each phase; yield their paths."""
    folder.mkdir(exist_ok=True)
    write_text(folder / CALIBRATION, as_json(calibration_record(outcomes)) + "\n")
    yield folder / CALIBRATION
    for number, climb in climbs.items():
        record, page = (folder / f"phase{number}.{ending}" for ending in ("json", "html"))
        write_text(record, as_json(climb_record(climb)) + "\n")
        write_text(page, phase_html(climb, following(number, phases)))
        yield from (record, page)

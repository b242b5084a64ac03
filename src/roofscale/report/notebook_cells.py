"""Source of the notebook cells that Roofscale keeps up to date; each is identified by its tag."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from roofscale.config import FIELDS, RunConfig
from roofscale.measurement import Outcome
from roofscale.phases.gate import GateReport
from roofscale.phases.judge import Verdict
from roofscale.phases.phase_file import Phase
from roofscale.phases.results import StepResult
from roofscale.report.format import cause_words, code, format_number
from roofscale.report.phase_status import (
    Climbs,
    changed_knobs,
    config_words,
    current_best,
    format_changes,
    gate_words,
    next_phase,
    step_words,
)

Rows = Sequence[Sequence[str]]

_TITLE = """\
# Launch the next phase, look back on the last

Cells whose tag begins with `roofscale-` are kept up to date by `roofscale report` and by every climb; reload the
notebook after one. Put cells of your own wherever you like: they stay as they are. Use the environment that Roofscale
is installed in; running all cells launches nothing."""

_SETUP = """\
import os
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's wish for widgets that nothing here needs

# MLflow's own database and the phase files are looked for in the project's folder.
here = Path.cwd()
os.chdir(next((folder for folder in (here, *here.parents) if (folder / "MLproject").exists()), here))
print("project:", Path.cwd())"""

_FIGURES = """\
# How fast, how large and how well fed each passed step ran, from the newest attempt at each phase.
import matplotlib.pyplot as plt

from roofscale.api import read_steps

steps = read_steps()
passed = steps[steps["verdict"] == "passed"]
panels = {"speed/samples_per_s": "samples/s", "memory/mib_per_sample": "MiB a sample", "speed/data_stall": "data stall"}
if passed.empty:
    print("Nothing to draw: the tracking server has no passed step. Climb one: roofscale phase 1")
else:
    names = [f"{one.phase} {one.step}" + (f" at {one.changed}" if one.changed else "") for one in passed.itertuples()]
    colours = [f"C{phase}" for phase in passed["phase"]]
    figure, row = plt.subplots(1, len(panels), figsize=(12, 1.5 + 0.3 * len(passed)), sharey=True, layout="constrained")
    for axes, (metric, label) in zip(row, panels.items()):
        bars = axes.barh(names, passed.get(metric, float("nan")), color=colours)
        axes.bar_label(bars, fmt="{:.3g}", padding=3)
        axes.margins(x=0.15)
        axes.set(xlabel=label, xlim=(0, None))
    row[0].invert_yaxis()
    plt.show()"""

_LAUNCH = """\
# Phase {number} ({name}) starts from the last good configuration; what you have set otherwise goes with it.
import shlex
import subprocess
import sys

from roofscale.api import RunConfig

LAUNCH = False  # True: running this cell launches the phase

last_good = RunConfig().with_overrides({last_good})
wanted = last_good.with_overrides({{knob: globals()[knob] for knob in last_good.as_dict() if knob in globals()}})
changed = wanted.diff(last_good)
options = {{"compute": changed.pop("compute", ""), "set": shlex.join(f"{{k}}={{v}}" for k, v in changed.items())}}
command = [sys.executable, "-m", "mlflow", "run", ".", "-e", "phase{number}", "--env-manager", "local"]
for name, value in options.items():
    command += ["-P", f"{{name}}={{value}}"] if value else []
print(shlex.join(command))
if LAUNCH:
    # `mlflow run` takes the first python of the path: let it be this one.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    print("exit code", subprocess.run(command, env={{**os.environ, "PATH": path}}).returncode)"""

_JOB = """\
# The last good configuration as one SageMaker job, by the SDK's own ModelTrainer. The job logs itself to MLflow, if it
# can reach the tracking server. The settings are those of sagemaker.yaml, see deploy/README.md.
from roofscale.api import RunConfig, prepare_job

START = False  # True: running this cell starts a job, which costs money

last_good = RunConfig().with_overrides({last_good})
wanted = last_good.with_overrides({{knob: globals()[knob] for knob in last_good.as_dict() if knob in globals()}})
if wanted.compute == "local":
    wanted = wanted.with_overrides({{"compute": "ml.m5.xlarge"}})
print(wanted.compute, wanted.fingerprint)
if START:
    os.environ.setdefault("SAGEMAKER_VALIDATE_ROLE", "false")  # else the SDK simulates the role's rights
    from sagemaker.core.shapes import Channel, Tag
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import CheckpointConfig, Compute, Networking, OutputDataConfig, StoppingCondition

    job = prepare_job(wanted)
    vpc = job.get("vpc_config")
    trainer = ModelTrainer(
        training_image=job["algorithm_specification"]["training_image"],
        training_input_mode=job["algorithm_specification"]["training_input_mode"],
        role=job["role_arn"],
        base_job_name=job["training_job_name"],
        compute=Compute(
            **job["resource_config"], enable_managed_spot_training=job["enable_managed_spot_training"]
        ),
        networking=Networking(subnets=vpc["subnets"], security_group_ids=vpc["security_group_ids"]) if vpc else None,
        stopping_condition=StoppingCondition(**job["stopping_condition"]),
        input_data_config=[Channel(**channel) for channel in job["input_data_config"]],
        output_data_config=OutputDataConfig(**job["output_data_config"]),
        checkpoint_config=CheckpointConfig(**job["checkpoint_config"]),
        environment=job["environment"],
        tags=[Tag(**tag) for tag in job["tags"]],
    )
    trainer.train(wait=False)  # the image's own entrypoint runs the configuration in the channel "config"
    print(trainer._latest_training_job.training_job_name)"""

_NO_LAUNCH = 'print("Every phase has been climbed; nothing is left to launch.")'

_COMPARE = """\
# Every judged run, fastest first. To sort and filter otherwise, go on from `comparison` in a cell of your own.
from IPython.display import display

from roofscale.api import read_runs

columns = {
    "phase": "phase", "step": "step", "verdict": "verdict", "outcome": "outcome", "max_samples": "samples",
    "batch_size": "batch", "num_workers": "workers", "image_size": "px", "memory/mib_per_sample": "MiB a sample",
    "memory/share": "memory share", "speed/samples_per_s": "samples/s", "speed/data_stall": "data stall",
    "run_id": "MLflow run",
}
comparison = read_runs().reindex(columns=list(columns)).rename(columns=columns)
comparison = comparison.sort_values("samples/s", ascending=False, ignore_index=True)
if comparison.empty:
    print("Nothing to compare: the tracking server has no judged run. Climb a phase: roofscale phase 1")
else:
    display(comparison.style.format(precision=3, na_rep="-").hide(axis="index"))"""


@dataclass(frozen=True)
class Cell:
    """One cell that Roofscale keeps up to date."""

    tag: str
    kind: str  # markdown or code
    source: str  # of a table: the text above it
    headers: tuple[str, ...] = ()  # of a table
    rows: Mapping[int, Rows] = field(default_factory=dict)  # of a table, by phase


def notebook_cells(climbs: Climbs, phases: Sequence[Phase], gate: GateReport | None) -> list[Cell]:
    """Return all cells that Roofscale keeps up to date, in the order of the notebook."""
    return [
        Cell("roofscale-title", "markdown", _TITLE),
        Cell("roofscale-setup", "code", _SETUP),
        Cell("roofscale-parameters", "code", _parameters(climbs)),
        _successes(climbs),
        _failures(climbs),
        Cell("roofscale-figures", "code", _FIGURES),
        Cell("roofscale-gate", "markdown", f"## Next phase\n\nThe gate before the GPU: {gate_words(gate)}"),
        Cell("roofscale-launch", "code", _launch(climbs, phases)),
        Cell("roofscale-job", "code", _JOB.format(last_good=_last_good(climbs))),
        Cell("roofscale-comparison", "code", _COMPARE),
    ]


def _parameters(climbs: Climbs) -> str:
    """Return the last good knobs as plain assignments, so that papermill can inject others after them."""
    best = current_best(climbs)
    origin, config = "No step has passed yet: these are the defaults.", RunConfig()
    if best:
        climb, good = best
        origin = f"The last good of phase {climb.phase.number}: {step_words(good)}, MLflow run {good.run_id}."
        config = good.config
    lines = [
        f"# {origin}",
        "# This cell is rewritten. To set a knob otherwise (data_root, too), assign it in a cell of your own below.",
        *(
            f"{knob} = {value!r}  # {FIELDS[knob].metadata['meaning']}"
            for knob, value in config.as_dict().items()
            if knob != "data_root"  # the next phase finds its data as this one did
        ),
    ]
    return "\n".join(lines)


def _successes(climbs: Climbs) -> Cell:
    rows = {n: [_success(n, r) for r in climb.results if _passed(r)] for n, climb in sorted(climbs.items())}
    headers = ("phase", "step", "configuration", "samples/s", "MiB a sample", "memory", "data stall", "MLflow run")
    return Cell("roofscale-successes", "markdown", "## Successful configurations", headers, rows)


def _success(phase: int, result: StepResult) -> tuple[str, ...]:
    names = ("speed/samples_per_s", "memory/mib_per_sample", "memory/share", "speed/data_stall")
    measured = (format_number(result.measurement.metric(name)) for name in names)
    return (str(phase), step_words(result), code(config_words(result.config)), *measured, code(result.run_id))


def _failures(climbs: Climbs) -> Cell:
    rows = {
        n: [_failure(n, run) for run in climb.all_runs() if not _passed(run)] for n, climb in sorted(climbs.items())
    }
    headers = ("phase", "step", "at", "outcome", "verdict", "cause", "what was seen", "MLflow run")
    return Cell("roofscale-failures", "markdown", "## Failed attempts", headers, rows)


def _failure(phase: int, run: StepResult) -> tuple[str, ...]:
    unmet = "; ".join(f"{c.name}: {c.evidence}" for c in run.verdict.criteria if c.verdict is not Verdict.PASSED)
    seen = unmet if run.measurement.outcome is Outcome.OK else run.measurement.detail
    ending = (run.measurement.outcome.value, run.verdict.verdict.label, cause_words(run.cause) if run.cause else "")
    return (str(phase), run.step.name, code(format_changes(run)), *ending, seen, code(run.run_id))


def _passed(run: StepResult) -> bool:
    return run.verdict.verdict is Verdict.PASSED


def _launch(climbs: Climbs, phases: Sequence[Phase]) -> str:
    upcoming = next_phase(phases, climbs)
    if upcoming is None:
        return _NO_LAUNCH
    return _LAUNCH.format(number=upcoming.number, name=upcoming.name, last_good=_last_good(climbs))


def _last_good(climbs: Climbs) -> dict[str, str]:
    """Return the knobs in which the last good config differs from the defaults, but for the place of the data."""
    best = current_best(climbs)
    return changed_knobs(best[1].config) if best else {}

"""Time and outcome of a climb from an empty folder to an open gate.

``python -m benchmarks.climb [--image-size 256] [--seeds 0 1 2 3 4]`` runs, for each seed and in an empty folder,
the command of ``make climb COMPUTE=ml.m5.xlarge``, and then the gate. Times are those of the command: they include data
generation, imports, tracking and reports, but not the installation of the environment.

``--real`` climbs phases 1 to 3 on real AIRS crops, then phase 4 on all three data sets (see ``real_sets`` for what is
real in them) by two commands; the target is that the four phases pass.

Each seed is written to the newest ``benchmarks/results/*/climb.json`` when it ends; a recorded seed is not climbed
again without ``--again``. ``--table`` prints the recorded results against the targets, and why a seed missed them. The
runs of a climb that missed its target are kept in a temporary folder, without checkpoints.
"""

import argparse
import datetime
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from benchmarks.measure import ROOT, machine, newest_file
from benchmarks.phase1_verdicts import RECORD as VERDICTS
from benchmarks.phase1_verdicts import read_lines
from benchmarks.real_sets import joined_root, real_samples
from benchmarks.tile_formats import SAMPLES
from roofscale.compute import GIB
from roofscale.files import read_json, write_json
from roofscale.phases.attempt import Attempts, StepFolder
from roofscale.phases.gate import CPU_PHASES
from roofscale.phases.judge import Verdict
from roofscale.tracking.history import experiment_name

COMPUTE = "ml.m5.xlarge"
RECORD = "climb.json"
MOST_MINUTES, MOST_MINUTES_PHASE1 = 45, 5
FAULTS = ("lr", "masks", "leak", "loader")
INHERITED = ("MLFLOW_", "ROOFSCALE_", "PYTHONPATH")  # variables that would lead a climb elsewhere
FLAGS = ("avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
KNOBS = ("datasets", "max_samples", "val_samples", "batch_size", "num_workers", "prefetch_factor", "epochs", "lr",
         "schedule", "threads", "seed")  # fmt: skip
GRACE_SECONDS = 130  # for a climb to stop its run, which writes a checkpoint first


@dataclass(frozen=True)
class Key:
    """Identity of a climb in the record."""

    label: str
    image_size: int
    seed: int
    real: bool
    set: str  # further overrides
    overlay: str  # a file of experiments/, such as smoke.yaml

    def options(self, more: str = "") -> list[str]:
        """Return the options of every command that climbs."""
        overlay = ["--overlay", f"experiments/{self.overlay}"] if self.overlay else []
        words = " ".join(filter(None, (f"image_size={self.image_size} seed={self.seed}", self.set, more)))
        return ["--compute", COMPUTE, *overlay, "--set", words, "--json"]


@dataclass
class Ended:
    """Result of a finished command."""

    command: str
    exit_code: int
    seconds: float
    documents: list[tuple[float, dict[str, Any]]]  # each with the seconds after which it was printed
    said: str  # the end of its standard error

    def as_dict(self) -> dict[str, Any]:
        """Return the record; with the standard error only if the command failed."""
        record = {"command": self.command, "exit_code": self.exit_code, "seconds": round(self.seconds, 1)}
        return {**record, "said": self.said} if self.exit_code else record


def call(folder: Path, *words: str) -> Ended:
    """Run roofscale in a folder, and read the JSON documents that it prints.

    An interrupt is passed on, and processes that do not end in time are killed, so that none outlives this one.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(INHERITED)}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}  # a document arrives when it is printed
    errors = folder / "stderr.log"
    start = time.perf_counter()
    with errors.open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", "roofscale", *words], cwd=folder, env=environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True,
        )  # fmt: skip
        with _ended_with_us(child):
            documents = [(time.perf_counter() - start, document) for document in _documents(child.stdout or ())]
            exit_code = child.wait()
    seconds = time.perf_counter() - start
    said = errors.read_text(encoding="utf-8", errors="replace")[-2000:]
    return Ended(f"roofscale {shlex.join(words)}", exit_code, seconds, documents, said)


@contextmanager
def _ended_with_us(child: "subprocess.Popen[str]") -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        child.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
        raise
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _documents(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a stream, each as soon as its last line, a brace in the first column, is read."""
    pending: list[str] = []
    for line in lines:
        pending.append(line)
        if line.rstrip() == "}":
            yield json.loads("".join(pending))
            pending = []


def climb(key: Key, folder: Path) -> dict[str, Any]:
    """Climb in an empty folder, evaluate the gate, and return the record."""
    (folder / "experiments").mkdir()  # a climb writes its documents there
    for file in (ROOT / "experiments").glob("*.yaml"):
        shutil.copy(file, folder / "experiments")
    load = os.getloadavg()[0]
    sets: dict[str, Any] = {}
    if key.real:
        airs = f"datasets=airs data_root={shlex.quote(str(SAMPLES))}"
        ended = [call(folder, "phase", "3", *key.options(airs))]
        if (folder / "runs" / experiment_name(3) / "last_good.json").exists():
            root = joined_root(folder / "joined", SAMPLES)
            sets["real_samples"] = real_samples(root)
            ended.append(call(folder, "phase", "4", *key.options("data_root=joined")))
    else:
        ended = [call(folder, "climb", *key.options())]
    phases = list(_phases(ended, folder))
    phases = [*_climbed_first(folder, {phase["phase"] for phase in phases}), *phases]
    gate = _gate(call(folder, "gate", "--json", "--dry-run"))
    passed = {phase["phase"] for phase in phases if phase["verdict"] == Verdict.PASSED}
    climbed = {
        **asdict(key),
        "met": passed >= set(CPU_PHASES) if key.real else gate["open"],
        "seconds": round(sum(one.seconds for one in ended), 1),
        "seconds_of_phase1": next((phase["seconds"] for phase in phases if phase["phase"] == 1), None),
        "gate": gate,
        "phases": phases,
        "commands": [one.as_dict() for one in ended],
        **sets,
        **described(),
        "load_before": round(load, 2),
    }
    return json.loads(_anonymous(json.dumps(climbed), folder))  # type: ignore[no-any-return]


def _gate(ended: Ended) -> dict[str, Any]:
    """Return whether the gate is open, and each unmet condition with its evidence and remedy."""
    if not ended.documents:
        return {"open": False, "unmet": [], "said": ended.said}
    report = ended.documents[-1][1]
    unmet = [condition for condition in report["conditions"] if not condition["met"]]
    return {"open": report["open"], "unmet": [{k: one[k] for k in ("name", "evidence", "remedy")} for one in unmet]}


def _phases(ended: Sequence[Ended], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the record of each phase, from its printed document and the folder of its attempt."""
    for command in ended:
        before = 0.0
        for at, document in command.documents:
            last_good = folder / "runs" / experiment_name(document["phase"]) / "last_good.json"
            handed_on = {}
            if last_good.exists():
                good = read_json(last_good)
                handed_on = {"step": good["step"], **{knob: good["config"][knob] for knob in KNOBS}}
            yield {
                "phase": document["phase"],
                "verdict": document["verdict"],
                "seconds": round(at - before, 1),
                "handed_on": handed_on,
                "notes": document["notes"],
                "steps": [_step(step, folder / document["folder"], n) for n, step in enumerate(document["steps"], 1)],
            }
            before = at


def _climbed_first(folder: Path, printed: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Yield the verdicts of the phases that a command ran on the way to its own, which it does not print."""
    for number in set(CPU_PHASES).difference(printed):
        for attempt in Attempts(folder / "runs", experiment_name(number)).all()[-1:]:
            verdict = attempt.content.get("verdict")
            yield {"phase": number, "verdict": verdict, "seconds": None, "notes": [], "steps": []}


def _step(step: Mapping[str, Any], attempt: Path, number: int) -> dict[str, Any]:
    """Return the verdict of a step and all of its runs in order, including repeats and fallbacks."""
    why = {run["run_id"]: {k: run[k] for k in ("changed", "cause") if run[k]} for run in (step, *step["tries"])}
    runs = []
    for file in sorted(attempt.glob(f"{number:02d}-*/run.json")):
        run = StepFolder(file.parent)
        if run.finished_measurement is None or run.verdict is None:
            continue
        measured, config = (
            run.finished_measurement,
            file.parent / "config.json",
        )  # a run that was ruled out, so not made, has no config.json
        runs.append(
            {
                "run": file.parent.name,
                "decides": run.run_id == step["run_id"],
                "outcome": measured.outcome,
                **({"detail": measured.detail} if measured.detail else {}),
                "verdict": run.verdict.verdict,
                "not_passed": {c.name: c.evidence for c in run.verdict.criteria if c.verdict is not Verdict.PASSED},
                **why.get(run.run_id or "", {}),
                "seconds": round(measured.metrics.get("speed/run_seconds", 0.0), 1),
                "samples_per_s": round(measured.metrics.get("speed/samples_per_s", 0.0), 3),
                "config": {k: v for k, v in read_json(config).items() if k in KNOBS} if config.exists() else {},
            }
        )
    return {"step": step["step"], "verdict": step["verdict"], "runs": runs}


def _anonymous(text: str, folder: Path) -> str:
    """Return a text without the folder names of this machine."""
    names = {str(folder): "SCRATCH", str(SAMPLES): "SAMPLES", str(ROOT): "."}
    for path, name in names.items():
        text = text.replace(path, name)
    return text


def described() -> dict[str, Any]:
    """Return date, commit and machine of a measurement."""
    hardware = {k: v for k, v in machine().items() if k not in ("commit", "load_before")}
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {
            **hardware,
            "flags": [flag for flag in FLAGS if flag in flags],
            "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        },
    }


def _commit() -> str:
    """Return the commit, with '-dirty' if the code or the phase files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    dirty = git("status", "--porcelain", "--", "src", "experiments/*.yaml")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if dirty else "")


def recorded(file: Path) -> list[dict[str, Any]]:
    """Read the recorded climbs."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def record(file: Path, climbed: dict[str, Any], key: Key) -> None:
    """Add a climb to the record; it replaces an earlier one with the same key."""
    others = [other for other in recorded(file) if key_of(other) != key]
    write_json(file, [*others, climbed])


def key_of(climbed: Mapping[str, Any]) -> Key:
    """Return the key of a recorded climb."""
    return Key(**{name: climbed[name] for name in Key.__dataclass_fields__})


def strip(folder: Path) -> None:
    """Remove images and checkpoints, which are large, from the folder of a climb."""
    for data in ("data", "joined"):
        shutil.rmtree(folder / data, ignore_errors=True)
    for checkpoint in (folder / "runs").rglob("*.pt"):
        checkpoint.unlink()


def copy_documents(folder: Path, to: Path) -> None:
    """Copy the strategy document, the notebook and the results pages of a climb; replace an earlier climb's."""
    shutil.rmtree(to / "results", ignore_errors=True)
    shutil.copytree(folder / "experiments", to, ignore=shutil.ignore_patterns("*.yaml"), dirs_exist_ok=True)
    for file in filter(Path.is_file, to.rglob("*")):
        file.write_text(_anonymous(file.read_text(encoding="utf-8"), folder), encoding="utf-8")


def table(climbs: Sequence[Mapping[str, Any]], verdicts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the results against the targets as lines of Markdown, then why a climb missed its target."""
    yield "| measure | target | measured |"
    yield "|---|---|---|"
    for real, size, wanted in ((False, 512, 1), (False, 256, 5), (True, 512, 1), (True, 256, 3)):
        of_it = [one for one in climbs if one["real"] == real and one["image_size"] == size]
        what = "real images: phases 1 to 4 passed" if real else "generated data: the gate is open"
        yield _counted(f"{what}, {size} px", f"{wanted} of {wanted}", [one["met"] for one in of_it])
        if of_it and not real:
            minutes = [one["seconds"] / 60 for one in of_it]
            phase1 = [one["seconds_of_phase1"] / 60 for one in of_it if one["seconds_of_phase1"]]
            yield _timed(f"minutes of the climb, {size} px (installation not in)", MOST_MINUTES, minutes)
            yield _timed(f"minutes of phase 1 from nothing, {size} px", MOST_MINUTES_PHASE1, phase1)
    for fault in FAULTS:
        caught = [one["right"] for one in verdicts if one["fault"] == fault]
        yield _counted(f"planted fault: {fault}", "10 of 10", caught)
    busy = [one["right"] for one in verdicts if one["fault"] == "none" and one.get("busy")]
    yield _counted("healthy phase 1 beside one busy core", "9 of 10", busy)
    for one in climbs:
        yield from _misses(one)


def _counted(measure: str, target: str, right: Sequence[bool]) -> str:
    return f"| {measure} | {target} | {f'{sum(right)} of {len(right)}' if right else 'not measured'} |"


def _timed(measure: str, most: float, minutes: Sequence[float]) -> str:
    if not minutes:
        return f"| {measure} | <= {most} | not measured |"
    spread = f" ({min(minutes):.1f} to {max(minutes):.1f} of {len(minutes)})" if len(minutes) > 1 else ""
    return f"| {measure} | <= {most} | {statistics.median(minutes):.1f}{spread} |"


def _misses(climbed: Mapping[str, Any]) -> Iterator[str]:
    """Yield why a climb missed its target: steps that did not pass, with their runs, and unmet conditions."""
    if climbed["met"]:
        return
    yield ""
    exits = ", ".join(str(command["exit_code"]) for command in climbed["commands"])
    kind = "real" if climbed["real"] else "generated"
    yield f"{kind}, {climbed['image_size']} px, seed {climbed['seed']}: missed (exit {exits})"
    for phase in climbed["phases"]:
        for step in phase["steps"]:
            if step["verdict"] == Verdict.PASSED:
                continue
            yield f"- phase {phase['phase']} {step['step']}: {step['verdict']}"
            for run in step["runs"]:
                changed = f" ({run['changed']} after {run.get('cause', '?')})" if run.get("changed") else ""
                found = [f"{name}: {evidence}" for name, evidence in run["not_passed"].items()]
                yield f"  - {run['run']}{changed}: {run['outcome']}, {run['verdict']}. {'; '.join(found)}"
    for condition in climbed["gate"]["unmet"]:
        yield f"- gate: {condition['name']}: {condition['evidence']}. Remedy: {condition['remedy']}"
    for command in climbed["commands"]:
        if command.get("said") and not climbed["phases"]:
            yield f"- {command['command']}: {command['said'].strip().splitlines()[-1]}"


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Climb for each seed; return 0 if every climb met its target, 130 if interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=256, help="px")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--real", action="store_true", help="on real images")
    parser.add_argument("--set", default="", help="further overrides, KEY=VALUE words")
    parser.add_argument("--overlay", default="", help="a file of experiments/, such as smoke.yaml")
    parser.add_argument(
        "--label", default="", help="a word that keeps climbs apart, such as those of two versions of the code"
    )
    parser.add_argument("--again", action="store_true", help="climb what is on record, too")
    parser.add_argument("--keep", action="store_true", help="keep the runs of a climb that met its target, too")
    parser.add_argument("--documents", type=Path, help="copy the documents of the last seed's climb to this folder")
    parser.add_argument("--out", type=Path, default=newest_file(RECORD))
    parser.add_argument(
        "--table", action="store_true", help="print what is on record under this label, set and overlay"
    )
    asked = parser.parse_args()
    if asked.table:
        wanted = {name: getattr(asked, name) for name in ("label", "set", "overlay")}
        climbs = [one for one in recorded(asked.out) if wanted.items() <= one.items()]
        print("\n".join(table(climbs, read_lines(newest_file(VERDICTS)))))
        return 0
    if asked.real and not SAMPLES.is_dir():
        print(
            f"No real samples: {SAMPLES} is not there (ROOFSCALE_REAL_SAMPLES names another folder). Nothing was run."
        )
        return 0
    signal.signal(signal.SIGTERM, _stop)
    try:
        return 0 if all([_one(seed, asked) for seed in asked.seeds]) else 1
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on with the seeds that are not on record.", file=sys.stderr)
        return 130


def _one(seed: int, asked: argparse.Namespace) -> bool:
    """Climb for one seed unless it is on record; return whether the target was met."""
    key = Key(asked.label, asked.image_size, seed, asked.real, asked.set, asked.overlay)
    known = next((one for one in recorded(asked.out) if key_of(one) == key), None)
    if known and not asked.again:
        print(f"seed {seed}: on record, {'met' if known['met'] else 'missed'}", file=sys.stderr)
        return bool(known["met"])
    kind = "real" if key.real else "generated"
    folder = Path(tempfile.mkdtemp(prefix=f"roofscale-climb-{kind}-{key.image_size}px-seed{key.seed}-"))
    keep = False
    try:
        climbed = climb(key, folder)
        record(asked.out, climbed, key)
        verdicts = ", ".join(f"phase {phase['phase']} {phase['verdict']}" for phase in climbed["phases"])
        minutes = climbed["seconds"] / 60
        print(f"seed {seed}: {'met' if climbed['met'] else 'missed'} in {minutes:.1f} min; {verdicts}", file=sys.stderr)
        if asked.documents:
            copy_documents(folder, asked.documents)
        if keep := asked.keep or not climbed["met"]:
            strip(folder)  # in place: the MLflow store has the path of the folder
            print(f"  its runs: {folder}", file=sys.stderr)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return bool(climbed["met"])


if __name__ == "__main__":
    sys.exit(main())

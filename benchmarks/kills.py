"""Does a climb that is killed again and again end where an undisturbed one does?

``python -m benchmarks.kills [--kills 100] [--seed 0]`` climbs all phases under the smoke overlay once undisturbed, and
then again and again with ``kill -9`` of all its processes at random moments, each time continued by the same command,
until there were that many kills. Every killed climb must come to the undisturbed one's steps, verdicts, losses and
validations, to the last digit, wherever it trains the same config, and MLflow must have no run left RUNNING. The
figures go to ``benchmarks/results/<date>/kills.json``.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient

from benchmarks.climb import INHERITED, described
from benchmarks.measure import ROOT, scratch_folder, todays_file
from roofscale.files import write_json
from roofscale.measurement import Measurement
from roofscale.phases.attempt import Attempts, StepFolder
from roofscale.phases.gate import CPU_PHASES
from roofscale.tracking.history import experiment_name

OVERLAY = "experiments/once.yaml"
LONGEST_SECONDS = 45.0  # that a climb lives before it is killed
MOST_LIVES = 60  # of one climb; one that needs more does not get on


def command(folder: Path) -> "subprocess.Popen[bytes]":
    """Start the climb of a folder, with all that it starts in one session."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(INHERITED)}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    words = ["climb", "--overlay", OVERLAY, "--set", "checkpoint_seconds=1"]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "roofscale", *words], cwd=folder, env=environment, stdout=log, stderr=log,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip


def kill(climbing: "subprocess.Popen[bytes]") -> None:
    """Kill a climb with all of its processes, wherever they have put themselves."""
    import psutil

    family = [climbing.pid, *(child.pid for child in psutil.Process(climbing.pid).children(recursive=True))]
    for pid in family:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    climbing.wait()


def came_to(folder: Path) -> dict[str, Any]:
    """Every step of every phase with its verdict and the losses of its runs, as they are on disk."""
    found: dict[str, Any] = {}
    for number in CPU_PHASES:
        attempts = Attempts(folder / "runs", experiment_name(number))
        for attempt in attempts.all():
            for run in sorted(attempt.path.glob("[0-9]*")):
                if (run / "measurement.json").exists():
                    measured, verdict = Measurement.load(run / "measurement.json"), StepFolder(run).verdict
                    found[f"{number}/{attempt.path.name}/{run.name}"] = {
                        "config": measured.fingerprint,
                        "outcome": measured.outcome,
                        "verdict": verdict.verdict if verdict else None,
                        "losses": [record.loss for record in measured.steps],
                        "validations": [validation.losses for validation in measured.validations],
                    }
            found[f"{number}/{attempt.path.name}"] = {"verdict": attempt.content.get("verdict")}
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def left_running(folder: Path) -> list[str]:
    """The runs that MLflow still believes to be under way."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run.info.run_name for run in client.search_runs(ids, "attributes.status = 'RUNNING'", max_results=1000)]


def climb(folder: Path, chance: random.Random | None, kills: int) -> tuple[int, int, list[str]]:
    """Climb to the end, killed up to ``kills`` times; the kills there were, the last exit code, and what was said."""
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    overlay = yaml.safe_load((ROOT / "experiments" / "smoke.yaml").read_text(encoding="utf-8"))
    # One point to search: which of several is the fastest would be another one each time.
    overlay["search"]["space"] = {"batch_size": [2, 2], "num_workers": [1, 1]}
    (folder / OVERLAY).write_text(yaml.safe_dump(overlay), encoding="utf-8")
    for done in range(MOST_LIVES):
        climbing = command(folder)
        limit = chance.uniform(0.5, LONGEST_SECONDS) if chance and done < kills else None
        try:
            code = climbing.wait(limit)
        except subprocess.TimeoutExpired:
            kill(climbing)
            continue
        said = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        return done, code, [line for line in said.splitlines() if "Traceback" in line or "fault of Roofscale" in line]
    return MOST_LIVES, -1, ["it does not get on"]


def main() -> int:
    """Kill climbs; 1 where the results of one differ from the undisturbed one's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=todays_file("kills.json"))
    asked = parser.parse_args()
    chance, kills, climbs = random.Random(asked.seed), 0, []
    with scratch_folder() as folder:
        begun = time.monotonic()
        _, code, said = climb(folder, None, 0)
        expected, whole = came_to(folder), time.monotonic() - begun
        print(f"undisturbed: exit {code}, {len(expected)} records, {whole:.0f} s; {said}", file=sys.stderr)
    while kills < asked.kills:
        with scratch_folder() as folder:
            begun = time.monotonic()
            killed, ended, said = climb(folder, chance, asked.kills - kills)
            found, running = came_to(folder), left_running(folder)
            unlike = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            # Which batch phase 2 hands on may hang on the pace: then what follows trains another config.
            configs = {name: {one[name].get("config") for one in (expected, found) if name in one} for name in unlike}
            other = [name for name in unlike if len(configs[name]) > 1]
            wrong = [name for name in unlike if name not in other]
            kills += killed
            one = {"kills": killed, "exit_code": ended, "seconds": round(time.monotonic() - begun), "wrong": wrong,
                   "of_another_config": other, "left_running": running, "said": said[:20]}  # fmt: skip
            climbs.append(one)
            print(f"{kills} kills: {one}", file=sys.stderr)
            if wrong or running or said:
                kept = shutil.copytree(folder, ROOT / "runs" / f"kills-{asked.seed}-{kills}", dirs_exist_ok=True)
                print(f"  kept in {kept}", file=sys.stderr)
        counts = collections.Counter(bool(one["wrong"] or one["left_running"] or one["said"]) for one in climbs)
        summary = {"kills": kills, "climbs": len(climbs), "unlike_the_undisturbed": counts[True], "each": climbs}
        write_json(asked.out, {**described(), "seed": asked.seed, "undisturbed_seconds": round(whole), **summary})
    return 1 if any(one["wrong"] or one["left_running"] for one in climbs) else 0


if __name__ == "__main__":
    sys.exit(main())

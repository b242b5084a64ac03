"""Four workers share a study on a PostgreSQL of their own; one is killed in the middle of a trial."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
import psycopg2
import pytest
from optuna.trial import TrialState

BINARIES = [*Path("/usr/lib/postgresql").glob("*/bin"), *(Path(p).parent for p in [shutil.which("initdb")] if p)]
pytestmark = [
    pytest.mark.skipif(not BINARIES, reason="no PostgreSQL server on this machine (Debian: apt install postgresql)"),
    pytest.mark.slow,
]
STUDY = "shared"


def as_user() -> list[str]:
    """PostgreSQL refuses to run as root; Debian's package brings a user for it."""
    if os.getuid():
        return []
    if shutil.which("runuser") is None or subprocess.run(["id", "postgres"], capture_output=True).returncode:
        pytest.skip("run as root, and no user postgres to start PostgreSQL as")
    return ["runuser", "-u", "postgres", "--"]


@pytest.fixture
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = Path(subprocess.check_output([*as_user(), "mktemp", "-d"], text=True).strip())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def control(*words: str) -> None:
        subprocess.run([*as_user(), *words], check=True, capture_output=True, timeout=60)

    binaries = BINARIES[-1]
    control(str(binaries / "initdb"), "-D", f"{folder}/data", "-U", "roofscale", "-A", "trust", "--no-sync")
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
    control(str(binaries / "pg_ctl"), "-D", f"{folder}/data", "-o", options, "-w", "-l", f"{folder}/log", "start")
    try:
        yield f"postgresql+psycopg2://roofscale@127.0.0.1:{port}/postgres"
    finally:
        control(str(binaries / "pg_ctl"), "-D", f"{folder}/data", "-m", "immediate", "stop")
        control("rm", "-rf", str(folder))


def start(url: str, log: Path, part: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.phases.search_worker", url, STUDY, str(log), part]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines(log: Path, what: str) -> list[Sequence[str]]:
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    return [line.split()[1:] for line in text.splitlines() if line.startswith(what)]


def wait_for_trial_of(worker: "subprocess.Popen[str]", log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for pid, _, config in lines(log, "begins"):
            if pid == str(worker.pid):
                return config
        assert worker.poll() is None, worker.communicate()[1]
        time.sleep(0.1)
    raise AssertionError("it never began a trial")


def test_no_trial_is_lost_when_a_worker_is_killed_and_at_most_one_is_run_twice(url: str, tmp_path: Path) -> None:
    with psycopg2.connect(url.replace("+psycopg2", "")) as connection:
        assert connection.server_version
    log = tmp_path / "log"
    doomed = start(url, log, "hang")  # alone at first, so that it is sure to have a trial
    lost = wait_for_trial_of(doomed, log)
    others = [start(url, log, "lead"), *(start(url, log, "join") for _ in range(2))]
    time.sleep(2)
    doomed.send_signal(signal.SIGKILL)
    said = [worker.communicate(timeout=180) for worker in others]
    assert [worker.returncode for worker in others] == [0, 0, 0], said
    doomed.communicate()

    ended = Counter(config for _, _, config in lines(log, "ends"))
    begun = Counter(config for pid, _, config in lines(log, "begins") if pid != str(doomed.pid))
    assert ended[lost]
    assert ended.total() - len(ended) <= 1
    assert begun == ended
    assert len({pid for pid, _, _ in lines(log, "ends")}) == 3  # all took part
    study = optuna.load_study(study_name=STUDY, storage=url)
    states = Counter(trial.state for trial in study.trials)
    assert states[TrialState.FAIL] == 1
    assert not states[TrialState.RUNNING]
    assert not states[TrialState.WAITING]
    assert states[TrialState.COMPLETE] == ended.total()
    assert len({out for out, _ in said}) == 1  # and all choose the same

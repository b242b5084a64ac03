"""How evidence is weighed, without processes: every rule, and the order of the rules."""

import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofscale.measurement import Outcome
from roofscale.runners.outcome import ExitEvidence, classify

OK_END = {"outcome": "ok", "detail": "100 steps"}
# As torch 2.13 words them.
CUDA_OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of ..."
SHM_FULL = "RuntimeError: unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)"
BUS_ERROR = (
    "RuntimeError: DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
    "workers are out of shared memory. Please try to raise your shared memory limit."
)
WORKER_DIED = "RuntimeError: DataLoader worker (pid(s) 91) exited unexpectedly"
DIED_HANDING_OVER = """\
File "/usr/lib/python3/torch/multiprocessing/reductions.py", line 538, in rebuild_storage_fd
    fd = df.detach()
  File "/usr/lib/python3/multiprocessing/resource_sharer.py", line 86, in get_connection
    c = Client(address, authkey=process.current_process().authkey)
ConnectionResetError: [Errno 104] Connection reset by peer
"""
DISK_FULL = "OSError: [Errno 28] No space left on device: 'checkpoint.pt'"
NO_MEMORY = "RuntimeError: [enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: 9 bytes."
TOO_MANY_FILES = "RuntimeError: unable to open shared memory object </torch_1> in read-write mode: Too many open files"


@pytest.mark.parametrize(
    ("stderr", "outcome"),
    [
        (CUDA_OOM, Outcome.CUDA_OOM),
        ("RuntimeError: CUDA error: out of memory", Outcome.CUDA_OOM),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", Outcome.CUDA_OOM),
        (SHM_FULL, Outcome.SHM_FULL),
        (BUS_ERROR, Outcome.SHM_FULL),
        ("OSError: [Errno 28] No space left on device: '/dev/shm/sem.x'", Outcome.SHM_FULL),
        (DISK_FULL, Outcome.CRASHED),
        (TOO_MANY_FILES, Outcome.CRASHED),
        (NO_MEMORY, Outcome.HOST_OOM),
        ("MemoryError", Outcome.HOST_OOM),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 9. GiB", Outcome.HOST_OOM),
        ("OSError: [Errno 12] Cannot allocate memory", Outcome.HOST_OOM),
        ("roofscale.errors.DataError: rid/1.tif: broken", Outcome.DATA_ERROR),
        ("ValueError: no DataError here", Outcome.CRASHED),
        (WORKER_DIED, Outcome.CRASHED),
        (DIED_HANDING_OVER, Outcome.CRASHED),
        ("", Outcome.CRASHED),
    ],
)
def test_stderr_of_a_failed_run(stderr: str, outcome: Outcome) -> None:
    found, detail = classify(ExitEvidence(exit_code=1, stderr=f"Traceback (most recent call last):\n  ...\n{stderr}\n"))
    assert found is outcome
    assert stderr[:40] in detail
    assert (stderr in (WORKER_DIED, DIED_HANDING_OVER)) == ("loader process" in detail)


@pytest.mark.parametrize(
    ("evidence", "outcome", "said"),
    [
        ({"exit_code": 0, "end": OK_END}, Outcome.OK, "100 steps"),
        ({"exit_code": 0, "end": OK_END, "stderr": CUDA_OOM}, Outcome.OK, "100 steps"),
        ({"exit_code": 0, "end": OK_END, "interrupted": True}, Outcome.OK, "100 steps"),
        ({"exit_code": 0}, Outcome.CRASHED, "reported no outcome"),
        ({"exit_code": -signal.SIGSEGV, "end": OK_END}, Outcome.CRASHED, "SIGSEGV"),
        ({"exit_code": 1, "end": {"outcome": "diverged", "detail": "at 7"}}, Outcome.DIVERGED, "at 7"),
        ({"exit_code": 1, "end": {"outcome": "crashed", "detail": "KeyError: 'a'"}}, Outcome.CRASHED, "KeyError"),
        ({"exit_code": 1, "end": {"outcome": "crashed", "detail": SHM_FULL}}, Outcome.SHM_FULL, "num_workers"),
        ({"exit_code": 1, "end": {"outcome": "crashed", "detail": "x"}, "stderr": CUDA_OOM}, Outcome.CUDA_OOM, "GPU"),
        ({"exit_code": -signal.SIGKILL}, Outcome.CRASHED, "SIGKILL"),
        ({"exit_code": -signal.SIGBUS}, Outcome.CRASHED, "/dev/shm"),
        ({"exit_code": -signal.SIGTERM}, Outcome.INTERRUPTED, "resumes"),
        ({"exit_code": -signal.SIGKILL, "interrupted": True}, Outcome.INTERRUPTED, "resumes"),
        ({"exit_code": 1, "interrupted": True, "stderr": "KeyboardInterrupt"}, Outcome.INTERRUPTED, "resumes"),
        ({"exit_code": 1, "oom_kills": 1, "stderr": WORKER_DIED}, Outcome.HOST_OOM, "batch_size"),
        ({"exit_code": -signal.SIGKILL, "watchdog": True, "limit": "here"}, Outcome.HOST_OOM, "(here)"),
        ({"exit_code": 1, "timed_out": True, "timeout_seconds": 60.0}, Outcome.TIMEOUT, "timeout_seconds=60"),
    ],
)
def test_rules(evidence: dict[str, Any], outcome: Outcome, said: str) -> None:
    found, detail = classify(ExitEvidence(**evidence))
    assert found is outcome
    assert said in detail


EVIDENCE = st.builds(
    ExitEvidence,
    exit_code=st.sampled_from([0, 1, -9, -11, -15]),
    watchdog=st.booleans(),
    timed_out=st.booleans(),
    interrupted=st.booleans(),
    oom_kills=st.integers(0, 2),
    stderr=st.sampled_from(["", CUDA_OOM, SHM_FULL, WORKER_DIED, DISK_FULL]),
    end=st.none() | st.builds(lambda o: {"outcome": o.value, "detail": "said so"}, st.sampled_from(list(Outcome))),
)


@given(EVIDENCE)
def test_what_the_runner_did_comes_before_what_the_kernel_counted_and_that_before_all_else(
    evidence: ExitEvidence,
) -> None:
    outcome, detail = classify(evidence)
    assert detail
    assert "\n" not in detail
    if evidence.watchdog:
        assert outcome is Outcome.HOST_OOM
    elif evidence.timed_out:
        assert outcome is Outcome.TIMEOUT
    elif evidence.oom_kills:
        assert outcome is Outcome.HOST_OOM
    elif outcome is Outcome.OK:
        assert evidence.exit_code == 0
        assert evidence.end is not None

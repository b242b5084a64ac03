"""Decides how a run ended from what was seen of it.

The order matters. A loader process that the kernel killed looks, from its parent, like any exception with exit code 1;
so what the runner did itself comes first, then what the kernel counted, then what the run said of itself, then what it
left on stderr, and only then the exit code.
"""

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from roofscale.measurement import Outcome


@dataclass(frozen=True)
class ExitEvidence:
    """What a runner knows about a run that is over."""

    exit_code: int  # minus the signal number where a signal ended it, as subprocess has it
    watchdog: bool = False  # the watchdog killed it for memory
    timed_out: bool = False  # the runner ended it for time
    interrupted: bool = False  # the runner was asked to stop and passed that on
    oom_kills: int = 0  # processes that the kernel killed for memory
    stderr: str = ""  # its last lines
    end: Mapping[str, str] | None = None  # the run's own 'end' event: outcome and detail
    limit: str = ""  # the memory limit in force, in words
    timeout_seconds: float = 0.0


_LESS_MEMORY = "lower batch_size, image_size or num_workers, or choose a compute with more memory"

# Of a process that only ended because it missed another, which may be on another machine and have told why there.
PEER_FAILED = "another process of the run has ended, and this one with it"

# What stderr, or the run's own account of an exception, says; first match wins.
_SAID: tuple[tuple[re.Pattern[str], Outcome, str], ...] = (
    (
        # torch/csrc and c10 allocator messages; torch names the class OutOfMemoryError from 1.13 on
        re.compile(
            r"CUDA out of memory|CUDA error: out of memory|cuda\.OutOfMemoryError|torch\.OutOfMemoryError|"
            r"CUBLAS_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation"
        ),
        Outcome.CUDA_OOM,
        "the GPU's memory ran out; lower batch_size or image_size, use precision=bf16, or choose a larger GPU",
    ),
    (
        # A full disk says "No space left on device" too: only with shared memory named is it /dev/shm.
        re.compile(
            r"unable to (?:allocate|resize)[^\n]*shared memory|shared memory[^\n]*No space left|"
            r"/dev/shm[^\n]*No space left|No space left on device[^\n]*/dev/shm|"
            r"out of shared memory|insufficient shared memory",
            re.IGNORECASE,
        ),
        Outcome.SHM_FULL,
        "/dev/shm is full; lower num_workers or prefetch_factor, or give it more (docker: --shm-size)",
    ),
    (
        re.compile(
            r"can't allocate memory|std::bad_alloc|^(?:\w+\.)*\w*MemoryError\b|Cannot allocate memory", re.MULTILINE
        ),
        Outcome.HOST_OOM,
        f"the host's memory ran out; {_LESS_MEMORY}",
    ),
    (
        # torch/utils/data/dataloader.py and _utils/signal_handling.py; or, while it handed over a batch, the other end
        # of its socket (multiprocessing/resource_sharer.py).
        re.compile(
            r"DataLoader worker \(pid[^)\n]*\)[^\n]*(?:killed by signal|exited unexpectedly)"
            r"|in rebuild_storage_fd\n(?:.*\n)*?(?=Connection(?:Reset|Refused)Error|EOFError)"
        ),
        Outcome.CRASHED,
        "a loader process was killed, perhaps by the system for want of memory; run it again, with a lower num_workers "
        "if it comes back",
    ),
    (
        re.compile(r"^(?:\w+\.)*DataError\b", re.MULTILINE),
        Outcome.DATA_ERROR,
        "a data set could not be read",
    ),
    (
        # gloo/transport/tcp/pair.cc; NCCL's ncclRemoteError; torch's store, once its machine has gone
        re.compile(r"gloo/transport|ncclRemoteError|^torch\.distributed\.Dist\w*Error", re.MULTILINE),
        Outcome.CRASHED,
        PEER_FAILED,
    ),
)


def classify(evidence: ExitEvidence) -> tuple[Outcome, str]:
    """The outcome, and one line that says what happened and what to do."""
    return (
        _from_runner_or_kernel(evidence)
        or _from_end_event(evidence)
        or _from_stderr(evidence)
        or _from_exit_code(evidence)
    )


def _from_runner_or_kernel(evidence: ExitEvidence) -> tuple[Outcome, str] | None:
    """What the runner did, and what the kernel counted."""
    held = f" ({evidence.limit})" if evidence.limit else ""
    if evidence.watchdog:
        return Outcome.HOST_OOM, f"passed its memory limit and was killed{held}; {_LESS_MEMORY}"
    if evidence.timed_out:
        return Outcome.TIMEOUT, (
            f"ended after timeout_seconds={evidence.timeout_seconds:g}; raise it, or train on "
            "fewer samples; the same command resumes from the last checkpoint"
        )
    if evidence.oom_kills:
        return Outcome.HOST_OOM, f"killed by the kernel, out of memory{held}; {_LESS_MEMORY}"
    return None


def _from_end_event(evidence: ExitEvidence) -> tuple[Outcome, str] | None:
    """The run's own account, where it is conclusive."""
    if evidence.end is None:
        return None
    outcome, detail = Outcome(evidence.end["outcome"]), evidence.end.get("detail", "")
    if outcome is Outcome.CRASHED:
        return _recognise(detail)
    if outcome is Outcome.OK and evidence.exit_code != 0:
        return Outcome.CRASHED, f"finished its training, but then ended with {_exit_words(evidence.exit_code)}"
    return outcome, detail


def _from_stderr(evidence: ExitEvidence) -> tuple[Outcome, str] | None:
    """What stderr says; not asked where the run was interrupted, or ended of its own accord and well."""
    if evidence.interrupted or evidence.exit_code in (0, -signal.SIGTERM, -signal.SIGINT):
        return None
    return _recognise(evidence.stderr)


def _recognise(text: str) -> tuple[Outcome, str] | None:
    for pattern, outcome, remedy in _SAID:
        if found := list(pattern.finditer(text)):  # the last: a traceback shows source lines before the message
            return outcome, f"{remedy}: {_line_around(text, found[-1].start())}"
    return None


def _from_exit_code(evidence: ExitEvidence) -> tuple[Outcome, str]:
    """The exit code, the last resort."""
    if evidence.interrupted or evidence.exit_code in (-signal.SIGTERM, -signal.SIGINT):
        return (
            Outcome.INTERRUPTED,
            "asked to stop before it was done; the same command resumes it",
        )
    said = (evidence.end or {}).get("detail") or _last_line(evidence.stderr)
    if evidence.exit_code == 0:
        return Outcome.CRASHED, "ended without a word on how; see stderr.log"
    if evidence.exit_code == -signal.SIGKILL:
        said = "from outside, perhaps by the system for want of memory; see the kernel log, and run it again"
    elif evidence.exit_code == -signal.SIGBUS:
        said = said or "often a full /dev/shm or a file cut short while it was mapped"
    return Outcome.CRASHED, f"ended with {_exit_words(evidence.exit_code)}: {said or 'no message'} (see stderr.log)"


def _exit_words(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _line_around(text: str, position: int) -> str:
    line = text[text.rfind("\n", 0, position) + 1 :].partition("\n")[0].strip()
    return line if len(line) <= 300 else f"{line[:300]}..."


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return _line_around(lines[-1], 0) if lines else ""

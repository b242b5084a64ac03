"""Classification of a run's outcome from the evidence that the runner has collected.

The order matters: if the kernel kills a loader process, the training process reports an ordinary exception and exits
with 1. So the runner's own kills are considered first, then the OOM kills that the kernel counted, then the run's own
'end' event, then stderr, and the exit code last.
"""

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from roofscale.measurement import Outcome


@dataclass(frozen=True)
class ExitEvidence:
    """Evidence of how a run ended, collected by its runner."""

    exit_code: int  # minus the signal number if a signal ended the run, as in subprocess
    watchdog: bool = False  # the watchdog killed the run for its memory
    timed_out: bool = False  # the runner stopped the run after timeout_seconds
    interrupted: bool = False  # the runner forwarded a stop request
    oom_kills: int = 0  # processes that the kernel killed for memory
    stderr: str = ""  # its last 16 KiB
    end: Mapping[str, str] | None = None  # the run's own 'end' event: outcome and detail
    limit: str = ""  # the memory limit in force, in words
    timeout_seconds: float = 0.0


LESS_MEMORY = "lower batch_size, image_size or num_workers, or choose a compute with more memory"

# Detail of a process that failed only because a peer did; the peer's measurement, maybe on another machine, has the
# cause.
PEER_FAILED = "another process of the run has ended, and this one with it"

# Patterns in stderr, or in the detail of the run's 'end' event; the first match wins.
_PATTERNS: tuple[tuple[re.Pattern[str], Outcome, str], ...] = (
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
        # A full disk gives "No space left on device" too: it is /dev/shm only if shared memory is named.
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
        f"the host's memory ran out; {LESS_MEMORY}",
    ),
    (
        # torch/utils/data/dataloader.py and _utils/signal_handling.py; or the receiving end of its socket, if it was
        # killed while it passed a batch (multiprocessing/resource_sharer.py).
        re.compile(
            r"DataLoader worker \(pid[^)\n]*\)[^\n]*(?:killed by signal|exited unexpectedly)"
            r"|in rebuild_storage_fd\n(?:.*\n)*?(?=Connection(?:Reset|Refused)Error|EOFError)"
        ),
        Outcome.CRASHED,
        "a loader process was killed, perhaps by the kernel because memory ran out; run it again, with a lower "
        "num_workers if it happens again",
    ),
    (
        re.compile(r"^(?:\w+\.)*DataError\b", re.MULTILINE),
        Outcome.DATA_ERROR,
        "a data set could not be read",
    ),
    (
        # gloo/transport/tcp/pair.cc; NCCL's ncclRemoteError; torch's store after its host has ended
        re.compile(r"gloo/transport|ncclRemoteError|^torch\.distributed\.Dist\w*Error", re.MULTILINE),
        Outcome.CRASHED,
        PEER_FAILED,
    ),
)


def classify(evidence: ExitEvidence) -> tuple[Outcome, str]:
    """Return the outcome and a one-line detail: what happened and what the user can do."""
    return (
        _from_runner_or_kernel(evidence)
        or _from_end_event(evidence)
        or _from_stderr(evidence)
        or _from_exit_code(evidence)
    )


def _from_runner_or_kernel(evidence: ExitEvidence) -> tuple[Outcome, str] | None:
    """Classify by what the runner did and by the OOM kills that the kernel counted; None if there are none."""
    limit = f" ({evidence.limit})" if evidence.limit else ""
    if evidence.watchdog:
        return Outcome.HOST_OOM, f"passed its memory limit and was killed{limit}; {LESS_MEMORY}"
    if evidence.timed_out:
        return Outcome.TIMEOUT, (
            f"ended after timeout_seconds={evidence.timeout_seconds:g}; raise it, or train on "
            "fewer samples; the same command resumes from the last checkpoint"
        )
    if evidence.oom_kills:
        return Outcome.HOST_OOM, f"killed by the kernel, out of memory{limit}; {LESS_MEMORY}"
    return None


def _from_end_event(evidence: ExitEvidence) -> tuple[Outcome, str] | None:
    """Classify by the run's 'end' event; None if there is none, or it reports a crash that no pattern matches."""
    if evidence.end is None:
        return None
    outcome, detail = Outcome(evidence.end["outcome"]), evidence.end.get("detail", "")
    if outcome is Outcome.CRASHED:
        return _recognise(detail)
    if outcome is Outcome.OK and evidence.exit_code != 0:
        return Outcome.CRASHED, f"finished its training, but then ended with {_exit_words(evidence.exit_code)}"
    return outcome, detail


def _from_stderr(evidence: ExitEvidence) -> tuple[Outcome, str] | None:
    """Classify by stderr; None if nothing matches, or the run exited with 0, was interrupted or terminated."""
    if evidence.interrupted or evidence.exit_code in (0, -signal.SIGTERM, -signal.SIGINT):
        return None
    return _recognise(evidence.stderr)


def _recognise(text: str) -> tuple[Outcome, str] | None:
    """Return the outcome of the first pattern that matches, with remedy and matching line; None if none matches."""
    for pattern, outcome, remedy in _PATTERNS:
        if matches := list(pattern.finditer(text)):  # the last: a traceback shows source lines before the message
            return outcome, f"{remedy}: {_line_around(text, matches[-1].start())}"
    return None


def _from_exit_code(evidence: ExitEvidence) -> tuple[Outcome, str]:
    """Classify by the exit code, if nothing else tells."""
    if evidence.interrupted or evidence.exit_code in (-signal.SIGTERM, -signal.SIGINT):
        return (
            Outcome.INTERRUPTED,
            "asked to stop before it was done; the same command resumes it",
        )
    message = (evidence.end or {}).get("detail") or _last_line(evidence.stderr)
    if evidence.exit_code == 0:
        return Outcome.CRASHED, "exited with 0 but reported no outcome; see stderr.log"
    if evidence.exit_code == -signal.SIGKILL:  # not the runner's own: those are classified before
        message = "from outside, perhaps by the kernel because memory ran out; see the kernel log, and run it again"
    elif evidence.exit_code == -signal.SIGBUS:
        message = message or "often a full /dev/shm or a file cut short while it was mapped"
    return Outcome.CRASHED, f"ended with {_exit_words(evidence.exit_code)}: {message or 'no message'} (see stderr.log)"


def _exit_words(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _line_around(text: str, position: int) -> str:
    line = text[text.rfind("\n", 0, position) + 1 :].partition("\n")[0].strip()
    return line if len(line) <= 300 else f"{line[:300]}..."


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return _line_around(lines[-1], 0) if lines else ""

"""A stand-in for the training process: ``python child.py HOW RUN_FOLDER`` ends in the way that HOW says; of several
processes each in its own, such as ``plain,segfault``.

It really does what it stands for (allocates, fills /dev/shm, segfaults); it only trains nothing.
"""

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from roofscale.train.malloc import allocator_settings

MIB = 2**20
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000  # linux/sched.h


class Events:
    def __init__(self, folder: Path) -> None:
        self.stream = (folder / "events.jsonl").open("a", buffering=1)
        self.emit("start", facts={"device": "cpu"}, steps_planned=4, batch_size=2)

    def emit(self, event: str, **fields: object) -> None:
        self.stream.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")

    def steps(self, first: int = 1, last: int = 4) -> None:
        for step in range(first, last + 1):
            self.emit(
                "step",
                step=step,
                epoch=0,
                dataset="rid",
                samples=2 * step,
                loss=1 / step,
                grad_norm=1.0,
                lr=1e-3,
                seconds=0.01,
                wait_seconds=0.001,
            )

    def end(self, outcome: str, detail: str = "") -> None:
        self.emit("end", outcome=outcome, detail=detail)


def touch(mib: int) -> bytearray:
    """Memory that is really there: every page is written to."""
    memory = bytearray(mib * MIB)
    memory[::4096] = b"x" * (mib * MIB // 4096)
    return memory


def ok(events: Events, folder: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    print(f"threads {os.environ['OMP_NUM_THREADS']}, {allocator_settings()}, cores {cores}")
    held = touch(100)
    time.sleep(0.5)
    events.steps()
    validation = {
        "step": 4,
        "epoch": 0,
        "dataset": "rid",
        "sample_ids": ["a", "b"],
        "losses": [0.2, 0.4],
        "constant_losses": [0.6, 0.6],
        "metrics": {"loss": 0.3, "iou_roof": 0.5},
        "seconds": 0.1,
    }
    events.emit("validation", validation=validation)
    events.emit("metrics", metrics={"speed/data_stall": 0.02})
    events.end("ok", f"{len(held)} bytes held")


def resumed(events: Events, folder: Path) -> None:
    events.emit("resumed", step=2)
    events.steps(3, 4)
    events.end("ok")


def eat(events: Events, folder: Path) -> None:
    """A leak: 20 MiB a time, for ever."""
    events.steps()
    held = []
    while True:
        held.append(touch(20))
        time.sleep(0.02)


def eat_in_worker(events: Events, folder: Path) -> None:
    """The leak is in a loader process; the main process would wait for it for ever."""
    worker = multiprocessing.get_context("fork").Process(target=eat, args=(events, folder))
    worker.start()
    time.sleep(600)


def shm_full(events: Events, folder: Path) -> None:
    """A private /dev/shm of 8 MiB, and torch asked to share 64."""
    libc = ctypes.CDLL(None, use_errno=True)
    private = libc.unshare(CLONE_NEWNS) == 0 or libc.unshare(CLONE_NEWNS | CLONE_NEWUSER) == 0
    libc.mount(b"none", b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE: nothing of this is seen outside
    if not private or libc.mount(b"none", b"/dev/shm", b"tmpfs", 0, b"size=8m") != 0:
        events.end("ok", "not permitted")
        return
    import torch

    torch.zeros(64 * MIB, dtype=torch.uint8).share_memory_()


def cuda_oom(events: Events, folder: Path) -> None:
    import torch

    raise torch.cuda.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
        "21.99 GiB of which 1.18 GiB is free."
    )


def data_error(events: Events, folder: Path) -> None:
    from roofscale.errors import DataError

    raise DataError("rid/images/17.tif: cannot be read")


def diverged(events: Events, folder: Path) -> None:
    events.steps()
    events.end("diverged", "the loss of step 5 is not finite; lower lr")
    sys.exit(1)


def worker_killed(events: Events, folder: Path) -> None:
    import torch
    from torch.utils.data import DataLoader, IterableDataset

    class Fatal(IterableDataset):
        def __iter__(self):
            os.kill(os.getpid(), signal.SIGKILL)
            yield torch.zeros(1)

    next(iter(DataLoader(Fatal(), num_workers=1)))


def segfault(events: Events, folder: Path) -> None:
    ctypes.string_at(0)


def exception(events: Events, folder: Path) -> None:
    raise ValueError("something nobody thought of")


def silent(events: Events, folder: Path) -> None:
    """Exit code 0 without an end event."""


def wait(events: Events, folder: Path) -> None:
    """Trains until it is asked to stop, then writes a checkpoint."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    events.steps()
    events.emit("note", text=str(os.getpid()))
    while not asked:
        time.sleep(0.02)
    (folder / "checkpoint.pt").write_text("a checkpoint")
    events.end("interrupted", "after 4 steps; the same command resumes it")
    sys.exit(1)


def deaf(events: Events, folder: Path) -> None:
    """Ignores SIGTERM, as does its own child."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    events.steps()
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    worker.start()
    events.emit("note", text=f"{os.getpid()} {worker.pid}")
    time.sleep(600)


def plain(events: Events, folder: Path) -> None:
    """Dies of a signal like any process."""
    events.emit("note", text=str(os.getpid()))
    time.sleep(600)


if __name__ == "__main__":
    how, run_folder = sys.argv[1].split(",")[int(os.environ.get("RANK", 0))], Path(sys.argv[2])
    end: Callable[[Events, Path], None] = globals()[how]
    end(Events(run_folder), run_folder)

"""The training process: ``python -m roofscale.train RUN_FOLDER``.

Reads ``config.json`` in the run folder, appends to ``events.jsonl``, and writes ``checkpoint.pt``, ``best.pt`` and the
prediction sheets. A runner (``roofscale.runners``) starts it, holds it to a memory limit and monitors it from outside.
On SIGTERM or SIGINT it writes a checkpoint and ends; the same command then resumes the run.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from roofscale import config as configs
from roofscale.addresses import DATA_SOURCE
from roofscale.data.airs_prepare import CACHE, prepare_airs
from roofscale.data.loader import uses_fork
from roofscale.data.sources import data_fingerprint, data_notes, leak_warnings, open_sources, resolve_data_root
from roofscale.errors import DISK_FULL, DataError, RoofscaleError
from roofscale.measurement import Outcome
from roofscale.model import count_parameters
from roofscale.train import distributed, malloc
from roofscale.train.cores import Threads
from roofscale.train.loop import Diverged, Interrupted, TrainingLoop


class EventFile:
    """The run folder's events.jsonl: one JSON object a line, written out line by line.

    Args:
        file: appended to.
        heard: whether this process writes at all; rank 0 speaks for the others of a distributed run.
    """

    def __init__(self, file: Path, heard: bool = True) -> None:
        self._stream = file.open("a", encoding="utf-8", buffering=1)
        self.heard = heard
        self.continued = self._stream.tell() > 0  # whether an earlier process of this run wrote events
        if self.continued and heard:
            self._stream.write("\n")  # ends the line that a killed process may have left unfinished

    def emit(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write one event with the time, in epoch seconds."""
        if self.heard:
            self._stream.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")


def main(folder: Path) -> int:
    """Train in a run folder; return the exit code: 0 if the outcome is ok, else 1, with the reason in an ``end`` event.

    In a distributed run rank 0 writes the events. An end that all processes share is written by the first process of
    each machine, an error by the process in which it occurred.
    """
    asked_to_stop: list[bool] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked_to_stop.append(True))
    events = EventFile(folder / "events.jsonl", heard=distributed.rank() == 0)
    all_end_together = True
    try:
        outcome, detail = Outcome.OK, train(folder, events, lambda: bool(asked_to_stop))
    except Interrupted as error:
        outcome, detail = Outcome.INTERRUPTED, f"{error}; the same command resumes it"
    except Diverged as error:
        outcome, detail = Outcome.DIVERGED, str(error)
    except Exception as error:
        # When one process fails, torchrun stops the others: errors that follow in those are not the cause.
        all_end_together = False
        is_consequence = distributed.is_peer_failure(error) or (distributed.world_size() > 1 and asked_to_stop)
        events.heard = not is_consequence
        outcome, detail = classify_exception(error, folder, events)
    if all_end_together:
        events.heard = distributed.is_local_rank0()  # each machine's runner reads the run folder of its own machine
    events.emit("end", {"outcome": outcome, "detail": detail})
    if all_end_together:
        distributed.destroy_process_group()
    return 0 if outcome is Outcome.OK else 1


def train(folder: Path, events: EventFile, stopping: Callable[[], bool]) -> str:
    """Train to the end and emit the final metrics; return the number of steps as a text.

    Raises:
        Interrupted, Diverged, RoofscaleError: as ``prepare`` and ``TrainingLoop.fit`` raise them.
    """
    run = prepare(folder, events, stopping)
    progress = run.fit()
    metrics: dict[str, float] = {"train/skipped_samples": len(run.trainer.progress.skipped)}
    if uses_fork(run.config):
        metrics["memory/copied_mib"] = run.config.processes * run.trainer.mutable_state_bytes / 2**20
    per_process = distributed.all_gather(gpu_memory())
    metrics |= {name: max(gpu[name] for gpu in per_process) for name in per_process[0]}
    events.emit("metrics", {"metrics": metrics})
    return progress


def classify_exception(error: Exception, folder: Path, events: EventFile) -> tuple[Outcome, str]:
    """Map an exception to an outcome and its one-line detail.

    Raises:
        Exception: ``error`` itself if it is an unexpected one, whose traceback then goes to stderr.
    """
    if isinstance(error, DataError):
        return Outcome.DATA_ERROR, str(error)
    if isinstance(error, torch.OutOfMemoryError):
        # Never retried in this process: its allocator's cache is fragmented, so that a lighter step could fail as well.
        events.emit("metrics", {"metrics": gpu_memory()})
        return Outcome.CUDA_OOM, str(error).splitlines()[0]
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        # A full disk says nothing about the config, so the run is resumable rather than failed.
        message = f"{error.filename or folder}: the disk is full ({error.strerror})"
        return Outcome.INTERRUPTED, f"{message}; make room, and the same command resumes it"
    if "torch._dynamo" in sys.modules and isinstance(error, torch._dynamo.exc.TorchDynamoException):
        what = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return Outcome.CRASHED, f"compile=true: the step could not be compiled ({what}); set compile=false"
    if isinstance(error, RoofscaleError):
        return Outcome.CRASHED, str(error)
    if distributed.world_size() > 1:  # the stderr that the runner reads mixes all processes and torchrun
        events.emit("end", {"outcome": Outcome.CRASHED, "detail": f"{type(error).__name__}: {error}"})
    raise error


def gpu_memory() -> dict[str, float]:
    """Return the CUDA allocator's peak of reserved memory and its number of retries; empty without a GPU."""
    if not torch.cuda.is_available():
        return {}
    return {
        "gpu/memory_peak_mib": torch.cuda.max_memory_reserved() / 2**20,
        "gpu/alloc_retries": torch.cuda.memory_stats()["num_alloc_retries"],
    }


def begun_with(folder: Path) -> int:
    """Return the number of threads that the first process of a run started with; 0 if this is the first."""
    for line in (folder / "events.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):  # a line that a killed process left unfinished
            event = json.loads(line)
            if event["event"] == "start":
                return int(event["facts"]["threads"])
    return 0


def prepare(folder: Path, events: EventFile, stopping: Callable[[], bool]) -> TrainingLoop:
    """Open the data, build the training loop of a run folder, and emit the ``start`` event with its facts.

    Raises:
        RoofscaleError: the config, the data or the number of processes does not fit.
        Interrupted: asked to stop during the preparation of the data.
    """
    config = configs.load(overrides=json.loads((folder / "config.json").read_text(encoding="utf-8")))
    threads = None
    if config.threads:
        torch.set_num_threads(config.threads)
    elif config.world_size == 1 and not torch.cuda.is_available():
        threads = Threads()  # measures the free cores from here until training starts
    distributed.init_process_group(config)
    root, data_note = distributed.local_rank0_first(lambda: resolve_data_root(config, Path("data/generated")))
    events.emit("note", {"text": data_note})
    opened = distributed.local_rank0_first(lambda: open_sources(config, root))
    leaks, warnings = leak_warnings(opened), data_notes(opened)
    for note in (*leaks, *warnings):
        events.emit("note", {"text": note})
    splits, sampling = distributed.local_rank0_first(
        lambda: prepare_airs(config, opened, CACHE, lambda text: events.emit("note", {"text": text}), stopping)
    )
    run = TrainingLoop(config, splits, folder, events.emit, stopping, threads)
    free_cores = threads.settle(begun_with(folder)) if threads else ""
    inputs = [
        {
            "name": name,
            "digest": data_fingerprint({name: split}),
            "source": os.environ.get(DATA_SOURCE, str(root.resolve())).replace("{name}", name),
            "samples": {"train": len(split.train), "val": len(split.val)},
        }
        for name, split in splits.items()
    ]
    facts = {
        "data": data_note,
        "leaks": " ".join(leaks) or "no footprint of a validation image overlaps one of training",
        "data_fingerprint": "+".join(f"{used['name']}:{used['digest']}" for used in inputs),
        "device": str(run.trainer.execution.device),
        "precision": run.trainer.execution.precision,
        "precision_why": run.trainer.execution.why,
        "threads": str(torch.get_num_threads()),
        "malloc": malloc.allocator_settings(),
        "parameters": str(count_parameters(run.trainer.model)),
        "torch": torch.__version__,
    }
    if processes := distributed.describe():
        facts["processes"] = processes
    if free_cores:
        facts["cores_free"] = free_cores
    if warnings:
        facts["data_notes"] = " ".join(warnings)
    start = {"facts": facts, "inputs": inputs, "steps_planned": run.steps_planned, "batch_size": config.batch_size}
    events.emit("start", start)
    if sampling:
        events.emit("metrics", {"metrics": sampling})
    if events.continued:
        events.emit("resumed", {"step": run.trainer.progress.step})
    return run


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is on disk, and a regular shutdown of the interpreter takes over a second

"""The training process: ``python -m roofscale.train RUN_FOLDER``.

Reads ``config.json`` there, appends to ``events.jsonl``, leaves ``checkpoint.pt``, ``best.pt`` and a prediction sheet.
It is always run by somebody (``runners``) who holds it to a memory limit and watches it from outside. SIGTERM and
SIGINT make it write a checkpoint and end; the same command then resumes.
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
    """Appends events as JSON lines, each whole on disk before the next; nothing while it is not ``heard``."""

    def __init__(self, file: Path, heard: bool = True) -> None:
        self._stream = file.open("a", encoding="utf-8", buffering=1)
        self.heard = heard
        self.continued = self._stream.tell() > 0  # an earlier process of this run wrote here
        if self.continued and heard:
            self._stream.write("\n")  # it may have been killed in the middle of a line

    def emit(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write one event, stamped with the time."""
        if self.heard:
            self._stream.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")


def main(folder: Path) -> int:
    """Train in a run folder; return 0 when it ended well, 1 when it ended for a reason that the events tell.

    Of several processes rank 0 tells how the run goes, the first of each machine how it ends, each what ends it alone.
    """
    asked_to_stop: list[bool] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked_to_stop.append(True))
    events = EventFile(folder / "events.jsonl", heard=distributed.rank() == 0)
    alike = True
    try:
        outcome, detail = Outcome.OK, train(folder, events, lambda: bool(asked_to_stop))
    except Interrupted as error:
        outcome, detail = Outcome.INTERRUPTED, f"{error}; the same command resumes it"
    except Diverged as error:
        outcome, detail = Outcome.DIVERGED, str(error)
    except Exception as error:
        # torchrun asks the others to stop when one has failed: what then breaks in them is no cause of its own.
        alike, events.heard = (
            False,
            not (distributed.is_peer_failure(error) or (distributed.world_size() > 1 and asked_to_stop)),
        )
        outcome, detail = classify_exception(error, folder, events)
    if alike:
        events.heard = distributed.is_local_rank0()  # whoever runs a machine's processes looks in its own folder
    events.emit("end", {"outcome": outcome, "detail": detail})
    if alike:
        distributed.destroy_process_group()
    return 0 if outcome is Outcome.OK else 1


def train(folder: Path, events: EventFile, stopping: Callable[[], bool]) -> str:
    """Train to the end; return how far it went."""
    run = prepare(folder, events, stopping)
    done = run.fit()
    metrics: dict[str, float] = {"train/skipped_samples": len(run.trainer.progress.skipped)}
    if uses_fork(run.config):
        metrics["memory/copied_mib"] = run.config.processes * run.trainer.mutable_state_bytes / 2**20
    of_gpus = distributed.all_gather(gpu_memory())
    metrics |= {name: max(one[name] for one in of_gpus) for name in of_gpus[0]}
    events.emit("metrics", {"metrics": metrics})
    return done


def classify_exception(error: Exception, folder: Path, events: EventFile) -> tuple[Outcome, str]:
    """What an error comes to; one that says nothing to a user is raised again, and left to stderr."""
    if isinstance(error, DataError):
        return Outcome.DATA_ERROR, str(error)
    if isinstance(error, torch.OutOfMemoryError):
        # The end of this process: what the allocator holds, and how it is cut up, is no state to try anything in again.
        events.emit("metrics", {"metrics": gpu_memory()})
        return Outcome.CUDA_OOM, str(error).splitlines()[0]
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        # It says nothing of the config: to be gone on with, not to be judged.
        where = f"{error.filename or folder}: the disk is full ({error.strerror})"
        return Outcome.INTERRUPTED, f"{where}; make room, and the same command resumes it"
    if "torch._dynamo" in sys.modules and isinstance(error, torch._dynamo.exc.TorchDynamoException):
        what = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return Outcome.CRASHED, f"compile=true: the step could not be compiled ({what}); set compile=false"
    if isinstance(error, RoofscaleError):
        return Outcome.CRASHED, str(error)
    if distributed.world_size() > 1:  # whose stderr has the others' words in it, and torchrun's
        events.emit("end", {"outcome": Outcome.CRASHED, "detail": f"{type(error).__name__}: {error}"})
    raise error


def gpu_memory() -> dict[str, float]:
    """What the allocator held at the most, and how often it had to give back and ask again; nothing without a GPU."""
    if not torch.cuda.is_available():
        return {}
    return {
        "gpu/memory_peak_mib": torch.cuda.max_memory_reserved() / 2**20,
        "gpu/alloc_retries": torch.cuda.memory_stats()["num_alloc_retries"],
    }


def begun_with(folder: Path) -> int:
    """The threads that the first process of a run began with; 0 where this one is the first."""
    for line in (folder / "events.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):  # killed while it wrote that line
            event = json.loads(line)
            if event["event"] == "start":
                return int(event["facts"]["threads"])
    return 0


def prepare(folder: Path, events: EventFile, stopping: Callable[[], bool]) -> TrainingLoop:
    """Build the run of a folder and say what it is."""
    config = configs.load(overrides=json.loads((folder / "config.json").read_text(encoding="utf-8")))
    threads = None
    if config.threads:
        torch.set_num_threads(config.threads)
    elif config.world_size == 1 and not torch.cuda.is_available():
        threads = Threads()  # what is free is measured over all that comes before training
    distributed.init_process_group(config)
    root, said = distributed.local_rank0_first(lambda: resolve_data_root(config, Path("data/generated")))
    events.emit("note", {"text": said})
    opened = distributed.local_rank0_first(lambda: open_sources(config, root))
    leaks, doubtful = leak_warnings(opened), data_notes(opened)
    for note in (*leaks, *doubtful):
        events.emit("note", {"text": note})
    splits, drawn = distributed.local_rank0_first(
        lambda: prepare_airs(config, opened, CACHE, lambda text: events.emit("note", {"text": text}), stopping)
    )
    run = TrainingLoop(config, splits, folder, events.emit, stopping, threads)
    free = threads.settle(begun_with(folder)) if threads else ""
    inputs = [
        {
            "name": name,
            "digest": data_fingerprint({name: split}),
            "source": str(root.resolve()),
            "samples": {"train": len(split.train), "val": len(split.val)},
        }
        for name, split in splits.items()
    ]
    facts = {
        "data": said,
        "leaks": " ".join(leaks) or "no footprint of a validation image overlaps one of training",
        "data_fingerprint": "+".join(f"{used['name']}:{used['digest']}" for used in inputs),
        "device": str(run.trainer.where.device),
        "precision": run.trainer.where.precision,
        "precision_why": run.trainer.where.why,
        "threads": str(torch.get_num_threads()),
        "malloc": malloc.allocator_settings(),
        "parameters": str(count_parameters(run.trainer.model)),
        "torch": torch.__version__,
    }
    if together := distributed.describe():
        facts["processes"] = together
    if free:
        facts["cores_free"] = free
    if doubtful:
        facts["data_notes"] = " ".join(doubtful)
    start = {"facts": facts, "inputs": inputs, "steps_planned": run.steps_planned, "batch_size": config.batch_size}
    events.emit("start", start)
    if drawn:
        events.emit("metrics", {"metrics": drawn})
    if events.continued:
        events.emit("resumed", {"step": run.trainer.progress.step})
    return run


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is on disk, and taking the interpreter down would take over a second

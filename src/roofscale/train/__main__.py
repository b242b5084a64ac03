"""The training process: ``python -m roofscale.train RUN_FOLDER``.

Reads ``config.json`` there, appends to ``events.jsonl``, leaves ``checkpoint.pt``, ``best.pt`` and a prediction sheet.
It is always run by somebody (``runners``) who holds it to a memory limit and watches it from outside. SIGTERM and
SIGINT make it write a checkpoint and end; the same command then resumes.
"""

import json
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from roofscale import config as configs
from roofscale.data.loader import forks
from roofscale.data.sources import data_fingerprint, leak_notes, open_sources, resolve_root
from roofscale.errors import DISK_FULL, DataError, RoofscaleError
from roofscale.measurement import Outcome
from roofscale.model import count_parameters
from roofscale.train import malloc
from roofscale.train.loop import Diverged, Interrupted, Run


class EventFile:
    """Appends events as JSON lines, each whole on disk before the next."""

    def __init__(self, file: Path) -> None:
        self._stream = file.open("a", encoding="utf-8", buffering=1)
        self.continued = self._stream.tell() > 0  # an earlier process of this run wrote here
        if self.continued:
            self._stream.write("\n")  # it may have been killed in the middle of a line

    def emit(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write one event, stamped with the time."""
        self._stream.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")


def main(folder: Path) -> int:
    """Train in a run folder; return 0 when it ended well, 1 when it ended for a reason that the events tell."""
    asked_to_stop = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked_to_stop.append(True))
    events = EventFile(folder / "events.jsonl")
    try:
        run = prepare(folder, events, lambda: bool(asked_to_stop))
        done = run.fit()
        metrics: dict[str, float] = {"train/skipped_samples": len(run.trainer.progress.skipped)}
        if forks(run.config):
            metrics["memory/copied_mib"] = run.trainer.overwritten_bytes / 2**20
        if torch.cuda.is_available():
            metrics["gpu/memory_peak_mib"] = torch.cuda.max_memory_reserved() / 2**20
            metrics["gpu/alloc_retries"] = torch.cuda.memory_stats()["num_alloc_retries"]
        events.emit("metrics", {"metrics": metrics})
        outcome, detail = Outcome.OK, done
    except Interrupted as error:
        outcome, detail = Outcome.INTERRUPTED, f"{error}; the same command resumes it"
    except Diverged as error:
        outcome, detail = Outcome.DIVERGED, str(error)
    except DataError as error:
        outcome, detail = Outcome.DATA_ERROR, str(error)
    except torch.cuda.OutOfMemoryError as error:
        outcome, detail = Outcome.CUDA_OOM, str(error).splitlines()[0]
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        # It says nothing of the config: to be gone on with, not to be judged.
        where = f"{error.filename or folder}: the disk is full ({error.strerror})"
        outcome, detail = Outcome.INTERRUPTED, f"{where}; make room, and the same command resumes it"
    except RoofscaleError as error:
        outcome, detail = Outcome.CRASHED, str(error)
    events.emit("end", {"outcome": outcome, "detail": detail})
    return 0 if outcome is Outcome.OK else 1


def prepare(folder: Path, events: EventFile, stopping: Any) -> Run:
    """Build the run of a folder and say what it is."""
    config = configs.load(overrides=json.loads((folder / "config.json").read_text(encoding="utf-8")))
    if config.threads:
        torch.set_num_threads(config.threads)
    root, said = resolve_root(config, Path("data/generated"))
    events.emit("note", {"text": said})
    splits = open_sources(config, root)
    leaks = leak_notes(splits)
    for leak in leaks:
        events.emit("note", {"text": leak})
    run = Run(config, splits, folder, events.emit, stopping)
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
        "malloc": malloc.settings(),
        "parameters": str(count_parameters(run.trainer.model)),
        "torch": torch.__version__,
    }
    start = {"facts": facts, "inputs": inputs, "steps_planned": run.steps_planned, "batch_size": config.batch_size}
    events.emit("start", start)
    if events.continued:
        events.emit("resumed", {"step": run.trainer.progress.step})
    return run


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""A training process that trains nothing: ``python fake_trainer.py RUN_FOLDER``, without PyTorch.

For tests about what is around a training: phases, kills, tracking. It speaks as ``roofscale.train`` does: reads
``config.json``, appends to ``events.jsonl``, holds memory in proportion to batch and image size, writes a checkpoint on
SIGTERM, or after every step if ``checkpoint_seconds`` is 0, and goes on from it. Standard library only.
"""

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

COMMAND = (sys.executable, "-I", "-S", __file__)
SET_UP_SECONDS = 0.3  # the memory is sampled every 0.2 s
STEP_SECONDS = 0.05  # long enough to send a signal in the middle of a run
MIB_PER_SAMPLE = 4.0  # at 64 px; in proportion to the pixels


def train(folder: Path) -> int:
    """Train in a run folder; return the exit code."""
    config = json.loads((folder / "config.json").read_text())
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    events, checkpoint, partial = folder / "events.jsonl", folder / "checkpoint.pt", folder / ".checkpoint.partial"
    continued = events.exists()
    first = json.loads(checkpoint.read_text())["step"] + 1 if checkpoint.exists() else 1
    per_epoch = -(-config["max_samples"] // config["batch_size"])
    passes = len(config["datasets"]) * config["epochs"]

    with events.open("a", buffering=1) as stream:

        def emit(event: str, **fields: object) -> None:
            stream.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")

        held = bytearray(int(config["batch_size"] * MIB_PER_SAMPLE * (config["image_size"] / 64) ** 2 * 2**20))
        held[::4096] = b"x" * len(held[::4096])  # every page is there
        time.sleep(SET_UP_SECONDS)
        inputs = [
            {"name": name, "digest": "0123", "source": "fake", "samples": {"train": config["max_samples"], "val": 2}}
            for name in config["datasets"]
        ]
        facts = {"device": "cpu", "precision": "fp32", "threads": "1", "data_fingerprint": "+".join(config["datasets"])}
        emit("start", facts=facts, inputs=inputs, steps_planned=passes * per_epoch, batch_size=config["batch_size"])
        if continued:
            emit("resumed", step=first - 1)
        else:
            _validate(emit, config["datasets"], 0, 0)
        for step in range(first, passes * per_epoch + 1):
            time.sleep(STEP_SECONDS)
            epoch, batch = divmod(step - 1, per_epoch)
            dataset = config["datasets"][epoch // config["epochs"]]
            samples = epoch * config["max_samples"] + min((batch + 1) * config["batch_size"], config["max_samples"])
            emit(
                "step",
                step=step,
                epoch=epoch,
                dataset=dataset,
                samples=samples,
                loss=_loss(step),
                grad_norm=1.0,
                lr=config["lr"],
                seconds=STEP_SECONDS,
                wait_seconds=STEP_SECONDS / 100,
            )
            if stop or not config["checkpoint_seconds"]:
                partial.write_text(json.dumps({"step": step}))
                partial.replace(checkpoint)
            if stop:
                emit("end", outcome="interrupted", detail=f"asked to stop at step {step}; the same command resumes it")
                return 1
            if batch + 1 == per_epoch:
                _validate(emit, config["datasets"][: epoch // config["epochs"] + 1], step, epoch)
        emit("metrics", metrics={"speed/data_stall": 0.01})
        emit("end", outcome="ok", detail=f"{passes * per_epoch} steps")
    return 0


def _loss(step: int) -> float:
    return 0.7 / (1 + step / 10)


def _validate(emit: Callable[..., None], datasets: list[str], step: int, epoch: int) -> None:
    for name in datasets:
        validation = {
            "step": step,
            "epoch": epoch,
            "dataset": name,
            "sample_ids": ["a", "b"],
            "losses": [_loss(step)] * 2,
            "constant_losses": [0.6, 0.6],
            "metrics": {"loss": _loss(step), "iou_roof": 0.5, "iou": 0.5},
            "seconds": 0.001,
        }
        emit("validation", validation=validation)


if __name__ == "__main__":
    sys.exit(train(Path(sys.argv[1])))

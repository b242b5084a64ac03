"""A SageMaker whose every job goes well."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from tests.runners.sagemaker_settings import FakeCloud, described, packed
from tests.synthetic_measurements import Part, simulate

from roofscale.config import RunConfig
from roofscale.train.malloc import DEFAULT_SETTINGS


class EveryJobGoesWell(FakeCloud):
    """Leaves what a job leaves, as soon as it is submitted.

    Args:
        weights: the file with the weights that each job leaves; None if it leaves none.
    """

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__(described())
        self.weights = weights

    def submit(self, request: dict[str, Any]) -> None:
        super().submit(request)
        top = request["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"]
        config = RunConfig().with_overrides(json.loads(self.objects[f"{top}/config.json"]))
        steps = max(1, config.max_samples // config.batch_size)
        one = simulate(
            np.random.default_rng(steps), (Part(steps=steps, dataset=config.datasets[0]),), batch=config.batch_size,
            memory__peak_mib=1500.0 + steps, train__steps=float(steps),
        )  # fmt: skip
        facts = {"device": "cpu", "precision": "fp32", "threads": str(config.threads), "malloc": DEFAULT_SETTINGS}
        left = Path(f"{request['TrainingJobName']}.json")
        dataclasses.replace(one, fingerprint=config.fingerprint, validations=(), facts=facts).save(left)
        output = f"{request['OutputDataConfig']['S3OutputPath']}/{request['TrainingJobName']}/output/output.tar.gz"
        self.objects[output] = packed("measurement.json", left.read_bytes())
        folder = request["CheckpointConfig"]["S3Uri"]
        if self.weights:
            self.objects[f"{folder}/best.pt"] = self.weights.read_bytes()
        events = ({"event": "start", "facts": facts, "steps_planned": steps}, *map(_event, one.steps))
        self.objects[f"{folder}/events.jsonl"] = "".join(json.dumps(event) + "\n" for event in events).encode()


def _event(step: Any) -> dict[str, Any]:
    return {"event": "step", **dataclasses.asdict(step)}

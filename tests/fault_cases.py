"""Simulated steps with and without a fault, by the criterion that should see it: what its error rates are counted on.

A case takes a seeded generator and the steps of the run that is judged; the runs it is compared with have seen as many
samples. Of the healthy ones at most one in twenty may fail, of the faulty ones at most one in twenty may pass.
"""

from collections.abc import Callable, Sequence

import numpy as np
from tests.synthetic_measurements import Part, against, ask, climb, mixed, simulate

from roofscale.phases.criteria import Evidence
from roofscale.stats.curves import Finding, Verdict

Random = np.random.Generator
Case = Callable[[Random, int], Finding]

BATCH = 16  # of the larger step, against 2


def _larger_batch(random: Random, count: int, *, gain: float = 0.3, loss: float = 1.0, cpu: float = 0.6) -> Evidence:
    """A step at batch 16 that is ``gain`` faster than its base step at batch 2."""
    base = simulate(random, [Part(steps=count * BATCH // 2)])
    run = simulate(random, [Part(steps=count, pace=0.5 / (1 + gain))], batch=BATCH, loss=loss, cpu=cpu)
    return against(base, run, batch_size=BATCH)


def _knee(random: Random, count: int, paces: Sequence[float], right: int) -> Finding:
    """Batches 2, 4, 8 and 16 at these paces; a knee that is told wrong counts as failed."""
    batches = (2, 4, 8, 16)
    runs = [
        simulate(random, [Part(steps=count * 16 // b, pace=p)], batch=b) for b, p in zip(batches, paces, strict=True)
    ]
    found = ask("knee", climb(runs, batches))
    wrong = found.verdict is Verdict.PASSED and found.numbers["batch_size"] != right
    return Finding(Verdict.FAILED, found.evidence) if wrong else found


def _alone(random: Random, count: int, **changes: float) -> Evidence:
    """One step at batch 16."""
    return Evidence(simulate(random, [Part(steps=count)], batch=BATCH, **changes))


def _two_sets(random: Random, count: int, **second: object) -> Evidence:
    """A run that goes on from RID to AIRS half way."""
    steps = count // 2
    return Evidence(simulate(random, [Part(steps=steps), Part("airs", steps, **second)], batch=4))  # type: ignore[arg-type]


def _forgets(random: Random, count: int, iou: float, loss: float) -> Finding:
    return ask("forgetting", _two_sets(random, count, iou={"rid": iou}, loss={"rid": loss}))


HEALTHY: dict[str, Case] = {
    "faster, 30 % more samples/s": lambda r, n: ask("faster", _larger_batch(r, n)),
    "knee, at 8 of 16": lambda r, n: _knee(r, n, (0.5, 0.42, 0.3, 0.295), right=8),
    "knee, at 16 of 16": lambda r, n: _knee(r, n, (0.5, 0.42, 0.36, 0.3), right=16),
    "utilisation_up, 60 to 75 %": lambda r, n: ask("utilisation_up", _larger_batch(r, n, cpu=0.75)),
    "balanced, CPU only": lambda r, n: ask("balanced", _alone(r, n)),
    "balanced, GPU at 90 %": lambda r, n: ask("balanced", _alone(r, n, gpu=0.9)),
    "smooth_transition, nothing changes": lambda r, n: ask("smooth_transition", _two_sets(r, n)),
    "smooth_transition, memory +5 %, 5 % slower": lambda r, n: ask(
        "smooth_transition", _two_sets(r, n, mib=1680.0, pace=0.525)
    ),
    "smooth_transition, mixed": lambda r, n: ask("smooth_transition", Evidence(mixed(_two_sets(r, n).measurement))),
    "consistent, 20 % slower": lambda r, n: ask("consistent", _two_sets(r, n, pace=0.6)),
    "forgetting, none": lambda r, n: _forgets(r, n, iou=0.5, loss=0.7),
    "forgetting, IoU -0.05": lambda r, n: _forgets(r, n, iou=0.45, loss=0.75),
    "no_worse_loss, the same": lambda r, n: ask("no_worse_loss", _larger_batch(r, n)),
    "no_worse_loss, x1.2": lambda r, n: ask("no_worse_loss", _larger_batch(r, n, loss=1.2)),
}
FAULTY: dict[str, Case] = {
    "faster, as fast": lambda r, n: ask("faster", _larger_batch(r, n, gain=0.0)),
    "faster, 20 % slower": lambda r, n: ask("faster", _larger_batch(r, n, gain=-0.2)),
    "utilisation_up, as before": lambda r, n: ask("utilisation_up", _larger_batch(r, n)),
    "balanced, stalls by half": lambda r, n: ask(
        "balanced", _alone(r, n, speed__data_stall=0.5, speed__loader_wait=0.5)
    ),
    "balanced, I/O wait 70 %": lambda r, n: ask("balanced", _alone(r, n, io_wait=0.7)),
    "balanced, memory 85 %": lambda r, n: ask("balanced", _alone(r, n, memory__share=0.85)),
    "balanced, /dev/shm 90 % full": lambda r, n: ask("balanced", _alone(r, n, memory__shm_share=0.9)),
    "balanced, GPU at 40 %": lambda r, n: ask("balanced", _alone(r, n, gpu=0.4)),
    "balanced, CPU starves the GPU": lambda r, n: ask("balanced", _alone(r, n, cpu=0.99, gpu=0.02)),
    "balanced, one step in four takes twice as long": lambda r, n: ask("balanced", _alone(r, n, slow_steps=0.25)),
    "smooth_transition, memory +30 %": lambda r, n: ask("smooth_transition", _two_sets(r, n, mib=2080.0)),
    "smooth_transition, half as fast": lambda r, n: ask("smooth_transition", _two_sets(r, n, pace=1.0)),
    "smooth_transition, loss of RID x2": lambda r, n: ask("smooth_transition", _two_sets(r, n, loss={"rid": 1.4})),
    "consistent, 2.5 x as slow": lambda r, n: ask("consistent", _two_sets(r, n, pace=1.25)),
    "consistent, twice the memory a sample": lambda r, n: ask("consistent", _two_sets(r, n, mib=2200.0)),
    "forgetting, IoU -0.2": lambda r, n: _forgets(r, n, iou=0.3, loss=1.0),
    "no_worse_loss, x2.5": lambda r, n: ask("no_worse_loss", _larger_batch(r, n, loss=2.5)),
}

"""False alarms and caught faults of the curve criteria on simulated runs of several lengths.

``python -m benchmarks.criteria_power [--trials 200] [--out FILE]`` from the top of the working tree prints a table and
writes JSON. A false alarm is a failed verdict on a healthy or noise-only curve; ``undecided`` is insufficient evidence.
The criteria that compare steps, or data sets within a run, are counted on ``tests/fault_cases.py``; what they are
compared with has seen as many samples as the steps of the table at batch 16.
"""

import argparse
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
from tests import fault_cases
from tests.fault_cases import Case, Random
from tests.synthetic_curves import loss_curve, memory_curve, validation_losses

from roofscale.report.format import markdown
from roofscale.stats import curves
from roofscale.stats.curves import Finding, Values, Verdict
from roofscale.stats.leak import no_leak

LENGTHS = (10, 25, 50, 200)
NOISE = (0.2, 0.4)  # relative noise of a batch loss, drawn uniformly for each curve


def _curve(random: Random, count: int, decays: bool = True) -> Values:
    return loss_curve(random, count, decays=decays, sd=random.uniform(*NOISE))


def _stable(losses: Values) -> Finding:
    return curves.stable(losses, np.ones_like(losses))


def _explodes(random: Random, count: int) -> Values:
    losses, third = _curve(random, count), math.ceil(count / 3)
    losses[-third:] *= np.geomspace(2, 30, third)
    return losses


def _spike(random: Random, count: int) -> Values:
    losses = _curve(random, count)
    losses[random.integers(count // 2, count)] *= 15
    return losses


def _swings(random: Random, count: int) -> Values:
    width = max(curves.ROUGH_BLOCK, count // curves.ROUGH_BLOCKS_MAX)
    return _curve(random, count) * np.where(np.arange(count) // width % 2, 3.0, 1.0)


HEALTHY: dict[str, Case] = {
    "stable, decay": lambda r, n: _stable(_curve(r, n)),
    "stable, noise only": lambda r, n: _stable(_curve(r, n, decays=False)),
    "smooth, decay": lambda r, n: curves.smooth(_curve(r, n)),
    "smooth, noise only": lambda r, n: curves.smooth(_curve(r, n, decays=False)),
    "no_leak, noise 15 MiB": lambda r, n: no_leak(memory_curve(r, n)),
    "no_leak, noise 40 MiB": lambda r, n: no_leak(memory_curve(r, n, sd=40.0)),
    "no_leak, one allocation": lambda r, n: no_leak(memory_curve(r, n, allocations=1)),
    "learning, far from the constant": lambda r, n: curves.learning(*validation_losses(r, gain=0.15)),
    **fault_cases.HEALTHY,
}
FAULTY: dict[str, Case] = {
    "stable, rise x30 in the last third": lambda r, n: _stable(_explodes(r, n)),
    "smooth, one spike x15": lambda r, n: curves.smooth(_spike(r, n)),
    "smooth, swings x3": lambda r, n: curves.smooth(_swings(r, n)),
    "no_leak, 20 MiB a step, noise 15 MiB": lambda r, n: no_leak(memory_curve(r, n, leak=20.0)),
    "no_leak, 20 MiB a step, noise 40 MiB": lambda r, n: no_leak(memory_curve(r, n, sd=40.0, leak=20.0)),
    "learning, only how much roof": lambda r, n: curves.learning(*validation_losses(r, gain=0.0)),
    **fault_cases.FAULTY,
}


def rates(case: Case, count: int, trials: int) -> dict[str, float]:
    """Return the share of each verdict over simulated runs of ``count`` steps, seeded by the length."""
    random = np.random.default_rng(count)
    verdicts = Counter(case(random, count).verdict for _ in range(trials))
    return {verdict: verdicts[verdict] / trials for verdict in Verdict}


def table(rows: dict[str, dict[int, dict[str, float]]]) -> str:
    """Return a Markdown table of the shares failed and undecided at each length."""
    cells = [
        [name, *(f"{r[Verdict.FAILED]:.1%} ({r[Verdict.INSUFFICIENT_EVIDENCE]:.0%} undecided)" for r in found.values())]
        for name, found in rows.items()
    ]
    return markdown(["criterion, case", *(f"{n} steps" for n in LENGTHS)], cells)


def main() -> None:
    """Count, print the table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = {
        kind: {name: {n: rates(case, n, options.trials) for n in LENGTHS} for name, case in cases.items()}
        for kind, cases in (("healthy", HEALTHY), ("faulty", FAULTY))
    }
    print(f"Healthy: share failed (false alarms), {options.trials} runs each\n\n{table(found['healthy'])}\n")
    print(f"Faulty: share failed (caught)\n\n{table(found['faulty'])}")
    if options.out:
        options.out.write_text(json.dumps({"trials": options.trials, **found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

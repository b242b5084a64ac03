"""no_worse_loss: runs are compared at equal samples seen."""

import dataclasses
import math

import numpy as np
import pytest
from tests.synthetic_measurements import Part, against, ask, simulate

from roofscale.measurement import Measurement, StepRecord
from roofscale.phases.criteria import Evidence
from roofscale.phases.criteria.equal_samples import loss_at
from roofscale.stats.curves import Verdict

PASSED, FAILED, INSUFFICIENT = Verdict.PASSED, Verdict.FAILED, Verdict.INSUFFICIENT_EVIDENCE


def run(steps: int, batch: int, seed: int = 0, *, val: float = 0.7, loss: float = 1.0) -> Measurement:
    return simulate(np.random.default_rng(seed), [Part(steps=steps, loss={"rid": val})], batch=batch, loss=loss)


def with_losses(losses: list[float], batch: int) -> Measurement:
    whole = run(len(losses), batch)
    steps = [dataclasses.replace(s, loss=loss) for s, loss in zip(whole.steps, losses, strict=True)]
    return dataclasses.replace(whole, steps=tuple(steps))


def test_the_loss_at_some_samples_is_the_mean_over_the_second_half_of_them() -> None:
    losses = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    for samples, mean in ((16, 2.5), (12, 4.0)):
        found = loss_at([with_losses(losses, 2)], samples)
        assert found
        assert math.exp(found.value) == pytest.approx(mean)
    assert loss_at([with_losses(losses, 2)], 17) is None, "it has not seen as many"
    assert loss_at([with_losses([*losses[:-1], math.nan], 2)], 16) is None


def test_a_smaller_last_batch_weighs_less() -> None:
    whole = with_losses([1.0, 1.0, 1.0, 1.0, 3.0], 8)
    last: StepRecord = dataclasses.replace(whole.steps[-1], samples=36)
    found = loss_at([dataclasses.replace(whole, steps=(*whole.steps[:-1], last))], 36)
    assert found
    assert math.exp(found.value) == pytest.approx((2 * 8 * 1.0 + 4 * 3.0) / 20)


def test_the_longer_run_is_judged_where_the_shorter_one_ends() -> None:
    base = run(200, 2, val=0.7)
    falls = [*np.linspace(1.0, 0.4, 25), *np.linspace(5.0, 9.0, 25)]
    found = ask("no_worse_loss", against(run(100, 2), with_losses(falls, 8)))
    assert "at 200 samples seen" in found.evidence
    assert found.verdict is not FAILED, "what comes after 200 samples does not count"
    assert ask("no_worse_loss", against(base, with_losses(falls, 8))).verdict is FAILED


def test_validation_is_compared_where_both_had_seen_the_same() -> None:
    found = ask("no_worse_loss", against(run(100, 2), run(25, 8, 1, val=2.8)))
    assert found.verdict is FAILED
    assert found.numbers["val/rid/loss ratio"] == pytest.approx(4, rel=0.25)
    assert "val/rid" not in ask("no_worse_loss", against(run(100, 2), run(20, 8, 1))).evidence
    nearly = run(33, 6, 1)  # 198 samples: a last one was dropped
    assert "val/rid" in ask("no_worse_loss", against(run(100, 2), nearly)).evidence


def test_more_seeds_make_a_surer_ratio() -> None:
    base, runs = run(100, 2), [run(13, 16, seed) for seed in (1, 2, 3)]
    width = []
    for evidence in (against(base, runs[0]), against(base, *runs)):
        numbers = ask("no_worse_loss", evidence).numbers
        width.append(numbers["training loss ratio/high"] / numbers["training loss ratio/low"])
    assert width[1] < width[0]


def test_more_seeds_of_the_base_step_make_a_surer_ratio_too() -> None:
    bases, other = tuple(run(100, 2, seed) for seed in (0, 1, 2)), run(50, 4, 3)
    one, three = (ask("no_worse_loss", Evidence(other, base=base)).numbers for base in (bases[:1], bases))
    for name in ("training loss ratio", "val/rid/loss ratio"):
        assert three[f"{name}/high"] / three[f"{name}/low"] < one[f"{name}/high"] / one[f"{name}/low"], name


def test_nothing_to_compare_with_is_no_evidence() -> None:
    assert ask("no_worse_loss", Evidence(run(20, 2))).verdict is INSUFFICIENT
    empty = dataclasses.replace(run(20, 2), steps=())
    assert ask("no_worse_loss", against(run(20, 2), empty)).verdict is INSUFFICIENT
    assert ask("no_worse_loss", against(run(20, 2), with_losses([math.nan] * 20, 2))).verdict is INSUFFICIENT

"""After a step that did not pass: the cause read from the evidence, and the fallback that follows from it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofscale.config import RunConfig
from roofscale.measurement import Measurement, Outcome, Validation
from roofscale.phases.fallback import MEMORY_CAUSES, MEMORY_KNOBS, find_cause, needs_at_least_memory_of, next_fallback
from roofscale.phases.judge import CriterionResult, StepVerdict, Verdict
from roofscale.phases.results import Cause


def config(**knobs):
    return RunConfig().with_overrides(knobs)


def verdict(*failed):
    results = [CriterionResult(name, Verdict.FAILED, "") for name in failed]
    return StepVerdict(Verdict.FAILED if failed else Verdict.PASSED, (*results,))


def cause(outcome=Outcome.OK, failed=("completes",), good=None, **knobs):
    return find_cause(verdict(*failed), Measurement(outcome, "", "0" * 12), config(**knobs), good)


@pytest.mark.parametrize(
    ("outcome", "failed", "expected"),
    [
        (Outcome.HOST_OOM, ("completes",), Cause.HOST_OOM),
        (Outcome.CUDA_OOM, ("completes",), Cause.CUDA_OOM),
        (Outcome.SHM_FULL, ("completes",), Cause.SHM_FULL),
        (Outcome.DIVERGED, ("completes", "stable"), Cause.DIVERGED),
        (Outcome.DATA_ERROR, ("completes",), Cause.DATA_ERROR),
        (Outcome.OK, ("faster", "memory_margin"), Cause.OVER_MARGIN),
        (Outcome.OK, ("bounded",), Cause.DIVERGED),
        (Outcome.OK, ("no_leak",), Cause.LEAK),
        (Outcome.OK, ("forgetting", "consistent"), Cause.FORGETTING),
        (Outcome.OK, ("faster",), Cause.CRITERIA),
        (Outcome.OK, ("learning",), Cause.NOT_LEARNING),
        (Outcome.OK, ("data_stall",), Cause.LOADER_BOUND),
    ],
)
def test_the_cause_follows_from_outcome_and_criteria(outcome, failed, expected):
    assert cause(outcome, failed) is expected


def test_nothing_failed_has_no_cause():
    assert cause(failed=()) is None


@pytest.mark.parametrize("knob", ["num_workers", "prefetch_factor"])
def test_memory_is_the_workers_where_the_step_gave_the_loader_more(knob):
    assert cause(Outcome.HOST_OOM, good=config(), **{knob: 4}) is Cause.WORKERS_MEMORY
    assert cause(Outcome.HOST_OOM, good=config(), batch_size=4) is Cause.HOST_OOM


def batches(*sizes, **knobs):
    return [config(batch_size=size, **knobs) for size in sizes]


@pytest.mark.parametrize(
    ("failed", "held", "expected"),
    [
        ((16,), (8,), 12),  # the issue's own ladder: 16 -> 12, then 14 or 10
        ((16,), (8, 12), 14),
        ((16, 12), (8,), 10),
        ((2,), (1,), None),
        ((2,), (), 1),
    ],
)
def test_a_batch_that_does_not_fit_is_bisected(failed, held, expected):
    found = next_fallback(Cause.HOST_OOM, batches(*failed), batches(*held))
    assert (found[0].batch_size if found else None) == expected
    assert found is None or found[1] == f"batch_size={expected}"


def test_the_workers_go_before_the_batch_and_what_they_prepare_before_that():
    good, wanted = config(num_workers=2, batch_size=8), config(num_workers=6, batch_size=8)
    assert next_fallback(Cause.WORKERS_MEMORY, [wanted], [good])[1] == "num_workers=4"
    close = config(num_workers=3, batch_size=8)
    assert next_fallback(Cause.WORKERS_MEMORY, [close], [good])[1] == "prefetch_factor=1"
    least = config(num_workers=3, batch_size=8, prefetch_factor=1)
    assert next_fallback(Cause.WORKERS_MEMORY, [least], [good])[1] == "batch_size=4"


def test_a_full_shared_memory_asks_for_less_prefetch_then_fewer_workers():
    wanted = config(num_workers=4, prefetch_factor=2)
    assert next_fallback(Cause.SHM_FULL, [wanted], [config()])[1] == "prefetch_factor=1"
    again = wanted.with_overrides({"prefetch_factor": 1})
    assert next_fallback(Cause.SHM_FULL, [wanted, again], [config()])[1] == "num_workers=3"


def test_an_image_that_does_not_fit_stays_a_multiple_of_32():
    found = next_fallback(Cause.CUDA_OOM, [config(image_size=1024)], [config(image_size=512)])
    assert found[1] == "image_size=768"


def test_divergence_lowers_the_learning_rate_at_the_same_batch():
    first = next_fallback(Cause.DIVERGED, [config(lr=0.09, batch_size=8)], [config()])
    assert (first[0].lr, first[0].batch_size) == (pytest.approx(0.03), 8)
    second = next_fallback(Cause.DIVERGED, [config(lr=0.09, batch_size=8), first[0]], [config()])
    assert second[0].lr == pytest.approx(0.01)


@pytest.mark.parametrize("hopeless", [Cause.DATA_ERROR, Cause.LEAK, Cause.CRITERIA, Cause.TIMEOUT, Cause.CRASHED])
def test_a_cause_without_a_fallback_is_not_retried(hopeless):
    assert next_fallback(hopeless, batches(16), batches(8)) is None


def test_what_is_forgotten_is_trained_together_once():
    asked = config(datasets=["rid", "airs"])
    mixed, changed = next_fallback(Cause.FORGETTING, [asked], [])
    assert (mixed.schedule, changed) == ("mixed", "schedule=mixed")
    assert next_fallback(Cause.FORGETTING, [asked, mixed], []) is None


def test_what_does_not_learn_is_trained_twice_as_long_once():
    longer, changed = next_fallback(Cause.NOT_LEARNING, [config(epochs=3)], [])
    assert (longer.epochs, changed) == (6, "epochs=6")
    assert next_fallback(Cause.NOT_LEARNING, [config(epochs=3), longer], []) is None


def test_a_slow_loader_gets_more_processes_up_to_the_cores_and_then_prepares_more_ahead():
    asked = config(num_workers=0, compute="ml.m5.xlarge")
    failed = [asked]
    for _ in range(5):
        failed.append(next_fallback(Cause.LOADER_BOUND, failed, [])[0])
    assert [(one.num_workers, one.prefetch_factor) for one in failed] == [
        (0, 2),
        (1, 2),
        (2, 2),
        (4, 2),
        (4, 4),
        (4, 8),
    ]


def test_a_second_remedy_stands_on_the_first():
    asked = config(datasets=["rid", "airs"], batch_size=16)
    mixed, _ = next_fallback(Cause.FORGETTING, [asked], [config(batch_size=8)])
    smaller, changed = next_fallback(Cause.HOST_OOM, [asked, mixed], [config(batch_size=8)])
    assert (smaller.schedule, smaller.batch_size, changed) == ("mixed", 12, "batch_size=12")


def test_too_few_steps_are_doubled_by_more_passes():
    lacking = CriterionResult("stable", Verdict.INSUFFICIENT_EVIDENCE, "7 steps")
    unsure = StepVerdict(Verdict.INSUFFICIENT_EVIDENCE, (lacking,))
    assert find_cause(unsure, Measurement(Outcome.OK, "", "0" * 12), config(), None) is Cause.FEW_STEPS
    assert find_cause(unsure, Measurement(Outcome.INTERRUPTED, "", "0" * 12), config(), None) is None
    longer, changed = next_fallback(Cause.FEW_STEPS, [config(batch_size=16)], [])
    assert (longer.epochs, changed) == (2, "epochs=2")
    assert next_fallback(Cause.FEW_STEPS, [config(), longer], [])[1] == "epochs=4"


def test_too_few_validation_samples_are_doubled_while_there_are_more():
    def of(samples):
        ids = tuple(map(str, range(samples)))
        validation = Validation(0, 0, "rid", ids, (1.0,) * samples, (1.0,) * samples, {}, 1.0)
        lacking = CriterionResult("learning", Verdict.INSUFFICIENT_EVIDENCE, "")
        unsure = StepVerdict(Verdict.INSUFFICIENT_EVIDENCE, (lacking,))
        return find_cause(
            unsure, Measurement(Outcome.OK, "", "0" * 12, (), (validation,)), config(val_samples=20), None
        )

    assert of(20) is Cause.FEW_VALIDATION_SAMPLES
    assert of(12) is None  # the data set has no more
    assert next_fallback(Cause.FEW_VALIDATION_SAMPLES, [config(val_samples=20)], [])[1] == "val_samples=40"


def test_a_bottleneck_that_is_the_loader_is_told_from_another():
    def of(numbers, workers=0):
        found = CriterionResult("balanced", Verdict.FAILED, "", numbers)
        measured, ours = Measurement(Outcome.OK, "", "0" * 12), config(num_workers=workers)
        return find_cause(StepVerdict(Verdict.FAILED, (found,)), measured, ours, config(num_workers=0))

    assert of({"bottleneck/data stall": 1.0}, workers=4) is Cause.LOADER_BOUND
    assert of({"bottleneck/step times": 1.0}, workers=4) is Cause.UNEVEN_STEPS
    assert of({"bottleneck/step times": 1.0}) is Cause.CRITERIA  # no process more than before
    assert of({"bottleneck/I/O wait": 1.0}, workers=4) is Cause.CRITERIA


sizes = st.fixed_dictionaries({
    "batch_size": st.integers(1, 64),
    "image_size": st.integers(1, 32).map(lambda n: 32 * n),
    "num_workers": st.integers(0, 8),
    "prefetch_factor": st.integers(1, 4),
})  # fmt: skip


@given(wanted=sizes, good=sizes, known=st.lists(sizes, max_size=4), why=st.sampled_from(MEMORY_CAUSES))
def test_a_fallback_is_smaller_and_never_as_large_as_what_ran_out_of_memory(wanted, good, known, why):
    failed, ruled_out = [config(**wanted)], [config(**one) for one in known]
    for _ in range(8):
        found = next_fallback(why, failed, [config(**good)], ruled_out)
        if found is None:
            return
        tried = found[0]
        assert tried not in failed
        assert all(getattr(tried, knob) <= getattr(failed[0], knob) for knob in MEMORY_KNOBS)
        assert not any(needs_at_least_memory_of(tried, one) for one in ruled_out)
        failed.append(tried)


def test_only_alike_configs_are_compared_by_size():
    small, large = config(batch_size=8), config(batch_size=16, image_size=1024)
    assert needs_at_least_memory_of(large, small)
    assert needs_at_least_memory_of(small, small)
    assert not needs_at_least_memory_of(small, large)
    assert not needs_at_least_memory_of(large.with_overrides({"encoder": "resnet18"}), small)
    assert not needs_at_least_memory_of(large.with_overrides({"num_workers": 0}), small)

"""Phase files: what they come to, and how each mistake in one is refused with its line and the nearest right name."""

import dataclasses
import textwrap
from pathlib import Path

import pytest

from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.phases.criteria import CRITERIA
from roofscale.phases.phase_file import load_phase, repeat_config

GOOD = """\
phase: 1
name: tiny
question: Does it hold?
base:
  lr: 1e-4
watch: [memory/share, val/rid/iou_roof]
on_insufficient: repeat
steps:
  - name: first
    set: {max_samples: 10}
    criteria: {completes: , memory_margin: {max_share: 0.5}}
  - name: second
    set: {max_samples: 20}
    on_insufficient: continue
    expect:
      speed/seconds_per_epoch: {value: 2, of: previous, tolerance: 0.3}
    criteria:
      stable:
    shown: {smooth: {max_roughness: 0.2}}
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "phase.yaml"
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    return file


def test_the_shipped_phase_1_is_the_missions(root):
    phase = load_phase(root / "experiments" / "phase1.yaml")
    plan = phase.resolve()
    assert phase.number == 1
    assert [config.max_samples for _, config in plan] == [10, 20, 50, 100]
    times = [e.value for step, _ in plan for e in step.expect if e.metric == "speed/seconds_per_epoch"]
    assert times == [2.0, 2.5, 2.0]
    asked = [{spec.name for spec in step.criteria} for step, _ in plan]
    assert all({"completes", "memory_margin", "data_stall"} <= names for names in asked)
    assert [("stable" in n, "smooth" in n, "learning" in n) for n in asked] == [
        (False, False, False),
        (True, False, False),
        (True, True, False),
        (True, True, True),
    ]
    assert all(
        spec.limits["max_share"] == 0.80
        for step in phase.steps
        for spec in step.criteria
        if spec.name == "memory_margin"
    )


def test_limits_and_policies_are_filled_in(tmp_path):
    first, second = load_phase(write(tmp_path, GOOD)).steps
    assert {spec.name: dict(spec.limits) for spec in first.criteria} == {
        "completes": {},
        "memory_margin": {"max_share": 0.5},
    }
    defaults = {name: limit.default for name, limit in CRITERIA["stable"].limits.items()}
    assert second.criteria[0].limits == defaults
    assert (first.on_insufficient, second.on_insufficient, second.on_failure) == ("repeat", "continue", "stop")


def test_precedence_is_config_base_user_step(tmp_path):
    phase = load_phase(write(tmp_path, GOOD))
    config = RunConfig(lr=0.5, encoder="resnet18", max_samples=7)
    (_, first), (_, second) = phase.resolve(config)
    assert (first.lr, first.encoder, first.max_samples, second.max_samples) == (1e-4, "resnet18", 10, 20)
    (_, first), _ = phase.resolve(config, ["lr=0.25", "seed=3"])
    assert (first.lr, first.seed) == (0.25, 3)


@pytest.mark.parametrize("overrides", [["max_samples=5"], {"max_samples": 5}])
def test_an_override_that_would_undo_the_ladder_is_refused(tmp_path, overrides):
    with pytest.raises(ConfigError, match=r"max_samples cannot be overridden in phase 1.*first 10, second 20"):
        load_phase(write(tmp_path, GOOD)).resolve(overrides=overrides)


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("base:", "bases:", 4, "Did you mean 'base'"),
        ("lr: 1e-4", "lrr: 1e-4", 5, "Did you mean 'lr'"),
        ("lr: 1e-4", "lr: fast", 5, "expected a number"),
        ("lr: 1e-4", "image_size: 100", 5, "multiple of 32"),
        ("memory/share,", "memory/shares,", 6, "Did you mean 'memory/share'"),
        ("val/rid/iou_roof", "val/rid/iuo", 6, "Did you mean 'val/rid/iou'"),
        ("on_insufficient: repeat", "on_insufficient: repaet", 7, "Did you mean 'repeat'"),
        ("max_samples: 10", "max_sample: 10", 10, "Did you mean 'max_samples'"),
        ("memory_margin: {", "memory_margn: {", 11, "Did you mean 'memory_margin'"),
        ("max_share: 0.5", "max_shares: 0.5", 11, "Did you mean 'max_share'"),
        ("max_share: 0.5", "max_share: .nan", 11, "finite"),
        ("max_share: 0.5", "max_share: half", 11, "expected a number"),
        ("max_share: 0.5", "max_share: 0", 11, "share of the memory over 0 and up to 1"),
        ("max_share: 0.5", "max_share: 80", 11, "share of the memory over 0 and up to 1"),
        ("completes: ,", "completes: {x: 1},", 11, "no limits"),
        ("name: second", "name: first", 12, "its own name"),
        ("speed/seconds_per_epoch", "speed/second_per_epoch", 16, "Did you mean 'speed/seconds_per_epoch'"),
        ("of: previous", "of: previos", 16, "Did you mean 'previous'"),
        ("tolerance: 0.3", "tolerence: 0.3", 16, "Did you mean 'tolerance'"),
        (", tolerance: 0.3", "", 16, "needs 'tolerance'"),
        ("tolerance: 0.3", "tolerance: 30", 16, "share between 0 and 1"),
        ("value: 2", "value: 0", 16, "above 0"),
        ("max_roughness", "max_roughnes", 19, "Did you mean 'max_roughness'"),
        ("smooth:", "smoth:", 19, "Did you mean 'smooth'"),
        ("on_insufficient: continue\n", "when: forecast_fit\n", 14, "Did you mean 'forecast_fits'"),
        ("name: tiny\n", "name: tiny\nname: again\n", 3, "second time"),
        ("steps:", "steps: {}\nsteps:", 9, "second time"),
        ("phase: 1\n", "", 1, "needs the key 'phase'"),
        ("phase: 1", "phase: one", 1, "expected a number"),
        ("[memory/share", "[[memory/share", 6, "YAML"),
    ],
)
def test_a_mistake_is_refused_with_its_line(tmp_path, old, new, line, says):
    assert old in GOOD
    file = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as refused:
        load_phase(file)
    message = str(refused.value)
    if says == "YAML":  # where a parser gives up is its own affair
        assert message.startswith(f"{file}:")
    else:
        assert message.startswith(f"{file}:{line}:")
    assert says in message


def test_the_first_step_has_nothing_to_compare_with(tmp_path):
    steps = GOOD.replace(
        "criteria: {completes: , memory",
        "expect: {memory/share: {value: 1, of: previous, tolerance: 0.1}}\n    criteria: {completes: , memory",
    )
    with pytest.raises(ConfigError, match="nothing before it"):
        load_phase(write(tmp_path, steps))


@pytest.mark.parametrize("text", ["", "- 1\n", "phase: 1\nname: x\nsteps: []\n", "phase: 1\nname: x\nsteps: 3\n"])
def test_what_is_no_phase_file_is_refused(tmp_path, text):
    with pytest.raises(ConfigError):
        load_phase(write(tmp_path, text))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_phase(tmp_path / "absent.yaml")


def test_an_overlay_wins_over_the_phase_and_its_steps(tmp_path):
    file, overlay = write(tmp_path, GOOD), tmp_path / "smoke.yaml"
    overlay.write_text("base: {image_size: 64, lr: 0.5}\non_insufficient: stop\nmax_repeats: 0\n")
    phase = load_phase(file, overlay)
    assert {config.image_size for _, config in phase.resolve()} == {64}
    assert phase.resolve()[0][1].lr == 0.5
    assert [(s.on_insufficient, s.max_repeats) for s in phase.steps] == [("stop", 0), ("stop", 0)]
    assert phase.fingerprint != load_phase(file).fingerprint
    overlay.write_text("steps: []\n")
    with pytest.raises(ConfigError, match="key of an overlay"):
        load_phase(file, overlay)


def test_an_overlay_names_the_criteria_that_decide(tmp_path):
    file, overlay = write(tmp_path, GOOD), tmp_path / "smoke.yaml"
    overlay.write_text("decided_by: [completes, stable]\n")
    deciding = [[spec.name for spec in step.criteria if spec.decides] for step in load_phase(file, overlay).steps]
    assert deciding == [["completes"], ["stable"]]
    overlay.write_text("decided_by: [complete]\n")
    with pytest.raises(ConfigError, match="Did you mean 'completes'"):
        load_phase(file, overlay)
    overlay.write_text("decided_by: [knee]\n")
    with pytest.raises(ConfigError, match="no criteria that decide"):
        load_phase(file, overlay)


def test_what_an_overlay_holds_no_step_changes(tmp_path):
    file, overlay = write(tmp_path, GOOD), tmp_path / "smoke.yaml"
    overlay.write_text("hold: {max_samples: 4}\n")
    assert {config.max_samples for _, config in load_phase(file, overlay).resolve()} == {4}
    overlay.write_text("hold: {max_sample: 4}\n")
    with pytest.raises(ConfigError, match="Did you mean 'max_samples'"):
        load_phase(file, overlay)


def test_a_phase_survives_the_trip_through_its_documents(tmp_path):
    overlay = tmp_path / "smoke.yaml"
    overlay.write_text("hold: {max_samples: 4}\n")
    phase = load_phase(write(tmp_path, GOOD), overlay)
    for name, text in phase.as_yaml().items():
        (tmp_path / name).write_text(text)
    again = load_phase(tmp_path / "phase.yaml", tmp_path / "overlay.yaml")
    assert again == phase
    assert again.fingerprint == phase.fingerprint


@pytest.mark.parametrize(
    ("line", "says"),
    [("needs: zero", "whole number|expected a number"), ("requires: [gpus]", "Did you mean 'gpu'"),
     ("max_fallbacks: -1", "at least 0")],
)  # fmt: skip
def test_what_a_phase_needs_and_requires_is_checked(tmp_path, line, says):
    with pytest.raises(ConfigError, match=says) as refused:
        load_phase(write(tmp_path, GOOD.replace("phase: 1\n", f"phase: 1\n{line}\n")))
    assert str(refused.value).startswith(f"{tmp_path / 'phase.yaml'}:2:")


def test_what_is_only_shown_decides_nothing_and_has_its_limits(tmp_path):
    stable, smooth = load_phase(write(tmp_path, GOOD)).steps[1].criteria
    assert (stable.name, stable.decides) == ("stable", True)
    assert (smooth.name, smooth.decides, smooth.limits["max_roughness"]) == ("smooth", False, 0.2)


def test_a_limit_of_memory_that_a_step_leaves_out_is_its_memory_margin(tmp_path):
    steps = """\
phase: 2
name: margins
steps:
  - {name: default, criteria: {completes: , knee: , balanced: }}
  - {name: wider, criteria: {memory_margin: {max_share: 0.9}, balanced: }, shown: {knee: }}
  - {name: own, criteria: {memory_margin: {max_share: 0.9}, knee: {max_share: 0.7}}}
  - {name: unset, criteria: {memory_margin: }}
"""
    default, wider, own, unset = load_phase(write(tmp_path, steps)).steps
    assert [step.memory_margin for step in (default, wider, own, unset)] == [0.8, 0.9, 0.9, 0.8]
    for step, margin in ((default, 0.8), (wider, 0.9)):
        limits = {spec.name: spec.limits for spec in step.criteria}
        assert limits["knee"] == {"tolerance": 0.05, "max_share": margin}
        assert (limits["balanced"]["max_memory_share"], limits["balanced"]["max_shm_share"]) == (margin, margin)
        assert (limits["balanced"]["max_stall"], limits["balanced"]["min_gpu_p95"]) == (0.2, 0.7)
    assert {spec.name: spec.limits["max_share"] for spec in own.criteria} == {"memory_margin": 0.9, "knee": 0.7}


TIMED = {"faster", "knee", "utilisation_up"}  # criteria that hold a run's times or use against another run's


def test_a_time_compared_with_another_run_decides_at_batch_4_and_workers_4_alone(root):
    phases = [load_phase(root / "experiments" / f"phase{number}.yaml") for number in (1, 2, 3, 4)]
    deciding = {
        (step.name, spec.name)
        for phase in phases
        for step in phase.steps
        for spec in step.criteria
        if spec.decides and spec.name in TIMED
    }
    assert deciding == {("batch-4", "faster"), ("workers-4", "utilisation_up")}


MISSION = {  # what each shipped phase changes from step to step, and what it stands on
    2: (1, "batch_size", [2, 4, 8, 16], {"completes", "memory_margin", "stable"}),
    3: (2, "num_workers", [2, 4, 2], {"completes", "memory_margin", "stable"}),  # the third is searched
    4: (3, "datasets", [("rid",), ("rid", "roofline"), ("rid", "roofline", "airs")], {"completes", "memory_margin"}),
}


@pytest.mark.parametrize("number", MISSION)
def test_the_shipped_phases_are_the_missions(root, number):
    needs, knob, values, always = MISSION[number]
    phase = load_phase(root / "experiments" / f"phase{number}.yaml")
    assert (phase.number, phase.needs) == (number, needs)
    assert [getattr(config, knob) for _, config in phase.resolve()] == values
    assert all(always <= {spec.name for spec in step.criteria} for step in phase.steps)


def test_the_shipped_phase_5_goes_to_the_target_behind_the_gate(root):
    phase = load_phase(root / "experiments" / "phase5.yaml")
    assert phase.requires == ("gate", "gpu")
    target = phase.resolve(RunConfig(max_samples=100))[-1][1]
    assert (target.image_size, target.batch_size, target.max_samples, target.compute) == (1024, 16, 0, "ml.g5.xlarge")
    assert (set(target.datasets), target.num_workers) == ({"rid", "roofline", "airs"}, 4)
    assert (target.epochs > 10, target.precision) == (True, "auto")


@pytest.mark.parametrize("number", range(1, 6))
def test_the_smoke_overlay_shrinks_every_phase(root, number):
    phase = load_phase(root / "experiments" / f"phase{number}.yaml", root / "experiments" / "smoke.yaml")
    for step, config in phase.resolve():
        assert (config.image_size, config.epochs, config.encoder) == (64, 1, "test_resnet")
        assert (step.on_failure, step.on_insufficient, step.max_fallbacks) == ("continue", "continue", 0)


def test_the_fingerprint_names_the_content_and_not_the_comments(tmp_path):
    plain = load_phase(write(tmp_path, GOOD)).fingerprint
    assert load_phase(write(tmp_path, "# a remark\n" + GOOD)).fingerprint == plain
    assert load_phase(write(tmp_path, GOOD.replace("tolerance: 0.3", "tolerance: 0.4"))).fingerprint != plain


def test_repeats_change_the_seed_and_nothing_else():
    config = RunConfig(seed=2**31 - 1)
    seeds = {repeat_config(config, k).seed for k in range(4)}
    assert len(seeds) == 4
    assert dataclasses.replace(repeat_config(config, 1), seed=config.seed) == config

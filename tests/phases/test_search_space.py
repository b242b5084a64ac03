"""What a phase file may say of a search, and the space that it spans."""

from pathlib import Path

import pytest

from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.phases.phase_file import Phase, load_phase
from roofscale.phases.search.space import SearchSpec

PHASE = """
phase: 3
name: tried
steps:
  - name: base
    criteria: {completes: }
  - name: more
    set: {num_workers: 4}
    criteria: {completes: }
  - name: searched
    search:
      space: {batch_size: [1, 3], num_workers: [0, 2], prefetch_factor: [1, 2]}
      %s
    criteria: {completes: }
"""


def load(folder: Path, more: str = "", overlay: str = "") -> Phase:
    file, over = folder / "phase.yaml", folder / "overlay.yaml"
    file.write_text(PHASE % more)
    over.write_text(overlay)
    return load_phase(file, over if overlay else None)


def spec_of(phase: Phase) -> SearchSpec:
    spec = phase.steps[-1].search
    assert spec
    return spec


def test_a_step_may_search(tmp_path: Path) -> None:
    phase = load(tmp_path, "max_trials: 7")
    assert [bool(step.search) for step in phase.steps] == [False, False, True]
    assert spec_of(phase) == SearchSpec(
        {"batch_size": (1, 3), "num_workers": (0, 2), "prefetch_factor": (1, 2)}, max_trials=7
    )


def test_an_overlay_shrinks_a_search_and_adds_none(tmp_path: Path) -> None:
    phase = load(tmp_path, "max_trials: 7", "search: {max_trials: 2, space: {batch_size: [1, 2]}}")
    assert spec_of(phase) == SearchSpec({"batch_size": (1, 2)}, max_trials=2)
    assert phase.steps[0].search is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("trials: 3", r"phase.yaml:13: 'trials' is no key of a search"),
        ("max_trials: 0", "max_trials: expected a whole number of at least 1"),
        ("precision: 2", "precision: expected a share between 0 and 1"),
    ],
)
def test_a_wrong_search_is_refused_with_its_line(tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, more)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("{lr: [1, 2]}", "'lr' is no knob that can be searched"),
        ("{num_workers: [0, 2]}", "expected a range of batch_size at least"),
        ("{batch_size: [4, 2]}", r"expected its smallest and its largest value, such as \[1, 24\], found \[4, 2\]"),
        ("{batch_size: [0, 2]}", "batch_size=0: expected at least 1"),
    ],
)
def test_a_wrong_space_is_refused(tmp_path: Path, space: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, overlay=f"search: {{space: {space}}}")


def test_the_searching_part_of_a_phase_keeps_its_base_step_and_can_be_written_and_read_again(tmp_path: Path) -> None:
    part = load(tmp_path).searching()
    assert [step.name for step in part.steps] == ["base", "searched"]
    (tmp_path / "again.yaml").write_text(part.as_yaml()["phase.yaml"])
    assert load_phase(tmp_path / "again.yaml").fingerprint == part.fingerprint


def test_a_phase_that_does_not_search_says_so(root: Path) -> None:
    with pytest.raises(ConfigError, match="none of its steps has a 'search'"):
        load_phase(root / "experiments" / "phase2.yaml").searching()


def test_configs_that_differ_in_nothing_are_one(tmp_path: Path) -> None:
    spec = spec_of(load(tmp_path))
    configs = list(spec.configs(RunConfig()))
    assert len(configs) == len(set(configs)) == 3 * (1 + 2 * 2)  # without workers, prefetch says nothing
    assert (configs[0].batch_size, configs[0].num_workers) == (1, 0)
    assert configs[-1] == spec.largest(RunConfig())
    assert all(spec.contains(config) for config in configs)
    assert not spec.contains(RunConfig(batch_size=4))
    assert spec.contains(RunConfig(num_workers=0, prefetch_factor=9))

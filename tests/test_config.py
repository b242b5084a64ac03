"""The run config: one spelling everywhere, strict keys, checked ranges, a stable fingerprint."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofscale import config
from roofscale.config import FIELDS, RunConfig
from roofscale.errors import ConfigError
from roofscale.forecast import host_memory, time_scaling
from roofscale.phases import fallback

VALUES = st.fixed_dictionaries(
    {},
    optional={
        "batch_size": st.integers(1, 512),
        "lr": st.floats(1e-8, 10, allow_nan=False),
        "datasets": st.permutations(["rid", "roofline", "airs"]).flatmap(
            lambda names: st.integers(1, 3).map(lambda n: tuple(names[:n]))
        ),
        "pretrained": st.booleans(),
        "data_root": st.sampled_from(["", "/data/a b", "~/x", "s3://bucket/prefix"]),
        "image_size": st.integers(1, 64).map(lambda n: 32 * n),
        "precision": st.sampled_from(["auto", "fp32", "bf16", "fp16"]),
    },
)


@given(VALUES)
def test_what_is_written_reads_back_as_the_same_config(values: dict[str, object]) -> None:
    made = RunConfig(**values)  # type: ignore[arg-type]
    assert RunConfig().with_overrides(made.to_strings()) == made
    assert RunConfig().with_overrides([f"{k}={v}" for k, v in made.to_strings().items()]) == made
    assert config.load(overrides=made.as_dict()).fingerprint == made.fingerprint


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("lr=1e-4", "lr", 1e-4),
        ("max_samples=1e4", "max_samples", 10_000),
        ("datasets=[rid, airs]", "datasets", ("rid", "airs")),
        ("datasets=rid,airs", "datasets", ("rid", "airs")),
        ("data_root=/some/where=odd", "data_root", "/some/where=odd"),
        ("pretrained=yes", "pretrained", True),
    ],
)
def test_overrides_are_read_by_the_type_of_the_knob(word: str, key: str, value: object) -> None:
    assert getattr(config.load(overrides=[word]), key) == value


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("batchsize=8", "Did you mean 'batch_size'"),
        ("batch_size=0", "at least 1"),
        ("batch_size=2.5", "a whole number"),
        ("batch_size=many", "such as batch_size=2"),
        ("image_size=100", "a multiple of 32"),
        ("precision=fp8", "auto or fp32"),
        ("datasets=rid,aris", "Did you mean 'airs'"),
        ("datasets=rid,rid", "each once"),
        ("datasets=", "one or more"),
        ("lr=nan", "finite"),
        ("pretrained=perhaps", "true or false"),
        ("batch_size", "expected key=value"),
    ],
)
def test_a_wrong_override_is_refused_with_a_remedy(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        config.load(overrides=[word])


def test_precedence_is_defaults_then_file_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("batch_size: 4\nlr: 1e-4\n")
    resolved = config.load(file, ["batch_size=8"])
    assert (resolved.batch_size, resolved.lr, resolved.num_workers) == (8, 1e-4, RunConfig().num_workers)


@pytest.mark.parametrize("content", ["- 1\n", "a: [", "batch_size: [1, 2]\n"])
def test_a_file_that_is_no_run_config_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError):
        config.load(file)


def test_the_fingerprint_names_what_is_computed_and_not_where() -> None:
    base = RunConfig()
    assert base.with_overrides(["data_root=/elsewhere", "tile_cache_gib=9"]).fingerprint == base.fingerprint
    for key in set(FIELDS) - {"data_root", "tile_cache_gib"}:
        value = getattr(base, key)
        choices = FIELDS[key].metadata["choices"]
        if isinstance(value, bool):
            other: object = not value
        elif key == "image_size":
            other = 1024
        elif isinstance(value, int | float):
            high = FIELDS[key].metadata["high"]
            other = value + 1 if high is None else min(value + 1, high)
        elif isinstance(value, tuple):
            other = ("airs",)
        else:
            other = choices[-1] if choices and choices[-1] != value else f"{value}x" if not choices else choices[0]
        assert base.with_overrides({key: other}).fingerprint != base.fingerprint, key


def test_a_knob_without_what_it_affects_is_refused() -> None:
    with pytest.raises(TypeError, match="affects"):
        config.knob(0, "a number")  # type: ignore[call-arg]


def test_every_list_of_knobs_covers_what_they_affect() -> None:
    step, loader, memory = (config.affecting(cost) for cost in ("step", "loader", "memory"))
    assert {"ema", "precision", "compile"} <= step & memory
    assert {"num_workers", "prefetch_factor"} == (loader & memory) - step
    assert not {"lr", "seed", "epochs", "data_root"} & (step | loader | memory)
    assert set(fallback.MEMORY_KNOBS) <= memory, "what is compared by size"
    assert {*time_scaling.SD_PER_DOUBLING, *time_scaling.SD_PER_CHANGE} <= step | loader, (
        "what a forecast of time has a spread for"
    )
    apart = {"batch_size", "compute", "processes", "instance_count"}  # compared by themselves, or one process
    assert {field.name for field in dataclasses.fields(host_memory.MemoryProfile)} - {"malloc"} == step - apart


def test_the_defaults_are_todays_training() -> None:
    base = RunConfig()
    assert (base.image_size, base.batch_size, base.num_workers, base.max_samples) == (512, 2, 2, 10)
    assert (base.datasets, base.epochs) == (("rid",), 1)


def test_the_shipped_recipe_is_a_run_config() -> None:
    recipe = config.load(Path(__file__).parents[1] / "experiments" / "recipe.yaml")
    assert recipe.diff(RunConfig())["ema"] == "0.99"

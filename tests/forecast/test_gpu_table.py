"""The GPU's table from rounds that are made up: what each row says, and when the command refuses."""

from typing import Any

import pytest
from benchmarks import gpu_table, measure, switches
from benchmarks.gpu_table import TARGETS, results
from benchmarks.measure import Result, gpu_from_driver_name, in_turns

from roofscale.config import RunConfig

BASE = RunConfig(image_size=1024, batch_size=16)


def steps(rate: float, reserved: float) -> dict[str, float]:
    return {"samples_per_s": rate, "first_step_seconds": 1.0, "peak_mib": reserved, "allocated_mib": reserved - 100,
            "context_mib": 500.0}  # fmt: skip


def parts() -> dict[str, Any]:
    """A GPU of 100 TFLOP/s and 1000 GB/s that takes 40 samples/s of a cached batch: a step in 0.4 s."""
    pace = {"ours": 39.0, "a cached-batch loop": 40.0, "Lightning with the same recipe": 39.0,
            "Lightning with its defaults": 13.0}  # fmt: skip
    measured = [{"base": steps(40, 18_000), "micro_batches=2": steps(38, 10_000), "ema=0.99": steps(39, 17_000),
                 "compile=true": None}] * 3  # fmt: skip
    peaks = {"flops_per_s": 1e14, "bytes_per_s": 1e12, "roofline_seconds": 0.3}
    return {
        "pace": {"rounds": [pace] * 3},
        "device": {"precision": "bf16", "gpu": "", "flops": 2e13, "nbytes": 1e11, "peaks": {"measured here": peaks}},
        "switches": {
            "gpu": "A10G",
            "rounds": measured,
            "effects": switches.effects(measured),
            "forecast": {"base": {"reserved_mib": 16_200.0}, "micro_batches=2": {"reserved_mib": 12_000.0},
                         "ema=0.99": None, "compile=true": None},
        },
    }  # fmt: skip


def rows(base: RunConfig = BASE, found: dict[str, Any] | None = None) -> dict[str, Result]:
    return {row.measure: row for row in results(base, found or parts())}


def test_each_rival_is_held_against_its_target() -> None:
    found = rows()
    verdicts = {
        name: (found[f"samples/s over {name}"].value, found[f"samples/s over {name}"].verdict) for name in TARGETS
    }
    assert verdicts == {
        "Lightning with its defaults": (3.0, "met"),
        "Lightning with the same recipe": (1.0, "met"),
        "a cached-batch loop": (0.975, "met"),
    }


def test_a_rival_out_of_memory_is_not_measured_and_the_others_are() -> None:
    found = parts()
    found["pace"]["rounds"] = [{**one, "Lightning with its defaults": None} for one in found["pace"]["rounds"]]
    defaults = rows(found=found)["samples/s over Lightning with its defaults"]
    assert (defaults.value, defaults.verdict) == (None, "not measured")
    assert "out of memory" in defaults.note
    assert rows(found=found)["samples/s over a cached-batch loop"].value == 0.975


def test_a_step_is_held_against_the_devices_peaks_and_its_roofline() -> None:
    found = rows()
    assert found["a step's FLOP/s over the device's, measured here"].value == pytest.approx(0.5)  # 50 of 100 TFLOP/s
    assert found["a step's bytes/s over the device's, measured here"].value == pytest.approx(0.25)
    assert found["roofline reached, measured here"].value == pytest.approx(0.75)
    assert found["roofline reached, data sheet"].value is None


def test_the_fastest_setting_under_the_memory_aimed_at_is_named() -> None:
    fitting = list(rows().values())[-1]
    assert fitting.value == pytest.approx(17_500 / 1024)
    assert "ema=0.99" in fitting.note
    assert fitting.verdict == "met"


@pytest.mark.parametrize("taken", ["settings", "too small a step"])
def test_without_the_step_aimed_at_no_setting_is_named(taken: str) -> None:
    found = parts()
    if taken == "settings":
        cpu = {"samples_per_s": 1.0, "first_step_seconds": 1.0, "peak_mib": 900.0}
        found["switches"]["rounds"] = [dict.fromkeys(one, cpu) for one in found["switches"]["rounds"]]
    base = BASE if taken == "settings" else BASE.with_overrides({"batch_size": 8})
    assert list(rows(base, found).values())[-1].value is None


def test_the_forecast_of_memory_is_judged_where_there_is_one() -> None:
    found = rows()
    base = found["error of the forecast of reserved GPU memory, base"]
    assert (base.value, base.verdict) == (pytest.approx(0.1), "met")
    assert found["error of the forecast of reserved GPU memory, micro_batches=2"].verdict.startswith("missed")
    assert found["error of the forecast of reserved GPU memory, ema=0.99"].value is None


def test_a_switch_out_of_memory_has_no_effect_to_tell() -> None:
    found = rows()
    assert found["samples/s with compile=true over without"].value is None
    assert found["samples/s with micro_batches=2 over without"].value == pytest.approx(0.95)
    assert "out of memory" in switches.table(parts()["switches"]["effects"])


def test_ways_are_measured_by_turns() -> None:
    order: list[str] = []
    ways = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    found = in_turns(ways, 2, lambda *_: None)
    assert "".join(order) == "abccba"
    assert found == [{"a": 1, "b": 2, "c": 3}, {"c": 4, "b": 5, "a": 6}]


@pytest.mark.parametrize(
    ("stderr", "code"), [("torch.OutOfMemoryError: CUDA out of memory", 1), ("ValueError: no", 1), ("", 0)]
)
def test_a_process_out_of_gpu_memory_is_a_result_and_any_other_failure_is_not(
    stderr: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = measure.subprocess.CompletedProcess([], code, stdout='a word\n{"x": 1}\n', stderr=stderr)
    monkeypatch.setattr(measure.subprocess, "run", lambda *_, **__: done)
    if "ValueError" in stderr:
        with pytest.raises(RuntimeError, match="ValueError: no"):
            measure.in_own_process("some.module")
    else:
        assert measure.in_own_process("some.module") == (None if code else {"x": 1})


def test_its_help_names_the_commands(capsys) -> None:
    assert gpu_table.main(["--help"]) == 0
    assert "PYTHONPATH=.bench python -m benchmarks.gpu_table" in capsys.readouterr().out


def test_without_lightning_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(gpu_table.importlib.util, "find_spec", lambda _: None)
    assert gpu_table.main(["out.json"]) == 2
    assert "requirements-bench.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "model"),
    [("NVIDIA A10G", "A10G"), ("Tesla V100-SXM2-16GB", "V100"), ("NVIDIA H100 80GB HBM3", "H100"), ("GTX 1", "GTX 1")],
)
def test_a_drivers_name_is_told_to_be_a_model(device: str, model: str) -> None:
    assert gpu_from_driver_name(device) == model

"""Forecasts of GPU memory: verdicts, largest batch and parts on a known trace; then a real model through the CLI."""

import dataclasses
import json

import pytest
from click.testing import CliRunner

from roofscale import compute
from roofscale.cli import main
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.forecast import trace
from roofscale.forecast.allocator import MIB, Settings
from roofscale.forecast.gpu_memory import GpuForecaster, Terms, resolve_precision, suggest_lighter_configs
from roofscale.forecast.trace import Storage, Trace
from roofscale.memory_margin import MEMORY_MARGIN, MemoryFit

GPU = compute.get("ml.g5.xlarge")
EVIDENCE = {"fp32": "some rows", "half": "few rows"}
NO_TERMS = Terms(0, 0, 0.0, {"fp32": (0.95, 1.05), "half": (0.9, 1.1)}, EVIDENCE, {})
WEIGHTS = Storage(100 * MIB, "parameters", "")
GRADIENTS = Storage(100 * MIB, "gradients", "")
WORKSPACE = Storage(0, "workspace", "net.encoder.model.layer1.0.conv1", per_sample=0.0)
ACTIVATIONS = Storage(0, "activations", "net.encoder.model.layer1.0.conv1", per_sample=1000 * MIB)


def forecaster(
    terms: Terms = NO_TERMS, workspace: Storage = WORKSPACE, weights: Storage = WEIGHTS, **overrides: object
) -> GpuForecaster:
    """One whose model holds 100 MiB of weights and 1000 MiB a sample."""
    made = GpuForecaster.of_run(RunConfig().with_overrides(overrides), GPU, terms=terms, settings=Settings())
    trace = Trace((weights, ACTIVATIONS, workspace), (0, 1, 2, 2, 1), start=1)
    return dataclasses.replace(made, traced=lambda: trace)


def test_the_total_is_what_must_be_held_at_once() -> None:
    found = forecaster(dataclasses.replace(NO_TERMS, context_mib=500, gaps=0.02)).forecast(4)
    # Beside the traced 4100: two more batches of 7 MiB, which are copied ahead, or have just been.
    assert found.allocated_mib == pytest.approx(4114, abs=0.01)
    assert found.kinds["batches ahead"] == 14
    assert found.reserved_mib == 4116  # cuBLAS has a block of 512 bytes at the least, in a segment of 2 MiB
    held = 1.02 * found.allocated_mib
    assert found.total_mib == held + 500
    assert (found.low_mib, found.high_mib) == pytest.approx((0.9 * held + 500, 1.1 * held + 500)), "auto is bf16 here"
    assert found.share == pytest.approx(found.total_mib / (22 * 1024))
    assert found.evidence == "few rows"


def test_a_workspace_lies_on_top_of_what_is_alive_while_its_operation_runs() -> None:
    large = Storage(56 * MIB, "workspace", "", per_sample=50 * MIB)
    found = forecaster(workspace=large).forecast(4)
    assert found.allocated_mib == pytest.approx(4370, abs=1)
    assert found.kinds["workspace"] == 256


def test_batches_are_copied_whole_however_many_parts_they_are_trained_in() -> None:
    assert forecaster(micro_batches=2).forecast(4).kinds["batches ahead"] == 17.5, (
        "three batches of 7 MiB, less the part of 3.5 that is traced"
    )


@pytest.mark.parametrize("knob", ["processes", "instance_count"])
def test_several_processes_keep_the_gradients_in_buckets(knob: str) -> None:
    forecasts = []
    for made in (forecaster(), forecaster(**{knob: 2})):
        trace = Trace((WEIGHTS, GRADIENTS, ACTIVATIONS), (0, 1, 2, 2), start=2)
        forecasts.append(dataclasses.replace(made, traced=lambda trace=trace: trace).forecast(4))
    one, several = forecasts
    assert several.allocated_mib == pytest.approx(one.allocated_mib + 100, abs=0.01)
    assert several.kinds["gradient buckets"] == 100
    assert "gradient buckets" not in one.kinds


def test_the_verdict_is_that_of_the_whole_interval() -> None:
    limit = MEMORY_MARGIN * 22 * 1024
    for batch in range(1, 30):
        found = forecaster().forecast(batch)
        beyond = MemoryFit.TOO_LARGE if found.low_mib > limit else MemoryFit.UNCERTAIN
        assert found.fit() is (MemoryFit.FITS if found.high_mib <= limit else beyond)
    assert {forecaster().forecast(batch).fit() for batch in range(1, 30)} == set(MemoryFit)


def test_another_margin_lets_more_fit() -> None:
    made = forecaster()
    over = made.forecast(next(batch for batch in range(1, 40) if made.forecast(batch).fit() is MemoryFit.TOO_LARGE))
    assert over.fit(over.low_mib / over.usable_mib) is MemoryFit.UNCERTAIN
    assert over.fit(over.high_mib / over.usable_mib) is MemoryFit.FITS


@pytest.mark.parametrize("for_sure", [True, False])
def test_the_largest_batch_is_the_one_that_trying_all_of_them_finds(for_sure: bool) -> None:
    made = forecaster()
    limit = MEMORY_MARGIN * 22 * 1024
    holding = [
        b for b in range(1, 40) if (made.forecast(b).high_mib if for_sure else made.forecast(b).total_mib) <= limit
    ]
    assert made.largest_batch(for_sure=for_sure) == max(holding)


def test_no_batch_fits_where_the_weights_alone_do_not() -> None:
    made = forecaster(weights=dataclasses.replace(WEIGHTS, nbytes=30_000 * MIB))
    assert made.largest_batch() == 0


def test_the_parts_sum_up_to_what_is_allocated() -> None:
    found = forecaster().forecast(3)
    assert sum(found.kinds.values()) == pytest.approx(found.allocated_mib)
    assert found.modules == {"encoder.layer1": 3000}


def test_the_timeline_has_a_point_for_each_event() -> None:
    points = forecaster().timeline(2)
    step = [2107, 2107, 2107, 107]  # 7 MiB of them are two batches ahead
    assert [point.allocated // MIB for point in points] == [107, *step, *step]


def test_a_compute_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no GPU to forecast.*ml\.g5\.xlarge"):
        GpuForecaster.of_run(RunConfig(), compute.get("ml.m5.xlarge"))


@pytest.mark.parametrize(("gpu", "asked", "found"), [("A10G", "auto", "bf16"), ("T4", "auto", "fp16"),
                                                     ("T4", "fp32", "fp32"), ("L4", "bf16", "bf16")])  # fmt: skip
def test_precision_is_what_the_gpu_computes_natively(gpu: str, asked: str, found: str) -> None:
    assert resolve_precision(asked, gpu) == found


def test_bf16_on_a_gpu_without_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="T4 has no native bf16"):
        resolve_precision("bf16", "T4")


def test_the_shipped_terms_name_what_their_intervals_stand_on() -> None:
    terms = Terms.load()
    for kind in ("fp32", "half"):
        low, high = terms.intervals[kind]
        assert 0.5 < low < 1 < high < 1.5
        assert terms.evidence[kind]


def test_each_remedy_takes_less_and_has_its_own_forecast() -> None:
    config = RunConfig(encoder="resnet18", image_size=64, batch_size=2000, channels_last=False, precision="fp32")
    made = GpuForecaster.of_run(config, compute.get("ml.g4dn.xlarge"), settings=Settings())
    asked = made.forecast(2000)
    largest = made.largest_batch()
    found = dict(suggest_lighter_configs(config, made, largest))
    assert {"precision=auto", "decoder=linknet", f"batch_size={largest}"} <= set(found)
    assert all(forecast.total_mib < asked.total_mib for forecast in found.values())
    assert found["precision=auto"].precision == "fp16"
    expandable = found["PYTORCH_ALLOC_CONF=expandable_segments:True"]
    assert expandable.batch == asked.batch
    assert expandable.allocated_mib <= asked.allocated_mib, "its blocks are never given out with something left over"


def test_a_step_that_cannot_be_traced_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Trace:
        raise RuntimeError("no values here")

    monkeypatch.setattr(trace, "trace_batch", fails)
    made = GpuForecaster.of_run(RunConfig(encoder="resnet18", image_size=96), GPU)
    with pytest.raises(ConfigError, match=r"encoder=resnet18 .*image_size=96: .*no values here.*choose another"):
        made.forecast(1)


def test_the_command_says_all_of_it(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    words = ["forecast", "gpu", "encoder=resnet18", "image_size=64", "batch_size=4", "--compute", "ml.g5.xlarge"]
    figure = tmp_path / "memory.svg"
    plain = CliRunner().invoke(main, [*words, "--figure", str(figure)])
    assert plain.exit_code == 0, plain.output
    assert "The memory's interval: " in plain.output
    assert "Largest batch under 80%" in plain.output
    assert "activations" in plain.output
    assert figure.read_text().startswith("<?xml")
    again = CliRunner().invoke(main, [*words, "--figure", str(figure)])
    assert again.exit_code == 0, "a figure of ours is replaced"
    figure.write_text("<?xml the user's own")
    refused = CliRunner().invoke(main, [*words, "--figure", str(figure)])
    assert (refused.exit_code, figure.read_text()) == (2, "<?xml the user's own")
    found = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert found["fit"] == "fits"
    assert found["largest_batch"]["for_sure"] <= found["largest_batch"]["expected"]
    too_large = CliRunner().invoke(main, [*words, "batch_size=4000", "precision=fp32"])
    assert too_large.exit_code == 1
    assert "What would take less" in too_large.output
    nowhere = CliRunner().invoke(main, ["forecast", "gpu"])
    assert nowhere.exit_code == 2
    assert "no GPU to forecast" in nowhere.output

"""The comparison of instances: what each needs, its order, limits, and the loader's share."""

import json
import math

import pytest
from click.testing import CliRunner

from roofscale import compute
from roofscale.cli import main
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.forecast import history
from roofscale.forecast.instances import Offer, choose, offers
from roofscale.forecast.time_scaling import TimingRecord
from roofscale.memory_margin import MemoryFit

SMALL = RunConfig(encoder="resnet18", image_size=64, batch_size=16, epochs=3)


@pytest.fixture(scope="module")
def found() -> list[Offer]:
    return offers(SMALL)


def test_every_instance_with_a_gpu_and_a_price_is_offered_the_cheapest_first(found: list[Offer]) -> None:
    sizes = (compute.get(name) for name in compute.names())
    assert {offer.compute for offer in found} == {size.name for size in sizes if size.gpu and size.usd_per_hour}
    assert [offer.usd.centre for offer in found] == sorted(offer.usd.centre for offer in found)
    for offer in found:
        assert offer.fits
        assert offer.usd.centre == pytest.approx(offer.seconds.centre * compute.get(offer.compute).usd_per_hour / 3600)
        assert offer.usd.low < offer.usd.centre < offer.usd.high
        assert offer.config.global_batch_size == 16
        assert offer.config.max_samples == 0
    four = next(offer for offer in found if offer.compute == "ml.g5.12xlarge")
    assert (four.config.batch_size, four.config.processes) == (4, 4)


def test_a_batch_that_does_not_fit_is_split() -> None:
    large = SMALL.with_overrides({"image_size": 512, "batch_size": 512})
    by_name = {offer.compute: offer for offer in offers(large)}
    small, big = by_name["ml.g4dn.xlarge"], by_name["ml.g5.xlarge"]
    assert small.config.micro_batches > big.config.micro_batches > 1
    assert small.largest_batch < big.largest_batch < 512
    assert small.memory.fit() is big.memory.fit() is MemoryFit.FITS


def test_few_vcpus_stall_a_fast_gpu(found: list[Offer]) -> None:
    by_name = {offer.compute: offer for offer in found}
    few, many = by_name["ml.g5.xlarge"], by_name["ml.g5.4xlarge"]
    assert few.stall[0] <= few.stall[1]
    assert many.stall[1] <= few.stall[1]
    assert many.seconds.centre <= few.seconds.centre


def test_spot_is_shown_where_its_saving_is_on_record() -> None:
    config = SMALL.with_overrides({"compute": "ml.g5.xlarge"})
    record = TimingRecord(config, {"cost/spot_saving": 0.6}, "run")
    spot = {offer.compute: (offer.spot_usd, offer.usd.centre) for offer in offers(SMALL, [record])}
    price, full = spot["ml.g5.xlarge"]
    assert price == pytest.approx(0.4 * full)
    assert spot["ml.g5.2xlarge"][0] is None


def test_limits_keep_what_is_expected_within_them(found: list[Offer]) -> None:
    dollars = sorted(offer.usd.centre for offer in found)
    assert choose(found, usd=dollars[2]) == found[:3]
    fastest = min(found, key=lambda offer: offer.seconds.centre)
    assert choose(found, hours=fastest.seconds.centre / 3600) == [fastest]
    assert choose(found, hours=math.inf) == found
    with pytest.raises(ConfigError, match="--budget 50"):
        choose(found, usd=-1)


def test_the_command_prints_a_table_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "timing_records", list)
    words = ["forecast", "instances", "encoder=resnet18", "image_size=64", "batch_size=16"]
    said = CliRunner().invoke(main, words)
    assert said.exit_code == 0, said.output
    assert "Instances for the run on all samples" in said.output
    rows = json.loads(CliRunner().invoke(main, [*words, "--by", "100h", "--json"]).stdout)
    assert {row["fit"] for row in rows} == {"fits"}
    wrong = CliRunner().invoke(main, [*words, "--budget", "much"])
    assert wrong.exit_code == 2
    assert "--budget much: expected a number" in wrong.output

"""Forecast command that compares instances for a run."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from roofscale.cli import forecast_text
from roofscale.cli.console import console
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.forecast import history
from roofscale.forecast.instances import Offer, choose, offers
from roofscale.report.format import as_json


def forecast_instances(config: RunConfig, by: str, budget: str, to_json: bool) -> None:
    """Print memory, time and cost of a run on each instance that has a GPU and a price.

    ``by`` is the most hours, such as ``24h``, and ``budget`` the most dollars; empty for no limit.

    Raises:
        ConfigError: a limit is no number, or the model cannot be traced.
    """
    limits = _number("--by", by.removesuffix("h")), _number("--budget", budget)
    found = choose(offers(config, history.timing_records()), *limits)
    if to_json:
        print(as_json([as_dict(offer) for offer in found]))
    else:
        console().print(table(found))
        for offer in found[:1]:
            console().print(f"The memory's interval: {offer.memory.evidence}", style="dim")


def table(found: Sequence[Offer]) -> Table:
    """Return the offers as a table, the cheapest that fits first."""
    drawn = Table("instance", "GPU memory", "fits?", "largest batch", "time", "on demand", "spot", "data stall", "host",
                  title="Instances for the run on all samples", title_justify="left")  # fmt: skip
    for offer in found:
        memory, parts = offer.memory, offer.config.micro_batches
        split = f"batch {memory.batch}" + (f", micro_batches={parts}" if parts > 1 else "")
        interval = f"({memory.low_mib:,.0f} to {memory.high_mib:,.0f})"
        drawn.add_row(
            f"{offer.compute}\n{offer.gpu}", f"{memory.total_mib:,.0f} MiB\n{interval}",
            f"{memory.fit()}\n{split}", str(offer.largest_batch), forecast_text.duration(offer.seconds),
            forecast_text.cost(offer.usd), "" if offer.spot_usd is None else f"{offer.spot_usd:,.2f} USD",
            f"{offer.stall[0]:.0%} to {offer.stall[1]:.0%}",
            f"{offer.shared_mib / 1024:.1f} of {offer.host_mib / 1024:.0f} GiB for batches",
        )  # fmt: skip
    return drawn


def as_dict(offer: Offer) -> dict[str, Any]:
    """Convert to JSON for a script."""
    return {**asdict(offer), "config": offer.config.as_dict(), "fit": offer.memory.fit(), "fits": offer.fits}


def _number(option: str, text: str) -> float:
    try:
        return float(text) if text else math.inf
    except ValueError:
        raise ConfigError(f"{option} {text}: expected a number, such as --by 24h or --budget 50.") from None

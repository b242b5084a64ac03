"""Search of a step, as read from the phase file: its space and its limits."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.phases.yaml_source import YamlNode

KNOBS = ("batch_size", "num_workers", "prefetch_factor")  # configs are ordered by size in this order of knobs

_KEYS = ("space", "max_trials", "precision", "tolerance")


@dataclass(frozen=True)
class SearchSpec:
    """Space of integer knobs to search, with the limits that end the search and its trials."""

    space: Mapping[str, tuple[int, int]]  # knob -> smallest and largest value
    max_trials: int = 24  # trials that are run; skipped ones do not count
    precision: float = 0.03  # relative; a trial ends once its samples/s is known to this precision
    tolerance: float = 0.05  # share of the fastest config's samples/s by which the choice may fall short

    def __str__(self) -> str:
        ranges = ", ".join(f"{knob} {low} to {high}" for knob, (low, high) in self.space.items())
        return f"searched: {ranges}, in at most {self.max_trials} trials"

    def config_at(self, config: RunConfig, values: Mapping[str, int]) -> RunConfig:
        """Return the config at a point of the space.

        Without loader processes nothing is prefetched, so that ``prefetch_factor`` then keeps its value: points that
        differ only in it are the same config.
        """
        moved = config.with_overrides(dict(values))
        return dataclasses.replace(moved, prefetch_factor=config.prefetch_factor) if not moved.num_workers else moved

    def contains(self, config: RunConfig) -> bool:
        """Return whether a config lies in the space; prefetch_factor counts only with loader processes."""
        idle = () if config.num_workers else ("prefetch_factor",)
        return all(low <= getattr(config, k) <= high for k, (low, high) in self.space.items() if k not in idle)

    def values(self, config: RunConfig) -> dict[str, int]:
        """Return the searched knobs of a config, each clipped to its range."""
        return {k: min(max(getattr(config, k), low), high) for k, (low, high) in self.space.items()}

    def largest(self, config: RunConfig) -> RunConfig:
        """Return the largest config of the space."""
        return self.config_at(config, {knob: high for knob, (_, high) in self.space.items()})

    def configs(self, config: RunConfig) -> Iterator[RunConfig]:
        """Yield every distinct config of the space, smallest first."""
        ranges = ([(knob, value) for value in range(low, high + 1)] for knob, (low, high) in self.space.items())
        yield from dict.fromkeys(self.config_at(config, dict(values)) for values in itertools.product(*ranges))


def read_search(node: YamlNode | None, over: YamlNode | None = None) -> SearchSpec | None:
    """Read the search of a step; None if it has none. An overlay's values take precedence.

    Raises:
        ConfigError: a wrong key, knob or value, with file and line.
    """
    if node is None:
        return None
    content = {
        **node.mapping("key of a search", _KEYS),
        **(over.mapping("key of a search", _KEYS) if over else {}),
    }
    if "space" not in content:
        raise node.error("a search needs a 'space', such as {batch_size: [1, 24], num_workers: [0, 4]}.")
    fields: dict[str, Any] = {"space": _read_space(content["space"])}
    if "max_trials" in content:
        fields["max_trials"] = content["max_trials"].whole("max_trials", low=1)
    for key in ("precision", "tolerance"):
        if key in content:
            fields[key] = _share(key, content[key])
    return SearchSpec(**fields)


def _share(key: str, node: YamlNode) -> float:
    value = node.number(key)
    if not 0 < value < 1:
        raise node.error(f"{key}: expected a share between 0 and 1, such as 0.05, found {value:g}.")
    return value


def _read_space(node: YamlNode) -> dict[str, tuple[int, int]]:
    ranges = node.mapping("knob that can be searched", KNOBS)
    if "batch_size" not in ranges:
        raise node.error("space: expected a range of batch_size at least, such as batch_size: [1, 24].")
    return {knob: _read_range(knob, ranges[knob]) for knob in KNOBS if knob in ranges}


def _read_range(knob: str, node: YamlNode) -> tuple[int, int]:
    ends = [end.whole(knob, low=0) for end in node.items(knob)]
    if len(ends) != 2 or ends[0] > ends[1]:
        raise node.error(f"{knob}: expected its smallest and its largest value, such as [1, 24], found {ends}.")
    for value in ends:
        try:
            RunConfig().with_overrides({knob: value})
        except ConfigError as error:
            raise node.error(str(error)) from error
    return ends[0], ends[1]

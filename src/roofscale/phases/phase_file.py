"""Phase files: their keys, and the steps of a phase with their resolved run configs.

Precedence of a knob, lowest first: the starting config (the defaults, or an earlier phase's last good config), the
phase's ``base``, the user's overrides, the step's own ``set``, an overlay's ``hold``. A user's override of a knob that
some step sets is refused: it would either have no effect or undo what the step changes. Steps do not build on each
other's ``set``; each builds on the phase's base. The **base step** is the first of the file.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roofscale import config as run_config
from roofscale import invocation
from roofscale.config import RunConfig
from roofscale.errors import ConfigError, did_you_mean
from roofscale.measurement import METRICS
from roofscale.memory_margin import MEMORY_MARGIN
from roofscale.phases.criteria import CRITERIA, Limit
from roofscale.phases.criteria.expectations import REFERENCES, Expectation
from roofscale.phases.search.space import SearchSpec, read_search
from roofscale.phases.yaml_source import YamlNode, read_yaml

ON_FAILURE = ("stop", "continue")  # what the phase does if the step fails and no fallback passes
ON_INSUFFICIENT = ("repeat", "continue", "stop")  # what it does if the evidence is insufficient
REQUIREMENTS = ("gate", "gpu")
_DEFAULT_REPEATS = 2
_DEFAULT_FALLBACKS = 2
CONDITIONS = ("forecast_fits",)  # run the step only if its forecast of memory fits the compute
_SEED_STRIDE = 1000  # so large that a repeat of seed 0 is not another run's seed 1

_POLICY_KEYS = ("on_failure", "on_insufficient", "max_repeats", "max_fallbacks")
_PHASE_KEYS = ("phase", "name", "question", "needs", "requires", "base", "watch", "least_batch", "steps", *_POLICY_KEYS)
_OVERLAY_KEYS = ("base", "hold", "decided_by", "search", *_POLICY_KEYS)
_STEP_KEYS = ("name", "when", "set", "search", "expect", "criteria", "shown", *_POLICY_KEYS)
_EXPECT_KEYS = ("value", "of", "tolerance")
_DATASET = rf"(\*|{'|'.join(run_config.DATASETS)})"  # * stands for each data set trained on
_DATASET_METRIC = re.compile(rf"val/{_DATASET}/(loss|(iou|f1|accuracy)(_[a-z]+)?)|forgetting/{_DATASET}")


@dataclass(frozen=True)
class CriterionSpec:
    """A criterion of a step, by its name in CRITERIA, with all limits filled in."""

    name: str
    limits: Mapping[str, float]
    decides: bool = True  # whether it counts for the step's verdict; else it is only shown


@dataclass(frozen=True)
class Step:
    """One step of a phase: the knobs that it changes, what it expects, and the criteria that judge it."""

    name: str
    set: Mapping[str, Any]  # overrides of the run config, as written in the file
    expect: tuple[Expectation, ...]
    criteria: tuple[CriterionSpec, ...]
    on_failure: str  # of ON_FAILURE
    on_insufficient: str  # of ON_INSUFFICIENT
    max_repeats: int  # further runs under other seeds while the evidence is insufficient
    max_fallbacks: int = _DEFAULT_FALLBACKS  # fallbacks, each a run with a remedy for the cause of the last failure
    search: SearchSpec | None = None  # chooses further knobs of the step before its run
    when: str = ""  # of CONDITIONS; empty: no condition

    @property
    def memory_margin(self) -> float:
        """Share of the memory that its runs and trials may take, measured and forecast.

        This is the ``max_share`` of its criterion ``memory_margin`` if set, else MEMORY_MARGIN.
        """
        return _memory_margin((spec.name, spec.limits) for spec in self.criteria)

    @property
    def most_repeats(self) -> int:
        """Number of repeats allowed while the evidence is insufficient; 0 unless ``on_insufficient`` is repeat."""
        return self.max_repeats if self.on_insufficient == "repeat" else 0

    def changes(self) -> list[str]:
        """Return its changes to the phase's base: overrides as a user writes them, and the space that it searches."""
        written = RunConfig().with_overrides(self.set).to_strings()
        return [*(f"{key}={written[key]}" for key in self.set), *([str(self.search)] if self.search else [])]


@dataclass(frozen=True)
class Phase:
    """A checked phase file; the first step is the base step."""

    number: int
    name: str
    question: str  # that the phase answers, one line
    base: Mapping[str, Any]  # overrides that every step builds on
    watch: tuple[str, ...]  # metrics to show for every step
    steps: tuple[Step, ...]
    source: Mapping[str, Any]  # the file and the overlay as plain values, without comments
    needs: int | None = None  # the phase whose last good config this one starts from
    requires: tuple[str, ...] = ()  # of REQUIREMENTS; checked before any step runs
    hold: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # knobs that an overlay fixes for all steps
    # Smallest batch that the last good config should have; 0: the newest passed step is the last good. See
    # ``results.select_last_good``.
    least_batch: int = 0

    def searching(self) -> "Phase":
        """Return the phase reduced to its base step and the steps that search.

        Raises:
            ConfigError: no step of the phase searches.
        """
        kept = [step for step in self.steps if step is self.steps[0] or step.search]
        if not any(step.search for step in kept):
            raise ConfigError(
                f"phase {self.number} ({self.name}): none of its steps has a 'search'; add one, such as search: "
                "{space: {batch_size: [1, 24]}}."
            )
        names = [step.name for step in kept]
        source = {**self.source, "steps": tuple(step for step in self.source["steps"] if step["name"] in names)}
        return dataclasses.replace(self, steps=tuple(kept), source=source)

    @property
    def fingerprint(self) -> str:
        """First twelve hex digits of the SHA-256 of the file's and the overlay's values."""
        return hashlib.sha256(json.dumps(self.source, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def as_json(self) -> dict[str, Any]:
        """Return the values of the file and the overlay as plain JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(self.source, default=str))
        return plain

    def as_yaml(self) -> dict[str, str]:
        """Return the phase file and the overlay as YAML that ``load_phase`` reads, by file name; without comments."""
        import yaml  # imported here because only a phase runner writes YAML

        file = {key: value for key, value in self.source.items() if key != "overlay"}
        parts = {"phase.yaml": file, "overlay.yaml": self.source["overlay"]}
        return {name: yaml.safe_dump(part, sort_keys=False) for name, part in parts.items() if part}

    def resolve(
        self, config: RunConfig | None = None, overrides: Mapping[str, Any] | Sequence[str] = ()
    ) -> list[tuple[Step, RunConfig]]:
        """Return each step with its run config.

        Args:
            config: the starting config of the phase; the defaults if None.
            overrides: the user's, as ``key=value`` words or a mapping.

        Raises:
            ConfigError: an invalid override, or one of a knob that a step sets itself.
        """
        self._refuse_undoing(overrides)
        base = (config or RunConfig()).with_overrides(self.base).with_overrides(overrides)
        return [(step, base.with_overrides(step.set).with_overrides(self.hold)) for step in self.steps]

    def _refuse_undoing(self, overrides: Mapping[str, Any] | Sequence[str]) -> None:
        keys = overrides if isinstance(overrides, Mapping) else [word.partition("=")[0].strip() for word in overrides]
        for key in keys:
            values = {step.name: step.set[key] for step in self.steps if key in step.set}
            if values:
                steps = ", ".join(f"{name} {value}" for name, value in values.items())
                raise ConfigError(
                    f"{key} cannot be overridden in phase {self.number}: its steps set it ({steps}), and changing "
                    "that is what they are about. Edit the phase file, or run one config with: "
                    f"{invocation.command('train')}."
                )


Plan = Sequence[tuple[Step, RunConfig]]  # from ``Phase.resolve``


def plan_fingerprint(phase: Phase, plan: Plan) -> str:
    """Return twelve hex digits that identify a phase with its steps' configs; another data_root is another plan."""
    content = json.dumps([phase.fingerprint, *(config.as_dict() for _, config in plan)])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def repeat_config(config: RunConfig, repeat: int) -> RunConfig:
    """Return the config under the seed of its n-th repeat, counted from 1."""
    seed = (config.seed + repeat * _SEED_STRIDE) % 2**31
    return dataclasses.replace(config, seed=seed)


def load_phase(file: Path, overlay: Path | None = None) -> Phase:
    """Read a phase file; an overlay's base and policies take precedence over those of the phase and of its steps.

    Raises:
        ConfigError: an unreadable file, or a wrong key, value, metric, criterion, limit or knob, with file and line.
    """
    root = read_yaml(file)
    content = root.mapping("key of a phase file", _PHASE_KEYS)
    over = read_yaml(overlay).mapping("key of an overlay", _OVERLAY_KEYS) if overlay else {}
    for key in ("phase", "name", "steps"):
        if key not in content:
            raise root.error(f"a phase file needs the key {key!r}.")
    steps = tuple(_read_step(node, content, over) for node in content["steps"].items("steps"))
    _check_steps(content["steps"], steps)
    return Phase(
        number=content["phase"].whole("phase", low=0),
        name=content["name"].text("name"),
        question=content["question"].text("question") if "question" in content else "",
        base={**_read_overrides(content.get("base")), **_read_overrides(over.get("base"))},
        watch=tuple(_read_metric(node) for node in content["watch"].items("watch")) if "watch" in content else (),
        steps=steps,
        source={**root.plain(), "overlay": {key: node.plain() for key, node in over.items()}},
        needs=content["needs"].whole("needs", low=1) if "needs" in content else None,
        requires=_read_requirements(content.get("requires")),
        hold=_read_overrides(over.get("hold")),
        least_batch=content["least_batch"].whole("least_batch", low=1) if "least_batch" in content else 0,
    )


def _read_requirements(node: YamlNode | None) -> tuple[str, ...]:
    return () if node is None else tuple(item.choice("requires", REQUIREMENTS) for item in node.items("requires"))


def _read_step(node: YamlNode, phase: Mapping[str, YamlNode], over: Mapping[str, YamlNode]) -> Step:
    content = node.mapping("key of a step", _STEP_KEYS)
    if "name" not in content:
        raise node.error("a step needs a 'name'.")
    policy = {k: v for keys in (phase, content, over) for k, v in keys.items() if k in _POLICY_KEYS}
    return Step(
        name=content["name"].text("name"),
        set=_read_overrides(content.get("set")),
        expect=_read_expectations(content.get("expect")),
        criteria=_read_criteria(content.get("criteria"), content.get("shown"), over.get("decided_by")),
        on_failure=policy["on_failure"].choice("on_failure", ON_FAILURE) if "on_failure" in policy else "stop",
        on_insufficient=(
            policy["on_insufficient"].choice("on_insufficient", ON_INSUFFICIENT)
            if "on_insufficient" in policy
            else "stop"
        ),
        max_repeats=policy["max_repeats"].whole("max_repeats", low=0) if "max_repeats" in policy else _DEFAULT_REPEATS,
        max_fallbacks=(
            policy["max_fallbacks"].whole("max_fallbacks", low=0) if "max_fallbacks" in policy else _DEFAULT_FALLBACKS
        ),
        search=read_search(content.get("search"), over.get("search")),
        when=content["when"].choice("when", CONDITIONS) if "when" in content else "",
    )


def _check_steps(node: YamlNode, steps: tuple[Step, ...]) -> None:
    """Check the steps together: unique names, a deciding criterion each, and no comparison in the first step."""
    seen: set[str] = set()
    if not steps:
        raise node.error("a phase needs at least one step.")
    for index, (item, step) in enumerate(zip(node.items("steps"), steps, strict=True)):
        if step.name in seen:
            raise item.error(f"two steps are called {step.name!r}; give each its own name.")
        seen.add(step.name)
        if not any(spec.decides for spec in step.criteria):
            raise item.error(
                f"step {step.name!r} has no criteria that decide, so nothing could ever fail; ask at least 'completes'."
            )
        if index == 0 and any(expectation.of != "absolute" for expectation in step.expect):
            raise item.error(
                f"step {step.name!r} is the first: it has nothing before it to compare with; use 'of: absolute'."
            )


def _read_overrides(node: YamlNode | None) -> dict[str, Any]:
    """Return the overrides as written, each checked by itself so that an error names its line."""
    if node is None:
        return {}
    overrides = {}
    for key, child in node.mapping("knob of the run config", run_config.FIELDS).items():
        try:
            RunConfig().with_overrides({key: child.plain()})
        except ConfigError as error:
            raise child.error(str(error)) from error
        overrides[key] = child.plain()
    return overrides


def _read_metric(node: YamlNode, name: str | None = None) -> str:
    name = node.text("metric") if name is None else name
    if name not in METRICS and not _DATASET_METRIC.fullmatch(name):
        known = (*METRICS, *(f"val/{d}/{m}" for d in run_config.DATASETS for m in ("loss", "iou", "f1", "accuracy")))
        raise node.error(f"{name!r} is no metric.{did_you_mean(name, known)}")
    return name


def _read_expectations(node: YamlNode | None) -> tuple[Expectation, ...]:
    return () if node is None else tuple(_read_expectation(k, v) for k, v in node.mapping("expect").items())


def _read_expectation(metric: str, node: YamlNode) -> Expectation:
    _read_metric(node, metric)
    content = node.mapping("key of an expectation", _EXPECT_KEYS)
    for key in _EXPECT_KEYS:
        if key not in content:
            raise node.error(
                f"the expectation of {metric} needs {key!r}; write it like "
                "{value: 2.0, of: previous, tolerance: 0.3}."
            )
    value, tolerance = (content[key].number(key) for key in ("value", "tolerance"))
    if value <= 0:
        raise content["value"].error(f"value: expected a number above 0, found {value:g}.")
    if not 0 < tolerance < 1:
        raise content["tolerance"].error(
            f"tolerance: expected a share between 0 and 1, such as 0.3, found {tolerance:g}."
        )
    return Expectation(metric, content["of"].choice("of", REFERENCES), value, tolerance)


def _read_criteria(
    decide: YamlNode | None, shown: YamlNode | None, decided_by: YamlNode | None
) -> tuple[CriterionSpec, ...]:
    asked = [
        (name, _read_limits(name, child), node is decide)
        for node in (decide, shown)
        if node is not None
        for name, child in node.mapping("criterion", CRITERIA).items()
    ]
    margin = _memory_margin((name, given) for name, given, _ in asked)
    specs = tuple(CriterionSpec(name, _all_limits(name, given, margin), decides) for name, given, decides in asked)
    if decided_by is None:
        return specs
    deciding = {item.choice("decided_by", tuple(CRITERIA)) for item in decided_by.items("decided_by")}
    return tuple(dataclasses.replace(spec, decides=spec.decides and spec.name in deciding) for spec in specs)


def _read_limits(name: str, node: YamlNode) -> dict[str, float]:
    limits = CRITERIA[name].limits
    if not limits and node.value not in (None, {}):
        raise node.error(f"the criterion {name!r} has no limits to set; write '{name}:' and nothing behind it.")
    return {
        key: _read_limit(key, limits[key], child) for key, child in node.mapping(f"limit of {name}", limits).items()
    }


def _read_limit(key: str, limit: Limit, node: YamlNode) -> float:
    value = node.number(key)
    if limit.is_memory_margin and not 0 < value <= 1:
        raise node.error(f"{key}: expected a share of the memory over 0 and up to 1, such as 0.8, found {value:g}.")
    return value


def _memory_margin(criteria: Iterable[tuple[str, Mapping[str, float]]]) -> float:
    """Return the ``max_share`` of the criterion ``memory_margin`` if a limit is set, else MEMORY_MARGIN.

    Args:
        criteria: names of criteria with their limits.
    """
    shares = (limits["max_share"] for name, limits in criteria if name == "memory_margin" and "max_share" in limits)
    return next(shares, MEMORY_MARGIN)


def _all_limits(name: str, given: Mapping[str, float], margin: float) -> dict[str, float]:
    """Return all limits of a criterion: those that the file sets, else the step's memory margin or the default."""
    limits = CRITERIA[name].limits.items()
    return {key: given.get(key, margin if limit.is_memory_margin else limit.default) for key, limit in limits}

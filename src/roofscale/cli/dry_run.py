"""Dry runs: the knobs, and what a command would run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from roofscale import compute
from roofscale.cli import forecast_text, run_forecast_instances
from roofscale.cli.console import console
from roofscale.config import FIELDS, RunConfig
from roofscale.forecast import history
from roofscale.forecast.instances import Offer, offers
from roofscale.forecast.results import GpuForecast
from roofscale.forecast.run_time import TimeForecast, sum_forecasts
from roofscale.forecast.time_scaling import TimingRecord
from roofscale.phases.phase_file import Phase, Plan, Step
from roofscale.report.format import as_json, expectation_words, limits_words
from roofscale.stats.intervals import CONFIDENCE, Interval

NO_JOBS: Mapping[str, Any] = {"requests": []}


def print_knobs(to_json: bool) -> None:
    """Print every knob of the run config."""
    defaults = RunConfig().to_strings()
    if to_json:
        shown = ("meaning", "low", "high", "choices")
        knobs = {name: {key: field.metadata[key] for key in shown} for name, field in FIELDS.items()}
        print(as_json({name: {"default": defaults[name], **knob} for name, knob in knobs.items()}))
        return
    table = Table("knob", "default", "meaning")
    for name, field in FIELDS.items():
        table.add_row(name, defaults[name], field.metadata["meaning"])
    console().print(table)


def print_run(config: RunConfig, to_json: bool, jobs: Mapping[str, Any] = NO_JOBS) -> None:
    """Print what a training would run, and the forecast of it and of the full data set.

    Args:
        jobs: see ``preflight.plan_jobs``.
    """
    compute.get(config.compute)  # refuses an unknown one
    config.require_batch()
    runs = history.timing_records()
    found = history.forecast_time_of(config, runs)
    full = history.forecast_time_of(history.with_all_samples(config), runs)
    if to_json:
        forecasts = {"forecast": forecast_text.as_dict(found), "full_data": forecast_text.as_dict(full)}
        print(as_json({"config": config.as_dict(), "fingerprint": config.fingerprint, **forecasts, **jobs}))
        return
    _print_config(config)
    words = f"Forecast, {CONFIDENCE:.0%} interval: " + "; ".join(_time_and_cost(found).splitlines())
    console().print(f"{words}. More: roofscale forecast time" if found else words)
    if full:
        console().print(escape(_full_words(config, full)))
    _print_jobs(jobs)


def _print_config(config: RunConfig) -> None:
    changed = config.diff(RunConfig())
    table = Table("knob", "value", title=f"run config {config.fingerprint}", title_justify="left")
    for name, value in config.to_strings().items():
        table.add_row(name, value, style="bold" if name in changed else "")
    console().print(table)


def print_plan(phase: Phase, plan: Plan, start: str, to_json: bool, jobs: Mapping[str, Any] = NO_JOBS) -> None:
    """Print the steps, expectations and criteria of a phase, and the forecast of its time, cost and GPU memory.

    Args:
        phase: the phase.
        plan: its steps with the configs they would run.
        start: a sentence that says what the phase starts from.
        jobs: see ``preflight.plan_jobs``.
    """
    forecasts = _PlanForecast.of(plan)
    if to_json:
        found = [run_forecast_instances.as_dict(offer) for offer in forecasts.offers]
        content = {"phase": asdict(phase), "start": start, **forecasts.as_dict(plan), "instances": found}
        print(as_json({**content, **jobs}))
        return
    out = console()
    out.print(f"[bold]Phase {phase.number}: {phase.name}[/] {escape(phase.question)}")
    out.print(escape(start))
    _print_config(plan[0][1])
    table = Table("step", "changes", "expects", "criteria", "then", "forecast", title="steps", title_justify="left")
    for (step, _), forecast, gpu in zip(plan, forecasts.times, forecasts.gpus, strict=True):
        expects = "\n".join(f"{e.metric} {expectation_words(e)}" for e in step.expect)
        criteria = "\n".join(f"{c.name} {limits_words(c.limits)}" for c in step.criteria)
        then = (
            f"failed: fallback, {step.max_fallbacks} x,\nthen {step.on_failure}\ninsufficient: {step.on_insufficient}"
        )
        changes = "\n".join(step.changes())
        words = _time_and_cost(forecast) + _gpu_memory(step, gpu)
        table.add_row(step.name, changes, expects, criteria, then, words, end_section=True)
    out.print(table)
    for line in forecasts.lines(plan):
        out.print(escape(line))
    if forecasts.offers:
        out.print(run_forecast_instances.table(forecasts.offers))
    _print_jobs(jobs)


def _print_jobs(jobs: Mapping[str, Any]) -> None:
    if not jobs["requests"]:
        return
    table = Table("setting", "value", "from", title="settings of SageMaker jobs", title_justify="left")
    for name, setting in jobs["settings"].items():
        table.add_row(name, escape(str(setting["value"])), escape(setting["from"]))
    console().print(table)
    console().print(
        "Requests to SageMaker, each a CreateTrainingJob; the six hex digits of a name are drawn anew, and storage for "
        "data in S3 comes on top:"
    )
    for request in jobs["requests"]:
        print(as_json(request))


@dataclass(frozen=True)
class _PlanForecast:
    """Forecast of all steps of a plan."""

    times: list[TimeForecast | None]  # of each step
    full: TimeForecast | None  # of the last step's config on all samples of its data sets
    gpus: list[GpuForecast | None]
    trials: list[Interval | None]  # upper bound of the seconds of all trials, of each step that searches
    offers: list[Offer]  # instances for the last step's config, if its compute has a GPU

    @classmethod
    def of(cls, plan: Plan) -> "_PlanForecast":
        runs = history.timing_records()
        times = [history.forecast_time_of(config, runs) for _, config in plan]
        trials = [_trial_seconds(step, config, runs) for step, config in plan]
        last = plan[-1][1]
        full, gpus = history.forecast_time_of(history.with_all_samples(last), runs), _gpu_forecasts(plan)
        return cls(times, full, gpus, trials, offers(last, runs) if compute.get(last.compute).gpu else [])

    @property
    def known(self) -> list[TimeForecast]:
        return [forecast for forecast in self.times if forecast]

    @property
    def seconds(self) -> Interval:
        """Sum the forecasts of the steps that have one."""
        return sum_forecasts([forecast.run_seconds for forecast in self.known])

    @property
    def usd(self) -> Interval | None:
        money = [forecast.usd for forecast in self.known if forecast.usd is not None]
        return sum_forecasts(money) if money and len(money) == len(self.known) else None

    def as_dict(self, plan: Plan) -> dict[str, Any]:
        """Convert to JSON for a script."""
        steps = [
            {
                "step": step.name,
                "config": config.as_dict(),
                "forecast": forecast_text.as_dict(forecast),
                "trial_seconds": trials and asdict(trials),
                "gpu_memory": _gpu_as_dict(step, gpu) if gpu else None,
            }
            for (step, config), forecast, gpu, trials in zip(plan, self.times, self.gpus, self.trials, strict=True)
        ]
        total = {"steps": len(self.known), "seconds": asdict(self.seconds), "usd": self.usd and asdict(self.usd)}
        full = {
            "amounts": asdict(history.dataset_sizes_cached(plan[-1][1])),
            "forecast": forecast_text.as_dict(self.full),
        }
        return {"steps": steps, "total": total if self.known else None, "full_data": full}

    def lines(self, plan: Plan) -> Iterator[str]:
        """Yield the forecast of the whole phase and of the full data set, with its notes."""
        if not self.known:
            yield "No forecast of time and cost: no similar run is on record. The first step of phase 1 makes one."
            return
        cost = f", {forecast_text.cost(self.usd)}" if self.usd else ""
        measured = [forecast for forecast in self.known if not forecast.estimate]
        sources = ", ".join(dict.fromkeys(source for one in measured for source in one.sources))
        yield (
            f"Forecast of {len(self.known)} of {len(self.times)} steps, each once: "
            f"{forecast_text.duration(self.seconds)}{cost}, {CONFIDENCE:.0%} interval"
            f"{f', from runs {sources}' if sources else ''}."
        )
        for (step, _), trials in zip(plan, self.trials, strict=True):
            if step.search and trials:
                most = f"{step.search.max_trials}, {forecast_text.duration(trials)}"
                yield f"On top of that, trials of {step.name}, at most {most}."
        if self.full:
            yield f"The last step's config: {_full_words(plan[-1][1], self.full)}"
        yield from dict.fromkeys(
            note for forecast in self.known if forecast.estimate for note in forecast_text.notes(forecast)
        )


def _trial_seconds(step: Step, config: RunConfig, runs: Sequence[TimingRecord]) -> Interval | None:
    """Return the seconds of all trials of a step if each is the largest config and runs to its end; None if unknown."""
    if step.search is None:
        return None
    from roofscale.phases.search.trial_runner import shorten_for_trial  # only where a phase searches

    largest = shorten_for_trial(step.search.largest(config), step.search).with_overrides({"stop_precision": 0.0})
    found = history.forecast_time_of(largest, runs)
    return sum_forecasts([found.run_seconds] * step.search.max_trials) if found else None


def _gpu_forecasts(plan: Plan) -> list[GpuForecast | None]:
    """Return the GPU memory of each step; None for a compute without a GPU."""
    for _, config in plan:
        config.require_batch()
    computes = [compute.get(config.compute) for _, config in plan]
    if not any(where.gpu for where in computes):
        return [None] * len(plan)
    from roofscale.forecast.gpu_memory import forecast_gpu_memory  # imports PyTorch

    return [forecast_gpu_memory(config, where) for (_, config), where in zip(plan, computes, strict=True)]


def _gpu_as_dict(step: Step, gpu: GpuForecast) -> dict[str, Any]:
    return {"total_mib": gpu.total_mib, "share": gpu.share, "fit": gpu.fit(step.memory_margin)}


def _gpu_memory(step: Step, gpu: GpuForecast | None) -> str:
    if gpu is None:
        return ""
    interval = f"{gpu.low_mib:,.0f} to {gpu.high_mib:,.0f}"
    return f"\nGPU {gpu.total_mib:,.0f} MiB, {gpu.share:.0%}\n({interval}): {gpu.fit(step.memory_margin)}"


def _full_words(config: RunConfig, full: TimeForecast) -> str:
    counts = history.dataset_sizes_cached(config)
    sizes = ", ".join(f"{name} {train:,} + {val:,} validated" for name, (train, val) in counts.samples.items())
    epoch, run = (
        ", ".join(filter(None, (forecast_text.duration(seconds), forecast_text.cost(usd))))
        for seconds, usd in ((full.epoch_seconds, full.epoch_usd), (full.run_seconds, full.usd))
    )
    passes = f"{config.passes} pass{'es' * (config.passes > 1)}"
    return f"On all samples ({sizes}, {counts.source}): an epoch {epoch}; a run of {passes} {run}."


def _time_and_cost(forecast: TimeForecast | None) -> str:
    if forecast is None:
        return "unknown: no similar run on record"
    stands = "roofline" if forecast.estimate else f"{forecast.bound}{', scaled' if forecast.scaled else ''}"
    run, epoch = forecast_text.duration(forecast.run_seconds), forecast_text.duration(forecast.epoch_seconds)
    lines = [run, forecast_text.cost(forecast.usd), f"epoch {epoch}", stands]
    return "\n".join(filter(None, lines))

"""Starting config of a phase: the last good config of the phase that it needs, or the defaults."""

from pathlib import Path

from roofscale import invocation
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.files import read_record
from roofscale.phases.attempt import Attempts
from roofscale.phases.phase_file import Phase
from roofscale.phases.phase_runner import last_good_aliases
from roofscale.tracking import run_by_alias, tracking_uri
from roofscale.tracking.history import experiment_name, read_config


def starting_config(phase: Phase, runs: Path, cache: Path, from_defaults: bool) -> tuple[RunConfig, str]:
    """Return the config that a phase starts from, and a sentence that names its origin.

    The last good file of the needed phase takes precedence; on a machine without it, the alias in MLflow's registry is
    used. A data_root of generated data is cleared, so that data is generated anew: this phase may need more of it.

    Raises:
        ConfigError: the needed phase has no passed step on record, and ``from_defaults`` is not set.
    """
    if phase.needs is None or from_defaults:
        return RunConfig(), "Starting from the defaults."
    good = last_good(phase.needs, runs)
    if good is None:
        raise ConfigError(
            f"phase {phase.number} stands on what phase {phase.needs} learnt, and no passed step of phase "
            f"{phase.needs} is on record, neither in {runs}/ nor at {tracking_uri()}. Climb it first: "
            f"{invocation.command('phase', phase.needs)}. Or start from the defaults: "
            f"{invocation.command('phase', phase.number, from_defaults=True)}."
        )
    config, origin = good
    if Path(config.data_root).is_relative_to(cache):
        config = config.with_overrides({"data_root": ""})
    changed = " ".join(f"{key}={value}" for key, value in config.diff(RunConfig()).items())
    return config, f"Starting from the last good config of phase {phase.needs} ({origin}): {changed or 'the defaults'}."


def last_good(phase: int, runs: Path) -> tuple[RunConfig, str] | None:
    """Return the last good config of a phase and its origin; None if no passed step is on record."""
    return _from_file(phase, runs) or _from_registry(phase)


def _from_file(phase: int, runs: Path) -> tuple[RunConfig, str] | None:
    file = Attempts(runs, experiment_name(phase)).last_good_file
    if not file.exists():
        return None
    return read_record(
        file,
        lambda good: (RunConfig().with_overrides(good["config"]), f"step {good['step']}, run {good['run_id']}"),
    )


def _from_registry(phase: int) -> tuple[RunConfig, str] | None:
    run = run_by_alias(last_good_aliases(phase)[0])
    return (read_config(run), f"step {run.tags.get('step', run.name)}, run {run.run_id}") if run else None

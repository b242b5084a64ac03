"""What a phase starts from: the last good config of the phase that it needs, or the defaults."""

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
    """The config that a phase starts from, and a sentence that says whose it is.

    The file that the phase before has left counts first; on a machine without it, the alias in MLflow's registry.
    Data that was generated is generated anew, as the next phase may need more of it.

    Raises:
        ConfigError: the phase that is needed has no passed step on record, and ``from_defaults`` is not set.
    """
    if phase.needs is None or from_defaults:
        return RunConfig(), "Starting from the defaults."
    found = last_good(phase.needs, runs)
    if found is None:
        raise ConfigError(
            f"phase {phase.number} stands on what phase {phase.needs} learnt, and no passed step of phase "
            f"{phase.needs} is on record, neither in {runs}/ nor at {tracking_uri()}. Climb it first: "
            f"{invocation.command('phase', phase.needs)}. Or start from the defaults: "
            f"{invocation.command('phase', phase.number, from_defaults=True)}."
        )
    config, where = found
    if Path(config.data_root).is_relative_to(cache):
        config = config.with_overrides({"data_root": ""})
    changed = " ".join(f"{key}={value}" for key, value in config.diff(RunConfig()).items())
    return config, f"Starting from the last good config of phase {phase.needs} ({where}): {changed or 'the defaults'}."


def last_good(phase: int, runs: Path) -> tuple[RunConfig, str] | None:
    """The last good config of a phase and where it is from; None where no passed step is on record."""
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

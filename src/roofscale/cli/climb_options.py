"""Options of the commands that climb."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from roofscale import compute, invocation
from roofscale.errors import ConfigError
from roofscale.invocation import PHASES
from roofscale.phases.phase_file import Phase, load_phase
from roofscale.runners import registry

if TYPE_CHECKING:
    from roofscale.tracking import MlflowProjectRun  # imports MLflow

_COMPUTE = "compute="  # prefix of its override


@dataclass(frozen=True)
class ClimbOptions:
    """Options of a climb, as the user gave them."""

    overrides: Sequence[str]  # KEY=VALUE words for every step; a compute is that of the phases that require no GPU
    experiments: Path  # folder of the phase files and the documents
    runs: Path
    cache: Path  # of generated data
    overlay: Path | None = None
    from_defaults: bool = False  # not from the last good config of the phase before
    fresh: bool = False
    force: bool = False  # continue although a requirement of the phase is not met
    storage: str = ""  # URL of an Optuna storage for the trials of a search; may hold a password, so it is never shown
    runner: str = registry.LOCAL  # on this machine, or as jobs elsewhere
    to_json: bool = False
    gpu_compute: str = ""  # of the phases that require a GPU; empty: as their files say
    project_run: "MlflowProjectRun | None" = None  # the run that `mlflow run` opened
    requested: bool = True  # False for a phase that another one needs first
    skip_complete: bool = False  # skip a phase that is complete at this plan

    def __post_init__(self) -> None:
        name = self.gpu_compute
        if name and not name.startswith(compute.LOCAL) and not compute.get(name).gpu:
            raise ConfigError(
                f"gpu_compute={name} has no GPU, which phase {PHASES[-1]} requires; choose one that has, such as "
                f"{compute.GPU_EXAMPLE}. For the other phases: {invocation.option('compute', name)}."
            )

    def overrides_for(self, phase: Phase) -> list[str]:
        """Return the overrides of a phase, with its own compute."""
        if "gpu" not in phase.requires:
            return list(self.overrides)
        kept = [word for word in self.overrides if not word.startswith(_COMPUTE)]
        return [*kept, f"{_COMPUTE}{self.gpu_compute}"] if self.gpu_compute else kept

    def for_gpu(self, phase: Phase) -> "ClimbOptions":
        """Return the options of this phase alone: a compute with a GPU is that of a phase that requires one."""
        kept = [word for word in self.overrides if not word.startswith(_COMPUTE)]
        named = next((word.removeprefix(_COMPUTE) for word in reversed(self.overrides) if word not in kept), "")
        if "gpu" not in phase.requires or self.gpu_compute or not named or not compute.get(named).gpu:
            return self
        return replace(self, overrides=kept, gpu_compute=named)

    def for_needed_phase(self, phase: Phase) -> "ClimbOptions":
        """Return the options of a phase that another one needs: without the knobs that its own steps set."""
        own = {knob for step in phase.steps for knob in step.set}
        kept = [word for word in self.overrides if word.partition("=")[0].strip() not in own]
        return replace(self, overrides=kept, requested=False)

    def in_climb(self, phase: Phase) -> "ClimbOptions":
        """Return the options of a phase in a climb of all: the GPU phase keeps the sizes that its own steps set."""
        its = self.for_needed_phase(phase) if "gpu" in phase.requires else self
        return replace(its, requested=True, skip_complete=True)

    def require_valid(self, phase: Phase) -> None:
        """Check the overrides of a phase, before anything slow is imported.

        Raises:
            ConfigError: an invalid override, one of a knob that a step sets itself, or an unknown compute.
        """
        for _, config in phase.resolve(overrides=self.overrides_for(phase)):
            compute.get(config.compute)

    def load(self, number: int, file: Path | None = None) -> Phase:
        """Read a phase file."""
        return load_phase(file or self.experiments / f"phase{number}.yaml", self.overlay)

"""What a user orders of the commands that climb."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from roofscale import compute, invocation
from roofscale.cli import run_gate
from roofscale.errors import ConfigError
from roofscale.phases.phase_file import Phase, load_phase
from roofscale.runners import registry
from roofscale.tracking import MlflowProjectRun

PHASES = (1, 2, 3, 4, 5)
_COMPUTE = "compute="  # how an override of it begins


@dataclass(frozen=True)
class ClimbOptions:
    """How a user wants phases to be climbed."""

    overrides: Sequence[str]  # KEY=VALUE words for every step; a compute is that of the phases that require no GPU
    experiments: Path  # folder of the phase files and of what is written up
    runs: Path
    cache: Path  # of generated data
    overlay: Path | None = None
    from_defaults: bool = False  # not from what the phase before has learnt
    fresh: bool = False
    force: bool = False  # go on where a requirement of the phase is not met
    storage: str = ""  # URL of an Optuna storage for the trials of a search; may hold a password, so it is never shown
    runner: str = registry.LOCAL  # on this machine, or as jobs elsewhere
    to_json: bool = False
    gpu_compute: str = ""  # of the phases that require a GPU; empty: as their files say
    around: MlflowProjectRun | None = None  # what `mlflow run` has opened
    asked: bool = True  # whether the user asked for the phase, and not for another that stands on it
    goes_on: bool = False  # past what was climbed before, at this very plan, without climbing it again

    def __post_init__(self) -> None:
        name = self.gpu_compute
        if name and not name.startswith(compute.LOCAL) and not compute.get(name).gpu:
            raise ConfigError(
                f"gpu_compute={name} has no GPU, which phase {PHASES[-1]} requires; choose one that has, such as "
                f"{run_gate.GPU_EXAMPLE}. For the other phases: {invocation.option('compute', name)}."
            )

    def words_for(self, phase: Phase) -> list[str]:
        """The overrides of a phase, with its own compute."""
        if "gpu" not in phase.requires:
            return list(self.overrides)
        kept = [word for word in self.overrides if not word.startswith(_COMPUTE)]
        return [*kept, f"{_COMPUTE}{self.gpu_compute}"] if self.gpu_compute else kept

    def for_gpu(self, phase: Phase) -> "ClimbOptions":
        """The order of this phase alone: where it requires a GPU, a compute that has one is meant for it."""
        kept = [word for word in self.overrides if not word.startswith(_COMPUTE)]
        named = next((word.removeprefix(_COMPUTE) for word in reversed(self.overrides) if word not in kept), "")
        if "gpu" not in phase.requires or self.gpu_compute or not named or not compute.get(named).gpu:
            return self
        return replace(self, overrides=kept, gpu_compute=named)

    def below(self, phase: Phase) -> "ClimbOptions":
        """The order of a phase that another stands on: knobs that its own steps set are left to them."""
        own = {knob for step in phase.steps for knob in step.set}
        kept = [word for word in self.overrides if word.partition("=")[0].strip() not in own]
        return replace(self, overrides=kept, asked=False)

    def in_climb(self, phase: Phase) -> "ClimbOptions":
        """The order of a phase in a climb of all: the one on the GPU keeps the sizes that its own steps set."""
        its = self.below(phase) if "gpu" in phase.requires else self
        return replace(its, asked=True, goes_on=True)

    def load(self, number: int, file: Path | None = None) -> Phase:
        """Read a phase file."""
        return load_phase(file or self.experiments / f"phase{number}.yaml", self.overlay)

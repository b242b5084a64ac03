"""What a ladder asks of one run, and how that run is judged among those before it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from roofscale.config import RunConfig
from roofscale.measurement import Measurement
from roofscale.phases.climb import Retreat, StepResult
from roofscale.phases.criteria import Rung
from roofscale.phases.judge import StepVerdict, judge
from roofscale.phases.phase_file import Step


@dataclass(frozen=True)
class Ask:
    """One config to be measured at a step: the step's own, or one with a remedy."""

    number: int  # place of the step in its phase, from 1
    step: Step
    config: RunConfig
    done: tuple[StepResult, ...]  # the steps before
    retreat: Retreat | None = None
    retreats: int = 0  # how many remedies were tried before this one, itself included

    def judge(self, runs: Sequence[Measurement]) -> StepVerdict:
        """The verdict on a run and its repeats."""
        first, *others = runs
        before, base = (self.done[-1].measurements, self.done[0].measurements) if self.done else ((), ())
        history = [Rung(result.config, result.measurements) for result in self.done]
        return judge(self.step, first, before, base, others, config=self.config, history=history)

    def with_remedy(self, config: RunConfig, retreat: Retreat) -> "Ask":
        """The same step with a remedy; what was expected of the increment asked for says nothing of another."""
        step = replace(self.step, expect=())
        return replace(self, step=step, config=config, retreat=retreat, retreats=self.retreats + 1)

"""Terminal output: a console, progress bars of runs, and JSON for scripts."""

import statistics
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from tqdm import tqdm

from roofscale.measurement import ResourceSample

_LOG_WIDTH = 140  # characters
_PACE_STEPS = 10  # the displayed pace is the mean of the last ones
# In a file or a log each update of a bar is a new line, so bars are updated rarely there.
SECONDS_BETWEEN_LINES = 0.1 if sys.stderr.isatty() else 15.0


def console(quiet: bool = False) -> Console:
    """Return a console on standard output or, with ``quiet``, on standard error if a script reads the output."""
    width = None if (sys.stderr if quiet else sys.stdout).isatty() else _LOG_WIDTH
    return _ConsoleAboveBars(stderr=quiet, width=width, highlight=False)


def plain(out: Console) -> Callable[[str], None]:
    """Return a function that prints a text as it is, without rich's markup."""
    return lambda text: out.print(text, markup=False)


class _ConsoleAboveBars(Console):
    """Prints above the bars that are drawn at the moment, whichever thread draws them."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as ``Console`` does."""
        if not sys.stderr.isatty():  # in a log, bars are plain lines
            super().print(*objects, **options)
            return
        with tqdm.external_write_mode(self.file):
            super().print(*objects, **options)


class ProgressBar:
    """A listener that draws one bar per run: its stage, steps done and their pace, loss and memory."""

    run_id = ""  # it logs to no MLflow run

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: tqdm[None] | None = None
        self._shown: dict[str, str] = {}
        self._seconds: deque[float] = deque(maxlen=_PACE_STEPS)  # of the last steps
        self._epoch = -1

    def event(self, event: Mapping[str, Any]) -> None:
        """Update the bar from an event of the training process."""
        kind = event["event"]
        if kind == "start":
            self._bar = tqdm(
                total=event["steps_planned"],
                desc=self._name,
                unit="step",
                # Without tqdm's own pace and time left, which would count start-up and validation as time of steps.
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}{postfix}]",
                mininterval=SECONDS_BETWEEN_LINES,
                position=None if sys.stderr.isatty() else 0,  # bars of several runs are not stacked in a log
            )
        elif kind == "note":
            tqdm.write(f"{self._name}: {event['text']}", file=sys.stderr)
        elif self._bar is None:
            return
        elif kind == "step":
            self._pace(event)
            self._show(loss=f"{event['loss']:.3f}")
            self._bar.update(event["step"] - self._bar.n)
        elif kind == "stage":
            self._bar.set_description(f"{self._name}: {event['name']}", refresh=sys.stderr.isatty())
        elif kind == "end":
            self._bar.set_description(f"{self._name}: {event['outcome']}")
            self._bar.close()

    def _pace(self, step: Mapping[str, Any]) -> None:
        """Show the mean seconds of the last steps, and the time that the remaining steps will take."""
        assert self._bar is not None
        first, self._epoch = step["epoch"] != self._epoch, step["epoch"]
        if first:  # the first step of an epoch includes the start of the loader
            return
        self._seconds.append(step["seconds"])
        pace = statistics.fmean(self._seconds)
        remaining = tqdm.format_interval(pace * max(0, self._bar.total - step["step"]))
        self._show(pace=f"{pace:.3g} s/step", steps_left=remaining)

    def resources(self, sample: ResourceSample) -> None:
        """Show the memory in use, MiB."""
        used = sample.metrics.get("memory/used_mib")
        if self._bar is not None and used is not None:
            self._show(memory=f"{used:,.0f} MiB")

    def _show(self, **fields: str) -> None:
        assert self._bar is not None
        self._shown |= fields
        self._bar.set_postfix(self._shown, refresh=False)

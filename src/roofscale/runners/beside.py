"""One process beside this one for what needs PyTorch, so that a launcher of jobs need not hold it.

PyTorch and its kin take half a gigabyte, and seconds to import. The process begins with the first work, keeps what it
has imported and traced for the work that follows, and ends when it was idle for a while, or with this one.
"""

import contextlib
import functools
import multiprocessing
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

from roofscale.errors import RoofscaleError

P = ParamSpec("P")
T = TypeVar("T")
_IDLE_SECONDS = 60.0  # what the next step wants is mostly wanted sooner, or else after minutes of a job


def beside(work: Callable[P, T]) -> Callable[P, T]:
    """Have a function's work done by the process beside this one, unless PyTorch is in this one already.

    It is to be at the top of a module that can be imported without PyTorch, with no other decorator around this one;
    what it takes and returns is pickled.

    Raises:
        RoofscaleError: that process was killed, as by a machine whose memory ran out.
        Exception: whatever the work raises.
    """

    @functools.wraps(work)
    def done(*args: P.args, **kwargs: P.kwargs) -> T:
        if "torch" in sys.modules:
            return work(*args, **kwargs)
        found: T = _HELPER.ask(done, *args, **kwargs)
        return found

    return done


def begin(work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Have ``beside`` work done without waiting for it; not at all, where PyTorch is in this process."""

    def do() -> None:
        with contextlib.suppress(RoofscaleError):  # whoever wants what it prepares will be told
            work(*args, **kwargs)

    if "torch" not in sys.modules:
        threading.Thread(target=do, name=f"begin {work.__name__}", daemon=True).start()


class Helper:
    """The process, started when it is needed. Several threads may ask; it does one piece of work at a time.

    Args:
        idle_seconds: after so long without work it ends, and the next work starts another.
    """

    def __init__(self, idle_seconds: float = _IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Connection | None = None

    def ask(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Have it done, and wait for what comes out; raises what ``beside`` says."""
        wanted = pickle.dumps((work, args, kwargs))
        with self._lock:
            went_well, found = self._answer(wanted) or self._answer(wanted) or (False, _killed(work))
        if went_well:
            return found
        raise found

    def close(self) -> None:
        """End the process, whatever it is at."""
        if self._process and self._line:
            self._line.close()
            self._process.kill()
            self._process.wait()
        self._process = self._line = None

    def _answer(self, wanted: bytes) -> tuple[bool, Any] | None:
        """Whether it went well, and what came out; None where the process ended, be it only for want of work before."""
        try:
            line = self._line or self._start()
            line.send_bytes(wanted)
            answer: tuple[bool, Any] = line.recv()
        except (EOFError, OSError):
            self.close()
            return None
        except BaseException:  # Ctrl-C: nobody is to take this answer for another one
            self.close()
            raise
        return answer

    def _start(self) -> Connection:
        self._line, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), str(self._idle_seconds)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # a script reads what this process prints
                start_new_session=True,  # Ctrl-C is this process's to hear
            )
        return self._line


def _killed(work: Callable[..., Any]) -> RoofscaleError:
    return RoofscaleError(
        f"{work.__name__}: the process that was to do it was killed twice; expected about a gigabyte of free memory "
        "beside this command. Make room, and run it again."
    )


_HELPER = Helper()  # of this process


def main(descriptor: str, idle_seconds: str) -> None:
    """Be that process: work off what comes over the line, until it is idle for long, or nobody is at the other end."""
    import torch  # noqa: F401  # so that ``beside`` does its work here

    line = Connection(int(descriptor))
    with contextlib.suppress(EOFError, ConnectionError):  # whoever asked is gone
        while line.poll(float(idle_seconds)):
            work, args, kwargs = line.recv()
            try:
                answer = True, work(*args, **kwargs)
            except Exception as error:  # theirs, who asked
                answer = False, error
            line.send(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])

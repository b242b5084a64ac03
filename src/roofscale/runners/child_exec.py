"""Prepares the process that it is run in, then becomes the run: ``python launch.py PARENT CGROUP CORES COMMAND...``.

A file to be executed by its path, on the standard library alone, so that it costs milliseconds. Doing the same between
fork and exec (``preexec_fn``) would run Python in a copy of a process with threads, which may deadlock.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(parent: str, group: str, cores: str, *command: str) -> None:
    """Die with the parent, enter the cgroup folder ``group`` (empty: none), keep to ``cores``, become ``command``.

    An empty ``parent``: whichever it is.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # outlives exec; a killed parent leaves no orphan
        if parent and os.getppid() != int(parent):  # it died before the line above
            sys.exit("the process that started this run is gone")
        allowed = sorted(os.sched_getaffinity(0))
        if int(cores) < len(allowed):
            os.sched_setaffinity(0, allowed[: int(cores)])
    if group:
        with open(os.path.join(group, "cgroup.procs"), "w", encoding="ascii") as stream:
            stream.write(str(os.getpid()))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])

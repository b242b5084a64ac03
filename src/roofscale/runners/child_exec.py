"""Child process set-up, then exec of the command: ``python child_exec.py PARENT CGROUP CORES COMMAND...``.

The file is executed by its path and imports only the standard library, so it takes milliseconds. ``preexec_fn`` of
``subprocess`` would instead run Python in a fork of a process with threads, which may deadlock.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(parent: str, group: str, cores: str, *command: str) -> None:
    """Tie this process to its parent, cgroup and cores, then replace it by ``command``.

    Args:
        parent: process id of the parent, to exit if it has died already; empty: not checked. On Linux the kernel kills
            this process when its parent dies.
        group: folder of the cgroup to join; empty: none.
        cores: number of CPU cores, of those that this process may use already (Linux only).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # kept over exec: a killed parent leaves no orphan
        if parent and os.getppid() != int(parent):  # the parent died before the line above
            sys.exit("the process that started this run has ended")
        allowed = sorted(os.sched_getaffinity(0))
        if int(cores) < len(allowed):
            os.sched_setaffinity(0, allowed[: int(cores)])
    if group:
        with open(os.path.join(group, "cgroup.procs"), "w", encoding="ascii") as stream:
            stream.write(str(os.getpid()))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])

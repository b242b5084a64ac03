"""What choosing a runner does to the process that launches."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

MANY_THREADS = """
import ctypes, sys, threading
from roofscale.runners import choose

if sys.argv[2] == "shared":
    choose._share_arenas()
together = threading.Barrier(8)
def hold():
    held = bytes(100_000)
    together.wait()
threads = [threading.Thread(target=hold) for _ in range(8)]
for one in threads: one.start()
for one in threads: one.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="not glibc's malloc")
def test_threads_of_a_launcher_share_arenas(tmp_path: Path) -> None:
    counts = []
    for how in ("shared", "apart"):
        subprocess.run([sys.executable, "-c", MANY_THREADS, str(tmp_path / how), how], check=True, timeout=120)
        counts.append((tmp_path / how).read_text().count("<heap nr="))
    assert counts[0] <= 2 < counts[1]

"""The settings of the C library's allocator, which decide how much freed memory a process keeps."""

import os
import sys
from collections.abc import Mapping

# Keep freed memory for the next step. glibc maps each block of 32 MiB and more by itself and unmaps it on free, so that
# each step pays for the first touch of its large tensors again (docs/decisions/0021 has times and peaks of both).
# A high MALLOC_MMAP_THRESHOLD_ would do the same here, but older versions of glibc refuse one above 32 MiB, and then
# map every block from 128 KiB.
_KEEP_FREED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30)}


def training_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables to add to the environment of a training process, so that it keeps freed memory.

    Empty if the user has allocator settings of their own, and on systems other than Linux.
    """
    return {} if sys.platform != "linux" or allocator_settings(environ) else dict(_KEEP_FREED)


def training_settings(environ: Mapping[str, str] = os.environ) -> str:
    """Return the ``allocator_settings`` of a training process that is started under ``environ``."""
    return allocator_settings({**environ, **training_environment(environ)})


def allocator_settings(environ: Mapping[str, str] = os.environ) -> str:
    """Return the allocator's environment variables as sorted ``NAME=VALUE`` words; empty if it has its defaults.

    Those of glibc and jemalloc (``MALLOC_...``, ``GLIBC_TUNABLES``), and ``LD_PRELOAD`` if it loads another allocator.
    """
    return " ".join(
        f"{name}={value}" for name, value in sorted(environ.items()) if value and _is_allocator_setting(name, value)
    )


def _is_allocator_setting(name: str, value: str) -> bool:
    return name.startswith("MALLOC_") or (name in ("GLIBC_TUNABLES", "LD_PRELOAD") and "malloc" in value)


DEFAULT_SETTINGS = allocator_settings(_KEEP_FREED)  # of a training process on Linux, a job among them

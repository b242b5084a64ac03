"""Which settings of the C library's allocator are in force: they decide what a process holds beyond what it uses."""

import os
from collections.abc import Mapping


def allocator_settings(environ: Mapping[str, str] = os.environ) -> str:
    """The environment's own settings as ``NAME=VALUE`` words in order; empty where the allocator is as it comes.

    Those of glibc and jemalloc (``MALLOC_...``, ``GLIBC_TUNABLES``), and another allocator that is loaded first.
    """
    return " ".join(f"{name}={value}" for name, value in sorted(environ.items()) if value and _concerns(name, value))


def _concerns(name: str, value: str) -> bool:
    return name.startswith("MALLOC_") or (name in ("GLIBC_TUNABLES", "LD_PRELOAD") and "malloc" in value)

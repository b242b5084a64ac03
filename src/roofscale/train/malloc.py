"""The settings of the C library's allocator, which decide how much freed memory a process keeps."""

import os
from collections.abc import Mapping


def allocator_settings(environ: Mapping[str, str] = os.environ) -> str:
    """Return the allocator's environment variables as sorted ``NAME=VALUE`` words; empty if it has its defaults.

    Those of glibc and jemalloc (``MALLOC_...``, ``GLIBC_TUNABLES``), and ``LD_PRELOAD`` if it loads another allocator.
    """
    return " ".join(
        f"{name}={value}" for name, value in sorted(environ.items()) if value and _is_allocator_setting(name, value)
    )


def _is_allocator_setting(name: str, value: str) -> bool:
    return name.startswith("MALLOC_") or (name in ("GLIBC_TUNABLES", "LD_PRELOAD") and "malloc" in value)

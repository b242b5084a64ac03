"""Which settings of the allocator are in force, and which a training process gets."""

import sys

import pytest

from roofscale.train.malloc import DEFAULT_SETTINGS, allocator_settings, training_environment, training_settings

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the settings are glibc's")


def test_only_what_concerns_the_allocator_is_named_in_order() -> None:
    environ = {"MALLOC_TRIM_THRESHOLD_": "0", "HOME": "/home/malloc", "MALLOC_ARENA_MAX": "2", "MALLOC_CHECK_": ""}
    assert allocator_settings(environ) == "MALLOC_ARENA_MAX=2 MALLOC_TRIM_THRESHOLD_=0"


def test_an_allocator_that_is_loaded_first_counts_and_other_libraries_do_not() -> None:
    assert allocator_settings({"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"}) == "LD_PRELOAD=/usr/lib/libjemalloc.so.2"
    assert (
        allocator_settings({"LD_PRELOAD": "/usr/lib/libfaketime.so.1", "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2"})
        == ""
    )
    assert (
        allocator_settings({"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}) == "GLIBC_TUNABLES=glibc.malloc.arena_max=1"
    )


@LINUX
def test_a_training_process_keeps_freed_memory() -> None:
    assert training_environment({"HOME": "/home/malloc"})["MALLOC_MMAP_MAX_"] == "0"
    assert training_settings({"HOME": "/home/malloc"}) == DEFAULT_SETTINGS


@pytest.mark.parametrize(
    "chosen", [{"MALLOC_ARENA_MAX": "2"}, {"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"}, {"MALLOC_MMAP_MAX_": "65536"}]
)
def test_settings_of_the_users_win(chosen: dict[str, str]) -> None:
    assert training_environment(chosen) == {}
    assert training_settings(chosen) == allocator_settings(chosen)


@LINUX
def test_its_settings_are_not_passed_on_twice() -> None:
    """A launcher that was itself started by a training process's launcher, such as in a job, has them already."""
    environ = training_environment({})
    assert training_settings(environ) == DEFAULT_SETTINGS

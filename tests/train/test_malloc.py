"""Which settings of the allocator are in force."""

from roofscale.train.malloc import allocator_settings


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

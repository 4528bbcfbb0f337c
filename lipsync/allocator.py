"""What a process that makes videos asks of the system's memory allocator; for the place where a process starts."""

from __future__ import annotations

import ctypes

LARGE_BLOCK_BYTES = 1_000_000
"""A 720p frame's luma is a little less, a 1080p frame's twice as much."""
_M_MMAP_THRESHOLD = -3  # from glibc's malloc.h


def return_large_blocks() -> bool:
    """Have large blocks given back to the system as soon as they are freed; False where the allocator is not glibc's.

    glibc starts so, but the first freed frame teaches it to keep such blocks in its heaps, one or more for each
    thread, whose free space other threads cannot use and the system does not get back. The setting is the whole
    process's, so no part of the library makes it; the command line does, and a service may say the same with
    ``MALLOC_MMAP_THRESHOLD_=1000000`` in its environment (docs/decisions/large-blocks-go-back.md).
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return False
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES))

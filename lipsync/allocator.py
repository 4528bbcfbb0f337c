"""What a process that makes videos asks of the system's memory allocator; for the place where a process starts."""

from __future__ import annotations

import ctypes
import threading
import time

LARGE_BLOCK_BYTES = 1_000_000
"""A 720p frame's luma is a little less, a 1080p frame's twice as much."""
TRIM_EVERY_S = 2.0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_MOST_IN_A_HEAP = 32 << 20
"""The largest block that glibc keeps in a heap at all: 8K frames are larger, the generator's maps are not."""


def trim_regularly(every_s: float = TRIM_EVERY_S) -> bool:
    """Have freed memory given back to the system every few seconds; False where the allocator is not glibc's.

    For a process that draws frames on its CPU: for every batch the generator allocates and frees some hundred
    megabytes, which the system would have to clear again each time. Frames that were freed lie in the heaps for
    ``every_s`` at most, so a long clip needs little more memory than a short one (docs/decisions/freed-memory.md).
    The setting is the whole process's and lasts, as does the thread that trims; so no part of the library makes it.
    """
    libc = _glibc()
    if libc is None:
        return False
    libc.mallopt(_M_MMAP_THRESHOLD, _MOST_IN_A_HEAP)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)

    def trim() -> None:
        while True:
            time.sleep(every_s)
            libc.malloc_trim(0)

    threading.Thread(target=trim, name="malloc-trim", daemon=True).start()
    return True


def return_large_blocks() -> bool:
    """Have large blocks given back to the system as soon as they are freed; False where the allocator is not glibc's.

    For a process that holds frames and draws none. glibc starts so, but the first freed frame teaches it to keep such
    blocks in its heaps, one or more for each thread, whose free space other threads cannot use and the system does not
    get back. The setting is the whole process's, so no part of the library makes it.
    """
    libc = _glibc()
    return libc is not None and bool(libc.mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES))


def _glibc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libc.so.6")
    except OSError:
        return None

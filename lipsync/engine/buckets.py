"""Buckets: the few batch shapes that the network ever runs at."""

from __future__ import annotations

from collections.abc import Sequence

from lipsync.errors import InvalidOption

_CUDA_BUCKETS = (16, 64, 128, 256, 512)
_CPU_BUCKETS = (8,)
_DEFAULT_BATCH = {"cuda": 512, "cpu": 8}
"""On a CPU larger batches gain nothing (4 to 32 frames cost the same within 8 %), and 8 divides a segment's lengths,
so that the network always runs at one shape there and a cut never shows, not even in the last bit."""


def choose_buckets(
    device_type: str, *, batch_size: int | None, buckets: Sequence[int] | None
) -> tuple[int, tuple[int, ...]]:
    """The batch size and the ascending buckets, of which it is the last. Raises InvalidOption."""
    size = batch_size if batch_size is not None else max(buckets or (_DEFAULT_BATCH[device_type],))
    if not 1 <= size <= 65_536:
        raise InvalidOption(f"batch_size must be between 1 and 65536 frames, not {size}.")
    usual = _CUDA_BUCKETS if device_type == "cuda" else _CPU_BUCKETS
    wanted = set(usual if buckets is None else buckets)
    if buckets is not None and not all(1 <= bucket <= size for bucket in wanted):
        raise InvalidOption(f"buckets must lie between 1 and the batch size {size}, not {list(buckets)}.")
    return size, tuple(sorted({bucket for bucket in wanted if bucket < size} | {size}))


def bucket_for(count: int, buckets: Sequence[int], *, ceiling: int) -> int:
    """The smallest shape that holds ``count`` ≤ ``ceiling`` frames; ``ceiling`` is a shape of its own."""
    return next((bucket for bucket in buckets if count <= bucket <= ceiling), ceiling)

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


def next_batch(waiting: int, buckets: Sequence[int], *, ceiling: int) -> tuple[int, int]:
    """How many of the waiting frames to draw next, and the shape to pad them to; ``ceiling`` is a shape of its own.

    A tail is padded up, unless more than half of the shape would be padding and a smaller one can be filled.
    """
    shapes = [bucket for bucket in buckets if bucket < ceiling] + [ceiling]
    above = next((shape for shape in shapes if shape >= waiting), ceiling)
    below = max((shape for shape in shapes if shape <= waiting), default=0)
    if below and (waiting >= ceiling or above > 2 * waiting):
        return below, below
    return waiting, above

"""What is kept of face inputs between requests: where their faces are, and the pictures of stills."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import replace

from lipsync.cache import LruCache
from lipsync.faces.chunk import ChunkDetections
from lipsync.media.decode import StillCell
from lipsync.options import Limits
from lipsync.render import FaceInput

_ANCHOR_BYTES = 200
_FACE_BYTES = 800
"""What CPython takes for a frame that was looked at, and for a face in it with its landmarks."""


class KeptDetections:
    """What was seen in the ``entries`` face inputs used last, all chunks of one kept and dropped together.

    ``key`` is a face input's content and how it was looked at. Thread-safe.
    """

    def __init__(self, entries: int, *, most_bytes: float, ttl_s: float = math.inf) -> None:
        self._inputs: LruCache[dict[range, ChunkDetections]] = LruCache(entries, capacity_bytes=most_bytes, ttl_s=ttl_s)
        self._lock = threading.Lock()

    def get(self, key: Hashable, chunk: range) -> ChunkDetections | None:
        known = self._inputs.get(key)
        return None if known is None else known.get(chunk)

    def put(self, key: Hashable, chunk: range, found: ChunkDetections) -> None:
        with self._lock:  # several threads look at one input
            # a new one each time: another thread may be reading the old one
            known = (self._inputs.get(key) or {}) | {chunk: found}
            self._inputs.put(key, known, byte_count=sum(map(_byte_count, known.values())))

    def expire(self) -> None:
        self._inputs.expire()


def _byte_count(found: ChunkDetections) -> int:
    return sum(_ANCHOR_BYTES + _FACE_BYTES * len(faces) for faces in found.anchors.values())


class KeptStills:
    """The decoded pictures of the still faces used last, so that one is decoded once for all its segments and requests.
    One that is dropped lives as long as the segments that use it. Thread-safe."""

    def __init__(
        self,
        entries: int,
        *,
        most_bytes: float,
        ttl_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cells: LruCache[StillCell] = LruCache(entries, capacity_bytes=most_bytes, ttl_s=ttl_s, clock=clock)

    def with_picture(self, face: FaceInput, limits: Limits) -> FaceInput:
        """The face input with the place of the picture that is kept; its own is kept where there is none."""
        if not face.is_image:
            return face
        key = (face.blob.content_hash, limits)
        cell = self._cells.get(key)
        if cell is None:
            cell = face.still
            self._cells.put(key, cell, byte_count=face.width * face.height * 3 // 2)
        return replace(face, still=cell)

    def expire(self) -> None:
        self._cells.expire()

"""How a streamed result says that it is whole, or why it ended: the last box of the stream, which players skip.

Once the first bytes of an HTTP answer are out, its status can no longer tell a failure. So the last thing in a
streamed mp4 is a top-level ``uuid`` box of ours (ISO/IEC 14496-12, 4.2) that holds JSON. A stream without it is broken.
"""

from __future__ import annotations

import json
import math
import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lipsync.errors import LipsyncError, StreamBroken, named
from lipsync.options import parse_fps

KIND = uuid.UUID("0c9e1f0a-6b7d-5e4b-9d53-6c697073796e").bytes
"""The 16 bytes that tell our box from other ``uuid`` boxes."""
LARGEST_BOX = 65_536
"""Bytes, header included."""
LONGEST_DETAIL = 4_000
"""Characters of an error's detail that are sent; in JSON each takes at most 12 bytes."""
_HEADER = struct.Struct(">I4s")


@dataclass(frozen=True, slots=True)
class Complete:
    """What a whole result says of itself. ``timings_ms`` has the milliseconds spent by stage."""

    frames: int
    fps: Fraction
    timings_ms: Mapping[str, float]


def complete(*, frames: int, fps: Fraction, timings_ms: Mapping[str, float]) -> bytes:
    """The box that ends a whole stream."""
    rounded = {stage: round(spent_ms, 3) for stage, spent_ms in timings_ms.items()}
    rate = f"{fps.numerator}/{fps.denominator}"
    return _box({"status": "complete", "frames": frames, "fps": rate, "timings_ms": rounded})


def failed(error: LipsyncError, *, request_id: str) -> bytes:
    """The box that ends a stream which cannot go on; a long ``detail`` is cut."""
    detail = error.detail[:LONGEST_DETAIL]
    return _box({"status": "failed", "error": error.slug, "detail": detail, "request_id": request_id[:200]})


class EndingReader:
    """Takes a stream in any pieces, hands its media on at once, and keeps what the last box says.

    Held back are only bytes that may belong to an ending: a box's first 8, a ``uuid`` box's first 24, a box of ours.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._passing: float = 0  # bytes of the present box still to be passed on
        self._ending: dict[str, Any] | None = None

    def feed(self, data: bytes) -> bytes:
        """The media bytes that are certain now. Raises StreamBroken where this is no mp4, or too large an ending."""
        self._held += data
        media = bytearray()
        while self._held:
            if self._ending is not None:
                raise StreamBroken("The stream goes on after its own ending. Send the request again.")
            if not self._passing and not self._begin_box():
                break
            count = int(min(self._passing, len(self._held)))
            media += self._held[:count]
            del self._held[:count]
            self._passing -= count
        return bytes(media)

    def finish(self) -> Complete:
        """Call at the stream's end: what the whole result says of itself.

        Raises the error that a failed one names, StreamBroken where the stream does not say how it ended.
        """
        ending = self._ending
        if ending is None:
            raise StreamBroken("The stream broke off: it has no ending. Send the request again.")
        if ending.get("status") == "failed":
            raise named(str(ending.get("error", "")), str(ending.get("detail") or "The request failed."))
        try:
            if ending["status"] != "complete":
                raise ValueError("unknown status")
            timings_ms = {str(stage): float(spent_ms) for stage, spent_ms in ending["timings_ms"].items()}
            return Complete(int(ending["frames"]), parse_fps(ending["fps"]), timings_ms)
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise _unknown(error) from error

    def _begin_box(self) -> bool:
        """Decide what the held bytes begin with; False while there are too few to tell."""
        if len(self._held) < 8:
            return False
        size, name = _HEADER.unpack_from(self._held)
        if size == 1:  # the true size is in the next 8 bytes; an ending never has that
            if len(self._held) < 16:
                return False
            size = max(int.from_bytes(self._held[8:16]), 1)
        elif name == b"uuid" and size >= 24:
            if len(self._held) < 24:
                return False
            if self._held[8:24] == KIND:
                return self._take_ending(size)
        self._passing = size if size else math.inf  # 0: the box lasts to the stream's end
        if self._passing < 8:
            raise StreamBroken("The stream is no mp4: a box says that it is shorter than its header.")
        return True

    def _take_ending(self, size: int) -> bool:
        if size > LARGEST_BOX:
            raise StreamBroken(f"The stream's ending says that it has {size} bytes; {LARGEST_BOX} is the most.")
        if len(self._held) < size:
            return False
        try:
            ending = json.loads(self._held[24:size])
        except (ValueError, RecursionError) as error:
            raise _unknown(error) from error
        if not isinstance(ending, dict):
            raise _unknown(TypeError("not an object"))
        del self._held[:size]
        self._ending = ending
        return True


def _box(body: dict[str, Any]) -> bytes:
    data = json.dumps(body, separators=(",", ":")).encode()
    box = _HEADER.pack(24 + len(data), b"uuid") + KIND + data
    assert len(box) <= LARGEST_BOX, "stages are few and details are cut"
    return box


def _unknown(error: Exception) -> StreamBroken:
    return StreamBroken(f"The stream's ending is none that this version knows ({error!r}). Update the client.")

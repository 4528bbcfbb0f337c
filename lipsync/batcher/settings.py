"""What a batcher can be told, and what it tells of itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipsync.errors import InvalidOption


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherSettings:
    """What may be changed while frames are being drawn. Raises InvalidOption."""

    linger_s: float = 0.0
    """How long a free device waits for a batch to fill; never while the frames of a first share are waiting."""
    first_share_frames: int = 64
    """A request's leading frames, which go before other requests' later ones."""
    queued_frames: int = 16_384
    """Most frames that wait for a batch; callers beyond that wait for room. A call larger than this goes in alone."""
    turn_frames: int = 128
    """Most frames of one request between the turns of others."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.linger_s) and self.linger_s >= 0):
            raise InvalidOption(f"linger_s must be 0 or more seconds, not {self.linger_s}.")
        for name, least in (("first_share_frames", 0), ("queued_frames", 1), ("turn_frames", 1)):
            if getattr(self, name) < least:
                raise InvalidOption(f"{name} must be at least {least}, not {getattr(self, name)}.")


@dataclass(slots=True)
class BatcherCounts:
    """What a batcher holds now, and what it has done so far."""

    queued_frames: int = 0
    held_frames: int = 0
    """Frames of callers that wait for room in the queue."""
    calls: int = 0
    batches: int = 0
    frames: int = 0
    """Frames that went to the device, those that were drawn once more alone counted once."""
    requests: int = 0
    """Requests that had frames in a batch, summed over the batches."""
    waited_s: float = 0.0
    """From a call to the start of the batch, for each call with frames in it, summed over the batches."""
    drawing_s: float = 0.0
    retried: int = 0
    """Calls whose frames were drawn once more alone, because the batch that held them failed."""
    failed: int = 0
    """Calls that ended with an error."""
    cancelled_frames: int = 0
    """Frames that nobody waited for any more, dropped before they were drawn."""

    @property
    def frames_per_batch(self) -> float:
        return self.frames / self.batches if self.batches else 0.0

    @property
    def requests_per_batch(self) -> float:
        return self.requests / self.batches if self.batches else 0.0


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One batch that was drawn."""

    frames: int
    room: int
    """How many frames would have been best."""
    requests: int
    waited_s: tuple[float, ...]
    """From a call to the batch's start, for each call with frames in it."""
    drawing_s: float
    retried: int
    failed: int

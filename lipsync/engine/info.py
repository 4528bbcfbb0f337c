"""What an engine says of itself: how it computes, and what it has done so far."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from lipsync.options import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Techniques:
    """What makes the network quick besides its number format and ``compile``; each can be left out to measure it."""

    folded: bool = True
    """BatchNorm folded into the convolution before it."""
    channels_last: bool = True
    packed: bool = True
    """On a CPU that has them, oneDNN's own order of the weights, and the ReLU inside its convolutions; folded and
    channels_last networks only."""
    graphs: bool = True
    """On CUDA each bucket is one recorded graph, launched as a whole."""
    in_flight: int = 2
    """Batches of one call that are under way at once on CUDA, so that one's copies hide behind the other's arithmetic;
    with 1 the device waits for each copy."""


PLAIN = Techniques(folded=False, channels_last=False, packed=False, graphs=False, in_flight=1)
"""The network as published."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is: its device and how it computes there."""

    device: str
    device_name: str
    precision: Precision
    """What frames are drawn in first; a safer one once the engine has switched over."""
    batch_size: int
    buckets: tuple[int, ...]
    compiled: bool
    exact: bool
    """Plain layers in NCHW, without TF32 or kernel search."""
    parameters: int
    torch_version: str
    techniques: Techniques = Techniques()
    memory_fraction: float | None = None
    """The most of the device's memory that this process may take; None: all that is free."""


@dataclass(frozen=True, slots=True)
class EngineCounts:
    """What an engine has done so far. ``batch_ceiling`` is the batch that the device's memory was found to hold."""

    frames: int = 0
    batches: int = 0
    padding: int = 0
    out_of_memory: int = 0
    redone: int = 0
    """Frames drawn again because they came out as NaN or infinite; once for each safer format tried."""
    rescued_calls: int = 0
    """Calls all of whose frames came out finite after that."""
    batch_ceiling: int = 0


class Tally:
    """Counts that several threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts = EngineCounts()

    def add(
        self,
        *,
        frames: int = 0,
        batches: int = 0,
        padding: int = 0,
        out_of_memory: int = 0,
        redone: int = 0,
        rescued_calls: int = 0,
    ) -> None:
        with self._lock:
            now = self.counts
            self.counts = replace(
                now,
                frames=now.frames + frames,
                batches=now.batches + batches,
                padding=now.padding + padding,
                out_of_memory=now.out_of_memory + out_of_memory,
                redone=now.redone + redone,
                rescued_calls=now.rescued_calls + rescued_calls,
            )

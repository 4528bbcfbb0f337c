"""What runs a batch: the seam between the engine, which decides, and a kind of device, which computes and copies."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lipsync.core import U8, Bool
from lipsync.engine.frames import Frames
from lipsync.engine.step import blank_batch, gather_windows

Run = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""crops (n, 96, 96, 3) uint8 and windows (n, 1, 80, 16) float32 → patches like crops, and (n,) whether finite."""


class Pending(Protocol):
    """A batch under way."""

    def collect(self) -> tuple[U8, Bool]:
        """Patches (n, 96, 96, 3), and whether each is finite (n,), once they are there. Raises what the device did."""
        ...


class Runner(Protocol):
    """One kind of device. ``stage`` and ``collect`` may be called beside the others, which come one at a time."""

    @property
    def in_flight(self) -> int:
        """Batches of one call that may be under way before the first has to be collected."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Memory of the host for what will travel to the device."""
        ...

    def stage(self, frames: Frames) -> Frames:
        """Packed frames on their way to the device; may return before they are there."""
        ...

    def prepare(self, run: Run, bucket: int, *, rehearse: bool) -> Run:
        """The same computation, ready for batches of exactly this many frames; ``rehearse``: it must be run to be."""
        ...

    def begin(self, frames: Frames, bucket: int, run: Run) -> Pending:
        """Start on packed frames, padded to the bucket by repeating the last."""
        ...

    def release(self, runs: MutableMapping[Any, Run]) -> None:
        """Give back the memory kept for later, and these runs with what they hold, after something did not fit."""
        ...


class CpuRunner:
    """Computes at once, on the caller's thread."""

    in_flight = 1

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        return np.empty(shape, dtype)

    def stage(self, frames: Frames) -> Frames:
        return frames

    def prepare(self, run: Run, bucket: int, *, rehearse: bool) -> Run:
        if rehearse:
            run(*blank_batch(bucket, torch.device("cpu")))
        return run

    def begin(self, frames: Frames, bucket: int, run: Run) -> Pending:
        batch = frames.padded(bucket)
        crops, mel = torch.from_numpy(batch.crops), torch.from_numpy(batch.mel)
        index, starts = torch.from_numpy(batch.crop_index), torch.from_numpy(batch.mel_starts)
        patches, finite = run(crops[index], gather_windows(mel, starts))
        return Done(patches[: len(frames)].numpy(), finite[: len(frames)].numpy())

    def release(self, runs: MutableMapping[Any, Run]) -> None:
        runs.clear()


class Done:
    """A batch that is there."""

    def __init__(self, patches: U8, finite: Bool) -> None:
        self._outcome = patches, finite

    def collect(self) -> tuple[U8, Bool]:
        return self._outcome

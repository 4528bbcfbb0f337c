"""A CUDA device: three streams, so that copies hide behind arithmetic, and one recorded graph per bucket."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lipsync.core import U8, Bool
from lipsync.engine.frames import Frames
from lipsync.engine.info import Techniques
from lipsync.engine.runner import Pending, Run
from lipsync.engine.step import blank_batch, gather_windows

REHEARSALS = 3
"""Runs before a graph is recorded: kernels are chosen and compiled then, which recording does not allow."""


@dataclass(frozen=True, slots=True)
class OnDevice:
    """Crops and mel on the device, there once ``ready`` has passed."""

    crops: Tensor  # (C, 96, 96, 3) uint8
    mel: Tensor  # (80, T) float32
    ready: torch.cuda.Event


class CudaRunner:
    """Copies in on one stream, computes on another, copies out on a third; events keep the order.

    With ``in_flight`` 1 there is one stream and pageable memory: the way without overlap, kept to be measured.
    """

    def __init__(self, device: torch.device, techniques: Techniques) -> None:
        self._device = device
        self._graphs = techniques.graphs
        self.in_flight = techniques.in_flight
        with torch.cuda.device(device):
            self._compute = _stream()
            self._inward = _stream() if self.in_flight > 1 else self._compute
            self._outward = _stream() if self.in_flight > 1 else self._compute
            self._pool = torch.cuda.graph_pool_handle() if self._graphs else None
        self._under_way: list[Copied] = []

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Pinned: only such memory is copied while the device computes. torch keeps it for the next batch."""
        return self._host(shape, torch.from_numpy(np.empty(0, dtype)).dtype).numpy()

    def _host(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self.in_flight > 1)

    def stage(self, frames: Frames) -> Frames:
        with torch.inference_mode(), torch.cuda.device(self._device), torch.cuda.stream(self._inward):
            crops, mel = self._copy_in(frames.crops), self._copy_in(frames.mel)
            return replace(frames, on_device=OnDevice(crops, mel, self._inward.record_event()))

    def _copy_in(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def prepare(self, run: Run, bucket: int, *, rehearse: bool) -> Run:
        with torch.inference_mode(), torch.cuda.device(self._device):
            # WHY: weights are laid out on the caller's stream, which no other stream waits for by itself
            self._compute.wait_stream(torch.cuda.current_stream())
            if not (self._graphs or rehearse):
                return run
            with torch.cuda.stream(self._compute):
                blank = blank_batch(bucket, self._device)
                for _ in range(REHEARSALS if self._graphs else 1):
                    run(*blank)
                self._compute.synchronize()
                return Graph(run, blank, stream=self._compute, pool=self._pool) if self._graphs else run

    def begin(self, frames: Frames, bucket: int, run: Run) -> Pending:
        batch = frames if frames.on_device is not None else self.stage(frames)
        given = batch.on_device
        assert given is not None
        index, starts = self._indexes(batch.padded(bucket))
        self._under_way = [one for one in self._under_way if not one.has_arrived()]
        with torch.inference_mode(), torch.cuda.device(self._device):
            with torch.cuda.stream(self._compute):
                self._compute.wait_event(given.ready)
                index_there, starts_there = self._copy_in(index), self._copy_in(starts)
                patches, finite = run(given.crops.index_select(0, index_there), gather_windows(given.mel, starts_there))
                computed = self._compute.record_event()
            with torch.cuda.stream(self._outward):
                self._outward.wait_event(computed)
                answer = self._copy_out(patches), self._copy_out(finite)
                arrived = self._outward.record_event(_event())
            self._under_way.append(Copied(len(frames), *answer, arrived, (batch, index, starts, patches, finite)))
            return self._under_way[-1]

    def _indexes(self, padded: Frames) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        index, starts = (self.empty(one.shape, one.dtype) for one in (padded.crop_index, padded.mel_starts))
        index[:], starts[:] = padded.crop_index, padded.mel_starts
        return index, starts

    def _copy_out(self, made: Tensor) -> Tensor:
        there = self._host(tuple(made.shape), made.dtype)
        return there.copy_(made, non_blocking=True)

    def release(self, runs: MutableMapping[Any, Run]) -> None:
        with torch.cuda.device(self._device):
            for stream in (self._inward, self._compute, self._outward):
                stream.synchronize()
            self._under_way.clear()
            runs.clear()  # a pool lives as long as any graph that was recorded into it
            self._pool = torch.cuda.graph_pool_handle() if self._graphs else None
            torch.cuda.empty_cache()


def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # else waiting takes a whole core


class Graph:
    """One computation at one shape, recorded once and launched as a whole; its answers are copies."""

    def __init__(self, run: Run, blank: tuple[Tensor, Tensor], *, stream: torch.cuda.Stream, pool: Any) -> None:
        self._crops, self._windows = blank
        self._run = run  # WHY: its weights' addresses are in the recording, which does not keep them
        self._graph = torch.cuda.CUDAGraph()
        # WHY: thread_local, because other threads go on allocating while a bucket is recorded late
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._patches, self._finite = run(*blank)

    def __call__(self, crops: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
        self._crops.copy_(crops)
        self._windows.copy_(windows)
        self._graph.replay()
        return self._patches.clone(), self._finite.clone()


class Copied:
    """A batch under way: its answer lies in the host's memory once the event has passed.

    What the streams read is kept until then, also where nobody collects it. Telling the allocator of the streams
    instead (``record_stream``) would end the process where the device is poisoned: it asks the device on freeing.
    """

    def __init__(
        self, count: int, patches: Tensor, finite: Tensor, arrived: torch.cuda.Event, read_from: tuple[Any, ...]
    ) -> None:
        self._count, self._patches, self._finite, self._arrived = count, patches, finite, arrived
        self._read_from = read_from

    def has_arrived(self) -> bool:
        return bool(self._arrived.query())  # type: ignore[no-untyped-call]

    def collect(self) -> tuple[U8, Bool]:
        self._arrived.synchronize()
        self._read_from = ()  # nobody's face is to stay here until the next batch
        return self._patches[: self._count].numpy(), self._finite[: self._count].numpy()

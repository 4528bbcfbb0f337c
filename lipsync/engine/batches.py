"""Frames in batches that fit: buckets, several batches under way, memory that runs out, and a device that fails."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import numpy as np
import torch

from lipsync.core import U8, Bool
from lipsync.engine.buckets import next_batch
from lipsync.engine.device import DTYPES, MatmulPrecision, arithmetic, is_out_of_memory
from lipsync.engine.frames import Frames, join
from lipsync.engine.info import EngineInfo, Tally
from lipsync.engine.network import Network, is_compile_failure, while_compiling
from lipsync.engine.runner import Pending, Run, Runner
from lipsync.errors import DeviceOutOfMemory, EngineError
from lipsync.model.wav2lip import FACE_SIDE
from lipsync.options import Precision

T = TypeVar("T")


class Batches:
    """Runs one network on one device. Threads may share it: batches begin one at a time and are collected beside."""

    def __init__(
        self, network: Network, runner: Runner, info: EngineInfo, tally: Tally, *, matmul: MatmulPrecision
    ) -> None:
        self._network, self._runner, self._info, self._tally = network, runner, info, tally
        self._device = torch.device(info.device)
        self._matmul = matmul
        self._lock = threading.Lock()
        self._runs: dict[tuple[Precision, int], Run] = {}
        self._compiled: Run | None = network.compiled(info.precision) if info.compiled else None
        self._ceilings: dict[Precision, int] = dict.fromkeys(DTYPES, info.batch_size)
        self._buckets: dict[Precision, tuple[int, ...]] = dict.fromkeys(DTYPES, info.buckets)
        self.notes: list[str] = []
        self.fault: str | None = None
        self._shortage = ""

    @property
    def is_compiled(self) -> bool:
        """False also where it was asked for and failed."""
        return self._compiled is not None

    def ceiling(self, precision: Precision) -> int:
        """The batch that memory was found to hold."""
        return self._ceilings[precision]

    def note(self, sentence: str) -> None:
        """Say what was changed, and why."""
        self.notes.append(sentence)
        logging.getLogger(__name__).warning("%s: %s", self._info.device, sentence)

    def stage(self, parts: Sequence[Frames]) -> Frames:
        """The parts in a row, on their way to the device if there is room. Raises EngineError."""
        staged = self._attempt(lambda: self._runner.stage(join(parts, empty=self._runner.empty)))
        return join(parts) if staged is None else staged

    def draw(self, frames: Frames, precision: Precision) -> tuple[U8, Bool]:
        """Patches and which of them are finite; a batch that does not fit is halved, and that is remembered.

        Raises DeviceOutOfMemory, EngineError.
        """
        patches: U8 | None = None
        finite: Bool = np.ones(len(frames), np.bool_)
        under_way: deque[tuple[slice, Pending]] = deque()
        done = 0
        while done < len(frames) or under_way:
            if done < len(frames) and len(under_way) < self._runner.in_flight:
                begun = self._begin_next(frames, done, precision)
                if begun is not None:
                    under_way.append((slice(done, done + begun[1]), begun[0]))
                    done += begun[1]
                continue
            part, pending = under_way.popleft()
            drawn, finite[part] = self._collect(pending)
            if len(drawn) == len(frames):
                return drawn, finite  # as it is: copying a large batch would keep the device waiting
            if patches is None:
                patches = np.empty((len(frames), *drawn.shape[1:]), np.uint8)
            patches[part] = drawn
        return patches if patches is not None else np.empty((0, FACE_SIDE, FACE_SIDE, 3), np.uint8), finite

    def _begin_next(self, frames: Frames, done: int, precision: Precision) -> tuple[Pending, int] | None:
        """The next batch and its frames, or None where it did not fit and has to be tried again, smaller."""
        with self._lock:
            waiting, buckets = len(frames) - done, self._buckets[precision]
            count, bucket = next_batch(waiting, buckets, ceiling=self._ceilings[precision])
            batch = frames if count == len(frames) else frames.take(slice(done, done + count))
            pending = self._attempt(lambda: self._begin(batch, bucket, precision))
            if pending is None:
                self._make_room(bucket, precision)
                return None
        self._tally.add(batches=1, padding=bucket - count)
        return pending, count

    def _begin(self, batch: Frames, bucket: int, precision: Precision) -> Pending:
        packed = batch if batch.is_packed else join([batch], empty=self._runner.empty)
        with torch.inference_mode(), self._arithmetic():
            if (precision, bucket) not in self._runs:
                self._runs[precision, bucket] = self._prepare(bucket, precision)
            return self._runner.begin(packed, bucket, self._runs[precision, bucket])

    def _prepare(self, bucket: int, precision: Precision) -> Run:
        if self._compiled is not None and precision == self._info.precision:
            try:
                with while_compiling(self._device):
                    return self._runner.prepare(self._compiled, bucket, rehearse=True)
            except RuntimeError as error:
                if not is_compile_failure(error) or is_out_of_memory(error):
                    raise
                reason = f"{type(error).__name__}: {_first_line(error)}"
            self._compiled = None
            self.note(f"the network runs uncompiled, because torch cannot compile it here ({reason}).")
        return self._runner.prepare(self._network.plain(precision), bucket, rehearse=False)

    def _collect(self, pending: Pending) -> tuple[U8, Bool]:
        collected = self._attempt(pending.collect)
        if collected is None:  # the answer has its memory already: then the device itself is in no order
            raise self._fail(RuntimeError("out of memory while a finished batch was fetched"))
        return collected

    def _attempt(self, work: Callable[[], T]) -> T | None:
        """What ``work`` returns, or None where memory does not suffice. Raises EngineError for any other fault."""
        if self.fault is not None:
            raise EngineError(f"the device failed before ({self.fault}). Start a new process.")
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                self._shortage = f"{type(error).__name__}: {_first_line(error)}"
                return None  # out of the handler first: the error's traceback holds the tensors that fill the memory
            raise self._fail(error) from error

    def _fail(self, error: Exception) -> EngineError:
        self.fault = f"{type(error).__name__}: {_first_line(error)}"
        return EngineError(f"the generator failed on {self._info.device}: {self.fault}. Start a new process.")

    def _make_room(self, bucket: int, precision: Precision) -> None:
        """The bucket did not fit: do without it where a larger one is ready, else halve the batch."""
        self._tally.add(out_of_memory=1)
        ready = {size for used, size in self._runs if used == precision}
        if bucket not in ready and any(size > bucket for size in ready):
            self._buckets[precision] = tuple(size for size in self._buckets[precision] if size != bucket)
            self.note(f"batches of {bucket} in {precision} are padded to the next size: memory does not hold both.")
            return
        self._attempt(lambda: self._runner.release(self._runs))
        if bucket == 1:
            raise DeviceOutOfMemory(
                f"one frame alone does not fit into the memory of {self._info.device} ({self._shortage}). "
                "Free memory there, or use another device."
            )
        self._ceilings[precision] = bucket // 2

    def _arithmetic(self) -> AbstractContextManager[None]:
        return arithmetic(self._matmul, exact=self._info.exact) if self._device.type == "cuda" else nullcontext()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]

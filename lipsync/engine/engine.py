"""The engine: the generator on one device, in batches of a few shapes, with every fault of the device handled."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lipsync.core import F32, I32, U8, Bool
from lipsync.engine.buckets import choose_buckets, next_batch
from lipsync.engine.device import (
    DTYPES,
    SAFER,
    MatmulPrecision,
    arithmetic,
    choose_device,
    choose_precision,
    device_name,
)
from lipsync.engine.frames import SILENCE, Frames, check_frames, join
from lipsync.engine.step import Step, upload
from lipsync.errors import DeviceOutOfMemory, EngineError, InvalidOption, NonFiniteOutput
from lipsync.model.folding import fold
from lipsync.model.wav2lip import FACE_SIDE, MEL_BANDS, MEL_WINDOW, Wav2Lip
from lipsync.options import Precision

_Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is: its device and how it computes there."""

    device: str
    device_name: str
    precision: Precision
    batch_size: int
    buckets: tuple[int, ...]
    compiled: bool
    exact: bool
    """Plain layers in NCHW; otherwise BatchNorm is folded and memory is channels_last."""
    parameters: int
    torch_version: str


@dataclass(frozen=True, slots=True)
class EngineCounts:
    """What an engine has done so far. ``batch_ceiling`` is the batch that the device's memory was found to hold."""

    frames: int = 0
    batches: int = 0
    padding: int = 0
    out_of_memory: int = 0
    redone: int = 0
    """Frames drawn again because they came out as NaN or infinite; once for each safer format tried."""
    batch_ceiling: int = 0


class Engine:
    """Draws frames with one generator on one device. Threads may share it: they take turns, batch by batch.

    ``precision`` auto is fp16 on CUDA and fp32 on a CPU. ``batch_size`` None is 512 on CUDA and 8 on a CPU. Batches
    are padded to the next of ``buckets``, and a frame drawn at the same bucket comes out the same, bit for bit,
    whatever else is in the batch. ``compile`` auto compiles on CUDA only. ``exact`` runs the network as published,
    without folding, channels_last, TF32 or kernel search. ``threads`` sets torch's CPU threads for the whole process.
    Raises DeviceUnavailable, DeviceOutOfMemory and InvalidOption.
    """

    def __init__(
        self,
        model: Wav2Lip,
        *,
        device: str = "auto",
        precision: Precision | Literal["auto"] = "auto",
        batch_size: int | None = None,
        buckets: Sequence[int] | None = None,
        compile: bool | Literal["auto"] = False,
        exact: bool = False,
        float32_matmul_precision: MatmulPrecision = "high",
        threads: int | None = None,
    ) -> None:
        self._device = choose_device(device)
        chosen = choose_precision(precision, self._device, exact=exact)
        size, shapes = choose_buckets(self._device.type, batch_size=batch_size, buckets=buckets)
        compiled = self._device.type == "cuda" and not exact if compile == "auto" else compile
        if exact and compiled:
            raise InvalidOption("exact runs the plain network: use it without compile.")
        if float32_matmul_precision not in get_args(MatmulPrecision):
            raise InvalidOption(f"float32_matmul_precision must be highest or high, not {float32_matmul_precision!r}.")
        if threads is not None:
            _set_threads(threads)
        self._model = copy.deepcopy(model).eval() if exact else fold(model)
        self._matmul = float32_matmul_precision
        self._info = EngineInfo(
            device=str(self._device),
            device_name=device_name(self._device),
            precision=chosen,
            batch_size=size,
            buckets=shapes,
            compiled=compiled,
            exact=exact,
            parameters=sum(p.numel() for p in model.parameters()),
            torch_version=torch.__version__,
        )
        self._lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._steps: dict[Precision, _Step] = {}
        self._ceilings: dict[Precision, int] = dict.fromkeys(DTYPES, size)
        self._counts = EngineCounts(batch_ceiling=size)
        self._fault: str | None = None

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def counts(self) -> EngineCounts:
        return self._counts

    @property
    def healthy(self) -> bool:
        """False once the device failed otherwise than by lack of memory: then only a new process helps."""
        return self._fault is None

    @property
    def batch_size(self) -> int:
        """The batch that serves the device best: the one asked for, or what its memory was found to hold."""
        return self._counts.batch_ceiling

    def generate(self, crops: U8, crop_index: I32, mel: F32, mel_starts: I32) -> U8:
        """Patches (n, 96, 96, 3) uint8 BGR: frame i shows crops[crop_index[i]] and hears mel from column mel_starts[i].

        crops (C, 96, 96, 3) uint8 BGR; crop_index (n,); mel (80, T) float32 in -4..4; mel_starts (n,), where columns
        outside 0..T-1 are silence. Raises InputError, NonFiniteAudio, NonFiniteOutput, DeviceOutOfMemory, EngineError.
        """
        return self.draw(self.check(crops, crop_index, mel, mel_starts))

    def check(self, crops: U8, crop_index: I32, mel: F32, mel_starts: I32) -> Frames:
        """The arguments of ``generate`` as frames to draw. Raises InputError and NonFiniteAudio."""
        return check_frames(crops, crop_index, mel, mel_starts)

    def stage(self, parts: Sequence[Frames]) -> Frames:
        """Several callers' frames as one batch to draw. Copies what they use; may run while another batch is drawn."""
        return join(parts)

    def draw(self, frames: Frames) -> U8:
        """Patches of frames that were checked; see ``generate``. Whose frames they are makes no difference to them.

        Raises NonFiniteOutput, DeviceOutOfMemory, EngineError.
        """
        patches, finite = self._draw(frames, self._info.precision)
        for safer in SAFER[self._info.precision]:
            bad = np.flatnonzero(~finite)
            if not len(bad):
                break
            patches[bad], finite[bad] = self._draw(frames.take(bad), safer)
            self._count(redone=len(bad))
        if not finite.all():
            raise NonFiniteOutput(
                f"{int((~finite).sum())} of {len(frames)} frames came out as NaN or infinite even in fp32, the first "
                f"of them frame {int(np.argmin(finite))}. Check the checkpoint: its weights are out of range."
            )
        self._count(frames=len(frames))
        return patches

    def warm_up(self) -> float:
        """Runs every bucket once, so that the first request is as quick as the next. Returns the seconds it took."""
        start = time.perf_counter()
        crops = np.zeros((1, FACE_SIDE, FACE_SIDE, 3), np.uint8)
        mel = np.full((MEL_BANDS, MEL_WINDOW), SILENCE, np.float32)
        for bucket in self._info.buckets:
            nothing = np.zeros(bucket, np.int64)
            self._draw(Frames(crops, nothing, mel, nothing), self._info.precision)
        return time.perf_counter() - start

    def _draw(self, frames: Frames, precision: Precision) -> tuple[U8, Bool]:
        """Patches and which of them are finite, in batches that fit; a batch that does not fit is halved."""
        patches = np.empty((len(frames), FACE_SIDE, FACE_SIDE, 3), np.uint8)
        finite = np.empty(len(frames), np.bool_)
        done = 0
        while done < len(frames):
            with self._lock:
                ceiling = self._ceilings[precision]
                count, bucket = next_batch(len(frames) - done, self._info.buckets, ceiling=ceiling)
                part = slice(done, done + count)
                batch = frames if count == len(frames) else frames.take(part)
                drawn = self._attempt(batch.packed(), bucket, precision)
                if drawn is None:
                    self._halve(bucket, precision)
                    continue
            patches[part], finite[part] = drawn
            done += count
        return patches, finite

    def _attempt(self, batch: Frames, bucket: int, precision: Precision) -> tuple[U8, Bool] | None:
        """One forward pass, or None where memory does not suffice. Raises EngineError for any other device fault."""
        if self._fault is not None:
            raise EngineError(f"the device failed before ({self._fault}). Start a new process.")
        try:
            return self._forward(batch, bucket, precision)
        except (RuntimeError, MemoryError) as error:
            if _is_out_of_memory(error):
                return None  # out of the handler first: the error's traceback holds the tensors that fill the memory
            self._fault = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
            raise EngineError(
                f"the generator failed on {self._info.device}: {self._fault}. Start a new process."
            ) from error

    def _forward(self, batch: Frames, bucket: int, precision: Precision) -> tuple[U8, Bool]:
        count = len(batch)
        with torch.inference_mode():
            given = upload(batch.padded(bucket), self._device)
            with self._arithmetic():
                patches, finite = self._step(precision)(*given)
            drawn = patches[:count].cpu().numpy(), finite[:count].cpu().numpy()
        self._count(batches=1, padding=bucket - count)
        return drawn

    def _halve(self, bucket: int, precision: Precision) -> None:
        self._count(out_of_memory=1)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if bucket == 1:
            raise DeviceOutOfMemory(
                f"one frame alone does not fit into the memory of {self._info.device}. "
                "Free memory there, or use another device."
            )
        self._ceilings[precision] = bucket // 2
        with self._count_lock:
            self._counts = replace(self._counts, batch_ceiling=self._ceilings[self._info.precision])

    def _step(self, precision: Precision) -> _Step:
        if precision not in self._steps:
            dtype, plain = DTYPES[precision], self._info.exact
            is_base = self._device.type == "cpu" and dtype == torch.float32
            model = self._model if is_base else copy.deepcopy(self._model).to(self._device, dtype)
            if not plain:
                model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            step = Step(model, device=self._device, dtype=dtype, channels_last=not plain)
            if self._info.compiled and precision == self._info.precision:
                self._steps[precision] = torch.compile(step, mode="max-autotune", dynamic=False)
            else:
                self._steps[precision] = step
        return self._steps[precision]

    def _arithmetic(self) -> AbstractContextManager[None]:
        return arithmetic(self._matmul, exact=self._info.exact) if self._device.type == "cuda" else nullcontext()

    def _count(
        self, *, frames: int = 0, batches: int = 0, padding: int = 0, out_of_memory: int = 0, redone: int = 0
    ) -> None:
        with self._count_lock:
            now = self._counts
            self._counts = replace(
                now,
                frames=now.frames + frames,
                batches=now.batches + batches,
                padding=now.padding + padding,
                out_of_memory=now.out_of_memory + out_of_memory,
                redone=now.redone + redone,
            )


def _set_threads(threads: int) -> None:
    if threads < 1:
        raise InvalidOption(f"threads must be at least 1, not {threads}.")
    torch.set_num_threads(threads)


def _is_out_of_memory(error: Exception) -> bool:
    """torch has a class for CUDA's caching allocator alone; other allocators only say it in words."""
    words = ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)

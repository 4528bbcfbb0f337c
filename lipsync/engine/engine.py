"""The engine: the generator on one device, in batches of a few shapes, with every fault of the device handled."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch

from lipsync.compile_cache import MOST_BYTES, TTL_S, keep_compiled
from lipsync.core import F32, I32, U8
from lipsync.engine.batches import Batches
from lipsync.engine.buckets import choose_buckets
from lipsync.engine.device import (
    SAFER,
    MatmulPrecision,
    choose_device,
    choose_precision,
    device_name,
    limit_memory,
    set_threads,
)
from lipsync.engine.frames import SILENCE, Frames, check_frames
from lipsync.engine.info import PLAIN, EngineCounts, EngineInfo, Tally, Techniques
from lipsync.engine.network import Network
from lipsync.engine.runner import CpuRunner, Runner
from lipsync.errors import InvalidOption, NonFiniteOutput
from lipsync.model.wav2lip import FACE_SIDE, MEL_BANDS, MEL_WINDOW, Wav2Lip
from lipsync.options import Precision

SWITCH_AFTER_CALLS = 8
SWITCH_AT_SHARE = 0.01
"""Once so many calls, and this share of all frames, had to be drawn again, the safer format comes first for good."""


class Engine:
    """Draws frames with one generator on one device. Threads may share it: they take turns, batch by batch.

    ``precision`` auto is fp16 on CUDA and fp32 on a CPU. ``batch_size`` None is 512 on CUDA and 8 on a CPU. Batches
    are padded to the next of ``buckets``, and a frame drawn at the same bucket comes out the same, bit for bit,
    whatever else is in the batch. ``compile`` auto compiles on CUDA only; what was compiled is kept in the folder
    ``compile_cache`` (None: where torch keeps it) for the next start, at most ``compile_cache_bytes`` that were used
    within ``compile_cache_ttl_s`` when the engine starts. ``exact`` runs the network as published, without
    folding, channels_last, TF32 or kernel search; ``techniques`` leaves single ones out. ``memory_fraction`` bounds
    this process's share of a CUDA device's memory, so that several processes can use one device. ``threads`` sets
    torch's CPU threads for the whole process. Raises DeviceUnavailable, DeviceOutOfMemory and InvalidOption.
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
        compile_cache: str | os.PathLike[str] | None = None,
        compile_cache_bytes: int = MOST_BYTES,
        compile_cache_ttl_s: float = TTL_S,
        exact: bool = False,
        techniques: Techniques | None = None,
        float32_matmul_precision: MatmulPrecision = "high",
        memory_fraction: float | None = None,
        threads: int | None = None,
    ) -> None:
        self._device = choose_device(device)
        chosen = choose_precision(precision, self._device, exact=exact)
        size, shapes = choose_buckets(self._device.type, batch_size=batch_size, buckets=buckets)
        compiled = self._device.type == "cuda" and not exact if compile == "auto" else compile
        if exact and (compiled or techniques is not None):
            raise InvalidOption("exact runs the plain network: use it without compile and without techniques.")
        if float32_matmul_precision not in get_args(MatmulPrecision):
            raise InvalidOption(f"float32_matmul_precision must be highest or high, not {float32_matmul_precision!r}.")
        if threads is not None:
            set_threads(threads)
        if memory_fraction is not None:
            limit_memory(self._device, memory_fraction)
        if compiled and compile_cache is not None:
            keep_compiled(compile_cache, most_bytes=compile_cache_bytes, ttl_s=compile_cache_ttl_s)
        chosen_techniques = PLAIN if exact else techniques or Techniques()
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
            techniques=chosen_techniques,
            memory_fraction=memory_fraction,
        )
        self._tally = Tally()
        self._batches = Batches(
            Network(model, device=self._device, techniques=chosen_techniques, batch_size=size),
            open_runner(self._device, chosen_techniques),
            self._info,
            self._tally,
            matmul=float32_matmul_precision,
        )
        self._switching = threading.Lock()
        self._before = EngineCounts()  # when the engine last switched over
        self._warm_up_s: dict[int, float] = {}

    @property
    def info(self) -> EngineInfo:
        return replace(self._info, compiled=self._info.compiled and self._batches.is_compiled)

    @property
    def counts(self) -> EngineCounts:
        return replace(self._tally.counts, batch_ceiling=self.batch_size)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the engine changed of itself, and why, in sentences; each was logged as a warning too."""
        return tuple(self._batches.notes)

    @property
    def warm_up_s(self) -> dict[int, float]:
        """What warming up cost, by bucket."""
        return dict(self._warm_up_s)

    @property
    def healthy(self) -> bool:
        """False once the device failed otherwise than by lack of memory: then only a new process helps."""
        return self._batches.fault is None

    @property
    def batch_size(self) -> int:
        """The batch that serves the device best: the one asked for, or what its memory was found to hold."""
        return self._batches.ceiling(self._info.precision)

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
        """Several callers' frames as one batch to draw, copied and sent on their way to the device while another batch
        is drawn there. Raises EngineError."""
        return self._batches.stage(parts)

    def draw(self, frames: Frames) -> U8:
        """Patches of frames that were checked; see ``generate``. Whose frames they are makes no difference to them.

        Raises NonFiniteOutput, DeviceOutOfMemory, EngineError.
        """
        first = self._info.precision
        patches, finite = self._batches.draw(frames, first)
        used = first
        for safer in SAFER[first]:
            bad = np.flatnonzero(~finite)
            if not len(bad):
                break
            patches[bad], finite[bad] = self._batches.draw(frames.take(bad), safer)
            self._tally.add(redone=len(bad))
            used = safer
        if not finite.all():
            raise NonFiniteOutput(
                f"{int((~finite).sum())} of {len(frames)} frames came out as NaN or infinite even in fp32, the first "
                f"of them frame {int(np.argmin(finite))}. Check the checkpoint: its weights are out of range."
            )
        self._tally.add(frames=len(frames), rescued_calls=int(used != first))
        if used != first:
            self._consider_switching(first, used)
        return patches

    def warm_up(self) -> float:
        """Makes every bucket ready, the largest first, so that the first request is as quick as the next.

        Returns the seconds it took; ``warm_up_s`` has them by bucket. Raises DeviceOutOfMemory, EngineError.
        """
        crops = np.zeros((1, FACE_SIDE, FACE_SIDE, 3), np.uint8)
        mel = np.full((MEL_BANDS, MEL_WINDOW), SILENCE, np.float32)
        for bucket in reversed(self._info.buckets):
            start = time.perf_counter()
            nothing = np.zeros(bucket, np.int64)
            self._batches.draw(Frames(crops, nothing, mel, nothing), self._info.precision)
            self._warm_up_s[bucket] = time.perf_counter() - start
        return sum(self._warm_up_s.values())

    def _consider_switching(self, first: Precision, safer: Precision) -> None:
        with self._switching:
            done, before = self._tally.counts, self._before
            calls, redone = done.rescued_calls - before.rescued_calls, done.redone - before.redone
            repeated = calls >= SWITCH_AFTER_CALLS and redone >= SWITCH_AT_SHARE * (done.frames - before.frames)
            if not repeated or self._info.precision != first:
                return
            self._before = done
            self._info = replace(self._info, precision=safer, compiled=False)
            self._batches.note(
                f"frames are drawn in {safer} from now on, uncompiled: {calls} calls had frames that came "
                f"out as NaN or infinite in {first} and finite in {safer}. Start with precision {safer} to have it at "
                "full speed, and check the checkpoint: its weights reach the end of the range."
            )


def open_runner(device: torch.device, techniques: Techniques) -> Runner:
    """What runs batches on the device."""
    if device.type == "cpu":
        return CpuRunner()
    from lipsync.engine.cuda import CudaRunner

    return CudaRunner(device, techniques)

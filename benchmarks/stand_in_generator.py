"""A Generator that tells what it drew, on the real engine or a device of fixed cost."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import ray

from benchmarks.stand_in_settings import StandInSettings
from lipsync.batcher import BatchReport
from lipsync.core import F32, I32, U8
from lipsync.engine import Engine
from lipsync.engine.frames import Frames, check_frames, join
from lipsync.engine.info import EngineCounts, EngineInfo
from lipsync.errors import EngineError
from serve.generator import Generator
from serve.settings import Settings


class FixedCostDevice:
    """A ``lipsync.batcher.Device`` that sleeps."""

    def __init__(
        self, batch_s: float, batch_size: int, *, fails_once: str | None = None, rescues: bool = False
    ) -> None:
        self.batch_s, self.batch_size, self.healthy = batch_s, batch_size, True
        self._fails_once, self._rescues = fails_once, rescues
        self.counts = EngineCounts()
        self.info = EngineInfo(
            device="cpu", device_name=f"stand-in, {batch_s} s for {batch_size} frames", precision="fp32",
            batch_size=batch_size, buckets=(batch_size,), compiled=False, exact=False, parameters=0, torch_version="",
        )  # fmt: skip

    def warm_up(self) -> float:
        return 0.0

    def check(self, crops: U8, crop_index: I32, mel: F32, mel_starts: I32) -> Frames:
        return check_frames(crops, crop_index, mel, mel_starts)

    def stage(self, parts: Sequence[Frames]) -> Frames:
        return join(parts)

    def draw(self, frames: Frames) -> U8:
        if self._fails_once is not None and not os.path.exists(self._fails_once):
            Path(self._fails_once).touch()
            self.healthy = False
            raise EngineError("The device failed. Start a new process.")
        time.sleep(self.batch_s)
        if self._rescues:
            self.counts = EngineCounts(out_of_memory=1, redone=1)
        return frames.crops[frames.crop_index]


class StandInGenerator(Generator):
    def load(self, settings: Settings, device: str) -> tuple[Engine, str]:
        assert isinstance(settings, StandInSettings)
        chosen = settings.stand_in
        if chosen.batch_s is None:
            return super().load(settings, device)
        stand_in = FixedCostDevice(
            chosen.batch_s, chosen.batch_size, fails_once=chosen.fails_once, rescues=chosen.rescues
        )
        return cast(Engine, stand_in), "a stand-in"

    def on_batch(self, report: BatchReport) -> None:
        super().on_batch(report)
        self.__dict__.setdefault("_batches", []).append((report.frames, report.room, report.requests, time.time()))

    async def stats(self) -> dict[str, Any]:
        """What this replica has done: for ``handle.broadcast``."""
        counts = self._batcher.counts
        return {
            "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            "ray_gpus": [str(gpu) for gpu in ray.get_gpu_ids()],
            "node": ray.get_runtime_context().get_node_id(),
            "frames": counts.frames,
            "waiting_frames": counts.queued_frames + counts.held_frames,
            "cancelled_frames": counts.cancelled_frames,
            "is_drawing": self._batcher.drawing_for_s > 0,
            "batches": list(self.__dict__.get("_batches", [])),
        }

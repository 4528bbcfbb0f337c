"""Deployments with known costs, for measuring and testing what lies between them: real calls, real objects, real order.

``build`` is an application builder like ``serve.app.build``, with a ``stand_in`` section beside the real settings.
"""

import os
import signal
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
from pydantic import BaseModel, ConfigDict
from ray.serve import Application

from lipsync.batcher import BatchReport
from lipsync.core import F32, I32, U8, AudioFormat, AudioPacket, Fragment, SegmentTask
from lipsync.engine import Engine
from lipsync.engine.frames import Frames, check_frames, join
from lipsync.engine.info import EngineCounts, EngineInfo
from lipsync.errors import EngineError
from lipsync.media.encode import encode_segment
from lipsync.media.picture import Picture
from lipsync.options import Options
from serve import app
from serve.generator import Generator
from serve.renderer import Renderer
from serve.settings import Settings
from serve.solitude import BEGUN
from serve.wire import FaceHeader, JobRef


class StandIn(BaseModel):
    """What is not the real thing, and what it costs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_gpus: float = 0.0
    """GPUs that a Generator declares; its network runs on a CPU all the same."""
    batch_s: float | None = None
    """A device that takes this long for every batch and draws the crop that it was given; none: the real engine."""
    batch_size: int = 512
    encode_s: float | None = None
    """An encoder that sleeps this long for each frame and makes no video; none: the real encoder."""
    fails_once: str | None = None
    """A path: the device that creates the file there fails for good at its first batch."""
    leaks: bool = False
    """Renderers that keep, for each segment, a megabyte, an open temporary file and a thread."""
    poison: str | None = None
    """A Renderer kills itself on the face with this SHA-256, as a fault in a decoder would."""


class StandInSettings(Settings):
    stand_in: StandIn = StandIn()


class FixedCostDevice:
    """A ``lipsync.batcher.Device`` that sleeps."""

    def __init__(self, batch_s: float, batch_size: int, *, fails_once: str | None) -> None:
        self.batch_s, self.batch_size, self.healthy = batch_s, batch_size, True
        self._fails_once = fails_once
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
        return cast(U8, frames.crops[frames.crop_index])


class StandInGenerator(Generator):
    def load(self, settings: Settings, device: str) -> tuple[Engine, str]:
        assert isinstance(settings, StandInSettings)
        chosen = settings.stand_in
        if chosen.batch_s is None:
            return super().load(settings, device)
        return cast(
            Engine, FixedCostDevice(chosen.batch_s, chosen.batch_size, fails_once=chosen.fails_once)
        ), "a stand-in"

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


class SleepingEncoder:
    """Iterates the pictures, sleeps for each, and says in a few bytes which frames they were."""

    def __init__(self, per_frame_s: float) -> None:
        self._per_frame_s = per_frame_s

    def __call__(
        self,
        pictures: Iterable[Picture],
        *,
        first_frame: int,
        fps: Fraction,
        packets: Sequence[AudioPacket],
        audio_format: AudioFormat,
        options: Options,
    ) -> bytes:
        count = sum(1 for _ in pictures)
        time.sleep(self._per_frame_s * count)
        # a real segment of one tiny picture, so that whatever joins fragments has something to join
        tiny = Picture.from_bgr(np.zeros((64, 64, 3), np.uint8))
        return encode_segment(
            [tiny], first_frame=first_frame, fps=fps, packets=(), audio_format=audio_format, options=Options()
        )


class StandInRenderer(Renderer):
    def __init__(self, settings: Settings, generator: Any) -> None:
        super().__init__(settings, generator)
        assert isinstance(settings, StandInSettings)
        if settings.stand_in.encode_s is not None:
            self._stages = self._stages.encoding_with(SleepingEncoder(settings.stand_in.encode_s))
        self._poison = settings.stand_in.poison
        self._leaks = settings.stand_in.leaks
        self._leaked: list[Any] = []
        self._segments = self._frames = self._under_way = 0
        self._left_s = 0.0

    async def render(
        self, ref: JobRef, header: FaceHeader, run: Sequence[SegmentTask], fps: Fraction, *, alone: bool
    ) -> AsyncGenerator[Fragment | str, None]:
        self._under_way += 1
        try:
            async with aclosing(super().render(ref, header, run, fps, alone=alone)) as items:
                async for item in items:
                    if ref.face_hash == self._poison and item != BEGUN:
                        os.kill(os.getpid(), signal.SIGKILL)
                    if isinstance(item, Fragment):
                        self._segments += 1
                        self._frames += item.frame_count
                        if self._leaks:
                            self._leak()
                    yield item
        finally:
            self._under_way -= 1
            self._left_s = time.time()

    def _leak(self) -> None:
        waiting = threading.Thread(target=threading.Event().wait, daemon=True)
        waiting.start()
        self._leaked.append((bytearray(os.urandom(1_000_000)), tempfile.mkstemp(), waiting))

    async def stats(self) -> dict[str, Any]:
        return {
            "node": ray.get_runtime_context().get_node_id(),
            "segments": self._segments,
            "frames": self._frames,
            "under_way": self._under_way,
            "left_s": self._left_s,
        }


def build(settings: StandInSettings) -> Application:
    """The application with what ``settings.stand_in`` says in place of the real things."""
    return app.compose(
        settings,
        device="cpu",
        num_gpus=settings.stand_in.num_gpus,
        renderer=StandInRenderer,
        generator=StandInGenerator,
    )

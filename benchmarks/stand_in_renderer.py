"""A Renderer that tells what it rendered, with the real encoder or one that sleeps, and ways to go wrong."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from fractions import Fraction
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import ray

from benchmarks.stand_in_settings import StandInSettings
from lipsync.core import AudioFormat, AudioPacket, Fragment, SegmentTask
from lipsync.media.encode import encode_segment
from lipsync.media.picture import Picture
from lipsync.options import Options
from serve.renderer import Renderer
from serve.settings import Settings
from serve.solitude import BEGUN
from serve.wire import FaceHeader, JobRef


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
        pixel_aspect: Fraction,
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
        shared = SharedMemory(create=True, size=1_000_000)
        assert shared.buf is not None
        shared.buf[:] = bytes(1_000_000)  # touched, else it takes no room
        shared.unlink()  # goes with the process, however that ends
        self._leaked.append((bytearray(os.urandom(1_000_000)), shared, tempfile.mkstemp(), waiting))

    async def stats(self) -> dict[str, Any]:
        return {
            "node": ray.get_runtime_context().get_node_id(),
            "segments": self._segments,
            "frames": self._frames,
            "under_way": self._under_way,
            "left_s": self._left_s,
        }

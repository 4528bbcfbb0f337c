"""The Renderer: a CPU replica that decodes, crops, asks a Generator, pastes and encodes."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from fractions import Fraction
from typing import Any

from lipsync.allocator import return_large_blocks
from lipsync.core import F32, I32, U8, Claim, Fragment, SegmentTask
from lipsync.errors import DetectorUnavailable
from lipsync.faces.detector import Detector, DetectorName
from lipsync.local import LocalStages

from .hung import refuse_hung_threads
from .logs import quiet_opencv
from .niceness import give_way
from .settings import Settings
from .solitude import Solitude, begun
from .wire import FaceHeader, JobRef


class Renderer:
    """Sandbox for untrusted media: holds no keys. ``generator`` is the Generators' handle."""

    def __init__(self, settings: Settings, generator: Any) -> None:
        os.environ.pop(settings.auth.keys_env, None)
        quiet_opencv()
        return_large_blocks()
        give_way()
        worker, self._deadline_s = settings.renderer, settings.deadline_s
        self._stages = LocalStages(
            RemoteGenerator(generator),
            create_detector=_no_detector,
            workers=worker.threads,
            cache_entries=worker.cache_entries,
            cache_bytes=worker.cache_bytes,
            cache_ttl_s=worker.cache_ttl_s,
        )
        self._solitude = Solitude()

    async def render(
        self, ref: JobRef, header: FaceHeader, run: Sequence[SegmentTask], fps: Fraction, *, alone: bool
    ) -> AsyncGenerator[Fragment | str, None]:
        """See ``lipsync.pipeline.Stages``; ``alone``, says BEGUN first, when it has the replica for itself."""
        async with self._solitude.work(alone=alone):
            if alone:
                async for word in begun():
                    yield word
            job = await ref.resolve()
            async with aclosing(self._stages.render(job, header.face_of(job), run, fps=fps)) as fragments:
                async for fragment in fragments:
                    yield fragment

    def check_health(self) -> None:
        """Ray calls this now and then: the time to forget what is old. Raises EngineError where a thread hangs."""
        refuse_hung_threads(self._stages, self._deadline_s)
        self._stages.expire()

    def __del__(self) -> None:
        if hasattr(self, "_stages"):
            self._stages.close()


class RemoteGenerator:
    """A ``lipsync.render.Generator`` whose engine is in another process; arrays go there and back by reference."""

    def __init__(self, handle: Any) -> None:
        # a Generator on this node, where there is one, saves a copy over the network
        handle._init(_prefer_local_routing=True)
        self._generate = handle.options(method_name="generate", _by_reference=True)

    async def generate(self, crops: U8, crop_index: I32, mel: F32, mel_starts: I32, *, claim: Claim) -> U8:
        patches: U8 = await self._generate.remote(crops, crop_index, mel, mel_starts, claim=claim)
        return patches


def _no_detector(name: DetectorName) -> Detector:
    raise DetectorUnavailable(f"A Renderer looks for no faces (asked for {name}). Report this as a defect.")

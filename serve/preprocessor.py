"""The Preprocessor: a CPU replica that probes and indexes, hears the voice, and looks for faces."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from itertools import count

import ray

from lipsync.allocator import return_large_blocks
from lipsync.core import F32, I32, U8, Claim, VoiceChunk
from lipsync.detection import detector_from_files
from lipsync.errors import DetectorUnavailable, EngineError
from lipsync.faces.chunk import ChunkDetections
from lipsync.local import LocalStages
from lipsync.plan import Span
from lipsync.voice.mel import warm_up as warm_up_mel

from .hung import refuse_hung_threads
from .logs import quiet_opencv
from .niceness import give_way
from .settings import Settings
from .solitude import Solitude, begun
from .wire import FaceHeader, JobRef


class Preprocessor:
    """Sandbox for untrusted media, like the Renderer: holds no keys.

    Calls stream their items; one to be worked on ``alone`` says BEGUN first, when it has the replica for itself.
    """

    def __init__(self, settings: Settings) -> None:
        os.environ.pop(settings.auth.keys_env, None)
        quiet_opencv()
        return_large_blocks()
        give_way()
        if settings.s3fd_path is not None and not ray.get_gpu_ids():
            raise DetectorUnavailable(
                "s3fd takes seconds a frame on a CPU. Give the Preprocessors a share of a GPU "
                "(ray_actor_options: {num_gpus: 0.1}), or leave args.s3fd_path out."
            )
        worker, self._deadline_s = settings.preprocessor, settings.deadline_s
        self._stages = LocalStages(
            _NoGenerator(),
            create_detector=partial(detector_from_files, settings.yunet_path, settings.s3fd_path, "auto", 16),
            workers=worker.threads,
            cache_entries=worker.cache_entries,
            cache_bytes=worker.cache_bytes,
            cache_ttl_s=worker.cache_ttl_s,
        )
        self._solitude = Solitude()
        warm_up_mel()
        self._stages.load_detector("auto")

    async def open(self, ref: JobRef, *, alone: bool) -> AsyncGenerator[FaceHeader | str, None]:
        """The face's header and index, one item. Raises the errors of probing and indexing."""
        async with self._solitude.work(alone=alone):
            if alone:
                async for word in begun():
                    yield word
            yield FaceHeader.of(await self._stages.open_face(await ref.resolve()))

    async def measure(self, ref: JobRef, *, alone: bool) -> AsyncGenerator[float | str, None]:
        """How many seconds of voice its header promises, one item; 0 where it does not say. Raises the errors of
        probing."""
        async with self._solitude.work(alone=alone):
            if alone:
                async for word in begun():
                    yield word
            yield await self._stages.measure(await ref.resolve())

    async def voice(self, ref: JobRef, span: Span, skip: int, *, alone: bool) -> AsyncGenerator[VoiceChunk | str, None]:
        """The voice's chunks from number ``skip`` on: what was delivered before a replica died is not sent again."""
        async with self._solitude.work(alone=alone):
            if alone:
                async for word in begun():
                    yield word
            numbers = count()
            async with aclosing(self._stages.voice(await ref.resolve(), span)) as chunks:
                async for chunk in chunks:
                    if next(numbers) >= skip:
                        yield chunk

    async def detect(
        self, ref: JobRef, header: FaceHeader, chunks: Sequence[range], *, alone: bool
    ) -> AsyncGenerator[ChunkDetections | str, None]:
        """See ``lipsync.pipeline.Stages``."""
        async with self._solitude.work(alone=alone):
            if alone:
                async for word in begun():
                    yield word
            job = await ref.resolve()
            async with aclosing(self._stages.detect(job, header.face_of(job), chunks)) as found:
                async for detections in found:
                    yield detections

    def check_health(self) -> None:
        """Ray calls this now and then: the time to forget what is old. Raises EngineError where a thread hangs."""
        refuse_hung_threads(self._stages, self._deadline_s)
        self._stages.expire()

    def __del__(self) -> None:
        if hasattr(self, "_stages"):
            self._stages.close()


class _NoGenerator:
    async def generate(self, crops: U8, crop_index: I32, mel: F32, mel_starts: I32, *, claim: Claim) -> U8:
        raise EngineError("A Preprocessor draws no faces. Report this as a defect.")

"""The pipeline's stages on replicas: every piece of work is given out again where a worker dies under it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

from lipsync.core import Fragment, SegmentTask, VoiceChunk
from lipsync.errors import InputCrashedWorker, WorkerLost
from lipsync.faces.chunk import ChunkDetections
from lipsync.media.source import Blob
from lipsync.metrics import RETRIES, Meters
from lipsync.pipeline import Job
from lipsync.plan import Span
from lipsync.render import FaceInput

from .faults import Fault, cause_of, fault_of
from .wire import NO_VOICE_HASH, FaceHeader, JobRef, Opened, put_inputs

T = TypeVar("T")
_DEATHS_OF_AN_INPUT = 2
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 3.0


@dataclass(frozen=True, slots=True)
class Handles:
    """The replicas that do the work, as Ray Serve's handles."""

    preprocessor: Any
    renderer: Any


class RequestStages:
    """``lipsync.pipeline.Stages`` for one request whose inputs lie in the spool.

    ``admitted`` is told how many frames the request will have before anything is decoded, and refuses by raising;
    ``accuse`` is told an input's hash after two workers died on it. ``tries`` bounds how often one piece of work is
    given out; a piece is what the stage yields next: a segment, a chunk. Raises WorkerLost beyond that,
    InputCrashedWorker, and what the stages raise.
    """

    def __init__(
        self,
        handles: Handles,
        *,
        face: Blob,
        voice: Blob | None,
        tries: int,
        meters: Meters,
        admitted: Callable[[int], Awaitable[None]],
        accuse: Callable[[str], Awaitable[None]],
    ) -> None:
        self._handles, self._tries, self._meters = handles, tries, meters
        self._face, self._voice = face, voice
        self._admitted, self._accuse = admitted, accuse
        self._inputs: Any = None
        self._putting = asyncio.Lock()
        self.puts = 0

    async def open_face(self, job: Job) -> FaceInput:
        """Both inputs' headers, and the request's admission."""

        async def once(ref: JobRef, _: int) -> AsyncGenerator[Opened, None]:
            yield await self._handles.preprocessor.options(method_name="open", _by_reference=True).remote(ref)

        async with aclosing(self._again(job, once, blamed=self._face)) as opened:
            async for inputs in opened:
                await self._admitted(inputs.frames)
                header = inputs.face
                return FaceInput(self._face, header.info, header.index, header.geometry, header.width, header.height)
        raise WorkerLost("The inputs could not be opened. Send the request again.")

    def voice(self, job: Job, span: Span) -> AsyncGenerator[VoiceChunk, None]:
        """See ``lipsync.pipeline.Stages``."""

        async def once(ref: JobRef, skip: int) -> AsyncGenerator[VoiceChunk, None]:
            call = self._handles.preprocessor.options(method_name="voice", stream=True, _by_reference=True)
            async with _closing(call.remote(ref, span, skip=skip)) as chunks:
                async for chunk in chunks:
                    yield chunk

        return self._again(job, once, blamed=self._voice or self._face)

    def detect(self, job: Job, face: FaceInput, chunks: Sequence[range]) -> AsyncGenerator[ChunkDetections, None]:
        """See ``lipsync.pipeline.Stages``."""

        async def once(ref: JobRef, done: int) -> AsyncGenerator[ChunkDetections, None]:
            call = self._handles.preprocessor.options(method_name="detect", stream=True, _by_reference=True)
            asked = call.remote(ref, FaceHeader.of(face), chunks[done:])
            async with _closing(asked) as found:
                async for detections in found:
                    yield detections

        return self._again(job, once, blamed=self._face)

    def render(
        self, job: Job, face: FaceInput, run: Sequence[SegmentTask], *, fps: Fraction
    ) -> AsyncGenerator[Fragment, None]:
        """See ``lipsync.pipeline.Stages``."""

        async def once(ref: JobRef, done: int) -> AsyncGenerator[Fragment, None]:
            call = self._handles.renderer.options(method_name="render", stream=True, _by_reference=True)
            asked = call.remote(ref, FaceHeader.of(face), run[done:], fps=fps)
            async with _closing(asked) as fragments:
                async for fragment in fragments:
                    yield fragment

        return self._again(job, once, blamed=self._face)

    async def _again(
        self, job: Job, once: Callable[[JobRef, int], AsyncGenerator[T, None]], *, blamed: Blob
    ) -> AsyncGenerator[T, None]:
        """``once(ref, n)`` yields the items from number n on; it is called again from where it broke off."""
        done, faults, used = 0, _Faults(self._tries), None
        while True:
            try:
                ref = await self._ref(job)
                (used,) = ref.inputs
                async with aclosing(once(ref, done)) as items:
                    async for item in items:
                        done, faults = done + 1, _Faults(self._tries)
                        yield item
                return
            except Exception as error:
                fault = fault_of(error)
                if fault is None:
                    raise cause_of(error) from None
                if faults.add(fault):
                    await self._accuse(blamed.content_hash)
                    raise InputCrashedWorker(
                        "Two workers died on this input, and it will not be tried again. Re-encode it, or send another."
                    ) from error
                if faults.are_enough:
                    raise WorkerLost(
                        f"Workers failed {self._tries} times under the same piece of work (last: "
                        f"{type(cause_of(error)).__name__}). Send the request again."
                    ) from error
                if fault == "lost" and self._inputs is used:  # else another piece of work has put them again
                    self._inputs = None
                if fault != "busy":
                    self._meters.add(RETRIES)
            await asyncio.sleep(faults.pause_s)

    async def _ref(self, job: Job) -> JobRef:
        """The request as replicas are told of it; its inputs are put once, and again where they were lost."""
        async with self._putting:
            if self._inputs is None:
                self._inputs = await asyncio.to_thread(put_inputs, self._face, self._voice)
                self.puts += 1
        return JobRef(
            [self._inputs],
            self._face.content_hash,
            NO_VOICE_HASH if self._voice is None else self._voice.content_hash,
            job.options,
            job.limits,
            job.request,
            job.priority,
        )


class _Faults:
    """What has gone wrong with one piece of work so far."""

    def __init__(self, tries: int) -> None:
        self._tries = tries
        self._deaths = self._failures = self._all = 0

    def add(self, fault: Fault) -> bool:
        """Count it; True where two workers have died on the piece."""
        self._all += 1
        self._failures += fault != "busy"  # who is not taken is waited for, as long as the request's deadline allows
        self._deaths += fault == "died"
        return self._deaths >= _DEATHS_OF_AN_INPUT

    @property
    def are_enough(self) -> bool:
        return self._failures >= self._tries

    @property
    def pause_s(self) -> float:
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 4 ** min(self._all, 10))
        return random.uniform(longest / 4, longest)


class _closing:
    """A streaming call that is cancelled where its consumer stops early."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def __aenter__(self) -> Any:
        return self._call

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is not None:
            self._call.cancel()

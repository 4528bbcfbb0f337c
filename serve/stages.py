"""The pipeline's stages on replicas: every piece of work is given out again where a worker dies under it."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lipsync.core import Fragment, SegmentTask, VoiceChunk
from lipsync.errors import InputCrashedWorker, WorkerLost
from lipsync.faces.chunk import ChunkDetections
from lipsync.media.source import Blob
from lipsync.metrics import RETRIES, Meters
from lipsync.pipeline import Job
from lipsync.plan import Span, Timeline, goes_down
from lipsync.render import FaceInput

from .faults import EndedEarly, Fault, cause_of, fault_of
from .solitude import BEGUN
from .wire import NO_VOICE_HASH, FaceHeader, JobRef, put_inputs

log = logging.getLogger("ray.serve")
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 3.0
_PATIENCE_S = 0.25
"""How long a call's next item may wait for its consumer before the call is stopped; see ``_patience``."""


@dataclass(frozen=True, slots=True)
class Handles:
    """The replicas that do the work, as Ray Serve's handles."""

    preprocessor: Any
    renderer: Any


class RequestStages:
    """``lipsync.pipeline.Stages`` for one request whose inputs lie in the spool.

    ``admitted`` is told how many frames the request will have before anything is decoded, and refuses by raising.
    ``tries`` bounds how often one piece of work is given out: what a stage yields next, a segment or a chunk.

    After a worker died under a piece, the piece is given out to be worked on *alone*: if that worker dies too, it is
    the input's fault and nobody else's, ``accuse`` is told its hash, and InputCrashedWorker is raised. Raises
    WorkerLost where the tries are used up, and what the stages raise.
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
        """Both inputs' headers, each in a call of its own so that a crash blames the right one; and the request's
        admission."""
        # concurrently, but not in a TaskGroup: its groups would hide the errors' types
        measuring = asyncio.create_task(self._measured(job))
        try:
            header = await self._one("open", job, blamed=self._face)
            heard_s = await measuring
        finally:
            measuring.cancel()
            await asyncio.gather(measuring, return_exceptions=True)
        face = FaceInput(self._face, header.info, header.index, header.geometry, header.width, header.height)
        await self._admitted(_expected_frames(job, face, heard_s))
        return face

    async def _measured(self, job: Job) -> float:
        return 0.0 if self._voice is None else await self._one("measure", job, blamed=self._voice)

    async def _one(self, method: str, job: Job, *, blamed: Blob) -> Any:
        """The one item of a call."""
        call = self._again(
            self._handles.preprocessor, method, job, _nothing, is_whole=lambda done, _: done >= 1, blamed=blamed
        )
        async with aclosing(call) as items:
            first, *_ = [item async for item in items]  # to its end: a call that is left early is cancelled
        return first

    def voice(self, job: Job, span: Span) -> AsyncGenerator[VoiceChunk, None]:
        """See ``lipsync.pipeline.Stages``."""
        return self._again(
            self._handles.preprocessor,
            "voice",
            job,
            lambda done: (span, done),
            is_whole=lambda _, last: last is not None and last.is_last,
            blamed=self._voice or self._face,
        )

    def detect(self, job: Job, face: FaceInput, chunks: Sequence[range]) -> AsyncGenerator[ChunkDetections, None]:
        """See ``lipsync.pipeline.Stages``."""
        header = FaceHeader.of(face)
        return self._again(
            self._handles.preprocessor,
            "detect",
            job,
            lambda done: (header, chunks[done:]),
            is_whole=lambda done, _: done >= len(chunks),
            blamed=self._face,
        )

    def render(
        self, job: Job, face: FaceInput, run: Sequence[SegmentTask], *, fps: Fraction
    ) -> AsyncGenerator[Fragment, None]:
        """See ``lipsync.pipeline.Stages``. A run that its consumer does not keep up with is stopped, and gone on with
        when the consumer comes again, at the cost of decoding from the keyframe before once more."""
        header = FaceHeader.of(face)
        return self._again(
            self._handles.renderer,
            "render",
            job,
            lambda done: (header, run[done:], fps),
            is_whole=lambda done, _: done >= len(run),
            blamed=self._face,
            # what is shown backwards is all made before its first fragment comes
            is_stoppable=not goes_down([task.segment.source_frames for task in run]),
        )

    async def _again(
        self,
        handle: Any,
        method: str,
        job: Job,
        rest: Callable[[int], tuple[Any, ...]],
        *,
        is_whole: Callable[[int, Any], bool],
        blamed: Blob,
        is_stoppable: bool = False,
    ) -> AsyncGenerator[Any, None]:
        """The items of a streaming call; where it breaks off it is made again, with the arguments ``rest(n)`` for the
        items from number n on. ``is_whole`` tells from how many came, and the last of them, whether those were all.
        ``is_stoppable``: it is broken off where the consumer is slow."""
        call = handle.options(method_name=method, stream=True, _by_reference=True)
        done, last, faults, used = 0, None, _Faults(self._tries), None
        while True:
            try:
                ref = await self._ref(job)
                (used,) = ref.inputs
                is_stopped = False
                async with _closing(call.remote(ref, *rest(done), alone=faults.is_suspect)) as items:
                    async for item in items:
                        if item == BEGUN:
                            faults.has_begun_alone = True
                            continue
                        done, last, faults = done + 1, item, _Faults(self._tries)
                        with _patience(items, lasts_s=_PATIENCE_S if is_stoppable else None) as patience:
                            yield item
                        if is_stopped := patience.is_over:
                            break
                if is_whole(done, last):
                    return
                if not is_stopped:
                    raise EndedEarly(f"after {done} items")
                continue
            except Exception as error:
                fault = fault_of(error)
                if fault is None:
                    raise cause_of(error) from None
                if is_whole(done, last):
                    return  # it broke after the last item: nothing is left to ask for
                faults.add(fault)
                log.warning(f"request {job.request}: {method} broke off ({fault}: {type(cause_of(error)).__name__})")
                await self._end_where_hopeless(faults, error, blamed)
                if fault == "lost" and self._inputs is used:  # else another piece of work has put them again
                    self._inputs = None
                if fault != "busy":
                    self._meters.add(RETRIES)
            await asyncio.sleep(faults.pause_s)

    async def _end_where_hopeless(self, faults: _Faults, error: Exception, blamed: Blob) -> None:
        """Raises InputCrashedWorker or WorkerLost."""
        if faults.is_guilty:
            await self._accuse(blamed.content_hash)
            raise InputCrashedWorker(
                "Two workers died on this input, and it will not be tried again. Re-encode it, or send another."
            ) from error
        if faults.are_enough:
            raise WorkerLost(
                f"Workers failed {self._tries} times under the same piece of work (last: "
                f"{type(cause_of(error)).__name__}). Send the request again."
            ) from error

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


def _expected_frames(job: Job, face: FaceInput, heard_s: float) -> int:
    """Output frames as far as the headers tell; 0 where there is no voice, or it does not say how long it is."""
    timeline = Timeline(face.index, face.video, job.options, is_image=face.is_image, limits=job.limits)
    if timeline.span.at_least is not None:
        heard_s = max(heard_s, float(timeline.span.at_least))
    if timeline.span.at_most is not None:
        heard_s = min(heard_s, float(timeline.span.at_most))
    return math.ceil(heard_s * timeline.fps)


def _nothing(_: int) -> tuple[Any, ...]:
    return ()


class _Faults:
    """What has gone wrong with one piece of work so far."""

    def __init__(self, tries: int) -> None:
        self._tries = tries
        self._failures = self._untried = self._all = 0
        self.is_suspect = self.is_guilty = False
        self.has_begun_alone = False

    def add(self, fault: Fault) -> None:
        self._all += 1
        # neighbours of a harmful input die with it while they wait to work alone: their own piece was not tried
        is_untried = fault == "died" and self.is_suspect and not self.has_begun_alone
        self._untried += is_untried
        # who is not taken is waited for, as long as the request's deadline allows
        self._failures += fault != "busy" and not is_untried
        self.is_guilty = fault == "died" and self.has_begun_alone
        self.is_suspect |= fault == "died"
        self.has_begun_alone = False

    @property
    def are_enough(self) -> bool:
        return self._failures >= self._tries or self._untried >= 3 * self._tries

    @property
    def pause_s(self) -> float:
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 4 ** min(self._all, 10))
        return random.uniform(longest / 4, longest)


class _patience:
    """Stops a streaming call where what it gave last is not taken within ``lasts_s`` (None: whenever). A replica does
    not wait for the consumer of what it streams: it would be held up, and the object store would fill."""

    def __init__(self, call: Any, *, lasts_s: float | None) -> None:
        self._call, self._lasts_s = call, lasts_s
        self._timer: asyncio.TimerHandle | None = None
        self.is_over = False

    def __enter__(self) -> _patience:
        if self._lasts_s is not None:
            self._timer = asyncio.get_running_loop().call_later(self._lasts_s, self._stop)
        return self

    def _stop(self) -> None:
        self.is_over = True
        self._call.cancel()

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()


class _closing:
    """A streaming call that is cancelled where its consumer stops early."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def __aenter__(self) -> Any:
        return self._call

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is not None:
            self._call.cancel()

"""One request from its files to its fragments: admission, the pipeline on replicas, deadline, metrics, log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import AsyncExitStack, ExitStack, aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from lipsync import pipeline
from lipsync.core import Fragment
from lipsync.errors import DeadlineExceeded, LipsyncError, ResultTooLarge
from lipsync.media.source import Blob
from lipsync.metrics import REJECTED, REQUESTS_WAITING, Meters, RequestMeter
from lipsync.options import Options
from lipsync.output import write_file
from lipsync.pipeline import Job, Report
from lipsync.plan import Tuning

from .faults import cause_of
from .gate import Gate, Pass
from .logs import log_request
from .problems import reason_of, told
from .settings import Settings
from .spool import Spool, SpoolFolder, room_on_disk
from .stages import Handles, RequestStages

log = logging.getLogger("ray.serve")
T = TypeVar("T")


@dataclass(slots=True)
class Request:
    """A request that has entered: its place in the spool, and what it came to so far."""

    id: str
    entered: Pass
    folder: SpoolFolder
    report: Report = field(default_factory=Report)
    began_s: float = field(default_factory=time.monotonic)


class Desk:
    """Takes requests in; one for each Ingress replica."""

    def __init__(self, settings: Settings, handles: Handles, admission: Any, meters: Meters) -> None:
        self._settings, self._handles, self._meters = settings, handles, meters
        self.gate = Gate(admission, settings.admission)
        self._spool = Spool(settings.spool)
        self._meter = RequestMeter(meters)
        self._waiting = 0
        self._closing: set[asyncio.Task[None]] = set()

    async def enter(self, stack: AsyncExitStack, *, request_id: str, key: str) -> Request:
        """Let a request in; it leaves when ``stack`` is closed. Raises Overloaded at once where there is no room."""
        entered = await stack.enter_async_context(self.gate.request(uuid4().hex, key=key))
        return Request(request_id, entered, stack.enter_context(self._spool.folder()))

    async def has_room(self) -> bool:
        """Whether a request would be let in now, and its files would find room."""
        return self._spool.has_room and await self.gate.has_room()

    def waiting(self, stack: ExitStack) -> None:
        """Count a request as waiting until ``stack`` is closed."""
        self._count_waiting(1)
        stack.callback(self._count_waiting, -1)

    def _count_waiting(self, more: int) -> None:
        self._waiting += more
        self.refresh()

    def refresh(self) -> None:
        """Say the gauges again, whether or not anything changed."""
        self._meter.refresh()
        self._meters.set(REQUESTS_WAITING, self._waiting)

    def sweep(self) -> None:
        """Remove what a process that died left in the spool, also where no request comes."""
        self._spool.sweep()

    def stages(self, request: Request, face: Blob, voice: Blob | None) -> RequestStages:
        return RequestStages(
            self._handles,
            face=face,
            voice=voice,
            tries=self._settings.tries,
            meters=self._meters,
            admitted=request.entered.know,
            accuse=self.gate.accuse,
        )

    async def fragments(
        self, request: Request, *, face: Blob, voice: Blob, options: Options, soon: bool
    ) -> AsyncGenerator[Fragment, None]:
        """The library's pipeline over the replicas; ``soon`` as there. Raises the library's errors, none of Ray's."""
        job = Job(face, voice, options, self._settings.limits, request=request.entered.lease.request)
        stages = self.stages(request, face, voice)
        made = pipeline.synchronise(job, stages, tuning=self._tuning(), report=request.report, soon=soon)
        if soon:
            made = self._meter.first_of(made, request.report)
        sent_bytes = 0
        with self._meter.watch(request.report):
            async with aclosing(made):
                await self.in_time(request, self.gate.check([face.content_hash, voice.content_hash]))
                while (fragment := await self.in_time(request, anext(made, None))) is not None:
                    sent_bytes += len(fragment.data)
                    if sent_bytes > self._settings.result_bytes:
                        raise ResultTooLarge(
                            f"The result has more than {self._settings.result_bytes:,} bytes. Ask for a smaller size, "
                            "a higher crf, or a shorter voice."
                        )
                    yield fragment
        request.entered.came_to = request.report.frame_count
        _log(request, stages)

    async def result(self, request: Request, fragments: AsyncGenerator[Fragment, None]) -> Path:
        """The whole mp4, as a file that goes when the request does; booked in the spool as it is written. Raises what
        ``fragments`` raises, and Overloaded where there is no room for it."""
        path = request.folder.place / "result.mp4"
        with room_on_disk():
            await write_file(fragments, path, book=request.folder.book)
        return path

    def _tuning(self) -> Tuning:
        """As set, with a window that shrinks down to two as requests become many: who comes then finds few segments of
        others before its first one."""
        tuning = self._settings.tuning
        share = max(2, self._settings.segments // max(1, self.gate.requests))
        return replace(tuning, window=min(tuning.window, share))

    async def boxes(self, request: Request, *, face: Blob, options: Options) -> str:
        """The face's box in every source frame, as JSON. Raises NoFace and the errors of reading the input."""
        job = Job(face, EMPTY, options, self._settings.limits, request=request.entered.lease.request)
        stages = self.stages(request, face, None)
        with self._meter.watch(request.report):
            await self.in_time(request, self.gate.check([face.content_hash]))
            found = await self.in_time(
                request, pipeline.find_track(job, stages, tuning=self._settings.tuning, report=request.report)
            )
        _log(request, stages)
        return found

    async def in_time(self, request: Request, work: Awaitable[T]) -> T:
        """What ``work`` gives, within what is left of the request's time. Raises DeadlineExceeded."""
        left_s = request.began_s + self._settings.deadline_s - time.monotonic()
        try:
            async with asyncio.timeout(left_s):
                return await work
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"The request took longer than {self._settings.deadline_s:g} s. Send less, or try when it is calmer."
            ) from error

    def refuse(self, error: Exception, *, request_id: str) -> LipsyncError:
        """An error as the caller is told of it, counted; one of which the caller is told less is logged."""
        cause = cause_of(error)
        said = told(cause, request_id)
        if said is not cause:
            log.error(f"request {request_id} failed", exc_info=cause)
        self._meters.add(REJECTED, label=reason_of(said))
        log_request({"request_id": request_id, "error": reason_of(said)})
        return said

    def leave(self, stack: AsyncExitStack) -> None:
        """Close a request's stack in a task of its own, which a caller that goes away cannot cancel."""
        task = asyncio.create_task(stack.aclose())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


EMPTY = Blob(data=b"", path=None, seen=None, byte_count=0)
"""Stands for the voice of a request that only looks for faces."""


def timings(report: Report) -> dict[str, float]:
    """Seconds by stage, all workers' added up, and in all: for headers, the log and the end of a stream."""
    first = {"first": report.first_fragment_s} if report.first_fragment_s else {}
    return report.stage_s | first | {"total": report.total_s}


def _log(request: Request, stages: RequestStages) -> None:
    timings_ms = {f"{name}_ms": round(spent_s * 1000, 1) for name, spent_s in timings(request.report).items()}
    log_request({"request_id": request.id, "frames": request.report.frame_count, "puts": stages.puts} | timings_ms)

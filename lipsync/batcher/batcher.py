"""The frame batcher: counts frames, not requests, and chooses them when the device has room, not before.

Two slots: one batch is drawn, one is staged. The staged one is chosen ahead only when it is full, so whatever arrives
while the device is busy joins the next batch with room. Knows no torch, no media and no network.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from lipsync.batcher.drawing import Batch, Device, draw, place, stage
from lipsync.batcher.queue import F, Ticket
from lipsync.batcher.settings import BatcherCounts, BatcherSettings, BatchReport
from lipsync.batcher.waiting import WaitingRoom
from lipsync.core import F32, I32, U8, Claim
from lipsync.errors import EngineError

T = TypeVar("T")


def _start_timer(delay_s: float, work: Callable[[], None]) -> None:
    timer = threading.Timer(delay_s, work)
    timer.daemon = True
    timer.start()


class FrameBatcher(Generic[F]):
    """A ``lipsync.render.Generator`` over one device, for callers on any event loop and any thread.

    ``on_batch`` is told of every batch, on a thread of the batcher's. Clock, timer and the two executors of one thread
    each (``drawing`` for the device, ``copying`` beside it) are arguments so that time can be simulated.
    """

    def __init__(
        self,
        device: Device[F],
        *,
        settings: BatcherSettings | None = None,
        on_batch: Callable[[BatchReport], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        call_later: Callable[[float, Callable[[], None]], object] = _start_timer,
        drawing: Executor | None = None,
        copying: Executor | None = None,
    ) -> None:
        self._device = device
        self._settings = settings or BatcherSettings()
        self._on_batch = on_batch
        self._clock, self._call_later = clock, call_later
        self._drawing = drawing or ThreadPoolExecutor(1, thread_name_prefix="lipsync-device")
        self._copying = copying or ThreadPoolExecutor(1, thread_name_prefix="lipsync-batches")
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: WaitingRoom[F] = WaitingRoom(self._settings.queued_frames)
        self._running: Batch[F] | None = None
        self._staged: Batch[F] | None = None
        self._wakes_s = math.inf
        self._counts = BatcherCounts()
        self._fault: str | None = None
        self._cause: Exception | None = None

    @property
    def settings(self) -> BatcherSettings:
        return self._settings

    def configure(self, settings: BatcherSettings) -> None:
        """Settings from now on; frames that wait already keep their first share."""
        with self._lock:
            self._settings = settings
            self._waiting.change_bound(settings.queued_frames)
        self._fill_slots()

    @property
    def counts(self) -> BatcherCounts:
        """A copy, as of now."""
        with self._lock:
            waiting = self._waiting
            return replace(self._counts, queued_frames=waiting.queued_frames, held_frames=waiting.held_frames)

    @property
    def healthy(self) -> bool:
        """False once the device failed for good, and after ``close``."""
        return self._fault is None and self._device.healthy

    @property
    def drawing_for_s(self) -> float:
        """How long the batch on the device has been there; 0 where there is none. Grows where the device is stuck."""
        with self._lock:
            running = self._running
            return self._clock() - running.started_s if running is not None and running.started_s else 0.0

    async def generate(self, crops: U8, crop_index: I32, mel: F32, mel_starts: I32, *, claim: Claim) -> U8:
        """See ``lipsync.render.Generator``. Waits where the queue is full; cancelled, drops what was not yet drawn.

        Raises InputError, NonFiniteAudio, NonFiniteOutput, DeviceOutOfMemory, EngineError.
        """
        frames = self._device.check(crops, crop_index, mel, mel_starts)
        return await asyncio.wrap_future(self.submit(frames, claim=claim))

    def submit(self, frames: F, *, claim: Claim) -> Future[U8]:
        """The patches to come of frames that the device has checked. Cancelling the future drops those that wait."""
        count, now = len(frames), self._clock()
        with self._lock:
            if self._fault is not None:
                raise self._refusal()
            ticket = Ticket(
                frames,
                count=count,
                lead=min(count, max(0, self._settings.first_share_frames - claim.first_frame)),
                request=claim.request,
                priority=claim.priority,
                due_s=math.inf if claim.due_in_s is None else now + claim.due_in_s,
                since_s=now,
                number=next(self._numbers),
            )
            self._counts.calls += 1
            if count:
                self._waiting.put(ticket)
        if not count:
            ticket.result.set_result(np.empty((0, 96, 96, 3), np.uint8))
        # NOTE: the number, not the ticket: a cycle through the result would keep its patches until Python collects it
        ticket.result.add_done_callback(partial(self._withdraw, ticket.number))
        self._fill_slots()
        return ticket.result

    def on_device(self, work: Callable[[], T]) -> Future[T]:
        """Run ``work`` on the device's thread, between batches: warming up, where compiled code belongs to a thread."""
        return self._drawing.submit(work)

    def close(self) -> None:
        """Let the batch that is being drawn end, fail all other callers, and stop the threads."""
        with self._lock:
            stranded = self._strand("The generator was closed. Make another one.", None)
        self._fail(stranded)
        self._drawing.shutdown(wait=True)
        self._copying.shutdown(wait=True)

    # Choosing. These are called with the lock held.

    def _bind(self) -> Batch[F]:
        room = self._device.batch_size
        return Batch(self._waiting.take(room, longest_turn=self._settings.turn_frames), room)

    def _may_start(self) -> bool:
        """Whether a device that has nothing to do is to get what waits; if only later, a timer is set."""
        oldest, linger_s = self._waiting.oldest, self._settings.linger_s
        if oldest is None:
            return False
        if not linger_s or self._may_stage() or self._waiting.has_first_share:
            return True
        now, ready_s = self._clock(), oldest.since_s + linger_s
        if now < ready_s < self._wakes_s:
            self._wakes_s = ready_s
            self._call_later(ready_s - now, self._wake)
        return now >= ready_s

    def _may_stage(self) -> bool:
        """Ahead of time only a full batch is chosen: one that is not could still take what arrives meanwhile."""
        return self._waiting.queued_frames >= self._device.batch_size

    def _strand(self, fault: str, cause: Exception | None) -> list[Ticket[F]]:
        """Take no more calls. Returns those that were waiting for a batch, or in the staged one."""
        if self._fault is None:
            self._fault, self._cause = fault, cause
        staged, self._staged = self._staged, None
        return self._waiting.clear() + ([part.ticket for part in staged.parts] if staged is not None else [])

    # Slots.

    def _wake(self) -> None:
        with self._lock:
            self._wakes_s = math.inf
        self._fill_slots()

    def _fill_slots(self) -> None:
        job = None
        with self._lock:
            if self._fault is not None:
                return
            if self._running is None and self._may_start():
                self._running = self._bind()
                job = self._launch(self._running)
            running = self._running
            if running is not None and self._staged is None and self._may_stage():
                self._staged = self._bind()
                self._staged.staging = self._copying.submit(stage, self._device, self._staged.parts)
        if job is not None and running is not None:
            job.add_done_callback(partial(self._after, running))

    def _launch(self, batch: Batch[F]) -> Future[None]:
        # NOTE: whoever calls this adds ``_after`` to the job when the lock is free again: the job may be done by then
        return self._drawing.submit(draw, self._device, batch, self._clock)

    def _after(self, batch: Batch[F], job: Future[None]) -> None:
        """The device has just become free: first its next batch, then the callers of this one."""
        following, stranded = None, []
        with self._lock:
            self._count(batch)
            if job.exception() is not None or not self._device.healthy:
                cause = batch.error or EngineError(f"the device failed ({job.exception()!r}). Start a new process.")
                stranded = self._strand(str(cause), cause) + [part.ticket for part in batch.parts if not batch.outcomes]
            self._running, self._staged = self._staged, None
            running = self._running
            if running is not None:
                following = self._launch(running)
        if running is not None and following is not None:
            following.add_done_callback(partial(self._after, running))
        self._fill_slots()
        self._fail(stranded)
        self._beside(partial(self._settle, batch))

    def _beside(self, work: Callable[[], None]) -> None:
        try:
            self._copying.submit(work)
        except RuntimeError:  # closed meanwhile: callers are told all the same
            work()

    def _count(self, batch: Batch[F]) -> None:
        counts = self._counts
        counts.cancelled_frames += sum(len(part) for part in batch.parts) - batch.frames
        counts.retried += batch.retried
        if batch.outcomes:
            counts.batches += 1
            counts.frames += batch.frames
            counts.requests += batch.requests
            counts.waited_s += sum(batch.waited_s)
            counts.drawing_s += batch.drawing_s

    # Callers.

    def _withdraw(self, number: int, result: Future[U8]) -> None:
        """The call has ended; if because its caller has gone, what it waits for goes too."""
        if not result.cancelled():
            return
        with self._lock:
            self._counts.cancelled_frames += self._waiting.drop(number)
        self._fill_slots()

    def _settle(self, batch: Batch[F]) -> None:
        failed, is_all = 0, len(batch.outcomes) == 1
        for part, outcome in batch.outcomes:
            try:
                whole = outcome if isinstance(outcome, Exception) else place(part, outcome, is_all=is_all)
            except Exception as error:  # no memory, or a device that gave another shape: else its caller waits for ever
                whole = error
            if whole is not None:
                failed += self._end(part.ticket, whole) and isinstance(whole, Exception)
        if self._on_batch is not None and batch.outcomes:
            try:
                self._on_batch(batch.report(failed=failed))
            except Exception:
                logging.getLogger(__name__).exception("on_batch failed; the batch itself is not touched by that")

    def _refusal(self) -> EngineError:
        error = EngineError(self._fault or "The generator failed. Start a new process.")
        error.__cause__ = self._cause
        return error

    def _fail(self, tickets: Iterable[Ticket[F]]) -> None:
        for ticket in tickets:
            self._end(ticket, self._refusal())

    def _end(self, ticket: Ticket[F], outcome: U8 | Exception) -> bool:
        """Tell the caller, once. Returns whether there was one to tell."""
        with self._lock:
            if ticket.has_ended:
                return False
            ticket.has_ended = True
            if not ticket.result.set_running_or_notify_cancel():
                return False
            if isinstance(outcome, Exception):
                self._counts.failed += 1
                self._waiting.drop(ticket.number)
        if isinstance(outcome, Exception):
            ticket.result.set_exception(outcome)
            self._fill_slots()  # what it waited for made room
        else:
            ticket.result.set_result(outcome)
        return True

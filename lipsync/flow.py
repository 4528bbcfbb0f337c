"""Asynchronous work that runs ahead of its consumer: in order, within bounds, and stopped when the consumer goes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import aclosing, suppress
from functools import partial
from typing import Generic, NoReturn, TypeVar

from lipsync.errors import Closed

A = TypeVar("A")
B = TypeVar("B")


class Ahead(Generic[B]):
    """An async iterator whose source is driven by a task of its own, at most ``ahead`` items in front of the consumer.

    ``rests``: once that far in front, the source is driven again when half of them are taken, and not for each.
    Errors of the source are raised to the consumer in their place. ``aclose`` cancels the task and waits for it.
    """

    def __init__(self, source: AsyncGenerator[B, None], *, ahead: int, rests: bool = False) -> None:
        self._queue: asyncio.Queue[B] = asyncio.Queue(maxsize=ahead)
        self._goes_on_at = ahead // 2 if rests else ahead
        self._goes_on = asyncio.Event()
        self._task = asyncio.create_task(self._drive(source))
        self._has_ended = False

    async def _drive(self, source: AsyncGenerator[B, None]) -> None:
        async with aclosing(source):
            async for item in source:
                await self._queue.put(item)
                if self._queue.full() and self._goes_on_at < self._queue.maxsize:
                    self._goes_on.clear()
                    await self._goes_on.wait()

    def __aiter__(self) -> Ahead[B]:
        return self

    async def __anext__(self) -> B:
        if self._queue.empty() and not self._task.done():
            getting = asyncio.ensure_future(self._queue.get())
            try:
                await asyncio.wait({getting, self._task}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not getting.done():
                    getting.cancel()
            if getting.done() and not getting.cancelled():
                return self._taken(getting.result())
        if not self._queue.empty():
            return self._taken(self._queue.get_nowait())
        return self._end()

    def _taken(self, item: B) -> B:
        if self._queue.qsize() <= self._goes_on_at:
            self._goes_on.set()
        return item

    def _end(self) -> NoReturn:
        """The source has ended: raise its error, once, or StopAsyncIteration."""
        if self._has_ended:
            raise StopAsyncIteration
        self._has_ended = True
        if self._task.cancelled():
            raise Closed("The work was stopped from outside before it was done. Send the request again.")
        raise self._task.exception() or StopAsyncIteration

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


_LONG_AHEAD = 8


class _Window:
    """How many items may be under way at once; a run larger than the window goes alone."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._changed = asyncio.Condition()

    async def take(self, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._used == 0 or self._used + count <= self._size)
            self._used += count

    async def give_back(self) -> None:
        async with self._changed:
            self._used -= 1
            self._changed.notify_all()


async def in_order(
    runs: AsyncGenerator[Sequence[A], None],
    start: Callable[[Sequence[A]], AsyncGenerator[B, None]],
    *,
    window: int,
    head_start_s: float = 0.0,
) -> AsyncGenerator[B, None]:
    """Start a worker per run, several at once, and yield what they make in the runs' order.

    ``start(run)`` yields one item per member of its run. At most ``window`` items are under way or waiting to be
    taken; of a longer run, which one worker makes alone, twice as many or eight. Where such a run had to wait it goes
    on for half of that at once: its worker may have given up meanwhile, and begin with what it had done. The first run
    is ``head_start_s`` ahead of the others, or as far as its first item. The first error, in order, ends it; closing
    the iterator closes every worker.
    """
    room, has_come = _Window(window), asyncio.Event()
    flights: set[Ahead[B]] = set()

    async def launch() -> AsyncGenerator[Ahead[B], None]:
        is_first = True
        async with aclosing(runs):
            async for run in runs:
                await room.take(len(run))
                is_long = len(run) > window
                flight = Ahead(start(run), ahead=max(2 * window, _LONG_AHEAD) if is_long else window, rests=is_long)
                flights.add(flight)
                yield flight
                if is_first and head_start_s:
                    # not wait_for: Python 3.11 loses a cancellation that comes together with the event
                    with suppress(TimeoutError):
                        async with asyncio.timeout(head_start_s):
                            await has_come.wait()
                is_first = False

    launched = Ahead(launch(), ahead=window)
    try:
        async for flight in launched:
            async for item in flight:
                has_come.set()
                yield item
                await room.give_back()
            await flight.aclose()
            flights.discard(flight)
    finally:
        await launched.aclose()
        await asyncio.gather(*(flight.aclose() for flight in flights))


async def call(executor: Executor, work: Callable[[], B], *, stop: threading.Event | None = None) -> B:
    """Run ``work`` on a thread. A cancelled caller takes back work that has not begun; else it sets ``stop`` and waits
    for the thread, so that whatever the work uses may be closed afterwards. Raises Closed after a shutdown."""
    try:
        job = executor.submit(work)
    except RuntimeError as error:
        raise Closed("The service was closed. Make a new one.") from error
    future = asyncio.wrap_future(job)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if job.cancel():
            raise
        if stop is not None:
            stop.set()
        # the caller is gone: an error of the work has no one to go to, also where it is cancelled once more
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([future])
        raise


async def iterate(
    executor: Executor, make: Callable[[threading.Event], Generator[B, None, None]]
) -> AsyncGenerator[B, None]:
    """A generator of blocking steps, each run on a thread; closed on a thread too.

    ``make`` is given an event that is set when the consumer goes, for ``stoppable``.
    """
    stop = threading.Event()
    steps = await call(executor, partial(make, stop))
    ended = object()
    try:
        while (item := await call(executor, lambda: next(steps, ended), stop=stop)) is not ended:
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        await call(executor, steps.close)


class Stopped(Exception):
    """The consumer of work went away; raised and ended inside a worker thread."""


def stoppable(items: Iterable[B], stop: threading.Event) -> Iterator[B]:
    """The same items; raises Stopped in place of the next one once ``stop`` is set."""
    for item in items:
        if stop.is_set():
            raise Stopped
        yield item

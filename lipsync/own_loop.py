"""Coroutines for callers that do not await: run to their end in an event loop of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class OwnLoop:
    """An event loop for one caller; a context manager, to be used on the thread that entered it.

    Where that thread runs a loop already, as in a notebook, this one gets a thread of its own, because a thread runs
    one loop at a time. The caller waits either way, and with it the loop that it runs.
    """

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lipsync-loop") if _in_a_loop() else None
        return self

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` returns, or raises. Where a KeyboardInterrupt comes, ``work`` is cancelled and ends first."""
        if self._thread is None:
            return self._run(work)
        return self._thread.submit(self._runner.run, work).result()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        task = self._runner.get_loop().create_task(work)
        try:
            self._runner.run(_ended(task))
        except KeyboardInterrupt:
            # WHY: the runner would cancel every task at once when it is closed, also those that clean up after others
            task.cancel()
            self._runner.run(_ended(task))
            if not task.cancelled():
                task.exception()  # looked at, else asyncio says on stderr that nobody did
            raise
        return task.result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            self._runner.close()
            return
        with self._thread:
            self._thread.submit(self._runner.close).result()


async def _ended(task: asyncio.Task[Any]) -> None:
    await asyncio.wait([task])


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run``, also under a loop that is running."""
    with OwnLoop() as loop:
        return loop.run(work)


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True

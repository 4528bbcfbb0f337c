"""Working alone in a replica: so that a death tells whose fault it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

BEGUN = "begun alone"
"""The first item of a call that is worked on alone, sent when it has the replica for itself."""


async def begun() -> AsyncIterator[str]:
    """That item, and a moment for it to leave: a crash must not take it along."""
    yield BEGUN
    await asyncio.sleep(0.05)


class Solitude:
    """Calls share a replica, but for those that want it alone: they wait for others to end, and make new ones wait."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._shared = 0
        self._alone = False
        self._wanting = 0

    @asynccontextmanager
    async def work(self, *, alone: bool) -> AsyncIterator[None]:
        async with self._changed:
            if alone:
                await self._wait_alone()
                self._alone = True
            else:
                await self._changed.wait_for(lambda: not self._alone and not self._wanting)
                self._shared += 1
        try:
            yield
        finally:
            # without waiting for the condition's lock: whoever is cancelled here must still have left
            if alone:
                self._alone = False
            else:
                self._shared -= 1
            self._tell()

    async def _wait_alone(self) -> None:
        self._wanting += 1
        try:
            await self._changed.wait_for(lambda: not self._alone and not self._shared)
        finally:
            self._wanting -= 1
            self._changed.notify_all()

    def _tell(self) -> None:
        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        self._telling = asyncio.get_running_loop().create_task(notify())

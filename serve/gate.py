"""The Ingress's side of admission: asks the books, renews what it holds, and decides alone while they are away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import replace
from time import monotonic
from typing import Any, Literal

from lipsync.errors import InputCrashedWorker, LipsyncError, Overloaded

from .admission import Books, Decision, Lease
from .faults import cause_of, fault_of
from .settings import AdmissionSettings

log = logging.getLogger("ray.serve")
_ANSWER_WITHIN_S = 5.0
_AWAY_FOR_S = 2.0
"""For so long after the books did not answer, nobody waits for them again."""
_REFUSAL_HOLDS_S = 0.25
"""While everything is taken, callers are told so without asking the books each time."""
_SAYINGS = {
    "requests": "As many requests are under way as this service takes.",
    "frames": "As much video is being made as this service takes at once.",
    "key": "This API key has as many requests under way as it may.",
}


class Pass:
    """A request that has entered."""

    def __init__(self, gate: Gate, lease: Lease) -> None:
        self._gate = gate
        self.lease = lease
        self.came_to = 0
        """Frames that were made of it, once all were: others are expected to be as long."""

    async def know(self, frames: int) -> None:
        """Its frames are known now, as far as they will be. Raises Overloaded."""
        self.lease = replace(self.lease, frames=frames)
        await self._gate.know(self)


class Gate:
    """``books`` is the handle of the Admission deployment."""

    def __init__(self, books: Any, settings: AdmissionSettings) -> None:
        self._books = books
        self._settings = settings
        self._own = Books(settings)
        self._held: dict[str, Lease] = {}
        self._full, self._full_until_s = Decision(), 0.0
        self._has_room, self._room_until_s = True, 0.0
        self._away_until_s = 0.0
        self._renewing: asyncio.Task[None] | None = None

    @property
    def requests(self) -> int:
        """Requests that this replica has under way."""
        return len(self._held)

    @asynccontextmanager
    async def request(self, name: str, *, key: str) -> AsyncIterator[Pass]:
        """For as long as a request is under way. Raises Overloaded at once where there is no room."""
        if monotonic() < self._full_until_s:
            raise _refusal(self._full)
        lease = Lease(name, key)
        try:
            answer: Decision | None = await self._ask("enter", lease)
        except asyncio.CancelledError:
            self._leave(name)  # the caller went away, and may have been let in
            raise
        decision = self._own.enter(lease) if answer is None else answer
        if decision.reason in ("requests", "frames"):
            self._full, self._full_until_s = decision, monotonic() + _REFUSAL_HOLDS_S
        if decision.reason:
            if answer is None:
                self._leave(name)  # they may have let it in, and answer too late
            raise _refusal(decision)
        self._hold(lease)
        entered = Pass(self, lease)
        try:
            yield entered
        finally:
            self._held.pop(name, None)
            self._own.leave(name, entered.came_to)
            self._leave(name, entered.came_to)

    async def check(self, hashes: Sequence[str]) -> None:
        """Before anything of the inputs is opened. Raises InputCrashedWorker for one that was accused."""
        decision = self._own.check(hashes)  # the books may have started anew since, or been away when they were told
        if not decision.reason:
            decision = await self._decide("check", hashes)
        if decision.reason:
            raise _refusal(decision)

    async def know(self, entered: Pass) -> None:
        lease = entered.lease
        decision = await self._decide("know", lease)
        if decision.reason:
            raise _refusal(decision)
        self._hold(lease)

    async def accuse(self, content_hash: str) -> None:
        self._own.accuse(content_hash)
        await self._ask("accuse", content_hash)

    async def has_room(self) -> bool:
        """Whether a request would be let in now; this replica's own word where the books do not answer, as for a
        request. An answer holds for a moment: anybody may ask, as often as they like."""
        if monotonic() >= self._room_until_s:
            self._room_until_s = monotonic() + _REFUSAL_HOLDS_S  # who asks meanwhile has the last answer
            answer = await self._ask("has_room")
            self._has_room = self._own.has_room if answer is None else bool(answer)
        return self._has_room

    def _hold(self, lease: Lease) -> None:
        self._held[lease.request] = lease
        self._own.renew([lease])
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew(), context=Context())  # for all, not for this one alone

    def _leave(self, name: str, came_to: int = 0) -> None:
        """Nobody waits for it: an entry that stays runs out."""
        # WHY a context of its own: Serve cancels the calls of a request whose connection closes, and a caller who has
        # the answer closes it just now
        Context().run(self._books.leave.remote, name, came_to)

    async def _renew(self) -> None:
        while self._held:
            await asyncio.sleep(self._settings.lease_s / 3)
            held = list(self._held.values())
            self._own.renew(held)
            await self._ask("renew", held)

    async def _decide(self, method: Literal["check", "know"], about: Any) -> Decision:
        answer: Decision | None = await self._ask(method, about)
        return getattr(self._own, method)(about) if answer is None else answer

    async def _ask(self, method: str, *about: Any) -> Any:
        """The books' answer, or None where they do not answer; errors that are not a lost worker's are raised."""
        if monotonic() < self._away_until_s:
            return None
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                return await getattr(self._books, method).remote(*about)
        except TimeoutError:
            self._away_until_s = monotonic() + _AWAY_FOR_S
            log.warning("admission does not answer; this replica decides alone")
        except Exception as error:
            if fault_of(error) is None:
                raise cause_of(error) from None
            log.warning(f"admission is away ({type(cause_of(error)).__name__}); this replica decides alone")
        return None


def _refusal(decision: Decision) -> LipsyncError:
    if decision.reason == "input":
        return InputCrashedWorker(
            "Two workers died on this input a while ago, and it will not be tried again. Re-encode it, or send another."
        )
    refused = Overloaded(f"{_SAYINGS[decision.reason]} Try again in {decision.retry_after_s:g} s.")
    refused.retry_after_s, refused.reason = decision.retry_after_s, decision.reason
    return refused

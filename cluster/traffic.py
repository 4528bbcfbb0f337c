"""Sends requests, by a timetable or by so many callers, and keeps what became of each.

Every time is in seconds since the run began. A latency counts from the moment at which the timetable wanted the request
sent, not from when it was: a server that is slow enough to hold up the sender must not look faster for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType

from cluster.mix import Inputs, Kind, Mix
from lipsync.client import AsyncClient, Result, Retries, Transfer
from lipsync.errors import LipsyncError

NOT_SENT = "not_sent"
"""In place of a refusal's slug: as many requests were in flight as the load may have."""
_CONNECTIONS_OF_A_CLIENT = 100


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that came to nothing, and when."""

    at_s: float
    slug: str
    detail: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. ``refusal`` is empty where it was answered in full, else the error's slug or ``NOT_SENT``."""

    kind: str
    due_s: float
    sent_s: float
    ended_s: float
    refusal: str = ""
    detail: str = ""
    frames: int = 0
    digest: str = ""
    """SHA-256 of the answer."""
    first_s: float | None = None
    """When a stream's first bytes came."""
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    """Its attempts that another followed."""

    @property
    def latency_s(self) -> float:
        return self.ended_s - self.due_s

    @property
    def last_sent_s(self) -> float:
        """No later than its last attempt was sent."""
        return self.failures[-1].at_s if self.failures else self.sent_s

    @property
    def late_s(self) -> float:
        """How long after its time it was sent."""
        return self.sent_s - self.due_s


class Sender:
    """Sends requests of a mix. An async context manager; one run each.

    At most ``in_flight`` at once; ``timeout_s`` bounds each with its ``attempts``.
    """

    def __init__(
        self,
        url: str,
        *,
        mix: Mix,
        inputs: Inputs,
        in_flight: int,
        timeout_s: float,
        attempts: int = 1,
        api_key: str | None = None,
    ) -> None:
        self.mix = mix
        self.outcomes: list[Outcome] = []
        self.in_flight = self.sent = 0
        self._inputs = inputs
        # a client opens so many connections at most: requests beyond would wait here and look slow
        self._clients = [
            AsyncClient(url, api_key=api_key, timeout_s=timeout_s, retries=Retries(attempts=attempts))
            for _ in range(0, in_flight, _CONNECTIONS_OF_A_CLIENT)
        ]
        self._free = list(range(in_flight))
        self._began = time.monotonic()

    @property
    def now_s(self) -> float:
        return time.monotonic() - self._began

    def begin(self) -> None:
        """The run begins now; what was sent before is forgotten."""
        self.outcomes.clear()
        self.sent = 0
        self._began = time.monotonic()

    @property
    def has_room(self) -> bool:
        return bool(self._free)

    def skip(self, kind: Kind, *, due_s: float) -> None:
        """A request that is due and cannot be sent."""
        self.outcomes.append(Outcome(kind.name, due_s, due_s, due_s, NOT_SENT))

    async def send(self, kind: Kind, *, due_s: float, slot: int) -> Outcome:
        """One request, with a slot of ``take``."""
        client = self._clients[slot // _CONNECTIONS_OF_A_CLIENT]
        sent_s, failures = self.now_s, list[Failure]()

        def note(transfer: Transfer) -> None:
            if (error := transfer.failed) is not None:
                failures.append(Failure(self.now_s, error.slug, error.detail))

        try:
            outcome = await self._answer(client, kind, note, due_s=due_s, sent_s=sent_s)
        except LipsyncError as error:
            outcome = Outcome(kind.name, due_s, sent_s, self.now_s, error.slug, error.detail)
        finally:
            self._free.append(slot)
            self.in_flight -= 1
        outcome = replace(outcome, failures=tuple(failures))
        self.outcomes.append(outcome)
        return outcome

    def take(self) -> int:
        """A slot for one request, from now on in flight. Raises IndexError where there is none."""
        slot = self._free.pop()
        self.in_flight += 1
        self.sent += 1
        return slot

    async def _answer(
        self, client: AsyncClient, kind: Kind, note: Callable[[Transfer], None], *, due_s: float, sent_s: float
    ) -> Outcome:
        face, voice = self._inputs.face(kind, number=self.sent), self._inputs.voice(kind)
        digest, first_s = hashlib.sha256(), None
        result: Result | None
        if kind.is_stream:
            async with client.stream(face, voice, progress=note) as stream:
                async for piece in stream:
                    first_s = first_s or self.now_s
                    digest.update(piece)
                result = stream.result
        else:
            result = await client.lipsync(face, voice, progress=note)
            digest.update(result.data)
        assert result is not None, "a stream that ended without an error is whole"
        return Outcome(
            kind.name,
            due_s,
            sent_s,
            self.now_s,
            frames=result.frames,
            digest=digest.hexdigest(),
            first_s=first_s,
            stages_ms=dict(result.timings_ms),
        )

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            await client.aclose()


async def warm_up(sender: Sender, *, rounds: int) -> None:
    """So many requests of each kind, one after another; they do not count. Raises RuntimeError where one fails."""
    for kind in sender.mix.kinds * rounds:
        outcome = await sender.send(kind, due_s=sender.now_s, slot=sender.take())
        if outcome.refusal:
            raise RuntimeError(f"A {kind.name} request failed in the warm-up: {outcome.refusal}: {outcome.detail}")


async def open_loop(sender: Sender, *, rate_per_s: float, duration_s: float, seed: int = 0) -> None:
    """Requests at random times (Poisson), whatever became of those before; returns when the last has ended."""
    times = random.Random(seed)
    sender.begin()
    due_s = times.expovariate(rate_per_s)
    async with asyncio.TaskGroup() as group:
        while due_s < duration_s:
            await asyncio.sleep(due_s - sender.now_s)
            kind = sender.mix.draw()
            if sender.has_room:
                group.create_task(sender.send(kind, due_s=due_s, slot=sender.take()))
            else:
                sender.skip(kind, due_s=due_s)
            due_s += times.expovariate(rate_per_s)


async def closed_loop(
    sender: Sender,
    *,
    callers: int,
    duration_s: float,
    pause_s: float = 1.0,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """So many callers, each with its next request when the last has ended; one that was refused waits ``pause_s``.

    ``is_over`` may end it before ``duration_s``."""
    sender.begin()

    async def call() -> None:
        while (due_s := sender.now_s) < duration_s and not is_over():
            outcome = await sender.send(sender.mix.draw(), due_s=due_s, slot=sender.take())
            if outcome.refusal:
                await asyncio.sleep(pause_s)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(call())

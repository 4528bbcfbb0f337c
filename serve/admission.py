"""Admission: who may begin, decided once for the whole cluster and counted in requests and frames.

One replica keeps the books in memory. Every entry is a lease that its Ingress renews, so that the entries of an Ingress
that died run out; after a restart of this one the next renewals fill the books again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .settings import AdmissionSettings

_ACCUSED_MOST = 10_000
_ACCUSED_FOR_S = 3600.0
_LEARNING = 0.1
"""How much the latest request counts in what is usual."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A request that is under way: whose it is, and its frames as far as they are known."""

    request: str
    key: str
    frames: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a request may go on. ``reason`` is empty where it may, else ``requests``, ``frames``, ``key`` or
    ``input``."""

    reason: str = ""
    retry_after_s: float = 0.0


class Books:
    """What is under way, within bounds. Every request has a name of its own. Not thread-safe."""

    def __init__(self, settings: AdmissionSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._leases: dict[str, tuple[Lease, float]] = {}  # until when
        self._left: dict[str, float] = {}  # until when what still comes in about them is too late
        self._accused: dict[str, float] = {}
        self._usual_frames = 1.0  # of a request: what is expected of one whose headers were not read yet

    @property
    def requests(self) -> int:
        self._expire()
        return len(self._leases)

    @property
    def frames(self) -> int:
        self._expire()
        return sum(lease.frames for lease, _ in self._leases.values())

    def enter(self, lease: Lease) -> Decision:
        """A request asks to begin; on a yes it is in the books."""
        settings = self._settings
        self._expire()
        own = sum(other.key == lease.key for other, _ in self._leases.values())
        reason = self._fullness()
        if reason != "requests" and lease.key and own >= settings.requests_per_key:
            reason = "key"
        if reason:
            return Decision(reason, settings.retry_after_s)
        self._write(lease)
        return Decision()

    def check(self, hashes: Sequence[str]) -> Decision:
        """Whether inputs of these hashes may be opened."""
        is_accused = any(self._accused.get(found, 0.0) > self._clock() for found in hashes)
        return Decision("input" if is_accused else "")

    def know(self, lease: Lease) -> Decision:
        """A request that has entered knows its frames now, or that nothing tells them (0); on a no it is out of the
        books."""
        others = self.frames - self._frames_of(lease.request)
        if others and others + lease.frames > self._settings.frames:  # alone, a request of any length is taken
            self.leave(lease.request)
            return Decision("frames", self._settings.retry_after_s)
        self._write(lease)
        return Decision()

    def renew(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self._write(lease)

    def leave(self, request: str, came_to: int = 0) -> None:
        """``came_to``: the frames that were made of it; 0 where it ended otherwise. What headers promise is not learnt
        from: a few that lie would close the door."""
        self._leases.pop(request, None)
        self._expire()  # a gate's own books are asked nothing else as long as Admission answers
        self._left.pop(request, None)  # the latest last
        self._left[request] = self._clock() + self._settings.lease_s
        if came_to:
            self._usual_frames += _LEARNING * (came_to - self._usual_frames)

    def accuse(self, content_hash: str) -> None:
        """An input on which two workers died: refused for an hour."""
        now = self._clock()
        self._accused = {known: until for known, until in self._accused.items() if until > now}
        while len(self._accused) >= _ACCUSED_MOST:
            self._accused.pop(next(iter(self._accused)))
        self._accused[content_hash] = now + _ACCUSED_FOR_S

    @property
    def has_room(self) -> bool:
        """Whether a request, of a key that has none, would be let in now."""
        return not self._fullness()

    def _fullness(self) -> str:
        """What there is enough of, or nothing."""
        if self.requests >= self._settings.requests:
            return "requests"
        if self._leases and self._expected_frames > self._settings.frames:
            return "frames"
        return ""

    @property
    def _expected_frames(self) -> float:
        """With one request more: refusing it at the door costs it and the cluster nothing but a call."""
        unread = 1 + sum(not lease.frames for lease, _ in self._leases.values())
        return self.frames + unread * self._usual_frames

    def _frames_of(self, request: str) -> int:
        known = self._leases.get(request)
        return known[0].frames if known else 0

    def _write(self, lease: Lease) -> None:
        # calls overtake each other: a renewal that comes after the leaving would be in the books for as long as a lease
        if self._left.get(lease.request, 0.0) <= self._clock():
            self._leases[lease.request] = (lease, self._clock() + self._settings.lease_s)

    def _expire(self) -> None:
        now = self._clock()
        self._leases = {name: entry for name, entry in self._leases.items() if entry[1] > now}
        while self._left and next(iter(self._left.values())) <= now:
            self._left.pop(next(iter(self._left)))


class Admission:
    """The books as a deployment of one replica."""

    def __init__(self, settings: AdmissionSettings) -> None:
        self._books = Books(settings)

    async def enter(self, lease: Lease) -> Decision:
        return self._books.enter(lease)

    async def check(self, hashes: Sequence[str]) -> Decision:
        return self._books.check(hashes)

    async def know(self, lease: Lease) -> Decision:
        return self._books.know(lease)

    async def renew(self, leases: Sequence[Lease]) -> None:
        self._books.renew(leases)

    async def leave(self, request: str, came_to: int = 0) -> None:
        self._books.leave(request, came_to)

    async def accuse(self, content_hash: str) -> None:
        self._books.accuse(content_hash)

    async def has_room(self) -> bool:
        return self._books.has_room

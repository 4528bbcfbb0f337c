"""Whose frames are drawn next: the order in which waiting frames of many requests go into batches.

Class by class, and inside a class: first shares, then frames with a deadline, earliest first, then turns between
requests, the next turn always going to the request that was drawn least. No threads, no clock, no arrays.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, insort
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, Protocol, Self, TypeVar

from lipsync.core import U8


class Countable(Protocol):
    """Frames that can be counted and cut."""

    def __len__(self) -> int: ...

    def take(self, which: slice) -> Self: ...


F = TypeVar("F", bound=Countable)
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Ticket(Generic[F]):
    """One call's frames on their way: waiting, then taken into one or several batches, then drawn."""

    frames: F
    count: int
    lead: int  # how many of the frames, from the first on, belong to a first share
    request: str
    priority: int
    due_s: float  # on the queue's owner's clock; infinite where there is no deadline
    since_s: float
    number: int
    result: Future[U8] = field(default_factory=Future)
    taken: int = 0
    drawn: int = 0
    patches: U8 | None = None
    has_failed: bool = False
    has_ended: bool = False

    @property
    def left(self) -> int:
        return self.count - self.taken

    @property
    def lead_left(self) -> int:
        return max(0, self.lead - self.taken)


@dataclass(slots=True, eq=False)
class Part(Generic[F]):
    """The frames of a ticket that one batch takes."""

    ticket: Ticket[F]
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def is_wanted(self) -> bool:
        """False when the caller has gone, or other frames of the same call have failed."""
        return not (self.ticket.has_failed or self.ticket.has_ended or self.ticket.result.cancelled())

    def frames(self) -> F:
        whole = len(self) == self.ticket.count
        return self.ticket.frames if whole else self.ticket.frames.take(slice(self.start, self.stop))


class _Ranked(Generic[T]):
    """Few thousands of things at most, sorted by a key of two numbers that no two of them share."""

    def __init__(self) -> None:
        self._keys: list[tuple[float, int]] = []
        self._items: dict[tuple[float, int], T] = {}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __contains__(self, key: tuple[float, int]) -> bool:
        return key in self._items

    def add(self, key: tuple[float, int], item: T) -> None:
        insort(self._keys, key)
        self._items[key] = item

    def discard(self, key: tuple[float, int]) -> None:
        if self._items.pop(key, None) is not None:
            del self._keys[bisect_left(self._keys, key)]

    def first(self) -> T:
        return self._items[self._keys[0]]


@dataclass(slots=True, eq=False)
class _Line(Generic[F]):
    """One request's waiting tickets, in order, and how many frames it has been given."""

    number: int
    given: float = 0
    tickets: dict[int, Ticket[F]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[float, int]:
        return self.given, self.number


class _Class(Generic[F]):
    """One priority's waiting frames."""

    def __init__(self) -> None:
        self._firsts: _Ranked[Ticket[F]] = _Ranked()
        self._due: _Ranked[Ticket[F]] = _Ranked()
        self._waiting: _Ranked[_Line[F]] = _Ranked()  # the lines with tickets, but for the one whose turn it is
        self._lines: dict[str | int, _Line[F]] = {}
        self._numbers = itertools.count()
        self._passed: float = 0  # what the line of the latest turn had been given when that turn began
        self._turn: _Line[F] | None = None
        self._turn_left = 0
        self._crowded = 1000  # so many lines are a reason to forget those that no longer matter

    @property
    def has_first_share(self) -> bool:
        return bool(self._firsts)

    def put(self, ticket: Ticket[F]) -> None:
        key = (ticket.due_s, ticket.number)
        if ticket.lead:
            self._firsts.add(key, ticket)
        if ticket.due_s < math.inf:
            self._due.add(key, ticket)
            return
        line = self._line(ticket)
        if not line.tickets:
            # who was away has saved nothing up, and who comes back soon is not forgiven what it had
            line.given = max(line.given, self._passed)
            self._waiting.add(line.key, line)
        line.tickets[ticket.number] = ticket

    def remove(self, ticket: Ticket[F]) -> None:
        key = (ticket.due_s, ticket.number)
        self._firsts.discard(key)
        self._due.discard(key)
        line = self._lines.get(_line_key(ticket))
        if line is not None and line.tickets.pop(ticket.number, None) is not None and not line.tickets:
            self._leave(line)

    def _line(self, ticket: Ticket[F]) -> _Line[F]:
        key = _line_key(ticket)
        if key not in self._lines:
            self._lines[key] = _Line(next(self._numbers), given=self._passed)
        return self._lines[key]

    def _leave(self, line: _Line[F]) -> None:
        self._waiting.discard(line.key)
        if self._turn is line:
            self._turn = None
        if self._turn is None and not self._waiting:
            self._lines.clear()
        elif len(self._lines) > self._crowded:
            self._lines = {key: one for key, one in self._lines.items() if one.tickets or one.given > self._passed}
            self._crowded = max(1000, 2 * len(self._lines))

    def next(self, *, longest_turn: int) -> tuple[Ticket[F], int] | None:
        """Whose frames come next, and how many of them at most."""
        if self._firsts:
            ticket = self._firsts.first()
            return ticket, ticket.lead_left
        if self._due:
            ticket = self._due.first()
            return ticket, ticket.left
        if self._turn is None and self._waiting:
            line = self._turn = self._waiting.first()
            self._waiting.discard(line.key)
            self._passed = line.given
            self._turn_left = min(next(iter(line.tickets.values())).left, longest_turn)
        if self._turn is None:
            return None
        ticket = next(iter(self._turn.tickets.values()))
        return ticket, min(ticket.left, self._turn_left)

    def charge(self, ticket: Ticket[F], count: int) -> None:
        """``count`` more of the ticket's frames were taken."""
        line = self._lines.get(_line_key(ticket))  # a request whose frames all have deadlines has none
        if line is not None:
            is_waiting = line.key in self._waiting
            self._waiting.discard(line.key)
            line.given += count
            if line is self._turn:
                self._turn_left -= count
                if self._turn_left <= 0:
                    self._turn, is_waiting = None, True
            if is_waiting:
                self._waiting.add(line.key, line)
        if ticket.lead and not ticket.lead_left:
            self._firsts.discard((ticket.due_s, ticket.number))
        if not ticket.left:
            self.remove(ticket)


def _line_key(ticket: Ticket[F]) -> str | int:
    return ticket.request or ticket.number


class FrameQueue(Generic[F]):
    """Tickets that wait, and what to take of them next. One thread at a time."""

    def __init__(self) -> None:
        self._classes: dict[int, _Class[F]] = {}
        self._tickets: dict[int, Ticket[F]] = {}
        self.frames = 0

    def tickets(self) -> list[Ticket[F]]:
        return list(self._tickets.values())

    @property
    def oldest(self) -> Ticket[F] | None:
        """The one that was put first."""
        return next(iter(self._tickets.values()), None)

    @property
    def has_first_share(self) -> bool:
        return any(one.has_first_share for one in self._classes.values())

    def put(self, ticket: Ticket[F]) -> None:
        self._classes.setdefault(ticket.priority, _Class()).put(ticket)
        self._tickets[ticket.number] = ticket
        self.frames += ticket.left

    def drop(self, number: int) -> int:
        """Forget what the ticket of that number still waits for. Returns how many frames that was."""
        ticket = self._tickets.pop(number, None)
        if ticket is None:
            return 0
        self._classes[ticket.priority].remove(ticket)
        self.frames -= ticket.left
        return ticket.left

    def take(self, room: int, *, longest_turn: int) -> list[Part[F]]:
        """The next batch of at most ``room`` frames, one part per ticket; the room cuts only the last that it takes.

        A turn is a ticket, or ``longest_turn`` frames of it; a turn that was cut goes on in the next batch.
        """
        parts: dict[Ticket[F], Part[F]] = {}
        for priority in sorted(self._classes):
            of_class = self._classes[priority]
            while room and (found := of_class.next(longest_turn=longest_turn)):
                ticket, count = found[0], min(room, found[1])
                part = parts.setdefault(ticket, Part(ticket, ticket.taken, ticket.taken))
                part.stop = ticket.taken = ticket.taken + count
                of_class.charge(ticket, count)
                room -= count
                self.frames -= count
                if not ticket.left:
                    del self._tickets[ticket.number]
        return list(parts.values())

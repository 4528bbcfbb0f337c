"""Where calls wait for the device: a queue bounded in frames, and before it those that wait for room in it."""

from __future__ import annotations

from bisect import insort
from typing import Generic

from lipsync.batcher.queue import F, FrameQueue, Part, Ticket


class WaitingRoom(Generic[F]):
    """Tickets in a queue of at most ``bound`` frames; further ones are held back, the most urgent first to go in.

    A ticket larger than the bound goes in when the queue is empty. One thread at a time.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._queue: FrameQueue[F] = FrameQueue()
        self._held: list[Ticket[F]] = []

    @property
    def queued_frames(self) -> int:
        return self._queue.frames

    @property
    def held_frames(self) -> int:
        return sum(ticket.count for ticket in self._held)

    @property
    def has_first_share(self) -> bool:
        return self._queue.has_first_share

    @property
    def oldest(self) -> Ticket[F] | None:
        """The first of those in the queue to have entered it."""
        return self._queue.oldest

    def change_bound(self, bound: int) -> None:
        self._bound = bound
        self._admit()

    def put(self, ticket: Ticket[F]) -> None:
        insort(self._held, ticket, key=_urgency)
        self._admit()

    def drop(self, number: int) -> int:
        """Forget what the ticket of that number still waits for. Returns how many frames that was."""
        dropped = self._queue.drop(number)
        for ticket in self._held:
            if ticket.number == number:
                self._held.remove(ticket)
                dropped = ticket.count
                break
        self._admit()
        return dropped

    def take(self, room: int, *, longest_turn: int) -> list[Part[F]]:
        """See ``FrameQueue.take``."""
        parts = self._queue.take(room, longest_turn=longest_turn)
        self._admit()
        return parts

    def clear(self) -> list[Ticket[F]]:
        """Nobody waits any more. Returns those that did."""
        waiting = [*self._queue.tickets(), *self._held]
        self._queue = FrameQueue()
        self._held = []
        return waiting

    def _admit(self) -> None:
        while self._held and (not self._queue.frames or self._queue.frames + self._held[0].count <= self._bound):
            self._queue.put(self._held.pop(0))


def _urgency(ticket: Ticket[F]) -> tuple[int, bool, float, int]:
    return ticket.priority, not ticket.lead, ticket.due_s, ticket.number

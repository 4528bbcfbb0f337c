"""A small store of finished results, bounded in entries, bytes and age, the least recently used thrown out first."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass(slots=True)
class _Entry(Generic[V]):
    value: V
    byte_count: int
    used_s: float


class LruCache(Generic[V]):
    """Thread-safe; ``capacity`` 0 keeps nothing. What nobody asked for in ``ttl_s`` is thrown out at the next call. An
    entry of more than ``capacity_bytes``, by what ``put`` says of it, is not kept, and costs no other its place."""

    def __init__(
        self,
        capacity: int,
        *,
        capacity_bytes: float = math.inf,
        ttl_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capacity, self._capacity_bytes, self._ttl_s, self._clock = capacity, capacity_bytes, ttl_s, clock
        self._entries: OrderedDict[Hashable, _Entry[V]] = OrderedDict()  # the longest unused first
        self.byte_count = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> V | None:
        with self._lock:
            self._expire()
            known = self._entries.get(key)
            if known is None:
                return None
            self._entries.move_to_end(key)
            known.used_s = self._clock()
            return known.value

    def put(self, key: Hashable, value: V, *, byte_count: int = 0) -> None:
        with self._lock:
            self._expire()
            if key in self._entries:
                self.byte_count -= self._entries.pop(key).byte_count
            if byte_count > self._capacity_bytes:
                return
            self._entries[key] = _Entry(value, byte_count, self._clock())
            self.byte_count += byte_count
            while len(self._entries) > self._capacity or self.byte_count > self._capacity_bytes:
                self._drop()

    def expire(self) -> None:
        """Throw out what is too old now: for whoever is called now and then anyway."""
        with self._lock:
            self._expire()

    def _expire(self) -> None:
        oldest = self._clock() - self._ttl_s
        while self._entries and next(iter(self._entries.values())).used_s < oldest:
            self._drop()

    def _drop(self) -> None:
        _, dropped = self._entries.popitem(last=False)
        self.byte_count -= dropped.byte_count

    def __len__(self) -> int:
        return len(self._entries)

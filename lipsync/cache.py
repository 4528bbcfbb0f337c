"""A small store of finished results, bounded in entries and in age, the least recently used thrown out first."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class LruCache(Generic[V]):
    """Thread-safe; ``capacity`` 0 keeps nothing. What nobody asked for in ``ttl_s`` is thrown out at the next call."""

    def __init__(self, capacity: int, *, ttl_s: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity, self._ttl_s, self._clock = capacity, ttl_s, clock
        self._entries: OrderedDict[Hashable, tuple[float, V]] = OrderedDict()  # the longest unused first
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> V | None:
        with self._lock:
            self._expire()
            known = self._entries.pop(key, None)
            if known is None:
                return None
            self._entries[key] = (self._clock(), known[1])
            return known[1]

    def put(self, key: Hashable, value: V) -> None:
        with self._lock:
            self._expire()
            self._entries.pop(key, None)
            self._entries[key] = (self._clock(), value)
            while len(self._entries) > self._capacity:
                self._entries.popitem(last=False)

    def expire(self) -> None:
        """Throw out what is too old now: for whoever is called now and then anyway."""
        with self._lock:
            self._expire()

    def _expire(self) -> None:
        oldest = self._clock() - self._ttl_s
        while self._entries and next(iter(self._entries.values()))[0] < oldest:
            self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)

"""The replicas of the modelled cluster: devices with the real batcher, cores with a queue, and how one is chosen."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from benchmarks.simulated import AtOnce, Drawing, World
from cluster.costs import Assumptions
from lipsync.batcher import BatcherSettings, BatchReport, FrameBatcher

THREADS = 1
"""Of a CPU replica, which is given one core (``num_cpus: 1``): jobs have it one after the other."""


class Count:
    """Frames that are only counted."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def take(self, which: slice) -> Count:
        return Count(which.stop - which.start)


@cache
def passes_s(assumed: Assumptions) -> dict[int, float]:
    """How long a pass takes, by its frames."""
    return {
        count: assumed.pass_s + next(b for b in assumed.buckets if b >= count) / assumed.gpu_frames_per_s
        for count in range(1, assumed.buckets[-1] + 1)
    }


class ModelDevice:
    """A GPU. ``benchmarks.simulated.Drawing`` reads ``busy_s`` after each pass."""

    healthy = True

    def __init__(self, assumed: Assumptions) -> None:
        self.batch_size = assumed.buckets[-1]
        self.busy_s = 0.0
        self.passes_s = passes_s(assumed)

    def check(self, *_: Any) -> Count:
        raise NotImplementedError("frames are submitted counted")

    def stage(self, parts: list[Count]) -> Count:
        return Count(sum(part.count for part in parts))

    def draw(self, frames: Count) -> np.ndarray:
        self.busy_s += self.passes_s[frames.count]
        return np.empty(frames.count, np.uint8)


class Replica(Protocol):
    under_way: int


R = TypeVar("R", bound=Replica)


class Pool(Generic[R]):
    """The replicas of a deployment and who calls them: of two with room the less busy one, or a wait for room."""

    def __init__(self, replicas: list[R], *, most: int, rng: random.Random) -> None:
        self.replicas = replicas
        self._most, self._random = most, rng
        self._open = list(replicas)
        self._known = {id(one) for one in replicas}
        self._at = {id(one): at for at, one in enumerate(replicas)}
        self._waiting: deque[Callable[[R], object]] = deque()

    def call(self, then: Callable[[R], object]) -> None:
        """``then(replica)`` when one takes the call; ``give_back`` ends it."""
        if not self._open:
            self._waiting.append(then)
            return
        one, other = (self._open[int(self._random.random() * len(self._open))] for _ in range(2))
        chosen = one if one.under_way <= other.under_way else other
        chosen.under_way += 1
        if chosen.under_way >= self._most:
            self._shut(chosen)
        then(chosen)

    def give_back(self, replica: R) -> None:
        replica.under_way -= 1
        if id(replica) not in self._at and id(replica) in self._known:
            self._at[id(replica)] = len(self._open)
            self._open.append(replica)
        if self._waiting and self._open:
            self.call(self._waiting.popleft())

    def add(self, replica: R) -> None:
        self.replicas.append(replica)
        self._known.add(id(replica))
        replica.under_way += 1
        self.give_back(replica)
        while self._waiting and self._open:
            self.call(self._waiting.popleft())

    def remove(self, replica: R) -> None:
        """It gets no more calls; what it has it finishes."""
        self.replicas.remove(replica)
        self._known.discard(id(replica))
        if id(replica) in self._at:
            self._shut(replica)

    def _shut(self, replica: R) -> None:
        at, last = self._at.pop(id(replica)), self._open.pop()
        if last is not replica:
            self._open[at] = last
            self._at[id(last)] = at


class Worker:
    """A CPU replica: jobs in the order in which they came, on as many threads."""

    def __init__(self, world: World, threads: int = THREADS) -> None:
        self._world = world
        self._free_s = [0.0] * threads
        self.under_way = 0
        self.busy_s = 0.0

    def work(self, cost_s: float, then: Callable[[], object]) -> None:
        start_s = max(self._world.now_s, self._free_s[0])
        heapq.heapreplace(self._free_s, start_s + cost_s)

        def end() -> None:
            self.busy_s += cost_s
            then()

        self._world.later(start_s + cost_s - self._world.now_s, end)


class Generator:
    """A replica with a device and its batcher."""

    def __init__(self, world: World, assumed: Assumptions, on_batch: Callable[[BatchReport], None]) -> None:
        self.device = ModelDevice(assumed)
        self.under_way = 0

        def timed(report: BatchReport) -> None:
            # the clock stands still while the device draws: its time is what the pass is said to take
            on_batch(replace(report, drawing_s=self.device.passes_s[report.frames]))

        drawing = Drawing(world, self.device)  # type: ignore[arg-type]
        self.batcher: FrameBatcher[Count] = FrameBatcher(
            self.device,  # type: ignore[arg-type]
            settings=BatcherSettings(),
            on_batch=timed,
            clock=world.clock,
            call_later=world.later,
            drawing=drawing,
            copying=AtOnce(),
        )

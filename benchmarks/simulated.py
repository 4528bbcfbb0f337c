"""A device and a clock that cost nothing to wait for: the frame batcher itself, in simulated time, on one thread."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from lipsync.batcher import FrameBatcher
from lipsync.core import F32, I32, U8, Claim


class World:
    """A clock that jumps from one event to the next."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()

    def clock(self) -> float:
        return self.now_s

    def later(self, delay_s: float, work: Callable[[], object]) -> None:
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._numbers), work))

    def run(self, until_s: float = float("inf")) -> None:
        """Let everything happen that happens until then."""
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, work = heapq.heappop(self._events)
            work()
        if until_s < float("inf"):
            self.now_s = max(self.now_s, until_s)


class Numbers:
    """Frames that are numbers, so that each can be told from every other."""

    def __init__(self, numbers: Sequence[int] | np.ndarray) -> None:
        self.numbers = np.asarray(numbers, np.int64)

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, which: slice) -> Numbers:
        return Numbers(self.numbers[which])


class Poisoned(Exception):
    """A frame that the device cannot draw."""


class NumberDevice:
    """Draws a frame's number. Every pass costs the same time, however many frames it draws."""

    def __init__(self, world: World, *, batch_size: int = 512, pass_s: float = 0.02) -> None:
        self.world, self.batch_size, self.pass_s = world, batch_size, pass_s
        self.poison: set[int] = set()
        self.healthy = True
        self.dies_at: int | None = None  # the frame that ends the device
        self.passes: list[tuple[float, np.ndarray]] = []
        self.before_pass: Callable[[np.ndarray], object] = self._note
        self.busy_s = 0.0

    def _note(self, numbers: np.ndarray) -> None:
        self.passes.append((self.world.now_s + self.busy_s, numbers))

    def check(self, crops: U8, crop_index: I32, mel: F32, mel_starts: I32) -> Numbers:
        return Numbers(crop_index)

    def stage(self, parts: Sequence[Numbers]) -> Numbers:
        return Numbers(np.concatenate([part.numbers for part in parts]))

    def draw(self, frames: Numbers) -> Any:  # numbers, where an engine has patches
        assert 1 <= len(frames) <= self.batch_size
        if not self.healthy:
            raise RuntimeError("the device failed before")
        self.before_pass(frames.numbers)
        self.busy_s += self.pass_s
        if self.dies_at is not None and self.dies_at in frames.numbers:
            self.healthy = False
            raise RuntimeError("an illegal access")
        if self.poison and (bad := self.poison & set(frames.numbers.tolist())):
            raise Poisoned(f"frame {min(bad)}")
        return frames.numbers.copy()


class Drawing(Executor):
    """The device's thread: a job ends when the passes it made have taken their time."""

    def __init__(self, world: World, device: NumberDevice) -> None:
        self._world, self._device, self._is_busy = world, device, False

    def submit(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        assert not self._is_busy, "two batches at once on one device"
        self._is_busy = True
        job = Future[Any]()
        job.set_running_or_notify_cancel()
        self._device.busy_s = 0.0
        work(*given, **named)

        def end() -> None:
            self._is_busy = False
            job.set_result(None)

        self._world.later(self._device.busy_s, end)
        return job


class AtOnce(Executor):
    """Work that takes no time."""

    def submit(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        done = Future[Any]()
        done.set_result(work(*given, **named))
        return done


def simulated(
    world: World, device: NumberDevice, *, kind: type[FrameBatcher[Any]] = FrameBatcher, **more: Any
) -> FrameBatcher[Any]:
    """A batcher whose threads, clock and timers are the world's."""
    return kind(
        device, clock=world.clock, call_later=world.later, drawing=Drawing(world, device), copying=AtOnce(), **more
    )


OF = 1_000_000
"""Frame f of request r is the number r million and f."""
FIRST_SHARE = 64


class Clients:
    """Requests that come by themselves, each with up to ``window`` segments in flight, as the pipeline has them."""

    def __init__(self, world: World, batcher: FrameBatcher[Any], device: NumberDevice, *, window: int = 8) -> None:
        self.world, self.batcher, self.window = world, batcher, window
        self.came_s: list[float] = []
        self.share_started_s: list[float] = []  # when the pass with the last frame of the first share began
        self.ended_s: list[float] = []
        self.pass_frames: list[int] = []
        device.before_pass = self._note

    def come(self, frames: int) -> None:
        """One more request, now."""
        request = len(self.came_s)
        self.came_s.append(self.world.now_s)
        self.share_started_s.append(float("nan"))
        self.ended_s.append(float("nan"))
        cuts = [cut for cut in (0, 8, 32, 96, *range(224, frames, 128)) if cut < frames]
        segments = pairwise([*cuts, frames])

        def send(done: Future[Any] | None = None) -> None:
            for first, stop in segments:
                claim = Claim(request=str(request), first_frame=first)
                numbers = Numbers(np.arange(request * OF + first, request * OF + stop))
                self.batcher.submit(numbers, claim=claim).add_done_callback(send)
                return
            self.ended_s[request] = self.world.now_s

        for _ in range(self.window):
            send()

    def _note(self, numbers: np.ndarray) -> None:
        self.pass_frames.append(len(numbers))
        for request in np.unique(numbers[numbers % OF < FIRST_SHARE] // OF).tolist():
            self.share_started_s[request] = self.world.now_s

    def share_waits_s(self) -> np.ndarray:
        return np.subtract(self.share_started_s, self.came_s)


def mixed_sizes(count: int, random: np.random.Generator) -> list[int]:
    """Frames per request, 25 to 3,000, as many short ones for their size as long ones."""
    return [round(float(size)) for size in np.exp(random.uniform(np.log(25), np.log(3000), count))]


def come_by_themselves(clients: Clients, *, load: float, frames_per_s: float, seconds: float, seed: int = 0) -> None:
    """Mixed requests at random times, at so much of what the device can draw."""
    random = np.random.default_rng(seed)
    sizes = mixed_sizes(100_000, random)
    at_s = 0.0
    for size in itertools.cycle(sizes):
        at_s += random.exponential(float(np.mean(sizes)) / (load * frames_per_s))
        if at_s > seconds:
            return
        clients.world.later(at_s, partial(clients.come, size))

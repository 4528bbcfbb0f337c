"""A cluster in simulated time: the pipeline's windows, Ingresses, CPU replicas, and Generators with the real batcher.

``lipsync.batcher`` runs as it is, on a clock that jumps. A CPU replica is a core with a queue before
it; a Generator is a device that takes so long for a bucket. Callers choose the less busy of two replicas with room.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

from benchmarks.simulated import World
from cluster.costs import Assumptions, Costs
from cluster.replicas import Count, Generator, Pool, Worker
from lipsync.batcher import BatchReport
from lipsync.core import Claim
from lipsync.plan import Tuning

FPS = 25
CLIP_FRAMES = 250
CALLS_AT_THE_START = 6
"""enter, know and leave at the Admission; open, voice and detect at a Preprocessor. Each segment is one more."""


@dataclass(slots=True)
class Request:
    """One request on its way; segments are delivered in order, at most a window of them under way."""

    number: int
    frames: int
    is_video: bool
    came_s: float
    ingress: Worker
    cuts: Iterator[tuple[int, int]]
    detected: int = 0
    under_way: int = 0
    delivered: int = 0
    ready: set[int] = field(default_factory=set)
    waiting: tuple[int, int] | None = None
    sent: int = 0
    first_s: float = math.nan
    ended_s: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything there is."""

    gpus: int
    renderers: int
    preprocessors: int
    ingresses: int


class Cluster:
    """Requests come in by ``come``; what became of them stands in ``done``."""

    def __init__(
        self, size: Size, costs: Costs, assumed: Assumptions, *, tuning: Tuning | None = None, seed: int = 0
    ) -> None:
        self.world, self.costs, self.assumed = World(), costs, assumed
        rng = random.Random(seed)
        self.renderers = Pool([Worker(self.world) for _ in range(size.renderers)], most=4, rng=rng)
        self.preprocessors = Pool([Worker(self.world) for _ in range(size.preprocessors)], most=16, rng=rng)
        generators = [Generator(self.world, assumed, self._on_batch) for _ in range(size.gpus)]
        self.generators = Pool(generators, most=256, rng=rng)
        self.done: list[Request] = []
        self.under_way = self.drawn_frames = self.batch_room = self.delivered_frames = 0
        self.drawing_s = 0.0
        self._ingresses = [Worker(self.world, threads=1) for _ in range(size.ingresses)]
        self._random, self._numbers = rng, 0
        self._tuning = tuning or Tuning()

    def _on_batch(self, report: BatchReport) -> None:
        self.drawn_frames += report.frames
        self.batch_room += report.room
        self.drawing_s += report.drawing_s

    def come(self, frames: int, *, is_video: bool) -> Request:
        """One more request, now."""
        self._numbers += 1
        ingress = self._random.choice(self._ingresses)
        request = Request(self._numbers, frames, is_video, self.world.now_s, ingress, self._cuts(frames))
        self.under_way += 1
        self._call(request, lambda: self._look(request), calls=CALLS_AT_THE_START)
        return request

    def _cuts(self, frames: int) -> Iterator[tuple[int, int]]:
        lengths = list(self._tuning.segment_frames)
        lengths += [lengths[-1]] * (frames // lengths[-1])
        cuts = [cut for cut in accumulate(lengths, initial=0) if cut < frames]
        return pairwise([*cuts, frames])

    def _call(self, request: Request, then: Callable[[], object], *, calls: int = 1) -> None:
        request.ingress.work(calls / self.assumed.calls_per_s, then)

    def _look(self, request: Request) -> None:
        """Detection: of a still once; of a video in growing chunks, until the clip or what is shown of it is seen."""
        source_frames = min(request.frames, CLIP_FRAMES)

        def look_on(worker: Worker) -> None:
            if request.is_video:
                upto = min(source_frames, max(self._tuning.shortest_chunk, 2 * request.detected))
                cost_ms = (upto - request.detected) * self.costs.video_detect_ms
            else:
                upto, cost_ms = source_frames, self.costs.look_ms
            worker.work(cost_ms / 1000, lambda: seen(worker, upto))

        def seen(worker: Worker, upto: int) -> None:
            # a clip that starts again is not looked at again
            request.detected = request.frames if upto >= source_frames else upto
            if request.detected == request.frames:
                self.preprocessors.give_back(worker)
            else:
                look_on(worker)
            self._render(request)

        self.preprocessors.call(look_on)

    def _render(self, request: Request) -> None:
        """Start segments whose frames were looked at, while the window has room."""
        while request.under_way < self._tuning.window:
            span = request.waiting or next(request.cuts, None)
            request.waiting = span
            if span is None or span[1] > request.detected:
                return
            request.waiting = None
            number, request.sent = request.sent, request.sent + 1
            request.under_way += 1
            self._call(request, partial(self._segment, request, span, number))

    def _segment(self, request: Request, span: tuple[int, int], number: int) -> None:
        frames, costs = span[1] - span[0], self.costs
        before_ms = costs.video_decode_ms if request.is_video else 0.0
        after_ms = (costs.video_frame_ms if request.is_video else costs.still_frame_ms) - before_ms

        def prepare(worker: Worker) -> None:
            worker.work(frames * before_ms / 1000, lambda: self.generators.call(lambda one: generate(worker, one)))

        def generate(worker: Worker, generator: Generator) -> None:
            claim = Claim(request=str(request.number), first_frame=span[0])
            patches = generator.batcher.submit(Count(frames), claim=claim)
            patches.add_done_callback(lambda drawn: finish(worker, generator, drawn))

        def finish(worker: Worker, generator: Generator, drawn: Future[Any]) -> None:
            drawn.result()
            self.generators.give_back(generator)
            worker.work(frames * after_ms / 1000, lambda: made(worker))

        def made(worker: Worker) -> None:
            self.renderers.give_back(worker)
            self.delivered_frames += frames
            self._deliver(request, number)

        self.renderers.call(prepare)

    def _deliver(self, request: Request, number: int) -> None:
        request.ready.add(number)
        while request.delivered in request.ready:
            request.ready.discard(request.delivered)
            if request.delivered == 0:
                request.first_s = self.world.now_s
            request.delivered += 1
            request.under_way -= 1
        self._render(request)
        if not request.under_way and request.waiting is None and request.detected == request.frames:
            request.ended_s = self.world.now_s
            self.under_way -= 1
            self.done.append(request)


def lengths(assumed: Assumptions, rng: random.Random) -> tuple[int, bool]:
    """One request's frames, and whether its face is a video."""
    voice_s = math.exp(rng.uniform(math.log(assumed.shortest_s), math.log(assumed.longest_s)))
    return max(1, round(voice_s * FPS)), rng.random() < assumed.share_of_videos


def mean_frames(assumed: Assumptions) -> float:
    low, high = assumed.shortest_s, assumed.longest_s
    return FPS * (high - low) / math.log(high / low)


def arrivals(cluster: Cluster, *, rate_per_s: Callable[[float], float] | float, until_s: float, seed: int = 0) -> None:
    """Requests at random times; a rate that changes is a function of time."""
    rng = random.Random(seed)

    def next_one() -> None:
        rate = rate_per_s(cluster.world.now_s) if callable(rate_per_s) else rate_per_s
        gap_s = rng.expovariate(rate)
        if cluster.world.now_s + gap_s < until_s:
            cluster.world.later(gap_s, come)

    def come() -> None:
        frames, is_video = lengths(cluster.assumed, rng)
        cluster.come(frames, is_video=is_video)
        next_one()

    next_one()

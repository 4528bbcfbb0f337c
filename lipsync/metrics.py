"""What is counted and measured, in one list, and one way to say it; where it is exported is a back end's affair.

In one process the back end is prometheus_client (``PrometheusMeters``), on a cluster Ray's (``serve/metrics.py``).
At most one label each, and few values for it: the series do not grow with callers, files or replicas.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from lipsync.batcher.settings import BatcherCounts, BatchReport
from lipsync.core import Fragment
from lipsync.errors import LipsyncError
from lipsync.pipeline import Report

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 180.0, 600.0)
_FRAMES = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 384.0, 512.0, 1024.0)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
# NOTE: Ray's exporter adds up the middles of buckets, so small whole numbers stand in the middle of theirs
_FEW = (0.5, 1.5, 2.5, 3.5, 4.5, 6.5, 8.5, 12.5, 16.5, 32.5)


@dataclass(frozen=True, slots=True)
class Metric:
    """One family. ``label`` is the name of its only label, "" for none; ``buckets`` are a histogram's upper bounds."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    label: str = ""
    buckets: tuple[float, ...] = ()


REQUESTS_RUNNING = Metric("lipsync_requests_running", "gauge", "Requests that were admitted and are being worked on.")
REQUESTS_WAITING = Metric("lipsync_requests_waiting", "gauge", "Requests whose upload is under way.")
QUEUED_FRAMES = Metric("lipsync_queued_frames", "gauge", "Frames that wait for a batch, or for room to wait.")
BATCH_FRAMES = Metric("lipsync_batch_frames", "histogram", "Frames in a batch.", buckets=_FRAMES)
BATCH_FILL = Metric("lipsync_batch_fill_ratio", "histogram", "Frames in a batch over frames wanted.", buckets=_SHARES)
BATCH_REQUESTS = Metric("lipsync_batch_requests", "histogram", "Requests that share a batch.", buckets=_FEW)
DEVICE_BUSY = Metric("lipsync_device_busy_ratio", "gauge", "Share of the last ten seconds spent drawing.")
FRAMES = Metric("lipsync_frames_total", "counter", "Frames drawn.")
FIRST_FRAGMENT = Metric(
    "lipsync_time_to_first_fragment_seconds",
    "histogram",
    "From the start of the work to the first fragment of a stream.",
    buckets=_SECONDS,
)
REQUEST = Metric(
    "lipsync_request_seconds",
    "histogram",
    "From the start of the work to the last fragment, or to the boxes.",
    buckets=_SECONDS,
)
STAGE = Metric(
    "lipsync_stage_seconds", "histogram", "A request's time in one stage, all its workers added up.", "stage", _SECONDS
)
REJECTED = Metric("lipsync_rejected_total", "counter", "Requests answered with an error, by its slug.", "reason")
CANCELLED = Metric("lipsync_cancelled_total", "counter", "Requests whose caller went away while they were worked on.")
RETRIES = Metric("lipsync_segment_retries_total", "counter", "Pieces of work done again, since a worker died.")
OUT_OF_MEMORY = Metric("lipsync_oom_total", "counter", "Batches that did not fit into the device's memory.")
NON_FINITE = Metric("lipsync_nonfinite_total", "counter", "Frames drawn again because they came out NaN or infinite.")

METRICS: tuple[Metric, ...] = (
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    QUEUED_FRAMES,
    BATCH_FRAMES,
    BATCH_FILL,
    BATCH_REQUESTS,
    DEVICE_BUSY,
    FRAMES,
    FIRST_FRAGMENT,
    REQUEST,
    STAGE,
    REJECTED,
    CANCELLED,
    RETRIES,
    OUT_OF_MEMORY,
    NON_FINITE,
)
"""All of them, as the docs list them."""


class Meters(Protocol):
    """Where metrics go. ``label`` is the value of the metric's label, "" where it has none."""

    def add(self, metric: Metric, amount: float = 1.0, *, label: str = "") -> None:
        """Count up; an amount of 0 does nothing."""
        ...

    def set(self, metric: Metric, value: float) -> None:
        """What a gauge shows now. To be said again now and then: an exporter may forget what it heard long ago."""
        ...

    def observe(self, metric: Metric, value: float, *, label: str = "") -> None: ...


class NoMeters:
    """Goes nowhere."""

    def add(self, metric: Metric, amount: float = 1.0, *, label: str = "") -> None:
        pass

    def set(self, metric: Metric, value: float) -> None:
        pass

    def observe(self, metric: Metric, value: float, *, label: str = "") -> None:
        pass


class PrometheusMeters:
    """Into a prometheus_client registry, one for each. ``start_http_server(port, registry=…)`` shows it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for metric in METRICS:
            labels = [metric.label] if metric.label else []
            if metric.kind == "counter":
                self._counters[metric.name] = Counter(metric.name, metric.help, labels, registry=registry)
            elif metric.kind == "gauge":
                self._gauges[metric.name] = Gauge(metric.name, metric.help, labels, registry=registry)
            else:
                self._histograms[metric.name] = Histogram(
                    metric.name, metric.help, labels, registry=registry, buckets=metric.buckets
                )

    def add(self, metric: Metric, amount: float = 1.0, *, label: str = "") -> None:
        counter = self._counters[metric.name]
        (counter.labels(label) if metric.label else counter).inc(amount)

    def set(self, metric: Metric, value: float) -> None:
        self._gauges[metric.name].set(value)

    def observe(self, metric: Metric, value: float, *, label: str = "") -> None:
        histogram = self._histograms[metric.name]
        (histogram.labels(label) if metric.label else histogram).observe(value)


class RequestMeter:
    """Watches the requests of one process, on any of its threads. ``refresh`` is called now and then."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._running = 0
        self._lock = threading.Lock()

    @contextmanager
    def watch(self, report: Report) -> Iterator[None]:
        """For as long as one request is worked on; ``report`` is the one that its pipeline fills in."""
        self._count(1)
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            self._meters.add(CANCELLED)
            raise
        else:
            self._meters.observe(REQUEST, report.total_s)
            for stage, spent_s in report.stage_s.items():
                self._meters.observe(STAGE, spent_s, label=stage)
        finally:
            self._count(-1)

    async def measured(
        self, fragments: AsyncGenerator[Fragment, None], report: Report, *, is_stream: bool = False
    ) -> AsyncGenerator[Fragment, None]:
        """A request's fragments, watched to their end; an error that ends them is counted. Closing it closes them.
        ``is_stream``: somebody waits for the first one."""
        watched = self.first_of(fragments, report) if is_stream else fragments
        try:
            with self.watch(report):
                async with aclosing(watched):
                    async for fragment in watched:
                        yield fragment
        except LipsyncError as error:
            self._meters.add(REJECTED, label=error.slug)
            raise

    async def first_of(
        self, fragments: AsyncGenerator[Fragment, None], report: Report
    ) -> AsyncGenerator[Fragment, None]:
        """The same fragments; how long the first one took is measured when it comes, whatever becomes of the rest."""
        async with aclosing(fragments):
            is_first = True
            async for fragment in fragments:
                if is_first:
                    self._meters.observe(FIRST_FRAGMENT, report.first_fragment_s)
                    is_first = False
                yield fragment

    def refresh(self) -> None:
        """Say again what is a state."""
        self._count(0)

    def _count(self, more: int) -> None:
        with self._lock:
            self._running += more
            self._meters.set(REQUESTS_RUNNING, self._running)


class BatchMeter:
    """Watches one batcher and its engine, on any thread. ``on_batch`` goes to the batcher, ``refresh`` is called often.

    ``buckets`` are the engine's shapes, ascending: a batch costs what the next of them costs.
    """

    WINDOW_S = 10.0

    def __init__(
        self, meters: Meters, *, buckets: Sequence[int] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._meters = meters
        self._buckets = buckets
        self._clock = clock
        self._drawn: deque[_Drawn] = deque()
        self._out_of_memory = self._redone = 0
        self._lock = threading.Lock()

    def on_batch(self, report: BatchReport) -> None:
        self._meters.observe(BATCH_FRAMES, report.frames)
        self._meters.observe(BATCH_FILL, report.frames / report.room)
        self._meters.observe(BATCH_REQUESTS, report.requests)
        self._meters.add(FRAMES, report.frames)
        shape = next((bucket for bucket in self._buckets if bucket >= report.frames), report.frames)
        with self._lock:
            self._drawn.append(_Drawn(self._clock(), report.drawing_s, shape))

    def refresh(self, counts: BatcherCounts, *, out_of_memory: int, redone: int) -> None:
        """Set what is a state, from the batcher's counts and the engine's totals."""
        self._meters.set(QUEUED_FRAMES, counts.queued_frames + counts.held_frames)
        self._meters.set(DEVICE_BUSY, self.busy_ratio)
        with self._lock:
            self._meters.add(OUT_OF_MEMORY, max(0, out_of_memory - self._out_of_memory))
            self._meters.add(NON_FINITE, max(0, redone - self._redone))
            self._out_of_memory = max(out_of_memory, self._out_of_memory)
            self._redone = max(redone, self._redone)

    @property
    def busy_ratio(self) -> float:
        """Share of the last ten seconds that went into drawing."""
        return min(1.0, sum(drawn.took_s for drawn in self._recent()) / self.WINDOW_S)

    @property
    def frames_per_s(self) -> float:
        """Frames per second of drawing that full batches of the larger shapes of the last ten seconds would come to; 0
        where nothing was drawn. By what small or half-empty batches draw, a device with little to do would look slow.
        """
        recent = self._recent()
        largest = max((drawn.shape for drawn in recent), default=0)
        large = [drawn for drawn in recent if 2 * drawn.shape >= largest]
        drawing_s = sum(drawn.took_s for drawn in large)
        return sum(drawn.shape for drawn in large) / drawing_s if drawing_s > 0 else 0.0

    def _recent(self) -> list[_Drawn]:
        with self._lock:
            while self._drawn and self._drawn[0].ended_s < self._clock() - self.WINDOW_S:
                self._drawn.popleft()
            return list(self._drawn)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A batch that was drawn, and the shape that it was drawn in."""

    ended_s: float
    took_s: float
    shape: int

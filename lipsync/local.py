"""The pipeline's stages in one process: functions on a pool of threads, one engine, caches keyed by content."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any, TypeVar

from lipsync.cache import LruCache
from lipsync.core import U8, Claim, Fragment, Index, MediaInfo, SegmentTask, VoiceChunk
from lipsync.errors import InvalidOption
from lipsync.faces.chunk import ChunkDetections, detect_chunk
from lipsync.faces.detector import Detector, DetectorName
from lipsync.flow import call, iterate, stoppable
from lipsync.kept import KeptDetections, KeptStills
from lipsync.media.decode import FrameReader, Geometry, Glimpse
from lipsync.media.encode import encode_segment
from lipsync.media.index import build_index
from lipsync.media.picture import Picture
from lipsync.media.probe import probe_face, probe_voice
from lipsync.media.source import Blob
from lipsync.pipeline import Job
from lipsync.plan import Span
from lipsync.render import Encode, FaceInput, Renderer
from lipsync.render import Generator as PatchGenerator
from lipsync.voice.voice import Waveform, voice_chunks

T = TypeVar("T")


class _Threads(ThreadPoolExecutor):
    """Knows for how long its calls have been going on."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers, thread_name_prefix="lipsync-cpu")
        self._began_s: dict[int, float] = {}  # by thread

    def submit(self, work: Callable[..., T], /, *args: Any, **named: Any) -> Future[T]:
        return super().submit(self._timed, partial(work, *args, **named))

    def _timed(self, work: Callable[[], T]) -> T:
        self._began_s[threading.get_ident()] = time.monotonic()
        try:
            return work()
        finally:
            del self._began_s[threading.get_ident()]

    @property
    def longest_s(self) -> float:
        return max((time.monotonic() - began_s for began_s in list(self._began_s.values())), default=0.0)


class LocalStages:
    """Everything on threads of this process; calls for several requests at once do not disturb each other.

    ``create_detector`` makes the detector of an option set's name; it is called once per name. ``cache_entries`` face
    inputs keep their index, as many their detections, and as many stills their picture, by content and options, for
    ``cache_ttl_s`` after their last use; detections take at most ``cache_bytes``, and so do pictures. A detector is
    given at most ``face_det_batch_size`` frames at a time. Raises InvalidOption where that is below 1.
    """

    def __init__(
        self,
        generator: PatchGenerator,
        *,
        create_detector: Callable[[DetectorName], Detector],
        workers: int,
        face_det_batch_size: int = 16,
        cache_entries: int = 64,
        cache_bytes: int = 256_000_000,
        cache_ttl_s: float = math.inf,
        encode: Encode = encode_segment,
    ) -> None:
        if face_det_batch_size < 1:
            raise InvalidOption(f"face_det_batch_size must be at least 1, not {face_det_batch_size}.")
        self._threads = _Threads(workers)
        self._generator = generator
        self._create_detector = create_detector
        self._face_det_batch_size = face_det_batch_size
        self._detectors: dict[DetectorName, Detector] = {}
        self._detectors_lock = threading.Lock()
        self._renderer = Renderer(generator, self._threads, encode=encode)
        self._indexes: LruCache[tuple[MediaInfo, Index]] = LruCache(cache_entries, ttl_s=cache_ttl_s)
        self._detections = KeptDetections(cache_entries, most_bytes=cache_bytes, ttl_s=cache_ttl_s)
        self._stills = KeptStills(cache_entries, most_bytes=cache_bytes, ttl_s=cache_ttl_s)

    def encoding_with(self, encode: Encode) -> LocalStages:
        """The same threads, engine and caches, with another end of the line than an mp4 encoder."""
        view = copy.copy(self)
        view._renderer = Renderer(self._generator, self._threads, encode=encode)
        return view

    async def open_face(self, job: Job) -> FaceInput:
        """Probe and index the face input. Raises the errors of ``probe_face`` and ``build_index``."""
        return await call(self._threads, partial(self._open_face, job))

    def _open_face(self, job: Job) -> FaceInput:
        options = job.options
        key = (job.face.content_hash, job.limits)
        known = self._indexes.get(key)
        if known is None:
            info = probe_face(job.face, job.limits)
            known = (info, build_index(job.face, info, job.limits))
            self._indexes.put(key, known)
        geometry = Geometry(resize_factor=options.resize_factor, rotate=options.rotate, crop=options.crop)
        return FaceInput.of(job.face, *known, geometry)

    async def prepare(self, job: Job, face: FaceInput) -> None:
        """Decode the picture of a still now. A video is decoded where its frames are used."""
        if face.is_image:
            await call(self._threads, partial(self._prepare, job, face))

    def _prepare(self, job: Job, face: FaceInput) -> None:
        with self._stills.with_picture(face, job.limits).open(job.limits) as reader:
            next(reader.read([0]))

    def voice(self, job: Job, span: Span) -> AsyncGenerator[VoiceChunk, None]:
        """The voice, on one thread at a time. Raises the errors of ``probe_voice`` and ``voice_chunks``."""
        return iterate(self._threads, partial(_timed_voice, job, span))

    def detect(self, job: Job, face: FaceInput, chunks: Sequence[range]) -> AsyncGenerator[ChunkDetections, None]:
        """Look at the chunks with one reader; chunks that were looked at before come from the cache."""
        return iterate(self._threads, partial(self._detect, job, face, chunks))

    def _detect(
        self, job: Job, face: FaceInput, chunks: Sequence[range], stop: threading.Event
    ) -> Generator[ChunkDetections, None, None]:
        detector = self._detector(job.options.detector)
        key = _looking_key(job, face)
        with self._stills.with_picture(face, job.limits).open(job.limits) as reader:
            frames = _StoppableFrames(reader, stop)
            for chunk in chunks:
                started = time.perf_counter()
                found = self._detections.get(key, chunk)
                if found is None:
                    found = detect_chunk(
                        frames,
                        chunk.start,
                        chunk.stop,
                        detector=detector,
                        options=job.options,
                        index=face.index,
                        size=(face.width, face.height),
                        batch_size=self._face_det_batch_size,
                    )
                    self._detections.put(key, chunk, found)
                yield replace(found, spent_s=time.perf_counter() - started)

    def load_detector(self, name: DetectorName) -> None:
        """Load a detector before the first request needs it. Raises DetectorUnavailable."""
        self._detector(name)

    def _detector(self, name: DetectorName) -> Detector:
        with self._detectors_lock:
            if name not in self._detectors:
                self._detectors[name] = self._create_detector(name)
            return self._detectors[name]

    def render(
        self, job: Job, face: FaceInput, run: Sequence[SegmentTask], *, fps: Fraction
    ) -> AsyncGenerator[Fragment, None]:
        """Render on threads, patches from the engine."""
        claim = Claim(request=job.request, priority=job.priority)
        face = self._stills.with_picture(face, job.limits)
        return self._renderer.render(face, run, fps=fps, options=job.options, limits=job.limits, claim=claim)

    @property
    def longest_call_s(self) -> float:
        """For how long the call that has been on a thread longest has been there; 0 where all threads are free."""
        return self._threads.longest_s

    async def measure(self, job: Job) -> float:
        """Seconds of voice as its header has it, 0 where that does not say. Raises the errors of ``probe_voice``."""
        assert isinstance(job.voice, Blob)
        info = (await call(self._threads, partial(probe_voice, job.voice, job.limits))).audio
        return 0.0 if info is None or info.duration_s is None else info.duration_s

    def expire(self) -> None:
        """Throw out what the caches have kept too long, also where nobody calls any more."""
        self._indexes.expire()
        self._detections.expire()
        self._stills.expire()

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


def _looking_key(job: Job, face: FaceInput) -> Hashable:
    """What detections depend on besides the frames that are looked at."""
    options = job.options
    return (
        job.face.content_hash,
        job.limits,
        face.geometry,
        options.detector,
        options.detect_every,
        options.face_choice,
        options.compat,
    )


class _StoppableFrames:
    """A reader whose frames end when the consumer has gone."""

    def __init__(self, reader: FrameReader, stop: threading.Event) -> None:
        self._reader, self._stop = reader, stop

    def read(self, frames: Sequence[int]) -> Iterator[Picture]:
        return stoppable(self._reader.read(frames), self._stop)

    def read_small(self, first: int, stop: int, *, max_side: int) -> Iterator[U8]:
        return stoppable(self._reader.read_small(first, stop, max_side=max_side), self._stop)

    def glimpses(self, first: int, stop: int) -> Iterator[Glimpse]:
        return stoppable(self._reader.glimpses(first, stop), self._stop)


def _timed_voice(job: Job, span: Span, stop: threading.Event) -> Generator[VoiceChunk, None, None]:
    started = time.perf_counter()
    info = None if isinstance(job.voice, Waveform) else probe_voice(job.voice, job.limits)
    chunks = voice_chunks(
        job.voice,
        info,
        shown_from=span.shown_from if _speaks_itself(job, info) else None,
        limits=job.limits,
        mel_pad_mode=job.options.mel_pad_mode,
        at_least=span.at_least,
        at_most=span.at_most,
        ahead=span.ahead,
    )
    for chunk in stoppable(chunks, stop):
        yield replace(chunk, spent_s=time.perf_counter() - started)
        started = time.perf_counter()


def _speaks_itself(job: Job, info: MediaInfo | None) -> bool:
    """Whether one clip is face and voice both."""
    if info is None or info.kind != "video" or isinstance(job.voice, Waveform):
        return False
    return job.voice.byte_count == job.face.byte_count and job.voice.content_hash == job.face.content_hash

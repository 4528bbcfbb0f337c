"""``LipsyncService``: the ready-made facade for one process; models stay loaded between calls."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict

from lipsync.batcher import FrameBatcher
from lipsync.batcher.settings import BatchReport
from lipsync.checkpoints import load_generator
from lipsync.compile_cache import usual_compile_cache
from lipsync.core import F32, Fragment, Source
from lipsync.detection import NO_VOICE, detector_from_files
from lipsync.engine import Engine
from lipsync.engine.device import choose_device
from lipsync.errors import CheckpointNotFound, InvalidOption
from lipsync.faces.chunk import source_chunks
from lipsync.local import LocalStages
from lipsync.media.encode import encode_segment
from lipsync.media.source import Blob
from lipsync.metrics import BatchMeter, Meters, NoMeters, RequestMeter
from lipsync.model.wav2lip import Wav2Lip
from lipsync.options import Limits, Options, Precision
from lipsync.output import read_bytes, stream_bytes, write_file
from lipsync.own_loop import OwnLoop, run_to_end
from lipsync.pipeline import Job, Progress, Report, synchronise
from lipsync.plan import Tuning
from lipsync.sink import FrameSink, Tee
from lipsync.voice.mel import warm_up as warm_up_mel
from lipsync.voice.voice import Waveform
from lipsync.weights import default_checkpoint


class Stats(TypedDict):
    """What a call came to. Times are seconds; stages overlap, so they may add up to more than the total."""

    num_frames: int
    fps: float
    load_video_time: float
    process_audio_time: float
    num_mel_chunks: int
    face_detection_time: float
    inference_time: float
    total_time: float


class LipsyncService:
    """Lip-sync in this process. Safe to call from several threads at once. The methods that block also work where an
    event loop runs, as in a notebook, and make it wait; ``fragments`` and ``astream`` are for code that awaits.

    Without ``checkpoint_path`` the packaged default is used; a ``Wav2Lip`` module that is already built will do too.
    ``device`` is "auto" (CUDA where there is one), "cuda", "cuda:1" or "cpu". ``use_fp16``, ``amp_dtype`` and
    ``use_compile`` act on CUDA, where every batch shape is compiled and run once before the service is ready: minutes
    at the first start, then kept in ``compile_cache`` (default: ``lipsync/compiled`` in the user's cache folder). A CPU
    computes in fp32, or in bf16 if ``amp_dtype`` says so. ``memory_fraction`` bounds this process's share of a CUDA
    device's memory. ``wav2lip_batch_size`` defaults to 512 on CUDA and to what measured best on a CPU. ``workers``
    threads (one per core) do the CPU work. ``yunet_path`` defaults to the file that was pulled, if any.
    The last ``cache_entries`` face inputs are remembered, by content and options, never by file name: their headers,
    where their faces are (at most ``cache_bytes`` for all, some 50 kB for ten seconds of one face) and the decoded
    pictures of stills (at most ``cache_bytes``, 3 MB for 1920×1080). ``meters`` gets the metrics, for example
    ``PrometheusMeters(registry)``; the queue and the device's load are shown as of the last batch.

    Raises CheckpointError and its kin, DeviceUnavailable.
    """

    def __init__(
        self,
        checkpoint_path: str | os.PathLike[str] | Wav2Lip | None = None,
        device: str = "auto",
        face_det_batch_size: int = 16,
        wav2lip_batch_size: int | None = None,
        amp_dtype: Literal["fp16", "bf16"] = "fp16",
        use_fp16: bool = True,
        use_compile: bool = True,
        *,
        compile_cache: str | os.PathLike[str] | None = None,
        memory_fraction: float | None = None,
        exact: bool = False,
        trust_torchscript: bool = False,
        yunet_path: str | os.PathLike[str] | None = None,
        s3fd_path: str | os.PathLike[str] | None = None,
        workers: int | None = None,
        cache_entries: int = 64,
        cache_bytes: int = 256_000_000,
        limits: Limits | None = None,
        tuning: Tuning | None = None,
        meters: Meters | None = None,
    ) -> None:
        self.limits = limits or Limits()
        workers = workers or os.cpu_count() or 1
        self._tuning = tuning or Tuning(window=min(Tuning().window, workers + 1))
        model, self.checkpoint_note = _load(checkpoint_path, trust_torchscript=trust_torchscript)
        self.engine = Engine(
            model,
            device=device,
            precision=_precision(device, amp_dtype=amp_dtype, use_fp16=use_fp16, exact=exact),
            batch_size=wav2lip_batch_size,
            compile="auto" if use_compile else False,
            compile_cache=compile_cache or usual_compile_cache(),
            memory_fraction=memory_fraction,
            exact=exact,
        )
        meters = meters or NoMeters()
        self._request_meter, self._batch_meter = RequestMeter(meters), BatchMeter(meters)
        self._generator = FrameBatcher(self.engine, on_batch=self._on_batch)
        try:
            if self.engine.info.device != "cpu":  # there a first pass costs what every pass costs
                self._generator.on_device(self.engine.warm_up).result()
            warm_up_mel()
            self.stages = LocalStages(
                self._generator,
                create_detector=partial(
                    detector_from_files, yunet_path, s3fd_path, self.engine.info.device, face_det_batch_size
                ),
                workers=workers,
                face_det_batch_size=face_det_batch_size,
                cache_entries=cache_entries,
                cache_bytes=cache_bytes,
            )
        except BaseException:
            self._generator.close()
            raise

    def process(
        self,
        face_path: Source,
        audio_path: Source | None = None,
        output_path: str | os.PathLike[str] | None = None,
        static: bool | None = None,
        fps: float | str | Fraction | None = None,
        pads: Sequence[int] | None = None,
        resize_factor: int | None = None,
        crop: Sequence[int] | None = None,
        box: Sequence[int] | None = None,
        rotate: bool | None = None,
        nosmooth: bool | None = None,
        audio_waveform: F32 | None = None,
        audio_sample_rate: int | None = None,
        frame_sink: FrameSink | None = None,
        *,
        options: Options | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Stats:
        """Make the face speak the voice: an mp4 at ``output_path``, each frame to ``frame_sink``, or both.

        ``face_path`` and ``audio_path`` are paths, bytes or file objects; instead of ``audio_path`` a float waveform,
        (n,) or (channels, n) in -1..1, with its sample rate. What is named here wins over ``options``, also where it is
        the default; None leaves the choice to ``options``. ``crop`` and ``box`` of the reference's defaults (0 -1 0 -1
        and -1 -1 -1 -1) mean none. ``frame_sink`` gets (H, W, 3) uint8 BGR frames in order, on other threads.
        Raises the errors of ``lipsync.errors``.
        """
        if output_path is None and frame_sink is None:
            raise InvalidOption("Give output_path, frame_sink, or both: otherwise the result goes nowhere.")
        named: dict[str, Any] = {
            "static": static,
            "fps": fps,
            "pads": _tuple(pads),
            "resize_factor": resize_factor,
            "crop": _tuple(crop),
            "box": _tuple(box),
            "rotate": rotate,
            "nosmooth": nosmooth,
        }
        job = self.job(
            face_path,
            _voice_source(audio_path, audio_waveform, audio_sample_rate),
            replace(options or Options(), **_given(named)),
        )
        report = Report()
        run_to_end(self._run(job, output_path, frame_sink, progress, report))
        return _stats(report)

    def job(self, face: Source, voice: Source | Waveform, options: Options | None = None) -> Job:
        """A request for ``fragments``, ``stream`` or ``astream``. Raises LimitExceeded, UnreadableMedia."""
        largest = max(self.limits.video_bytes, self.limits.image_bytes, self.limits.audio_bytes)
        heard = voice if isinstance(voice, Waveform) else Blob.of(voice, limit_bytes=largest)
        return Job(Blob.of(face, limit_bytes=largest), heard, options or Options(), self.limits)

    def fragments(
        self,
        job: Job,
        *,
        progress: Callable[[Progress], None] | None = None,
        report: Report | None = None,
        soon: bool = False,
    ) -> AsyncGenerator[Fragment, None]:
        """The request's fragments in order; closing the iterator stops its work. ``soon``: somebody waits for the
        first one."""
        report = report or Report()
        made = synchronise(job, self.stages, tuning=self._tuning, progress=progress, report=report, soon=soon)
        return self._request_meter.measured(made, report, is_stream=soon)

    async def astream(
        self, face: Source, voice: Source | Waveform, options: Options | None = None
    ) -> AsyncGenerator[bytes, None]:
        """A fragmented mp4 as it is made; the first bytes come with the first short segment."""
        async with aclosing(stream_bytes(self.fragments(self.job(face, voice, options), soon=True))) as stream:
            async for data in stream:
                yield data

    def stream(self, face: Source, voice: Source | Waveform, options: Options | None = None) -> Iterator[bytes]:
        """``astream`` for callers without an event loop. Close the iterator to stop early."""
        with OwnLoop() as loop:
            source = self.astream(face, voice, options)
            try:
                while data := loop.run(_next(source)):
                    yield data
            finally:
                loop.run(source.aclose())

    def to_bytes(self, face: Source, voice: Source | Waveform, options: Options | None = None) -> bytes:
        """The bytes of a progressive mp4."""
        return run_to_end(read_bytes(self.fragments(self.job(face, voice, options))))

    def preload_static_face(self, face_path: Source, options: Options | None = None) -> None:
        """Decode a picture and find its face now: later calls with the same picture and options start at once."""
        run_to_end(self._preload(self.job(face_path, NO_VOICE, options)))

    def preload_video_cache(self, face_path: Source, options: Options | None = None) -> None:
        """Index a video and find its faces now: later calls with the same video and options start at once."""
        self.preload_static_face(face_path, options)

    async def _preload(self, job: Job) -> None:
        face = await self.stages.open_face(job)
        await self.stages.prepare(job, face)
        if job.options.box is not None or job.options.boxes is not None:
            return  # nobody will look for it
        tuning = self._tuning
        count = 1 if job.options.static else len(face.index)
        chunks = source_chunks(count, size=tuning.longest_chunk, shortest=tuning.shortest_chunk)
        async for _ in self.stages.detect(job, face, chunks):
            pass  # the stages' cache keeps them

    async def _run(
        self,
        job: Job,
        output_path: str | os.PathLike[str] | None,
        frame_sink: FrameSink | None,
        progress: Callable[[Progress], None] | None,
        report: Report,
    ) -> None:
        stages, tuning = self.stages, self._tuning
        if frame_sink is not None:
            # one segment at a time: frames reach the sink in order
            tuning = replace(tuning, window=1)
            stages = stages.encoding_with(Tee(frame_sink, encode=encode_segment if output_path is not None else None))
        made = synchronise(job, stages, tuning=tuning, progress=progress, report=report)
        fragments = self._request_meter.measured(made, report)
        if output_path is not None:
            await write_file(fragments, output_path)
            return
        async with aclosing(fragments):
            async for _ in fragments:
                pass  # the sink has had the frames

    def _on_batch(self, report: BatchReport) -> None:
        self._batch_meter.on_batch(report)
        engine = self.engine.counts
        self._batch_meter.refresh(self._generator.counts, out_of_memory=engine.out_of_memory, redone=engine.redone)

    def close(self) -> None:
        """Stop the threads; the engine's memory goes with the last reference to it."""
        self.stages.close()
        self._generator.close()

    def __enter__(self) -> LipsyncService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _load(checkpoint: str | os.PathLike[str] | Wav2Lip | None, *, trust_torchscript: bool) -> tuple[Wav2Lip, str]:
    if isinstance(checkpoint, Wav2Lip):
        return checkpoint, "a generator built by the caller"
    path = checkpoint or default_checkpoint()
    if path is None:
        raise CheckpointNotFound(
            "No generator is packaged, and no checkpoint was given. Give the path of a Wav2Lip checkpoint; "
            "'lipsync weights list' says where its authors offer it."
        )
    note = f"packaged default, {Path(path).name}" if checkpoint is None else os.fspath(path)
    return load_generator(path, trust_torchscript=trust_torchscript), note


async def _next(source: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(source, None)


def _precision(
    device: str, *, amp_dtype: Literal["fp16", "bf16"], use_fp16: bool, exact: bool
) -> Precision | Literal["auto"]:
    if exact:
        return "auto"
    if choose_device(device).type == "cuda":
        return amp_dtype if use_fp16 else "fp32"
    return "bf16" if use_fp16 and amp_dtype == "bf16" else "auto"


_NONE = {"crop": (0, -1, 0, -1), "box": (-1, -1, -1, -1)}
"""What the reference says where it means that there is none."""


def _given(named: dict[str, Any]) -> dict[str, Any]:
    """The options among arguments that were given, with the reference's words for none understood."""
    return {name: None if value == _NONE.get(name) else value for name, value in named.items() if value is not None}


def _tuple(numbers: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if numbers is None else tuple(numbers)


def _voice_source(audio: Source | None, waveform: F32 | None, sample_rate_hz: int | None) -> Source | Waveform:
    if waveform is not None and audio is None and sample_rate_hz is not None:
        return Waveform(waveform, sample_rate_hz)
    if audio is not None and waveform is None:
        return audio
    raise InvalidOption("Give either audio_path, or audio_waveform together with audio_sample_rate.")


def _stats(report: Report) -> Stats:
    spent = report.stage_s
    return Stats(
        num_frames=report.frame_count,
        fps=float(report.fps),
        load_video_time=spent.get("open", 0.0) + spent.get("decode", 0.0),
        process_audio_time=spent.get("voice", 0.0),
        num_mel_chunks=report.frame_count,
        face_detection_time=spent.get("detect", 0.0),
        inference_time=spent.get("generate", 0.0),
        total_time=report.total_s,
    )

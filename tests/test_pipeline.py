"""The whole library in one process: every output frame shows and hears what it must, however the work is cut."""

import asyncio
import io
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from fractions import Fraction
from functools import partial
from math import ceil, floor
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lipsync.batcher import FrameBatcher
from lipsync.core import Detection
from lipsync.engine import Engine
from lipsync.errors import Closed, EngineError, FaceMissing, NoFace, OutputError
from lipsync.flow import call
from lipsync.local import LocalStages
from lipsync.media.decode import FrameReader, Geometry
from lipsync.media.index import build_index
from lipsync.media.probe import probe_face
from lipsync.media.source import Blob
from lipsync.model.seeded import seeded_generator
from lipsync.model.wav2lip import Wav2Lip
from lipsync.options import Limits, Options
from lipsync.output import read_bytes, stream_bytes, write_file
from lipsync.pipeline import Job, Progress, Report, synchronise
from lipsync.plan import Tuning
from lipsync.voice.mel import mel_spectrogram
from lipsync.voice.voice import Waveform
from tests.engine_cases import NARROW
from tests.fakes import BEFORE, Copying, HearingGenerator, ToldDetector, window_of
from tests.media_factory import image_bytes, read_number, video_bytes

RATES = [Fraction(24000, 1001), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(50),
         Fraction(60000, 1001), Fraction(60)]  # fmt: skip
SIZE = (160, 240)
BOX = (120, 236, 16, 144)  # top bottom left right: below the number that the source frame carries
LIMITS = Limits()


@pytest.fixture(scope="module")
def model() -> Wav2Lip:
    return seeded_generator(4, widths=NARROW)


def noise(seconds: float, seed: int = 0) -> Waveform:
    """A voice whose every mel window is unlike every other: noise at 16 kHz, louder and softer."""
    draw = np.random.default_rng(seed)
    n = round(seconds * 16_000)
    loudness = np.interp(
        np.arange(n), np.arange(0, n + 800, 800), draw.uniform(0.02, 0.9, n // 800 + 2)[: n // 800 + 1 + (n % 800 > 0)]
    )
    return Waveform((draw.uniform(-0.5, 0.5, n) * loudness).astype(np.float32), 16_000)


def stages(generator, *faces: Detection, workers: int = 2, **more) -> LocalStages:
    return LocalStages(generator, create_detector=lambda name: ToldDetector(*faces), workers=workers, **more)


def lasting(voice: Waveform, seconds: Fraction) -> Waveform:
    """The voice cut, or padded with silence, to a length: what cut_off and silence make of it."""
    n = floor(seconds * voice.sample_rate_hz)
    padded = np.concatenate([voice.samples, np.zeros(max(0, n - len(voice.samples)), np.float32)])
    return Waveform(padded[:n], voice.sample_rate_hz)


def run(face: bytes, voice: Waveform, *, heard: Waveform | None = None, **options) -> bytes:
    """The progressive mp4 that the pipeline makes with a generator that draws what it hears."""
    options = {"box": BOX, "blend": "none", "preset": "ultrafast"} | options
    local = stages(HearingGenerator(mel_spectrogram((heard or voice).samples)))
    job = Job(Blob.of(face, limit_bytes=10**8), voice, Options(**options), LIMITS)
    try:
        return asyncio.run(read_bytes(synchronise(job, local)))
    finally:
        local.close()


def pictures_of(mp4: bytes) -> list[np.ndarray]:
    blob = Blob.of(mp4, limit_bytes=10**8)
    info = probe_face(blob, LIMITS)
    index = build_index(blob, info, LIMITS)
    with FrameReader(blob, info, index, geometry=Geometry(), limits=LIMITS) as reader:
        return [picture.bgr() for picture in reader.read(range(len(index)))]


def heard_in(picture: np.ndarray) -> int:
    top, bottom, left, right = BOX
    number = read_number(picture[top:bottom, left:right])
    return number - BEFORE if number else None


def expected_sources(mode: str, size: int, total: int) -> list[int]:
    if mode == "bounce":
        once = list(range(size)) + list(range(size - 2, 0, -1))
        return [once[i % len(once)] for i in range(total)]
    if mode == "remap":
        return [i * size // total for i in range(total)]
    return [i % size if mode == "loop" else min(i, size - 1) for i in range(total)]


def assert_shows_and_hears(mp4: bytes, *, sources: list[int], starts: list[int], heard: Waveform) -> None:
    mel = mel_spectrogram(heard.samples)
    pictures = pictures_of(mp4)
    assert len(pictures) == len(sources)
    for n, picture in enumerate(pictures):
        assert read_number(picture) == sources[n], f"output frame {n} shows another source frame"
        is_silent = (window_of(mel, starts[n]) == -4.0).all()
        wanted = None if is_silent else starts[n]
        assert heard_in(picture) == wanted, f"output frame {n} hears another window"


@pytest.mark.parametrize("fps", RATES, ids=str)
@pytest.mark.parametrize("mode", ["loop", "bounce", "cut_off", "silence", "remap"])
@pytest.mark.parametrize("voice_s", [0.5, 1.3], ids=["shorter", "longer"])
def test_frame_i_shows_and_hears_window_i_after_encoding_and_decoding_again(mode, fps, voice_s):
    size = round(Fraction(9, 10) * fps)
    face = video_bytes(frames=size, size=SIZE, fps=fps, gop=10)
    voice, clip_s, own_s = noise(voice_s), size / fps, Fraction(str(voice_s))
    lasts_s = {"cut_off": min(own_s, clip_s), "silence": max(own_s, clip_s)}.get(mode, own_s)
    total = ceil(lasts_s * fps)
    # a mouth moves ahead of its sound, also where the voice is cut
    heard = (
        lasting(voice, lasts_s + Fraction(1, 4)) if mode == "cut_off" and clip_s < own_s else lasting(voice, lasts_s)
    )
    mp4 = run(face, voice, heard=heard, sync_mode=mode)
    starts = [int(80 * i / fps) for i in range(total)]
    assert_shows_and_hears(mp4, sources=expected_sources(mode, size, total), starts=starts, heard=heard)


@pytest.mark.parametrize(("offset_ms", "mode"), [(-250.0, "loop"), (120.0, "loop"), (400.0, "cut_off")])
def test_an_audio_offset_moves_what_the_mouth_hears_and_nothing_else(offset_ms, mode):
    voice = noise(2.0 if mode == "cut_off" else 1.0)
    mp4 = run(video_bytes(frames=25, size=SIZE), voice, audio_offset_ms=offset_ms, sync_mode=mode)
    starts = [int(np.floor(80 * (Fraction(i, 25) + Fraction(offset_ms) / 1000))) for i in range(25)]
    assert_shows_and_hears(mp4, sources=list(range(25)), starts=starts, heard=voice)


@pytest.mark.parametrize("fps", [25, 5], ids=["shorter than the voice", "longer than the voice"])
def test_the_reference_count_and_its_last_window_come_out_with_compat(fps):
    voice = noise(2.0)
    mp4 = run(video_bytes(frames=20, size=SIZE, fps=fps), voice, compat="reference")
    starts = [int(i * 80 / fps) for i in range(200) if int(i * 80 / fps) + 16 <= 161]
    starts.append(161 - 16)
    assert_shows_and_hears(mp4, sources=[i % 20 for i in range(len(starts))], starts=starts, heard=voice)


def test_a_picture_speaks_at_25_frames_a_second_and_sends_one_crop_for_many_frames():
    voice = noise(2.0)
    generator = HearingGenerator(mel_spectrogram(voice.samples))
    local = stages(generator)
    face = image_bytes(format="png", size=SIZE, number=7)
    job = Job(Blob.of(face, limit_bytes=10**8), voice, Options(box=BOX, blend="none"), LIMITS)
    mp4 = asyncio.run(read_bytes(synchronise(job, local)))
    assert_shows_and_hears(mp4, sources=[7] * 50, starts=[i * 80 // 25 for i in range(50)], heard=voice)
    assert set(generator.crops_seen) == {1}
    assert sum(generator.batches) == 50


@given(
    segment_frames=st.lists(st.integers(1, 30), min_size=1, max_size=4).map(tuple),
    window=st.integers(1, 6),
    batch_size=st.integers(1, 12),
    other_batch_size=st.integers(1, 12),
    gop=st.sampled_from([4, 13, 1000]),
    mode=st.sampled_from(["loop", "bounce", "cut_off", "silence", "remap"]),
    workers=st.integers(1, 3),
)
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # WHY: to shrink a failure takes longer than a test may
)
def test_frames_do_not_depend_on_how_the_work_is_cut(
    model, segment_frames, window, batch_size, other_batch_size, gop, mode, workers
):
    face, voice = video_bytes(frames=22, size=SIZE, gop=gop), noise(1.5, seed=3)
    job = Job(Blob.of(face, limit_bytes=10**8), voice, Options(box=BOX, sync_mode=mode, blend="none"), LIMITS)

    def render(tuning: Tuning, **batches) -> np.ndarray:
        batcher = FrameBatcher(Engine(model, device="cpu", **batches))
        local = stages(batcher, workers=workers, encode=samples_of)
        frames = asyncio.run(frames_as_put_out(synchronise(job, local, tuning=tuning)))
        local.close()
        batcher.close()
        return frames

    cut = Tuning(segment_frames=segment_frames, window=window)
    one_piece = render(Tuning(segment_frames=(200,), window=1), batch_size=batch_size, buckets=[batch_size])
    assert len(one_piece) == (22 if mode == "cut_off" else 38)
    assert len({frame.tobytes() for frame in one_piece}) == len(one_piece), (
        "every frame differs: one out of place would be seen"
    )
    pieces = render(cut, batch_size=batch_size, buckets=[batch_size])
    assert np.array_equal(pieces, one_piece), "the same shapes on the device: the same frames, bit for bit"
    other_shapes = render(cut, batch_size=other_batch_size)
    assert np.abs(other_shapes.astype(int) - one_piece).max() <= 1, "of 255 levels"


def samples_of(pictures, **_) -> bytes:
    """In place of an encoder: the samples as they are, which must not depend on the cutting."""
    return b"".join(plane.tobytes() for picture in pictures for plane in (picture.y, picture.u, picture.v))


async def frames_as_put_out(fragments) -> np.ndarray:
    """(n, samples) uint8 in the order in which the fragments come."""
    made = [fragment async for fragment in fragments]
    samples = np.frombuffer(b"".join(fragment.data for fragment in made), np.uint8)
    return samples.reshape(sum(fragment.frame_count for fragment in made), -1)


async def test_the_first_bytes_of_a_stream_come_long_before_the_last():
    voice = noise(12.0)
    local = stages(HearingGenerator(mel_spectrogram(voice.samples)))
    face = video_bytes(frames=20, size=SIZE)
    job = Job(Blob.of(face, limit_bytes=10**8), voice, Options(box=BOX), LIMITS)
    told: list[Progress] = []
    sizes = []
    async with aclosing(stream_bytes(synchronise(job, local, progress=told.append))) as stream:
        async for data in stream:
            sizes.append(len(data))
    assert len(sizes) >= 5, "a fragment per segment"
    rendered = [step for step in told if step.stage == "render"]
    assert rendered[0].done == 8
    assert rendered[-1].done == rendered[-1].total == 300
    local.close()


async def test_closing_a_stream_stops_the_work_and_leaves_no_task_and_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    voice = noise(20.0)
    generator = HearingGenerator(mel_spectrogram(voice.samples))
    local = stages(generator)
    face = video_bytes(frames=20, size=SIZE)
    job = Job(Blob.of(face, limit_bytes=10**8), voice, Options(box=BOX), LIMITS)
    stream = stream_bytes(synchronise(job, local))
    await anext(stream)
    await stream.aclose()
    done = len(generator.batches)
    await asyncio.sleep(0.3)
    assert len(generator.batches) == done, "nothing was generated after the consumer had gone"
    assert len(asyncio.all_tasks()) == 1
    assert list(tmp_path.iterdir()) == []
    local.close()


async def test_a_slow_reader_is_not_run_ahead_of():
    voice = noise(40.0)
    generator = HearingGenerator(mel_spectrogram(voice.samples))
    local = stages(generator)
    face = image_bytes(format="png", size=SIZE, number=7)
    job = Job(Blob.of(face, limit_bytes=10**8), voice, Options(box=BOX, preset="ultrafast"), LIMITS)
    tuning = Tuning(segment_frames=(10,), window=3)
    async with aclosing(synchronise(job, local, tuning=tuning)) as fragments:
        await anext(fragments)
        await asyncio.sleep(1.0)
        assert len(generator.batches) <= 1 + 3 + 1
    local.close()


def test_two_requests_at_once_do_not_disturb_each_other():
    voices = [noise(1.0, seed=1), noise(1.0, seed=2)]
    wholes = [mel_spectrogram(voice.samples) for voice in voices]
    face = video_bytes(frames=25, size=SIZE)

    class Both:
        """One engine for both voices, told apart by what is heard."""

        def __init__(self):
            self.each = [HearingGenerator(whole) for whole in wholes]

        async def generate(self, crops, crop_index, mel, mel_starts, *, claim):
            await asyncio.sleep(0)
            for hearing in self.each:
                try:
                    return await hearing.generate(crops, crop_index, mel, mel_starts, claim=claim)
                except AssertionError:
                    continue
            raise AssertionError("a window of neither voice: requests were mixed")

    local = stages(Both())

    async def both() -> list[bytes]:
        jobs = [
            Job(Blob.of(face, limit_bytes=10**8), voice, Options(box=BOX, blend="none"), LIMITS) for voice in voices
        ]
        tuning = Tuning(segment_frames=(5,))
        return await asyncio.gather(*(read_bytes(synchronise(job, local, tuning=tuning)) for job in jobs))

    for voice, mp4 in zip(voices, asyncio.run(both()), strict=True):
        assert_shows_and_hears(mp4, sources=list(range(25)), starts=[i * 80 // 25 for i in range(25)], heard=voice)
    local.close()


@pytest.mark.parametrize(
    ("options", "shown"),
    [({}, Fraction(16, 11)), ({"rotate": True, "box": (4, 60, 4, 60)}, Fraction(11, 16)), ({"resize": (64, 96)}, None)],
    ids=["as it is", "turned", "of a size that was asked for"],
)
@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_pixels_that_are_shown_wide_stay_so(options, shown, codec):
    face = video_bytes(frames=5, size=SIZE, pixel_aspect=Fraction(16, 11))
    mp4 = run(face, noise(0.2), codec=codec, **options)
    with av.open(io.BytesIO(mp4)) as container:
        assert container.streams.video[0].sample_aspect_ratio == shown


def test_pixels_outside_the_box_are_the_sources_own():
    voice = noise(0.4)
    face = video_bytes(frames=10, size=SIZE)
    seen = []

    def keep(pictures, **_):
        seen.extend((p.y.copy(), p.u.copy(), p.v.copy()) for p in pictures)
        return b""

    local = stages(HearingGenerator(mel_spectrogram(voice.samples)), encode=keep)
    job = Job(Blob.of(face, limit_bytes=10**8), voice, Options(box=BOX), LIMITS)

    async def drain() -> None:
        async for _ in synchronise(job, local, tuning=Tuning(window=1)):
            pass  # kept above

    asyncio.run(drain())
    blob = Blob.of(face, limit_bytes=10**8)
    info = probe_face(blob, LIMITS)
    with FrameReader(blob, info, build_index(blob, info, LIMITS), geometry=Geometry(), limits=LIMITS) as reader:
        sources = list(reader.read(range(10)))
    top, bottom, left, right = BOX
    outside = np.ones(sources[0].y.shape, bool)
    outside[top:bottom, left:right] = False
    halves = outside[::2, ::2]
    changed = 0
    for (y, u, v), source in zip(seen, sources, strict=True):
        assert (y[outside] == source.y[outside]).all()
        assert (u[halves] == source.u[halves]).all() and (v[halves] == source.v[halves]).all()
        changed += int((y != source.y).sum())
    assert changed > 1000, "and inside the box there was something to see"
    local.close()


def test_a_face_that_is_never_found_is_an_error_that_says_how_many_frames_were_looked_at():
    detector = ToldDetector()
    local = looking_with(detector)
    job = Job(Blob.of(video_bytes(frames=25, size=SIZE), limit_bytes=10**8), noise(1.0), Options(), LIMITS)
    with pytest.raises(NoFace, match=r"any of the 18 frames looked at \(among source frames 0 to 24\)"):
        asyncio.run(read_bytes(synchronise(job, local)))
    assert detector.frames_seen == 18, "every fifth, and both sides of what look like cuts"
    local.close()


class FaceFrom:
    """Sees a face in source frames from a number on, and counts what it was shown."""

    name = "from"

    def __init__(self, first: int) -> None:
        self.first = first
        self.shown: list[int] = []

    def detect(self, frames):
        numbers = [read_number(frame) for frame in frames]
        self.shown += numbers
        return [[Detection(20.0, 130.0, 140.0, 220.0, 0.9)] if n >= self.first else [] for n in numbers]


def looking_with(detector) -> LocalStages:
    return LocalStages(Copying(), create_detector=lambda name: detector, workers=2)


@pytest.mark.parametrize("policy", ["passthrough", "previous", "error"])
@pytest.mark.parametrize("gop", [25, 1000], ids=["many keyframes", "one keyframe"])
def test_a_face_that_comes_after_what_is_shown_is_not_waited_for(policy, gop):
    detector = FaceFrom(450)
    local = looking_with(detector)
    face = video_bytes(frames=500, size=SIZE, gop=gop)
    options = Options(on_missing_face=policy, preset="ultrafast")
    with pytest.raises(NoFace):
        asyncio.run(read_bytes(synchronise(Job(Blob.of(face, limit_bytes=10**8), noise(1.0), options), local)))
    local.close()
    assert max(detector.shown) < 200, "the clip was not looked through"


@pytest.mark.parametrize("chunk", [5, 25])
def test_whether_a_face_is_shown_does_not_depend_on_how_the_clip_is_searched(chunk):
    face = Blob.of(video_bytes(frames=100, size=SIZE), limit_bytes=10**8)

    def frames_made(seconds: float, chunk: int) -> int:
        local = looking_with(FaceFrom(30))
        tuning = Tuning(shortest_chunk=chunk, longest_chunk=chunk)
        report = Report()
        made = synchronise(Job(face, noise(seconds), Options(preset="ultrafast")), local, tuning=tuning, report=report)
        try:
            asyncio.run(read_bytes(made))
        except NoFace:
            return 0
        finally:
            local.close()
        return report.frame_count

    made = [frames_made(frames / 25, chunk) for frames in (25, 29, 30, 31, 35)]
    assert made == [frames_made(frames / 25, 100) for frames in (25, 29, 30, 31, 35)]
    assert (made[0], made[-1]) == (0, 35)


async def test_a_face_that_comes_late_in_what_is_shown_is_found_while_the_voice_is_heard():
    detector = FaceFrom(60)
    local = looking_with(detector)
    report = Report()
    job = Job(Blob.of(video_bytes(frames=500, size=SIZE), limit_bytes=10**8), noise(4.0), Options(preset="ultrafast"))
    mp4 = await read_bytes(synchronise(job, local, report=report))
    assert len(pictures_of(mp4)) == 100
    assert report.face_frames > 0 and 100 <= report.searched_frames < 300
    local.close()


def test_given_boxes_that_are_null_for_all_that_is_shown_are_said_to_be():
    boxes = (*[None] * 40, *[(16, 120, 144, 236)] * 10)
    with pytest.raises(NoFace, match="boxes given for the 20 source frames that are shown are all null"):
        run(video_bytes(frames=50, size=SIZE), noise(0.9), box=None, boxes=boxes, compat="reference")
    with pytest.raises(NoFace, match="All 50 given boxes are null"):
        run(video_bytes(frames=50, size=SIZE), noise(0.9), box=None, boxes=(None,) * 50)


def test_frames_without_a_box_pass_through_or_fail_as_asked():
    voice = noise(0.8)
    boxes = tuple((16, 120, 144, 236) if n < 12 else None for n in range(20))
    face = video_bytes(frames=20, size=SIZE)
    mp4 = run(face, voice, box=None, boxes=boxes)
    pictures = pictures_of(mp4)
    assert [read_number(p) for p in pictures] == list(range(20))
    assert [heard_in(p) for p in pictures[:12]] == [i * 80 // 25 for i in range(12)]
    with pytest.raises(ValueError):
        heard_in(pictures[15])
    with pytest.raises(FaceMissing, match="12"):
        run(face, voice, box=None, boxes=boxes, on_missing_face="error")


def test_a_detected_face_is_pasted_where_it_was_found():
    voice = noise(0.6)
    found = Detection(20.0, 130.0, 140.0, 220.0, 0.9)
    local = stages(HearingGenerator(mel_spectrogram(voice.samples)), found)
    face = video_bytes(frames=30, size=SIZE)
    job = Job(Blob.of(face, limit_bytes=10**8), voice, Options(blend="none"), LIMITS)
    report = Report()
    pictures = pictures_of(asyncio.run(read_bytes(synchronise(job, local, report=report))))
    numbers = [read_number(p[130:230, 20:140]) - BEFORE for p in pictures]
    assert numbers == [i * 80 // 25 for i in range(15)]
    assert report.searched_frames == 25, "one chunk holds all that is shown"
    local.close()


@pytest.mark.parametrize(
    ("gop", "mode", "clip_frames"),
    [(25, "loop", 1000), (250, "loop", 1000), (10_000, "loop", 1000), (10_000, "bounce", 500)],
)
def test_a_clip_is_decoded_little_more_than_twice_in_all(gop, mode, clip_frames):
    voice = noise(40.0)
    face = video_bytes(frames=clip_frames, size=SIZE, gop=gop)
    report = Report()
    opened: list[FrameReader] = []
    original = FrameReader.__init__

    def counted(self, *args, **kwargs):
        original(self, *args, **kwargs)
        opened.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameReader, "__init__", counted)
        local = stages(Copying(), Detection(20.0, 130.0, 140.0, 220.0, 0.9))
        options = Options(preset="ultrafast", sync_mode=mode)
        job = Job(Blob.of(face, limit_bytes=10**8), voice, options, LIMITS)
        asyncio.run(read_bytes(synchronise(job, local, report=report)))
        local.close()
    assert report.frame_count == 1000
    assert sum(reader.decoded_count for reader in opened) / report.frame_count <= 2.2


def test_results_reach_a_file_a_stream_and_bytes_alike(tmp_path: Path):
    voice = noise(1.0)
    face = video_bytes(frames=25, size=SIZE)

    async def streamed() -> bytes:
        local = stages(HearingGenerator(mel_spectrogram(voice.samples)))
        job = Job(Blob.of(io.BytesIO(face), limit_bytes=10**8), voice, Options(box=BOX, blend="none"), LIMITS)
        data = b"".join([part async for part in stream_bytes(synchronise(job, local))])
        local.close()
        return data

    whole = pictures_of(run(face, voice, preset="veryfast"))
    parts = pictures_of(asyncio.run(streamed()))
    assert len(whole) == len(parts) == 25
    assert all((a == b).all() for a, b in zip(whole, parts, strict=True)), "remuxing changes no picture"


class Queueing(Copying):
    """Draws one frame at a time on one thread, as a busy device does, and counts."""

    def __init__(self):
        self.device = ThreadPoolExecutor(1)
        self.drawn = 0

    async def generate(self, crops, crop_index, mel, mel_starts, **claim):
        return await call(self.device, partial(self._draw, crops[crop_index]))

    def _draw(self, patches):
        for _ in patches:
            time.sleep(0.005)
            self.drawn += 1
        return patches


async def test_work_that_waits_for_the_device_is_taken_back_when_the_consumer_goes():
    generator = Queueing()
    local = stages(generator, workers=4)
    job = Job(
        Blob.of(video_bytes(frames=50, size=SIZE, gop=5), limit_bytes=10**8), noise(30.0), Options(box=BOX), LIMITS
    )
    stream = stream_bytes(synchronise(job, local, tuning=Tuning(segment_frames=(8, 50))))
    await anext(stream)
    before, started = generator.drawn, time.perf_counter()
    await stream.aclose()
    assert time.perf_counter() - started < 2
    assert generator.drawn - before <= 50, "at most the segment that was on the device"
    assert len(asyncio.all_tasks()) == 1, "at once, not when the garbage is collected"
    generator.device.shutdown()
    local.close()


async def test_a_full_disk_is_said_and_stops_the_work(tmp_path, monkeypatch):
    local = stages(Copying())
    job = Job(Blob.of(video_bytes(frames=20, size=SIZE), limit_bytes=10**8), noise(20.0), Options(box=BOX), LIMITS)
    fragments = synchronise(job, local)

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match="No space left"):
        await write_file(fragments, tmp_path / "x.mp4")
    assert len(asyncio.all_tasks()) == 1
    assert list(tmp_path.iterdir()) == []
    local.close()


@pytest.mark.parametrize(
    "answer", [np.zeros((3, 50, 50, 3), np.uint8), np.zeros((3, 96, 96, 3)), np.zeros((1, 96, 96, 3), np.uint8)]
)
def test_an_answer_of_the_wrong_shape_is_an_error_of_the_engine(answer):
    class Wrong(Copying):
        async def generate(self, *arguments, **claim):
            return answer

    local = stages(Wrong())
    job = Job(Blob.of(image_bytes(size=SIZE), limit_bytes=10**8), noise(0.5), Options(box=BOX), LIMITS)
    with pytest.raises(EngineError, match="generator answered"):
        asyncio.run(read_bytes(synchronise(job, local)))
    local.close()


def test_a_detector_that_breaks_or_answers_short_is_an_error_of_the_engine():
    class Broken(ToldDetector):
        def detect(self, frames):
            raise ValueError("bad map")

    class Short(ToldDetector):
        def detect(self, frames):
            return []

    for detector in (Broken(), Short()):
        local = LocalStages(Copying(), create_detector=lambda name, made=detector: made, workers=1)
        job = Job(Blob.of(image_bytes(size=SIZE), limit_bytes=10**8), noise(0.5), Options(), LIMITS)
        with pytest.raises(EngineError, match="detector told"):
            asyncio.run(read_bytes(synchronise(job, local)))
        local.close()


def test_boxes_for_the_whole_clip_serve_a_shorter_voice_with_compat():
    boxes = tuple((16, 120, 144, 236) for _ in range(50))
    mp4 = run(video_bytes(frames=50, size=SIZE), noise(0.9), box=None, boxes=boxes, compat="reference")
    assert 0 < len(pictures_of(mp4)) < 25


def test_stages_that_were_closed_say_so():
    local = stages(Copying())
    local.close()
    job = Job(Blob.of(image_bytes(size=SIZE), limit_bytes=10**8), noise(0.5), Options(box=BOX), LIMITS)
    with pytest.raises(Closed, match="closed"):
        asyncio.run(read_bytes(synchronise(job, local)))

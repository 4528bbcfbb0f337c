"""A clip that is face and voice both stays in step with itself, wherever its picture and its sound begin."""

from __future__ import annotations

import asyncio
import io
from fractions import Fraction

import av
import media_factory as make
import numpy as np
import pytest
from flash_clip import HEIGHT, WIDTH, Played, play

from lipsync.core import U8
from lipsync.local import LocalStages
from lipsync.media.source import Blob
from lipsync.options import Limits, Options
from lipsync.output import read_bytes
from lipsync.pipeline import Job, synchronise
from tests.fakes import Copying, ToldDetector

RATE_HZ, FPS, FRAMES = 48_000, 25, 80
FLASHES = (25, 45, 65)
LIMITS = Limits()


def flash(number: int, width: int, height: int) -> U8:
    return np.full((height, width, 3), 235 if number in FLASHES else 16, np.uint8)


def clip(container: str, codec: str, *, picture_s: float, sound_s: float, lost_frames: int = 0) -> bytes:
    """Frames that flash and a sound that clicks at the same moments; the picture begins at ``picture_s``, the sound at
    ``sound_s``, and the first ``lost_frames`` frames, without which some cannot be decoded, are gone."""
    film = make.video_bytes(frames=FRAMES, size=(WIDTH, HEIGHT), gop=15, draw=flash)
    samples = np.zeros((1, round((FRAMES / FPS + picture_s - sound_s) * RATE_HZ)), np.float32)
    for frame in FLASHES:
        at = round((frame / FPS + picture_s - sound_s) * RATE_HZ)
        samples[:, at : at + 1440] = 0.8 * np.cos(2 * np.pi * 1000 * np.arange(1440) / RATE_HZ)
    sound = make.audio_bytes(samples=samples, codec=codec, container="mkv")
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(film)) as pictures,
        av.open(io.BytesIO(sound)) as clicks,
        av.open(buffer, "w", format={"ts": "mpegts", "mkv": "matroska"}.get(container, container)) as output,
    ):
        packets = []
        for source, shift_s, lost in ((pictures, picture_s, lost_frames), (clicks, sound_s, 0)):
            stream = output.add_stream_from_template(source.streams[0])
            for packet in [packet for packet in source.demux() if packet.dts is not None][lost:]:
                packet.pts += round(shift_s / packet.time_base)
                packet.dts += round(shift_s / packet.time_base)
                packet.stream = stream
                packets.append((packet.dts * packet.time_base, packet))
        for _, packet in sorted(packets, key=lambda each: each[0]):
            output.mux(packet)
    return buffer.getvalue()


def spoken(face: bytes, voice: bytes, **options: object) -> Played:
    chosen = Options(box=(8, 56, 24, 72), blend="none", preset="ultrafast", **options)  # type: ignore[arg-type]
    stages = LocalStages(Copying(), create_detector=lambda name: ToldDetector(), workers=2)
    job = Job(Blob.of(face, limit_bytes=10**8), Blob.of(voice, limit_bytes=10**8), chosen, LIMITS)
    try:
        return play(asyncio.run(read_bytes(synchronise(job, stages))))
    finally:
        stages.close()


@pytest.mark.parametrize("sync_mode", ["loop", "cut_off"])
@pytest.mark.parametrize(
    ("container", "codec", "picture_s", "sound_s", "lost_frames"),
    [
        ("mkv", "pcm_s16le", 0.0, 0.0, 0),
        ("mkv", "pcm_s16le", 0.6, 0.0, 0),
        ("mkv", "pcm_s16le", 0.0, 0.6, 0),
        ("mp4", "aac", 0.6, 0.0, 0),
        ("ts", "mp2", 0.6, 0.0, 0),
        ("ts", "mp2", 0.0, 0.0, 4),
        ("ts", "mp2", 0.0, 0.3, 4),
    ],
)
def test_a_clip_that_is_its_own_voice_clicks_where_it_flashes(
    container: str, codec: str, picture_s: float, sound_s: float, lost_frames: int, sync_mode: str
) -> None:
    data = clip(container, codec, picture_s=picture_s, sound_s=sound_s, lost_frames=lost_frames)
    played = spoken(data, data, sync_mode=sync_mode)
    assert len(played.flashes) >= 3
    assert len(played.clicks) == 3
    for shown, heard in zip(played.flashes, played.clicks, strict=False):
        assert abs(shown - heard) < Fraction(15, 1000), f"{float(heard - shown) * 1000:.1f} ms"


def test_a_clip_that_speaks_for_another_face_loses_no_word_for_having_begun_early() -> None:
    data = clip("mkv", "pcm_s16le", picture_s=0.6, sound_s=0.0)
    played = spoken(make.video_bytes(frames=20, size=(WIDTH, HEIGHT)), data)
    assert float(played.sound_end) == pytest.approx(FRAMES / FPS + 0.6, abs=0.03)
    still = spoken(make.image_bytes(size=(WIDTH, HEIGHT)), data)
    assert float(still.sound_end) == pytest.approx(FRAMES / FPS + 0.6, abs=0.03)

"""A clip whose frames flash and whose voice clicks at the same known moments, and what a player makes of it."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np

from lipsync.core import F32, U8, Color, VoiceChunk
from lipsync.media.encode import encode_segment
from lipsync.media.mp4 import SYNTHETIC, FragmentJoiner, packets_between
from lipsync.media.picture import Picture
from lipsync.options import Limits, Options
from lipsync.voice.voice import Waveform, voice_chunks

RATES = [Fraction(24_000, 1001), 24, 25, Fraction(30_000, 1001), 30, 50, Fraction(60_000, 1001), 60]
SECONDS = 3.3
WIDTH, HEIGHT = 96, 64


@dataclass
class Clip:
    """A flash and a click at known frames: made once, cut as asked."""

    fps: Fraction
    sample_rate_hz: int
    seconds: float = SECONDS
    channels: int = 1

    @property
    def frame_count(self) -> int:
        return math.ceil(Fraction(self.samples, self.sample_rate_hz) * self.fps)

    @property
    def samples(self) -> int:
        return round(self.seconds * self.sample_rate_hz)

    @property
    def flashes(self) -> list[int]:
        """Frames that are white and begin with a click: the first, then one about every half second."""
        return [math.ceil(half * self.fps / 2) for half in range(math.floor(2 * self.seconds - 0.2) + 1)]

    def voice(self) -> list[VoiceChunk]:
        samples = np.zeros((self.channels, self.samples), np.float32)
        length = round(0.03 * self.sample_rate_hz)
        click = 0.8 * np.cos(2 * np.pi * 1_000 * np.arange(length) / self.sample_rate_hz)
        for frame in self.flashes:
            at = round(frame / self.fps * self.sample_rate_hz)
            samples[:, at : at + length] = click[: self.samples - at]
        return list(voice_chunks(Waveform(samples, self.sample_rate_hz), None, limits=Limits(), chunk_s=1.0))

    def picture(self, frame: int) -> Picture:
        luma = np.full((HEIGHT, WIDTH), 235 if frame in self.flashes else 16, np.uint8)
        luma[:8, : 8 * (frame % 12)] = 128
        gray = np.full((HEIGHT // 2, WIDTH // 2), 128, np.uint8)
        return Picture(luma, gray, gray, Color())


def encode(clip: Clip, sizes: list[int], options: Options | None = None) -> bytes:
    """The stream of the clip, cut into segments of the given sizes; the last one again and again."""
    chunks = clip.voice()
    made, rest = chunks[0].audio_format, [packet for chunk in chunks for packet in chunk.packets]
    joiner, stream, first, number = FragmentJoiner(), b"", 0, 0
    while first < clip.frame_count:
        stop = min(clip.frame_count, first + sizes[min(number, len(sizes) - 1)])
        until = None if stop == clip.frame_count else stop / clip.fps
        packets, rest = packets_between(rest, made, until=until)
        segment = encode_segment(
            (clip.picture(frame) for frame in range(first, stop)),
            first_frame=first,
            fps=clip.fps,
            packets=packets,
            audio_format=made,
            options=options or Options(preset="ultrafast"),
        )
        stream += joiner.feed(segment)
        first, number = stop, number + 1
    assert not rest
    return stream + joiner.finish()


@dataclass
class Played:
    """What a player that goes by timestamps shows and sounds."""

    frame_times: list[Fraction]
    decode_times: list[Fraction]
    flashes: list[Fraction]
    clicks: list[Fraction]
    sound_end: Fraction
    comment: str


def play(data: bytes) -> Played:
    with av.open(io.BytesIO(data)) as container:
        decode_times = [packet.dts * packet.time_base for packet in container.demux(video=0) if packet.dts is not None]
    with av.open(io.BytesIO(data)) as container:
        times, flashes = [], []
        for frame in container.decode(video=0):
            assert frame.pts is not None and frame.time_base is not None
            times.append(frame.pts * frame.time_base)
            if luma_of(frame)[HEIGHT // 2 :].mean() > 128:
                flashes.append(times[-1])
        comment = container.metadata["comment"]
    with av.open(io.BytesIO(data)) as container:
        signal, start, rate = sound_of(container)
    loud = np.flatnonzero(np.abs(signal) > 0.4)
    first = loud[np.diff(loud, prepend=-rate) > rate // 10] if len(loud) else loud
    clicks = [start + Fraction(int(at), rate) for at in first]
    return Played(times, decode_times, flashes, clicks, start + Fraction(len(signal), rate), comment)


def luma_of(frame: av.VideoFrame) -> U8:
    plane = frame.planes[0]
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


def sound_of(container: av.container.InputContainer) -> tuple[F32, Fraction, int]:
    """The first channel, when it starts, and its rate; fails where packets do not follow each other."""
    parts, start, end, rate = [], None, Fraction(0), 0
    for frame in container.decode(audio=0):
        assert frame.pts is not None and frame.time_base is not None
        at, rate = frame.pts * frame.time_base, frame.sample_rate
        if start is None:
            start = at
        else:
            assert at == end
        end = at + Fraction(frame.samples, rate)
        parts.append(frame.to_ndarray()[0])
    assert start is not None
    return np.concatenate(parts), start, rate


def assert_in_time(clip: Clip, played: Played, *, first_click_is_whole: bool) -> None:
    assert played.frame_times == [Fraction(n) / clip.fps for n in range(clip.frame_count)]
    assert all(after > before for before, after in pairwise(played.decode_times))
    assert played.flashes == [Fraction(frame) / clip.fps for frame in clip.flashes]
    expected = played.flashes if first_click_is_whole else played.flashes[1:]
    clicks = played.clicks if first_click_is_whole else [click for click in played.clicks if click > Fraction(1, 5)]
    assert len(clicks) == len(expected) >= 3
    for flash, click in zip(expected, clicks, strict=True):
        assert abs(click - flash) < Fraction(1, 100), f"{float(click - flash) * 1000:.1f} ms at {float(flash):.2f} s"
    voice_end = Fraction(clip.samples, clip.sample_rate_hz)
    assert voice_end - Fraction(2, clip.sample_rate_hz) <= played.sound_end
    assert played.sound_end < voice_end + Fraction(1_025, min(clip.sample_rate_hz, 96_000))
    assert played.comment == SYNTHETIC

"""Fragments joined, and the progressive file: every frame there, sound and picture in time from end to end."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync.core import F32, U8, AudioFormat, AudioPacket, Color, VoiceChunk
from lipsync.errors import OutputError
from lipsync.media import mp4
from lipsync.media.encode import encode_segment
from lipsync.media.mp4 import (
    SYNTHETIC,
    FragmentJoiner,
    packets_between,
    write_progressive,
    write_progressive_bytes,
)
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


# ---------------------------------------------------------------- in time


@pytest.mark.parametrize("fps", RATES, ids=lambda fps: f"{float(fps):.3f}")
def test_sound_and_picture_keep_time_at_every_rate(fps: Fraction | int) -> None:
    clip = Clip(Fraction(fps), 48_000)
    stream = encode(clip, [1, 1, 7, 24, 1, 40])
    assert_in_time(clip, play(stream), first_click_is_whole=False)
    assert_in_time(clip, play(write_progressive_bytes(stream)), first_click_is_whole=True)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 192_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_sound_and_picture_keep_time_for_every_voice(rate: int, channels: int) -> None:
    clip = Clip(Fraction(25), rate, channels=channels)
    stream = encode(clip, [8, 24, 64])
    assert_in_time(clip, play(stream), first_click_is_whole=False)
    assert_in_time(clip, play(write_progressive_bytes(stream)), first_click_is_whole=True)


def test_there_is_no_drift_over_a_minute() -> None:
    clip = Clip(Fraction(30_000, 1001), 44_100, seconds=60.0)
    stream = encode(clip, [8, 24, 64, 128])
    assert_in_time(clip, play(stream), first_click_is_whole=False)
    assert_in_time(clip, play(write_progressive_bytes(stream)), first_click_is_whole=True)


def test_h265_keeps_time_too() -> None:
    clip = Clip(Fraction(25), 48_000)
    stream = encode(clip, [8, 24, 64], Options(codec="h265", preset="ultrafast"))
    assert_in_time(clip, play(stream), first_click_is_whole=False)
    progressive = write_progressive_bytes(stream)
    assert_in_time(clip, play(progressive), first_click_is_whole=True)
    with av.open(io.BytesIO(progressive)) as container:
        assert container.streams.video[0].codec_tag == "hvc1"


def test_one_frame_a_segment_is_a_whole_clip() -> None:
    clip = Clip(Fraction(50), 16_000)  # most segments hold no packet at all
    stream = encode(clip, [1])
    assert_in_time(clip, play(stream), first_click_is_whole=False)
    assert_in_time(clip, play(write_progressive_bytes(stream)), first_click_is_whole=True)


def test_a_player_that_knows_no_timestamps_is_in_time_as_well() -> None:
    clip = Clip(Fraction(25), 16_000)
    with av.open(io.BytesIO(encode(clip, [8, 24]))) as container:
        signal, start, _ = sound_of(container)
    assert start == 0  # so that samples alone tell the time
    at = clip.flashes[2] / clip.fps * 16_000
    assert abs(int(np.flatnonzero(np.abs(signal[round(at) - 800 :]) > 0.4)[0]) - 800) < 160


def test_the_stream_has_no_negative_time_and_no_edit_list_while_the_file_has_one() -> None:
    stream = encode(Clip(Fraction(25), 48_000), [8, 24])
    assert b"elst" not in stream
    progressive = write_progressive_bytes(stream)
    assert b"elst" in progressive
    at = progressive.rindex(b"elst") + 4
    assert struct.unpack_from(">I", progressive, at + 12)[0] == 1_024  # the priming that a player leaves out


def test_the_stream_only_lacks_what_the_encoders_priming_would_add() -> None:
    clip = Clip(Fraction(25), 48_000)
    stream = encode(clip, [8, 24])
    with av.open(io.BytesIO(stream)) as joined, av.open(io.BytesIO(write_progressive_bytes(stream))) as whole:
        (first, _, _), (second, _, _) = sound_of(joined), sound_of(whole)
    assert len(first) == len(second)
    np.testing.assert_allclose(first[1_024:], second[1_024:], atol=1e-5)
    assert np.abs(first[:1_024] - second[:1_024]).max() > 0.1


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="no ffprobe on PATH")
@pytest.mark.parametrize("fps", [Fraction(24_000, 1001), Fraction(25), Fraction(60)])
def test_ffprobe_finds_every_frame_in_order(fps: Fraction, tmp_path: Path) -> None:
    clip = Clip(fps, 48_000)
    stream = encode(clip, [1, 7, 24])
    entries = ["-show_entries", "stream=nb_read_frames,avg_frame_rate:packet=dts_time"]
    for name, data in (("stream.mp4", stream), ("file.mp4", write_progressive_bytes(stream))):
        path = tmp_path / name
        path.write_bytes(data)
        found = subprocess.run(
            ["ffprobe", "-v", "error", "-count_frames", "-select_streams", "v:0", "-of", "json", *entries, str(path)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stderr == ""
        report = json.loads(found.stdout)
        assert int(report["streams"][0]["nb_read_frames"]) == clip.frame_count
        assert Fraction(report["streams"][0]["avg_frame_rate"]) == fps
        times = [float(packet["dts_time"]) for packet in report["packets"]]
        assert all(after > before for before, after in pairwise(times))


# ---------------------------------------------------------------- packets


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 130), min_size=1, max_size=12),
    fps=st.sampled_from([Fraction(rate) for rate in RATES]),
    rate=st.sampled_from([8_000, 16_000, 44_100, 48_000]),
)
def test_every_packet_goes_out_once_in_the_segment_where_it_begins(
    lengths: list[int], fps: Fraction, rate: int
) -> None:
    made = AudioFormat(rate, "mono", b"", 96_000)
    count = math.ceil(sum(lengths) / fps * rate / 1_024) + 1
    packets = [AudioPacket(1_024 * (n - 1), 1_024, bytes([n % 256])) for n in range(count)]
    rest, handed, frame = packets, [], 0
    for number, length in enumerate(lengths):
        begin, frame = frame / fps, frame + length
        is_last = number == len(lengths) - 1
        taken, rest = packets_between(rest, made, until=None if is_last else frame / fps)
        handed += taken
        for packet in taken:
            assert Fraction(packet.pts, rate) >= begin or number == 0
            assert Fraction(packet.pts, rate) < frame / fps or is_last
    assert handed == packets
    assert not rest


# ---------------------------------------------------------------- joining and writing


@pytest.fixture(scope="module")
def stream() -> bytes:
    return encode(Clip(Fraction(25), 48_000), [8, 24])


def boxes(data: bytes) -> list[tuple[str, bytes]]:
    found, at = [], 0
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        found.append((name.decode(), data[at : at + size]))
        at += size
    return found


def test_a_joined_stream_has_one_header_and_numbered_fragments(stream: bytes) -> None:
    found = boxes(stream)
    assert [name for name, _ in found[:3]] == ["ftyp", "moov", "uuid"]
    assert [name for name, _ in found[3:]] == ["moof", "mdat"] * ((len(found) - 3) // 2)
    numbers = [struct.unpack_from(">I", content, 20)[0] for name, content in found if name == "moof"]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) == 5


def test_the_first_bytes_play_before_the_others_are_there(stream: bytes) -> None:
    found = boxes(stream)
    first = b"".join(content for _, content in found[:5])
    with av.open(io.BytesIO(first)) as container:
        assert len(list(container.decode(video=0))) == 8


def test_segments_of_other_settings_are_refused() -> None:
    clip = Clip(Fraction(25), 48_000)
    chunks = clip.voice()

    def segment(options: Options, first: int) -> bytes:
        return encode_segment(
            [clip.picture(first)],
            first_frame=first,
            fps=clip.fps,
            packets=[],
            audio_format=chunks[0].audio_format,
            options=options,
        )

    joiner = FragmentJoiner()
    joiner.feed(segment(Options(), 0))
    with pytest.raises(OutputError, match="other settings"):
        joiner.feed(segment(Options(resize=(128, 128)), 1))
    with pytest.raises(OutputError, match="moov"):
        FragmentJoiner().feed(b"")
    with pytest.raises(OutputError, match="no whole mp4"):
        FragmentJoiner().feed(segment(Options(), 0)[:-10])


def test_the_progressive_file_has_its_index_at_the_front(stream: bytes) -> None:
    names = [name for name, _ in boxes(write_progressive_bytes(stream))]
    assert names.index("moov") < names.index("mdat")
    assert "moof" not in names


def test_metadata_is_added_but_cannot_hide_that_the_file_is_synthetic(stream: bytes) -> None:
    data = write_progressive_bytes(stream, metadata={"title": "A talk", "comment": "real"})
    with av.open(io.BytesIO(data)) as container:
        assert container.metadata["title"] == "A talk"
        assert container.metadata["comment"] == SYNTHETIC


def test_equal_streams_make_equal_files(stream: bytes) -> None:
    assert write_progressive_bytes(stream) == write_progressive_bytes(stream)


def test_the_output_appears_whole_or_not_at_all(stream: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "fragments.mp4", tmp_path / "out.mp4"
    source.write_bytes(stream)
    target.write_bytes(b"older")
    seen: list[bytes] = []
    replace = os.replace

    def watched(part: Path, place: Path) -> None:
        seen.append(target.read_bytes())
        replace(part, place)

    monkeypatch.setattr(mp4.os, "replace", watched)
    write_progressive(source, target)
    assert seen == [b"older"]
    assert target.read_bytes() == write_progressive_bytes(stream)
    assert {path.name for path in tmp_path.iterdir()} == {"fragments.mp4", "out.mp4"}


def truncate(stream: bytes) -> bytes:
    return stream[:900]


@pytest.mark.parametrize("spoil", [truncate, lambda stream: b"no mp4", lambda stream: b""])
def test_a_stream_that_cannot_be_read_leaves_nothing_behind(
    stream: bytes, spoil: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    source = tmp_path / "fragments.mp4"
    source.write_bytes(spoil(stream))
    with pytest.raises(OutputError):
        write_progressive(source, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["fragments.mp4"]


def test_a_place_that_cannot_be_written_is_an_output_error(stream: bytes, tmp_path: Path) -> None:
    source = tmp_path / "fragments.mp4"
    source.write_bytes(stream)
    with pytest.raises(OutputError, match="nowhere"):
        write_progressive(source, tmp_path / "nowhere" / "out.mp4")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder"):
        write_progressive(source, tmp_path / "folder")
    assert {path.name for path in tmp_path.iterdir()} == {"fragments.mp4", "folder"}

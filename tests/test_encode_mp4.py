"""Packets handed out, fragments joined, and the progressive file written whole or not at all."""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import pytest
from flash_clip import RATES, Clip, encode
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync.core import AudioFormat, AudioPacket
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
from lipsync.options import Options

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

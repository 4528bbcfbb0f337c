"""One segment's bytes: its pixels, its clock, its colours, its sizes, and that equal input makes equal bytes."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
import pytest

from lipsync.core import U8, AudioFormat, AudioPacket, Color
from lipsync.errors import OutputError
from lipsync.media.encode import encode_segment
from lipsync.media.mp4 import SYNTHETIC
from lipsync.media.picture import Picture
from lipsync.options import Options
from lipsync.voice.aac import AacEncoder

PACKETS_S = 2.0


@pytest.fixture(scope="module")
def sound() -> tuple[AudioFormat, list[AudioPacket]]:
    encoder = AacEncoder(sample_rate_hz=48_000, layout="mono")
    t = np.arange(round(PACKETS_S * 48_000)) / 48_000
    packets = encoder.feed((0.2 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)[None]) + encoder.finish()
    return encoder.format, packets


def picture(number: int, width: int = 160, height: int = 96, color: Color | None = None) -> Picture:
    """A smooth picture that moves with ``number``."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    luma = 120 + 60 * np.sin(x / 9 + number) + 30 * np.cos(y / 7)
    half = np.s_[::2, ::2]
    u, v = 128 + 40 * np.sin(x / 30)[half], 128 + 40 * np.cos(y / 20 + number / 5)[half]
    return Picture(*(plane.astype(np.uint8) for plane in (luma, u, v)), color or Color())


def encode(
    pictures: list[Picture],
    sound: tuple[AudioFormat, list[AudioPacket]],
    *,
    first_frame: int = 0,
    fps: Fraction = Fraction(25),
    options: Options | None = None,
    packets: list[AudioPacket] | None = None,
) -> bytes:
    return encode_segment(
        pictures,
        first_frame=first_frame,
        fps=fps,
        packets=sound[1] if packets is None else packets,
        audio_format=sound[0],
        options=options or Options(),
    )


def frames_of(data: bytes) -> list[av.VideoFrame]:
    with av.open(io.BytesIO(data)) as container:
        return list(container.decode(video=0))


def planes_of(frame: av.VideoFrame) -> list[U8]:
    return [
        np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width].copy()
        for plane in frame.planes
    ]


def boxes(data: bytes, path: str = "") -> Iterator[tuple[str, bytes]]:
    """(path, content) of every box, inner ones too."""
    at = 0
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        inner = f"{path}/{name.decode('latin-1')}"
        yield inner, data[at + 8 : at + size]
        if name in (b"moov", b"trak", b"mdia", b"minf", b"edts", b"moof", b"traf"):
            yield from boxes(data[at + 8 : at + size], inner)
        at += size


def test_planes_reach_the_decoder_untouched(sound: tuple[AudioFormat, list[AudioPacket]]) -> None:
    pictures = [picture(n) for n in range(5)]
    frames = frames_of(encode(pictures, sound, options=Options(crf=0)))  # lossless
    assert len(frames) == 5
    for before, after in zip(pictures, frames, strict=True):
        for expected, found in zip((before.y, before.u, before.v), planes_of(after), strict=True):
            assert np.array_equal(expected, found)


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_the_default_quality_is_high(codec: str, sound: tuple[AudioFormat, list[AudioPacket]]) -> None:
    pictures = [picture(n, 320, 240) for n in range(6)]
    frames = frames_of(encode(pictures, sound, options=Options(codec=codec)))  # type: ignore[arg-type]
    errors = [np.square(a.y.astype(float) - planes_of(b)[0]).mean() for a, b in zip(pictures, frames, strict=True)]
    assert 10 * np.log10(255**2 / np.mean(errors)) > 40


@pytest.mark.parametrize(
    ("color", "matrix", "wide"),
    [
        (Color("bt709", False), 1, 1),
        (Color("bt601", False), 6, 1),
        (Color("bt601", True), 6, 2),
        (Color("bt2020", False), 9, 1),
    ],
)
@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_colours_are_tagged_as_the_pictures_are(
    color: Color, matrix: int, wide: int, codec: str, sound: tuple[AudioFormat, list[AudioPacket]]
) -> None:
    data = encode([picture(0, color=color)], sound, options=Options(codec=codec))  # type: ignore[arg-type]
    frame = frames_of(data)[0]
    assert (frame.colorspace, frame.color_range) == (matrix, wide)
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.video[0].codec_context.color_primaries == matrix


@pytest.mark.parametrize("codec", ["h264", "h265"])
@pytest.mark.parametrize("threads", [1, 3])
def test_equal_pictures_make_equal_bytes(
    codec: str, threads: int, sound: tuple[AudioFormat, list[AudioPacket]]
) -> None:
    options = Options(codec=codec, encoder_threads=threads)  # type: ignore[arg-type]
    pictures = [picture(n) for n in range(20)]
    assert encode(pictures, sound, options=options) == encode(pictures, sound, options=options)


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_the_moov_depends_on_settings_alone(codec: str, sound: tuple[AudioFormat, list[AudioPacket]]) -> None:
    options = Options(codec=codec)  # type: ignore[arg-type]
    noise = np.random.default_rng(0).integers(0, 255, (96, 160), np.uint8)
    gray = np.full((48, 80), 128, np.uint8)
    segments = [
        encode([picture(n) for n in range(30)], sound, options=options),
        encode([Picture(noise, gray, gray, Color())], sound, first_frame=30, options=options, packets=[]),
        encode([picture(0)] * 3, sound, first_frame=31, options=options, packets=sound[1][60:]),
    ]
    assert len({dict(boxes(segment))["/moov"] for segment in segments}) == 1


def test_a_segment_is_one_fragment_and_its_clock_goes_on(sound: tuple[AudioFormat, list[AudioPacket]]) -> None:
    fps = Fraction(30_000, 1001)
    data = encode([picture(n) for n in range(5)], sound, first_frame=100, fps=fps, packets=sound[1][30:35])
    names = [name for name, _ in boxes(data) if name.count("/") == 1]
    assert names == ["/ftyp", "/moov", "/moof", "/mdat"]
    starts = [struct.unpack(">Q", content[4:12])[0] for name, content in boxes(data) if name.endswith("tfdt")]
    assert starts == [100 * 1001, sound[1][30].pts]
    with av.open(io.BytesIO(data)) as container:
        times = [packet.pts * packet.time_base for packet in container.demux(video=0) if packet.pts is not None]
    assert times == [Fraction(n) / fps for n in range(100, 105)]


@pytest.mark.parametrize("rate", [1, 12, Fraction(24_000, 1001), 60, Fraction(120_000, 1001), Fraction("19.531")])
def test_every_rate_has_a_clock_without_rounding(
    rate: Fraction | int, sound: tuple[AudioFormat, list[AudioPacket]]
) -> None:
    fps = Fraction(rate)
    data = encode([picture(n) for n in range(7)], sound, first_frame=3, fps=fps, packets=[])
    assert [frame.pts * frame.time_base for frame in frames_of(data)] == [n / fps for n in range(3, 10)]


def test_no_time_is_below_zero_and_no_edit_list_is_needed(sound: tuple[AudioFormat, list[AudioPacket]]) -> None:
    data = encode([picture(n) for n in range(30)], sound)
    found = dict(boxes(data))
    assert not any("edts" in name for name in found)
    starts = [content for name, content in boxes(data) if name.endswith("tfdt")]
    assert len(starts) == 2
    assert all(struct.unpack(">Q", content[4:12])[0] == 0 for content in starts)


def test_a_segment_begins_with_a_frame_that_needs_no_other(sound: tuple[AudioFormat, list[AudioPacket]]) -> None:
    data = encode([picture(n) for n in range(30)], sound, first_frame=8)
    with av.open(io.BytesIO(data)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pts is not None]
    assert packets[0].is_keyframe
    assert [packet.pts for packet in packets] == [packet.dts for packet in packets]


@pytest.mark.parametrize(("width", "height"), [(161, 96), (160, 97), (161, 97), (65, 65)])
def test_an_odd_size_gets_a_copy_of_its_last_row_or_column(
    width: int, height: int, sound: tuple[AudioFormat, list[AudioPacket]]
) -> None:
    before = picture(1, width, height)
    after = planes_of(frames_of(encode([before], sound, options=Options(crf=0)))[0])
    luma = np.pad(before.y, ((0, height % 2), (0, width % 2)), mode="edge")
    for expected, found in zip((luma, before.u, before.v), after, strict=True):
        assert np.array_equal(expected, found)


@pytest.mark.parametrize("size", [(80, 64), (120, 72), (320, 192), (81, 65)])
def test_a_resized_picture_looks_the_same(size: tuple[int, int], sound: tuple[AudioFormat, list[AudioPacket]]) -> None:
    before = picture(2)
    after = frames_of(encode([before], sound, options=Options(crf=0, resize=size)))[0]
    assert (after.width, after.height) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    luma = planes_of(after)[0].astype(float)
    x = (np.arange(luma.shape[1]) + 0.5) * 160 / size[0] - 0.5
    row = before.y.astype(float).mean(axis=0)
    found = luma.mean(axis=0)
    middle = np.s_[4 : size[0] - 4]
    np.testing.assert_allclose(found[middle], np.interp(x, np.arange(160), row)[middle], atol=4)


@pytest.mark.parametrize("width", [80, 320])
def test_colour_stays_over_its_luma_when_resized(width: int, sound: tuple[AudioFormat, list[AudioPacket]]) -> None:
    # a chroma sample lies on the left one of its two luma columns: sample i at column 2i
    wave = np.tile((128 + 100 * np.sin(2 * np.pi * np.arange(80) / 20)).round().astype(np.uint8), (48, 1))
    before = Picture(np.full((96, 160), 100, np.uint8), wave, wave, Color())
    after = planes_of(frames_of(encode([before], sound, options=Options(crf=0, resize=(width, 96))))[0])
    column = (2 * np.arange(width // 2) + 0.5) * 160 / width - 0.5  # where each new sample lies in the old luma
    whole = np.s_[width // 16 : -width // 16]
    turn = np.exp(-2j * np.pi * column / 40)
    for plane in after[1:]:
        angle = np.angle(((plane.mean(axis=0) - 128) * turn)[whole].sum() / -1j)
        assert abs(float(angle) / (2 * np.pi) * 40) < 0.05  # columns


def test_the_output_says_that_it_is_synthetic(sound: tuple[AudioFormat, list[AudioPacket]]) -> None:
    with av.open(io.BytesIO(encode([picture(0)], sound))) as container:
        assert container.metadata["comment"] == SYNTHETIC
    assert "AI-generated" in SYNTHETIC


def test_apple_players_are_given_the_tag_they_ask_for(sound: tuple[AudioFormat, list[AudioPacket]]) -> None:
    for codec, tag in (("h264", "avc1"), ("h265", "hvc1")):
        with av.open(io.BytesIO(encode([picture(0)], sound, options=Options(codec=codec)))) as container:  # type: ignore[arg-type]
            assert container.streams.video[0].codec_tag == tag


def test_read_only_planes_and_views_are_encoded(sound: tuple[AudioFormat, list[AudioPacket]]) -> None:
    wide = picture(3, 320, 96)
    planes = [plane[:, :width] for plane, width in ((wide.y, 160), (wide.u, 80), (wide.v, 80))]
    for plane in planes:
        plane.flags.writeable = False
    found = planes_of(frames_of(encode([Picture(*planes, Color())], sound, options=Options(crf=0)))[0])
    assert np.array_equal(found[0], wide.y[:, :160])


@pytest.mark.parametrize("size", [(160, 96), (161, 97)])
def test_what_was_patched_is_encoded_like_whole_planes_however_the_boxes_move(
    size: tuple[int, int], sound: tuple[AudioFormat, list[AudioPacket]]
) -> None:
    base, other = picture(0, *size), picture(5, *size)
    draw = np.random.default_rng(0)

    def patched(source: Picture, x1: int, y1: int, x2: int, y2: int) -> Picture:
        return source.with_patch((x1, y1, x2, y2), draw.integers(0, 256, (y2 - y1, x2 - x1, 3), dtype=np.uint8))

    shown = [patched(base, 10, 10, 60, 60), patched(base, 10, 10, 60, 60), patched(base, 41, 33, 99, 90), base]
    shown += [patched(base, 3, 5, 30, 31), patched(other, 3, 5, 30, 31), patched(base, 100, 51, 160, 96)]
    shown.append(patched(patched(base, 8, 8, 40, 40), 60, 60, 90, 90))
    whole = [Picture(p.y.copy(), p.u.copy(), p.v.copy(), p.color) for p in shown]
    data = encode(shown, sound, options=Options(crf=0))
    assert data == encode(whole, sound, options=Options(crf=0))
    assert len({frame.to_ndarray().tobytes() for frame in frames_of(data)}) == len(shown)


def test_pictures_of_two_sizes_or_none_are_an_output_error(sound: tuple[AudioFormat, list[AudioPacket]]) -> None:
    with pytest.raises(OutputError, match="size"):
        encode([picture(0), picture(1, 320, 240)], sound)
    with pytest.raises(OutputError, match="at least one"):
        encode([], sound)


def test_better_quality_is_larger(sound: tuple[AudioFormat, list[AudioPacket]]) -> None:
    pictures = [picture(n) for n in range(10)]
    sizes = [len(encode(pictures, sound, options=Options(crf=crf), packets=[])) for crf in (12, 18, 30)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1.2 * sizes[2]

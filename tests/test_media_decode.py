"""Reading frames by number: the right frame from anywhere, no more decoding than needed, pixels untouched."""

from __future__ import annotations

import io
import os
import pickle
import struct
import threading
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_factory import audio_bytes, image_bytes, numbered, read_number, stream_copy_cut, video_bytes

from lipsync.core import U8, Color
from lipsync.errors import DecodeTimeout, LipsyncError, NoVideoStream, TruncatedMedia, UnreadableMedia
from lipsync.media.decode import FrameReader, Geometry, StillCell, small_size
from lipsync.media.index import build_index
from lipsync.media.probe import probe_face, probe_voice
from lipsync.media.source import Blob
from lipsync.options import Limits

LIMITS = Limits()
FULL_RANGE = {"codec": "mjpeg", "pix_fmt": "yuvj420p", "full_range": True}
OPEN_GOP = {"x264-params": "open-gop=1:keyint=10:bframes=3"}
OPEN_GOP_265 = {"x265-params": "log-level=none:pools=none:open-gop=1:keyint=10:min-keyint=10:bframes=3"}


def reader_of(
    data: bytes | Path, *, geometry: Geometry | None = None, limits: Limits = LIMITS, threads: int = 1
) -> FrameReader:
    blob = Blob.of(data, limit_bytes=10**9)
    info = probe_face(blob, LIMITS)
    return FrameReader(blob, info, build_index(blob, info, LIMITS), geometry=geometry, limits=limits, threads=threads)


def numbers(pictures: Any) -> list[int]:
    return [read_number(picture.bgr()) for picture in pictures]


def upright_planes(data: bytes) -> list[tuple[U8, ...]]:
    """Y, U, V of every frame as PyAV gives them."""
    with av.open(io.BytesIO(data)) as container:
        frames = []
        for frame in container.decode(video=0):
            planes = frame.to_ndarray(format="yuv420p")
            height, width = frame.height, frame.width
            u, v = planes[height:].reshape(2, height // 2, width // 2)
            frames.append((planes[:height], u, v))
        return frames


KINDS: dict[str, dict[str, Any]] = {
    "mp4": {},
    "mp4 with B-frames": {"gop": 10, "b_frames": 2},
    "mp4, open GOP": {"options": OPEN_GOP, "b_frames": 3},
    "mp4 of fragments": {"gop": 10, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "mp4, one keyframe": {"gop": 1000},
    "mp4, all keyframes": {"gop": 1},
    "hevc, open GOP": {"codec": "libx265", "options": OPEN_GOP_265, "b_frames": 3},
    "mkv": {"container": "mkv", "gop": 10, "b_frames": 2},
    "webm": {"container": "webm", "codec": "libvpx-vp9", "gop": 10},
    "av1": {"codec": "libsvtav1", "gop": 16},
    "avi": {"container": "avi", "codec": "mpeg4", "gop": 10},
    "avi with B-frames": {"container": "avi", "codec": "mpeg4", "gop": 10, "b_frames": 2},
    "avi, h264 with B-frames": {"container": "avi", "gop": 10, "b_frames": 2},
    "ts": {"container": "ts", "gop": 10, "b_frames": 2, "audio_seconds": 1},
    "flv": {"container": "flv", "gop": 10},
    "mjpeg": {"container": "mov", "codec": "mjpeg", "pix_fmt": "yuvj420p", "full_range": True},
    "prores": {"container": "mov", "codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "dnxhd": {
        "container": "mov",
        "codec": "dnxhd",
        "pix_fmt": "yuv422p",
        "size": (256, 128),
        "options": {"profile": "dnxhr_lb"},
    },
    "dv": {"container": "avi", "codec": "dvvideo", "size": (720, 576)},
    "mpeg-2 program stream": {"container": "mpeg", "codec": "mpeg2video", "gop": 10, "b_frames": 2},
    "dvd": {"container": "dvd", "codec": "mpeg2video", "gop": 10, "b_frames": 2},
    "mpeg-1": {"container": "mpeg", "codec": "mpeg1video", "gop": 10, "b_frames": 2},
    "mpeg-2 transport stream": {"container": "ts", "codec": "mpeg2video", "gop": 10, "b_frames": 2},
    "wmv": {"container": "asf", "codec": "wmv2", "gop": 10},
    "asf, h264 with B-frames": {"container": "asf", "gop": 10, "b_frames": 2},
    "avi, DivX 3": {"container": "avi", "codec": "msmpeg4", "gop": 10},
    "3gp, h263": {"container": "3gp", "codec": "h263", "size": (176, 144), "gop": 10},
    "flv, Sorenson": {"container": "flv", "codec": "flv", "gop": 10},
    "hdr10": {"codec": "libx265", "pix_fmt": "yuv420p10le", "matrix": "bt2020", "transfer": 16},
    "ntsc": {"fps": Fraction(30_000, 1001), "container": "mkv"},
    "odd size": {"size": (161, 121), "pix_fmt": "yuv444p"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_the_one_asked_for_in_order_and_at_random(kind: str) -> None:
    rng = np.random.default_rng(1)
    with reader_of(video_bytes(frames=40, **KINDS[kind])) as reader:
        assert numbers(reader.read(range(40))) == list(range(40))
        assert reader.decoded_count == 40
        for _ in range(6):
            wanted = sorted(rng.choice(40, 4, replace=False).tolist())
            assert numbers(reader.read(wanted)) == wanted
        assert [read_number(small) for small in reader.read_small(7, 33, max_side=96)] == list(range(7, 33))


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_a_variable_rate_is_matched_by_time(container: str) -> None:
    pts = np.cumsum(np.random.default_rng(2).integers(1500, 9000, 40)).tolist()
    with reader_of(video_bytes(frames=40, pts=pts, container=container, b_frames=2, gop=10)) as reader:
        assert numbers(reader.read([3, 17, 18, 39])) == [3, 17, 18, 39]
        assert numbers(reader.read([0, 1, 22])) == [0, 1, 22]


@pytest.mark.parametrize("b_frames", [0, 2])
def test_a_cut_without_re_encoding_gives_the_frames_that_are_shown(b_frames: int) -> None:
    with reader_of(stream_copy_cut(video_bytes(frames=75, b_frames=b_frames), start_s=1.52)) as reader:
        assert numbers(reader.read(range(37))) == list(range(38, 75))
        assert numbers(reader.read([5, 20])) == [43, 58]
        assert numbers(reader.read([0])) == [38]


def test_threads_change_nothing() -> None:
    data = video_bytes(frames=30, b_frames=2, gop=10, size=(320, 240))
    with reader_of(data) as one, reader_of(data, threads=2) as two:
        for a, b in zip(one.read(range(30)), two.read(range(30)), strict=True):
            np.testing.assert_array_equal(a.y, b.y)


# ---------------------------------------------------------------- work


def test_reading_on_decodes_each_frame_once() -> None:
    with reader_of(video_bytes(frames=60, gop=60)) as reader:
        for first in range(0, 60, 12):
            assert numbers(reader.read(range(first, first + 12))) == list(range(first, first + 12))
        assert reader.decoded_count == 60


def test_a_jump_ahead_starts_at_the_keyframe_before_it() -> None:
    with reader_of(video_bytes(frames=100, gop=20)) as reader:
        assert numbers(reader.read([2, 85])) == [2, 85]
        assert reader.decoded_count <= 3 + 6 + 1


def test_a_jump_within_the_same_group_of_pictures_decodes_on() -> None:
    with reader_of(video_bytes(frames=100, gop=100)) as reader:
        assert numbers(reader.read([10, 50])) == [10, 50]
        assert reader.decoded_count == 51


def test_the_same_frame_again_costs_nothing() -> None:
    with reader_of(video_bytes(frames=30, gop=30)) as reader:
        first = next(reader.read([29]))
        assert next(reader.read([29])) is first
        assert reader.decoded_count == 30


def test_a_still_is_one_picture_for_every_request() -> None:
    with reader_of(image_bytes()) as reader:
        pictures = [next(reader.read([0])) for _ in range(5)]
        assert all(picture is pictures[0] for picture in pictures)
        assert reader.decoded_count == 1


def test_readers_that_share_a_cell_prepare_a_still_once_and_a_pickled_cell_is_empty() -> None:
    blob = Blob.of(image_bytes(), limit_bytes=10**9)
    info = probe_face(blob, LIMITS)
    index, cell = build_index(blob, info, LIMITS), StillCell()
    shown, counts = [], []
    for shared in (cell, cell, pickle.loads(pickle.dumps(cell))):
        with FrameReader(blob, info, index, limits=LIMITS, still=shared) as reader:
            shown.append(next(reader.read([0])))
            counts.append(reader.decoded_count)
    assert shown[0] is shown[1] is not shown[2]
    assert counts == [1, 0, 1]


def test_numbers_must_ascend_and_exist() -> None:
    with reader_of(video_bytes(frames=5)) as reader:
        for wanted in ([3, 2], [1, 1], [5], [-1]):
            with pytest.raises(ValueError, match="ascend"):
                list(reader.read(wanted))
        with pytest.raises(ValueError, match="ascend"):
            list(reader.read_small(3, 6, max_side=64))
        assert list(reader.read([])) == []


@pytest.mark.serial
def test_memory_does_not_grow_with_the_clip() -> None:
    process = psutil.Process()
    data = video_bytes(frames=300, size=(640, 480), number_frames=False)
    with reader_of(data) as reader:
        list(map(id, reader.read(range(20))))
        before = process.memory_info().rss
        for picture in reader.read(range(300)):
            assert picture.nbytes == 460_800  # all of them: 138 MB
        assert process.memory_info().rss - before < 25_000_000


def test_nothing_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "face.mp4"
    path.write_bytes(video_bytes(frames=5))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with reader_of(path) as reader:
            list(reader.read([0, 4]))
    assert len(os.listdir("/proc/self/fd")) == before


def test_readers_of_one_blob_work_in_parallel() -> None:
    blob = Blob.of(video_bytes(frames=40, gop=10), limit_bytes=10**9)
    info = probe_face(blob, LIMITS)
    index = build_index(blob, info, LIMITS)
    found: dict[int, list[int]] = {}

    def work(first: int) -> None:
        with FrameReader(blob, info, index, limits=LIMITS) as reader:
            found[first] = numbers(reader.read(range(first, 40, 3)))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {first: list(range(first, 40, 3)) for first in range(3)}


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize(
    "made", [{}, {"matrix": "bt601"}, {"codec": "mjpeg", "pix_fmt": "yuvj420p", "full_range": True}]
)
def test_420_planes_pass_untouched_with_their_own_color(made: dict[str, Any]) -> None:
    data = video_bytes(frames=3, container="mov", **made)
    with reader_of(data) as reader:
        for picture, (y, u, v) in zip(reader.read(range(3)), upright_planes(data), strict=True):
            np.testing.assert_array_equal(picture.y, y)
            np.testing.assert_array_equal(picture.u, u)
            np.testing.assert_array_equal(picture.v, v)
            assert picture.color == Color(made.get("matrix", "bt709"), made.get("full_range", False))
            assert not picture.y.flags.writeable


def test_a_picture_outlives_its_reader() -> None:
    data = video_bytes(frames=30, size=(320, 240))
    with reader_of(data) as reader:
        held = next(reader.read([3]))
        list(reader.read(range(4, 30)))
    assert read_number(held.bgr()) == 3


@pytest.mark.parametrize(
    "made",
    [
        {"pix_fmt": "yuv444p"},
        {"pix_fmt": "yuv422p"},
        {"codec": "libx265", "pix_fmt": "yuv420p10le"},
        {"codec": "libx265", "pix_fmt": "yuv420p10le", "matrix": "bt2020"},
        {"codec": "libx264", "pix_fmt": "yuv444p", "full_range": True},
        {"codec": "prores_ks", "pix_fmt": "yuv422p10le", "container": "mov"},
        {"codec": "libx265", "pix_fmt": "gbrp"},
        {"codec": "libx265", "pix_fmt": "gray"},
        {"codec": "libvpx-vp9", "pix_fmt": "yuva420p", "container": "webm"},
    ],
)
def test_other_formats_become_420_with_the_same_colors(made: dict[str, Any]) -> None:
    with reader_of(
        video_bytes(frames=1, size=(161, 121) if "444" in made["pix_fmt"] else (160, 120), **made)
    ) as reader:
        picture = next(reader.read([0]))
    expected = numbered(0, *reader.size)
    if made["pix_fmt"] == "gray":
        expected = np.repeat(cv2.cvtColor(expected, cv2.COLOR_BGR2GRAY)[..., None], 3, axis=2)
    assert picture.color.matrix == made.get("matrix", "bt709") and picture.color.transfer == "sdr"
    difference = np.abs(picture.bgr().astype(int) - expected)[40:]  # away from the hard edges of the number
    assert difference.mean() < 6, difference.mean()


@pytest.mark.parametrize("size", [(160, 120), (161, 121), (161, 120), (160, 121)])
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotation_tag_turns_the_pictures_upright(rotation: int, size: tuple[int, int]) -> None:
    pix_fmt = "yuv420p" if size == (160, 120) else "yuv444p"
    data = video_bytes(frames=2, size=size, rotation=rotation, pix_fmt=pix_fmt)
    with reader_of(data) as reader:
        picture = next(reader.read([1]))
        small = next(reader.read_small(1, 2, max_side=80))
    assert reader.size == (picture.width, picture.height) == size
    assert picture.u.shape == ((size[1] + 1) // 2, (size[0] + 1) // 2)
    assert read_number(picture.bgr()) == read_number(small) == 1
    assert np.abs(picture.bgr().astype(int) - numbered(1, *size))[40:].mean() < 6
    assert small.shape == (*small_size(*size, 80)[::-1], 3)


def coded_for(upright: U8, matrix: tuple[int, int, int, int]) -> U8:
    """What has to be stored so that a matrix a b c d (x' = ax + cy, y' = bx + dy) shows ``upright``."""
    a, b, c, d = matrix
    height, width = upright.shape[:2] if a else upright.shape[1::-1]
    y, x = np.indices((height, width))
    shown_x, shown_y = a * x + c * y, b * x + d * y
    return np.ascontiguousarray(upright[shown_y - shown_y.min(), shown_x - shown_x.min()])


@pytest.mark.parametrize("size", [(160, 120), (161, 121)])
@pytest.mark.parametrize(
    "matrix", [(s, 0, 0, t) for s in (1, -1) for t in (1, -1)] + [(0, s, t, 0) for s in (1, -1) for t in (1, -1)]
)
def test_a_display_matrix_turns_and_mirrors(matrix: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    coded_size = size if matrix[0] else size[::-1]
    data = bytearray(
        video_bytes(
            frames=2,
            size=coded_size,
            pix_fmt="yuv444p",
            draw=lambda number, *_: coded_for(numbered(number, *size), matrix),
        )
    )
    a, b, c, d = (65536 * value for value in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 4 + 40, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    with reader_of(bytes(data)) as reader:
        picture = next(reader.read([1]))
        small = next(reader.read_small(1, 2, max_side=80))
    assert reader.size == (picture.width, picture.height) == size
    assert read_number(picture.bgr()) == read_number(small) == 1
    assert np.abs(picture.bgr().astype(int) - numbered(1, *size))[40:].mean() < 6


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(resize_factor=2),
        Geometry(rotate=True),
        Geometry(crop=(10, 90, 21, 131)),
        Geometry(crop=(11, -1, 20, -1)),
        Geometry(resize_factor=2, rotate=True, crop=(5, 60, 3, -1)),
    ],
)
@pytest.mark.parametrize("made", [{}, {"rotation": 270}, {"container": "gif"}])
def test_geometry_follows_the_reference(geometry: Geometry, made: dict[str, Any]) -> None:
    size = (160, 120)
    if made.get("container") == "gif":
        data = image_bytes(format="webp", animation=2, lossless=True)
    else:
        data = video_bytes(frames=2, size=size, **made)
    expected = numbered(1, *size)
    if geometry.resize_factor > 1:
        expected = cv2.resize(expected, (size[0] // geometry.resize_factor, size[1] // geometry.resize_factor))
    if geometry.rotate:
        expected = cv2.rotate(expected, cv2.ROTATE_90_CLOCKWISE)
    if geometry.crop is not None:
        y1, y2, x1, x2 = geometry.crop
        expected = expected[y1 : None if y2 == -1 else y2, x1 : None if x2 == -1 else x2]
    with reader_of(data, geometry=geometry) as reader:
        picture = next(reader.read([1]))
        small = next(reader.read_small(1, 2, max_side=40))
    assert reader.size == (picture.width, picture.height) == (expected.shape[1], expected.shape[0])
    assert np.abs(picture.bgr().astype(int) - expected).mean() < 6
    shrunk = cv2.resize(expected, small_size(*reader.size, 40), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - shrunk).mean() < 8


@pytest.mark.parametrize(
    "made", [{}, {"matrix": "bt601"}, {"full_range": True, "pix_fmt": "yuvj420p", "codec": "mjpeg"}]
)
def test_small_frames_have_the_colors_of_the_large_ones(made: dict[str, Any]) -> None:
    with reader_of(video_bytes(frames=1, size=(320, 240), container="mov", number_frames=False, **made)) as reader:
        small = next(reader.read_small(0, 1, max_side=160))
        large = cv2.resize(next(reader.read([0])).bgr(), (160, 120), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - large).mean() < 2


@pytest.mark.parametrize(
    "made, geometry, size",
    [
        ({}, Geometry(), (160, 60)),
        ({"rotation": 90}, Geometry(), (80, 120)),
        ({}, Geometry(rotate=True), (60, 160)),
        ({}, Geometry(crop=(0, 60, 0, -1)), (160, 30)),
    ],
)
def test_small_frames_have_square_pixels_and_the_pictures_their_own(
    made: dict[str, Any], geometry: Geometry, size: tuple[int, int]
) -> None:
    data = video_bytes(frames=1, size=(160, 120), pixel_aspect=Fraction(2), number_frames=False, **made)
    with reader_of(data, geometry=geometry) as reader:
        picture = next(reader.read([0]))
        small = next(reader.read_small(0, 1, max_side=160))
    assert (picture.width, picture.height) == reader.size
    assert abs(small.shape[1] - size[0]) + abs(small.shape[0] - size[1]) <= 1
    expected = cv2.resize(picture.bgr(), small.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - expected).mean() < 3


@given(st.integers(64, 4096), st.integers(64, 4096), st.integers(32, 2000))
def test_the_small_size_is_derivable(width: int, height: int, max_side: int) -> None:
    small = small_size(width, height, max_side)
    scale = min(1.0, max_side / max(width, height))
    assert small == (max(1, round(width * scale)), max(1, round(height * scale)))
    assert max(small) == min(max_side, max(width, height))


# ---------------------------------------------------------------- stills and animations


@pytest.mark.parametrize(
    "made", [{"format": "gif", "mode": "P"}, {"format": "webp"}, {"format": "png"}, {"format": "avif"}]
)
def test_animations_are_read_forwards_and_back(made: dict[str, Any]) -> None:
    with reader_of(image_bytes(animation=8, **made)) as reader:
        assert numbers(reader.read(range(8))) == list(range(8))
        assert reader.decoded_count == 8
        assert numbers(reader.read([2, 5])) == [2, 5]
        assert [read_number(small) for small in reader.read_small(1, 4, max_side=100)] == [1, 2, 3]


# ---------------------------------------------------------------- damage


def damaged(data: bytes, frames: list[int]) -> bytes:
    """The mp4 with the packets of these frames overwritten."""
    broken = bytearray(data)
    with av.open(io.BytesIO(data)) as container:
        for number, packet in enumerate(container.demux(video=0)):
            if number in frames and packet.pos is not None:
                broken[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    return bytes(broken)


def test_a_lost_frame_in_a_hundred_is_replaced_by_its_neighbour() -> None:
    data = damaged(video_bytes(frames=200, gop=1, size=(64, 64)), [50])
    with reader_of(data) as reader:
        assert numbers(reader.read(range(200))) == [*range(50), 51, *range(51, 200)]
        assert numbers(reader.read([50])) == [51]
    with reader_of(data) as reader:
        assert numbers(reader.read([50])) == [51]


def test_a_lost_end_is_replaced_by_the_last_frame_there_is() -> None:
    data = damaged(video_bytes(frames=200, gop=1, size=(64, 64)), [198, 199])
    with reader_of(data) as reader:
        assert numbers(reader.read([199])) == [197]
        assert numbers(reader.read([196, 198])) == [196, 197]


def test_more_lost_frames_are_reported_with_their_number() -> None:
    data = damaged(video_bytes(frames=200, gop=1, size=(64, 64)), list(range(100, 110)))
    with reader_of(data) as reader, pytest.raises(TruncatedMedia, match="of the video's 200 frames cannot be decoded"):
        list(reader.read(range(200)))


def test_a_video_without_one_good_frame_is_unreadable() -> None:
    data = damaged(video_bytes(frames=5, gop=1, size=(64, 64)), list(range(5)))
    with pytest.raises(UnreadableMedia), reader_of(data) as reader:
        list(reader.read([0]))


def test_decoding_stands_under_the_wall_clock() -> None:
    limits = Limits(wall_clock_min_s=1e-9, wall_clock_ratio=1e-9)
    for data in (video_bytes(frames=30), image_bytes(format="webp", animation=3)):
        with reader_of(data, limits=limits) as reader, pytest.raises(DecodeTimeout, match="limit"):
            list(reader.read(range(3)))


def test_waiting_for_the_reader_s_user_does_not_count_as_decoding() -> None:
    limits = Limits(wall_clock_min_s=0.5, wall_clock_ratio=1e-9)
    with reader_of(video_bytes(frames=3), limits=limits) as reader:
        for _ in reader.read(range(3)):
            threading.Event().wait(0.3)


def test_a_voice_has_no_frames() -> None:
    blob = Blob.of(audio_bytes(), limit_bytes=10**9)
    index = build_index(still := Blob.of(image_bytes(), limit_bytes=10**9), probe_face(still, LIMITS), LIMITS)
    with pytest.raises(NoVideoStream):
        FrameReader(blob, probe_voice(blob, LIMITS), index, limits=LIMITS)


MUTABLE: list[dict[str, Any]] = [
    {"gop": 5}, {"container": "mkv", "b_frames": 2}, {"container": "webm", "codec": "libvpx-vp9"},
    {"container": "avi", "codec": "mpeg4"}, {"container": "ts"}, {"container": "flv"}, {"codec": "libx265"},
]  # fmt: skip


@pytest.fixture(scope="module")
def originals() -> list[bytes]:
    videos = [video_bytes(frames=12, size=(64, 64), **made) for made in MUTABLE]
    kinds: list[dict[str, Any]] = [
        {}, {"format": "jpeg"}, {"format": "webp", "animation": 3}, {"format": "gif", "mode": "P", "animation": 3},
        {"format": "png", "animation": 3}, {"format": "heic"}, {"format": "avif"},
    ]  # fmt: skip
    return videos + [image_bytes(size=(64, 64), **made) for made in kinds]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_give_frames_or_a_typed_error(originals: list[bytes], data: st.DataObject) -> None:
    original = originals[data.draw(st.integers(0, len(originals) - 1))]
    mutant = bytearray(original)
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.integers(0, len(mutant) - 1))
        change = data.draw(st.sampled_from(["byte", "ones", "delete", "insert"]))
        if change == "byte":
            mutant[at] = data.draw(st.integers(0, 255))
        elif change == "ones":
            mutant[at : at + 4] = b"\xff\xff\xff\xff"
        elif change == "delete" and len(mutant) > 100:
            del mutant[at : at + 20]
        else:
            mutant[at:at] = data.draw(st.binary(min_size=1, max_size=8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of some damage, which is its right
        try:
            with reader_of(bytes(mutant)) as reader:
                for picture in reader.read(range(len(reader))):
                    assert (picture.width, picture.height) == reader.size
        except LipsyncError as error:
            assert error.detail.endswith(".")


def test_real_media_go_through(assets: Path) -> None:
    with reader_of(assets / "latentsync_demo1_video.mp4") as reader:
        assert reader.size == (1080, 1920)
        whole = [picture.y[::40, ::40].copy() for picture in reader.read(range(0, 60, 5))]
        again = next(reader.read([25])).y[::40, ::40]
        np.testing.assert_array_equal(whole[5], again)
    with reader_of(assets / "hallo_ref1.jpg") as reader:
        assert next(reader.read([0])).width == 1432

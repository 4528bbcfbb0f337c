"""Looking for faces in stretches of real, small videos: anchors, cuts at any place, and the same track however cut."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

import lipsync
from lipsync.core import U8, Detection, Index
from lipsync.faces.centerface import CenterFace
from lipsync.faces.chunk import ChunkDetections, detect_chunk, source_chunks
from lipsync.faces.detector import Detector
from lipsync.faces.track import Tracker
from lipsync.options import Options
from tests.media_factory import video_bytes

SIZE = (320, 180)
CUTS = (20, 38)


class StandInReader:
    """Decodes everything from the start, every time."""

    def __init__(self, video: bytes) -> None:
        self._video = video
        self.decoded: list[int] = []

    def read_small(self, first: int, stop: int, *, max_side: int) -> Iterator[U8]:
        with av.open(io.BytesIO(self._video)) as container:
            for n, frame in enumerate(container.decode(video=0)):
                if first <= n < stop:
                    self.decoded.append(n)
                    yield shrunk(frame.to_ndarray(format="bgr24"), max_side)

    def read(self, frames: Sequence[int]) -> Iterator[StandInPicture]:
        for frame in self.read_small(frames[0], frames[-1] + 1, max_side=10_000):
            yield StandInPicture(frame)


class StandInPicture:
    def __init__(self, pixels: U8) -> None:
        self._pixels = pixels

    def bgr(self) -> U8:
        return self._pixels


def shrunk(frame: U8, max_side: int) -> U8:
    scale = min(1.0, max_side / max(frame.shape[:2]))
    size = round(frame.shape[1] * scale), round(frame.shape[0] * scale)
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


class Recorder:
    """A detector that finds one face at a place told by the frame's own brightness, and keeps what it was shown."""

    name = "recorder"

    def __init__(self, name: str = "recorder") -> None:
        self.name = name
        self.shapes: list[tuple[int, ...]] = []
        self.batches: list[int] = []

    def detect(self, frames: Sequence[U8]) -> list[list[Detection]]:
        self.shapes += [frame.shape for frame in frames]
        self.batches.append(len(frames))
        return [[Detection(1.0, 2.0, 5.0, 10.0, 0.9, ((2.0, 4.0),))] for _ in frames]


def index_of(frame_count: int) -> Index:
    pts = np.arange(frame_count, dtype=np.int64)
    return Index(pts, pts % 10 == 0, frame_count, Fraction(1, 25))


def clip_of_three_scenes(frames: int = 56, size: tuple[int, int] = SIZE) -> bytes:
    """A face wanders before three backgrounds; at CUTS the background and the face's place change."""
    picture = cv2.imread(str(Path(lipsync.__file__).parent / "assets" / "face.jpg"))
    head = cv2.resize(picture[80:540, 440:850], (size[0] // 4, size[1] // 2), interpolation=cv2.INTER_AREA)

    def draw(n: int, width: int, height: int) -> U8:
        scene = sum(n >= cut for cut in CUTS)
        patches = np.random.default_rng(scene).integers(30, 220, (3, 5, 3), dtype=np.uint8)
        frame = np.asarray(cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
        x, y = (width // 8, width * 5 // 8, width // 3)[scene] + n % 7 * 2, height // 5 + n % 5
        frame[y : y + head.shape[0], x : x + head.shape[1]] = head
        return frame

    return video_bytes(frames=frames, size=size, gop=10, draw=draw, b_frames=2)


@pytest.fixture(scope="module")
def clip() -> bytes:
    return clip_of_three_scenes()


def look(clip: bytes, parts: list[range], detector: Detector, **changes: Any) -> list[ChunkDetections]:
    options = Options(**({"detect_every": 5} | changes))
    return [
        detect_chunk(StandInReader(clip), part.start, part.stop, detector=detector, options=options,
                     index=index_of(56), size=SIZE)
        for part in parts
    ]  # fmt: skip


def test_source_chunks_cover_every_frame_once() -> None:
    assert source_chunks(10, size=4) == [range(4), range(4, 8), range(8, 10)]
    assert source_chunks(8, size=4) == [range(4), range(4, 8)]
    assert source_chunks(1, size=100) == [range(1)]


def test_anchors_are_every_fifth_frame_both_sides_of_cuts_and_the_last(clip: bytes) -> None:
    (whole,) = look(clip, [range(56)], Recorder())
    assert whole.cuts == CUTS
    assert sorted(whole.anchors) == sorted({*range(0, 56, 5), 19, 20, 37, 38, 55})


@pytest.mark.parametrize("size", [1, 7, 19, 20, 21, 38])
def test_a_cut_is_seen_by_exactly_one_chunk_wherever_the_border_lies(clip: bytes, size: int) -> None:
    chunks = look(clip, source_chunks(56, size=size), Recorder())
    assert [n for chunk in chunks for n in chunk.cuts] == list(CUTS)
    assert all(chunk.first <= n < chunk.stop for chunk in chunks for n in chunk.cuts)
    for cut in CUTS:
        owner = next(chunk for chunk in chunks if chunk.first <= cut < chunk.stop)
        assert {cut - 1, cut} <= owner.anchors.keys()


def test_only_the_frame_before_a_chunk_is_decoded_beside_its_own(clip: bytes) -> None:
    reader = StandInReader(clip)
    detect_chunk(reader, 25, 35, detector=Recorder(), options=Options(), index=index_of(56), size=SIZE)
    assert reader.decoded == list(range(24, 35))


def test_detections_are_scaled_to_the_full_frame() -> None:
    clip = clip_of_three_scenes(2, size=(1280, 720))
    recorder = Recorder()
    chunk = detect_chunk(StandInReader(clip), 0, 2, detector=recorder, options=Options(), index=index_of(2),
                         size=(1280, 720))  # fmt: skip
    assert set(recorder.shapes) == {(360, 640, 3)}
    assert chunk.anchors[0] == [Detection(2.0, 4.0, 10.0, 20.0, 0.9, ((4.0, 8.0),))]


def test_frames_go_to_the_detector_in_bounded_batches_each_once(clip: bytes) -> None:
    recorder = Recorder()
    detect_chunk(StandInReader(clip), 0, 56, detector=recorder, options=Options(detect_every=1), index=index_of(56),
                 size=SIZE, batch_size=10)  # fmt: skip
    assert recorder.batches == [10, 10, 10, 10, 10, 6]


@pytest.mark.parametrize(("name", "shape"), [("s3fd", (720, 1280, 3)), ("yunet", (360, 640, 3))])
def test_the_reference_looks_at_every_frame_and_s3fd_at_full_size(name: str, shape: tuple[int, ...]) -> None:
    recorder = Recorder(name)
    chunk = detect_chunk(StandInReader(clip_of_three_scenes(3, size=(1280, 720))), 0, 3, detector=recorder,
                         options=Options(compat="reference"), index=index_of(3), size=(1280, 720))  # fmt: skip
    assert sorted(chunk.anchors) == [0, 1, 2] and chunk.cuts == ()
    assert recorder.shapes == [shape] * 3


def track(clip: bytes, size: int, **changes: Any) -> list[list[int]]:
    tracker = Tracker(56, SIZE, index_of(56), Options(**({"detect_every": 5} | changes)))
    chunks = look(clip, source_chunks(56, size=size), CenterFace(), **changes)
    return np.concatenate([*map(tracker.feed, chunks), tracker.finish()]).tolist()


def test_a_real_video_has_one_track_however_it_is_cut(clip: bytes) -> None:
    whole = track(clip, 56)
    assert len(whole) == 56
    for size in (6, 19, 20, 25, 38):
        assert track(clip, size) == whole


def test_the_track_lies_on_the_face_on_every_frame_and_jumps_with_the_cut(clip: bytes) -> None:
    boxes = np.array(track(clip, 56, detect_every=1, nosmooth=True))
    sparse = np.array(track(clip, 56))
    assert np.abs(boxes - sparse).max() <= 14  # the face hops by 12 px at times; 5 frames are interpolated
    centres = (boxes[:, 0] + boxes[:, 2]) / 2
    jumps = np.flatnonzero(np.abs(np.diff(centres)) > 40) + 1
    assert jumps.tolist() == list(CUTS)

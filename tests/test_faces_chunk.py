"""Looking for faces in stretches of real, small videos: anchors, cuts at any place, and the same track however cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import lipsync
from lipsync.core import U8, Detection
from lipsync.faces.centerface import CenterFace
from lipsync.faces.chunk import ChunkDetections, detect_chunk, source_chunks
from lipsync.faces.detector import Detector, DetectorName, create_detector
from lipsync.faces.given import given_track, tracks_from_json, tracks_to_json
from lipsync.faces.track import Tracker
from lipsync.media.decode import FrameReader, Glimpse
from lipsync.media.index import build_index
from lipsync.media.picture import Picture
from lipsync.media.probe import probe_face
from lipsync.media.source import Blob
from lipsync.options import Limits, Options
from tests.media_factory import video_bytes

SIZE = (320, 180)
CUTS = (20, 38)
LIMITS = Limits()


class Watched:
    """A real reader that keeps which frames were asked for."""

    def __init__(self, reader: FrameReader) -> None:
        self._reader = reader
        self.asked: list[int] = []

    def read_small(self, first: int, stop: int, *, max_side: int) -> Iterator[U8]:
        self.asked += range(first, stop)
        return self._reader.read_small(first, stop, max_side=max_side)

    def glimpses(self, first: int, stop: int) -> Iterator[Glimpse]:
        self.asked += range(first, stop)
        return self._reader.glimpses(first, stop)

    def read(self, frames: Sequence[int]) -> Iterator[Picture]:
        self.asked += frames
        return self._reader.read(frames)


class Opened:
    """A video with what is known of it, and a fresh reader for every stretch."""

    def __init__(self, video: bytes) -> None:
        self._blob = Blob.of(video, limit_bytes=LIMITS.video_bytes)
        self._info = probe_face(self._blob, LIMITS)
        self.index = build_index(self._blob, self._info, LIMITS)
        self.size = self.open().size

    def open(self) -> FrameReader:
        return FrameReader(self._blob, self._info, self.index, limits=LIMITS)

    def look(self, part: range, detector: Detector, *, batch_size: int = 16, **options: Any) -> ChunkDetections:
        with self.open() as reader:
            return detect_chunk(
                reader, part.start, part.stop, detector=detector, options=Options(**options), index=self.index,
                size=self.size, batch_size=batch_size
            )  # fmt: skip


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
def clip() -> Opened:
    return Opened(clip_of_three_scenes())


def test_source_chunks_cover_every_frame_once() -> None:
    assert source_chunks(10, size=4) == [range(4), range(4, 8), range(8, 10)]
    assert source_chunks(8, size=4) == [range(4), range(4, 8)]
    assert source_chunks(1, size=100) == [range(1)]
    growing = [len(part) for part in source_chunks(200, size=40, shortest=20)]
    assert growing == [20, 20, 20, 20, 20, 25, 31, 39, 5]


def test_anchors_are_every_fifth_frame_both_sides_of_cuts_and_the_last(clip: Opened) -> None:
    whole = clip.look(range(56), Recorder())
    assert whole.cuts == CUTS
    assert sorted(whole.anchors) == sorted({*range(0, 56, 5), 19, 20, 37, 38, 55})


@pytest.mark.parametrize("size", [1, 7, 19, 20, 21, 38])
def test_a_cut_is_seen_by_exactly_one_chunk_wherever_the_border_lies(clip: Opened, size: int) -> None:
    chunks = [clip.look(part, Recorder()) for part in source_chunks(56, size=size)]
    assert [n for chunk in chunks for n in chunk.cuts] == list(CUTS)
    assert all(chunk.first < n <= chunk.stop for chunk in chunks for n in chunk.cuts)
    for cut in CUTS:
        owner = next(chunk for chunk in chunks if chunk.first < cut <= chunk.stop)
        assert {cut - 1, cut} <= owner.anchors.keys()


def test_only_the_frame_after_a_chunk_is_read_beside_its_own(clip: Opened) -> None:
    with clip.open() as reader:
        watched = Watched(reader)
        detect_chunk(watched, 25, 35, detector=Recorder(), options=Options(), index=clip.index, size=clip.size)
    assert watched.asked == list(range(25, 36))


def test_detections_are_scaled_to_the_full_frame() -> None:
    clip = Opened(clip_of_three_scenes(2, size=(1280, 720)))
    recorder = Recorder()
    chunk = clip.look(range(2), recorder, face_choice="index")
    assert set(recorder.shapes) == {(360, 640, 3)}
    assert chunk.anchors[0] == [Detection(2.0, 4.0, 10.0, 20.0, 0.9, ((4.0, 8.0),))]


def test_frames_go_to_the_detector_in_bounded_batches_each_once(clip: Opened) -> None:
    recorder = Recorder()
    clip.look(range(56), recorder, batch_size=10, detect_every=1, face_choice="index")
    assert recorder.batches == [10, 10, 10, 10, 10, 6]


@pytest.mark.parametrize(("name", "shape"), [("s3fd", (720, 1280, 3)), ("yunet", (360, 640, 3))])
def test_the_reference_looks_at_every_frame_and_s3fd_at_full_size(name: str, shape: tuple[int, ...]) -> None:
    recorder = Recorder(name)
    chunk = Opened(clip_of_three_scenes(3, size=(1280, 720))).look(range(3), recorder, compat="reference")
    assert sorted(chunk.anchors) == [0, 1, 2] and chunk.cuts == ()
    assert recorder.shapes == [shape] * 3


def track(clip: Opened, size: int, **options: Any) -> list[list[int]]:
    tracker = Tracker(56, clip.size, clip.index, Options(**options))
    chunks = [clip.look(part, CenterFace(), **options) for part in source_chunks(56, size=size)]
    boxes: list[list[int]] = np.concatenate([*map(tracker.feed, chunks), tracker.finish()]).tolist()
    return boxes


def test_a_real_video_has_one_track_however_it_is_cut(clip: Opened) -> None:
    whole = track(clip, 56)
    assert len(whole) == 56
    for size in (6, 20, 25, 38):
        assert track(clip, size) == whole


def test_the_track_lies_on_the_face_on_every_frame_and_jumps_with_the_cut(clip: Opened) -> None:
    boxes = np.array(track(clip, 56, detect_every=1, nosmooth=True))
    sparse = np.array(track(clip, 56))
    assert np.abs(boxes - sparse).max() <= 14  # the face hops by 12 px at times; 5 frames are interpolated
    centres = (boxes[:, 0] + boxes[:, 2]) / 2
    jumps = np.flatnonzero(np.abs(np.diff(centres)) > 40) + 1
    assert jumps.tolist() == list(CUTS)


def test_a_track_taken_out_as_json_and_given_back_is_the_same(clip: Opened) -> None:
    boxes = np.array(track(clip, 56), dtype=np.int32)
    file = tracks_from_json(tracks_to_json(boxes, size=clip.size, fps=Fraction(25)))
    options = Options(boxes=file.boxes, boxes_size=(file.width, file.height))
    assert np.array_equal(given_track(options, 56, clip.size), boxes)


def test_a_still_picture_is_one_anchor() -> None:
    still = Opened((Path(lipsync.__file__).parent / "assets" / "face.jpg").read_bytes())
    chunk = still.look(range(1), CenterFace())
    (face,) = chunk.anchors[0]
    assert still.size == (1280, 720) and chunk.cuts == ()
    assert (face.x1, face.y1, face.x2, face.y2) == pytest.approx((504, 136, 780, 486), abs=35)


@pytest.mark.needs_assets
@pytest.mark.parametrize("name", ["yunet", "centerface"])
def test_a_woman_who_walks_through_a_street_is_followed_past_the_people_behind(
    assets: Path, name: DetectorName
) -> None:
    weights = assets / "yunet_n_dynamic.onnx" if name == "yunet" else None
    clip = Opened((assets / "facenet_video.mp4").read_bytes())
    chunk = clip.look(range(31), create_detector(name, weights=weights))
    tracker = Tracker(31, clip.size, clip.index, Options())
    boxes = np.concatenate([tracker.feed(chunk), tracker.finish()])
    steps = np.diff((boxes[:, 0] + boxes[:, 2]) / 2)
    assert steps.min() > 15 and steps.max() < 60  # she walks some 37 px a frame, to the right

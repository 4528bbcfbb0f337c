"""Looking at a small picture first: once where a large face shows, closely in all other cases and when asked."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from lipsync.core import U8, Detection, Index
from lipsync.faces.coarse import COARSE_SIDE, LARGE, SURELY_SEEN, CoarseFirst, settles_early
from lipsync.faces.detector import Detector, create_detector
from lipsync.faces.overlap import overlap_of
from lipsync.options import Options
from lipsync.packaged import demo_face

WIDE = (360, 640, 3)


class Told:
    """Finds one face of ``share`` of the frame's width where a frame is bright, none where it is dark."""

    name = "told"

    def __init__(self, share: float) -> None:
        self.share = share
        self.shapes: list[tuple[int, ...]] = []

    def detect(self, frames: Sequence[U8]) -> list[list[Detection]]:
        self.shapes += [frame.shape for frame in frames]
        return [[self._face(frame)] if frame.mean() > 100 else [] for frame in frames]

    def _face(self, frame: U8) -> Detection:
        height, width = frame.shape[:2]
        return Detection(
            0.25 * width, 0.25 * height, (0.25 + self.share) * width, 0.25 * height + self.share * width, 0.9
        )


BRIGHT, DARK = np.full(WIDE, 200, np.uint8), np.zeros(WIDE, np.uint8)
SMALL = (144, COARSE_SIDE, 3)


def test_a_large_face_is_looked_at_once_and_told_in_pixels_of_the_frame() -> None:
    told = Told(LARGE / COARSE_SIDE)
    (faces,) = CoarseFirst(told).detect([BRIGHT])
    assert told.shapes == [SMALL]
    assert (faces[0].x1, faces[0].y1, faces[0].x2) == pytest.approx((160, 90, 160 + 640 * LARGE / COARSE_SIDE))


def test_a_small_face_or_none_is_looked_for_closely_and_every_frame_keeps_its_own() -> None:
    small = Told(0.9 * LARGE / COARSE_SIDE)
    assert CoarseFirst(small).detect([BRIGHT]) == [small.detect([BRIGHT])[0]]
    assert small.shapes == [SMALL, WIDE, WIDE]
    large = Told(0.5)
    found = CoarseFirst(large).detect([BRIGHT, DARK, BRIGHT])
    assert [len(faces) for faces in found] == [1, 0, 1]
    assert large.shapes == [SMALL, SMALL, SMALL, WIDE]


def test_a_frame_that_is_small_already_is_looked_at_as_it_is() -> None:
    told = Told(0.5)
    CoarseFirst(told).detect([np.full((200, COARSE_SIDE, 3), 200, np.uint8)])
    assert told.shapes == [(200, COARSE_SIDE, 3)]
    assert CoarseFirst(told).detect([]) == []


def test_only_the_largest_face_of_a_video_is_settled_early() -> None:
    video = Index(np.arange(9, dtype=np.int64), np.ones(9, bool), 9, Fraction(1, 25))
    still = Index(np.zeros(1, np.int64), np.ones(1, bool), 0, Fraction(1, 25))
    assert settles_early(Options(), video)
    assert not settles_early(Options(), still)
    assert not settles_early(Options(compat="reference"), video)
    assert not settles_early(Options(face_choice="index"), video)
    assert not settles_early(Options(face_choice="highest_score"), video)
    assert not settles_early(Options(face_choice="point", face_point=(1, 1, 0)), video)


@pytest.fixture(params=["centerface", "yunet"])
def detector(request: pytest.FixtureRequest) -> Detector:
    if request.param == "yunet":
        assets: Path = request.getfixturevalue("assets")
        return create_detector("yunet", weights=assets / "yunet_n_dynamic.onnx")
    return create_detector("centerface")


def packaged_face() -> U8:
    return np.asarray(cv2.imdecode(np.frombuffer(demo_face(), np.uint8), cv2.IMREAD_COLOR), np.uint8)


def test_the_box_is_where_a_closer_look_sees_it(detector: Detector) -> None:
    frame = np.asarray(cv2.resize(packaged_face(), (640, 360), interpolation=cv2.INTER_AREA), np.uint8)
    ((coarse,),) = CoarseFirst(detector).detect([frame])
    ((close,),) = detector.detect([frame])
    assert overlap_of(coarse, close) > 0.85
    assert coarse != close


def test_what_counts_as_surely_seen_is_seen(detector: Detector) -> None:
    head = packaged_face()[60:560, 430:850]  # its face is some 276 pixels wide
    small = cv2.resize(head, None, fx=SURELY_SEEN / 276, fy=SURELY_SEEN / 276, interpolation=cv2.INTER_AREA)
    draw = np.random.default_rng(0)
    for _ in range(8):
        frame = np.full((144, COARSE_SIDE, 3), 110, np.uint8)
        y, x = (int(draw.integers(0, room)) for room in np.subtract(frame.shape[:2], small.shape[:2]))
        frame[y : y + small.shape[0], x : x + small.shape[1]] = small
        assert detector.detect([frame])[0]

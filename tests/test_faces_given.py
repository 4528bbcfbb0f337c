"""Boxes from the caller: one for all, one per frame, and the JSON file that carries a track."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync.core import I32, NO_BOX
from lipsync.errors import FaceMissing, InvalidBoxes, LipsyncError, NoFace
from lipsync.faces.given import given_track, tracks_from_json, tracks_to_json
from lipsync.options import Options

SIZE = (640, 360)
BOXES = ((10, 20, 110, 140), None, (12, 20, 112, 140))


def test_one_box_is_the_same_for_every_frame_and_gets_no_pads() -> None:
    track = given_track(Options(box=(20, 140, 10, 110), pads=(9, 9, 9, 9)), 3, SIZE)
    assert track.dtype == np.int32 and track.tolist() == [[10, 20, 110, 140]] * 3


def test_boxes_are_taken_as_they_are_and_null_is_no_face() -> None:
    assert given_track(Options(boxes=BOXES), 3, SIZE).tolist() == [
        list(BOXES[0] or ()), list(NO_BOX), list(BOXES[2] or ())
    ]  # fmt: skip


def test_a_single_box_in_a_list_stands_for_all_frames() -> None:
    assert given_track(Options(boxes=BOXES[:1]), 4, SIZE).shape == (4, 4)


def test_static_uses_the_first_box_only() -> None:
    assert given_track(Options(boxes=BOXES, static=True), 3, SIZE).tolist() == [list(BOXES[0] or ())]


def test_nulls_follow_on_missing_face() -> None:
    filled = given_track(Options(boxes=BOXES, on_missing_face="previous"), 3, SIZE)
    assert filled[1].tolist() == filled[0].tolist()
    with pytest.raises(FaceMissing, match="frame 1"):
        given_track(Options(boxes=BOXES, on_missing_face="error"), 3, SIZE)
    with pytest.raises(NoFace, match="null"):
        given_track(Options(boxes=(None, None)), 2, SIZE)


@pytest.mark.parametrize("box", [(0, 361, 0, 10), (0, 10, 600, 641), (0, 3, 0, 100)])
def test_a_box_that_does_not_fit_is_refused_rather_than_cut(box: Any) -> None:
    with pytest.raises(InvalidBoxes, match=r"640×360|at least"):
        given_track(Options(box=box), 1, SIZE)


@pytest.mark.parametrize("row", [(-1, 0, 10, 10), (10, 0, 10, 10), (50, 0, 10, 10), (0, 0, 641, 10)])
def test_a_wrong_row_is_named(row: Any) -> None:
    with pytest.raises(InvalidBoxes, match=r"boxes\[1\]"):
        given_track(Options(boxes=(BOXES[0], row)), 2, SIZE)


def test_the_wrong_number_of_boxes_is_refused() -> None:
    with pytest.raises(InvalidBoxes, match="3 boxes for 5 source frames"):
        given_track(Options(boxes=BOXES), 5, SIZE)


rows = st.one_of(
    st.just(NO_BOX),
    st.tuples(st.integers(0, 600), st.integers(0, 300), st.integers(4, 40), st.integers(4, 60)).map(
        lambda r: (r[0], r[1], r[0] + r[2], r[1] + r[3])
    ),
)


@settings(max_examples=50, deadline=None)
@given(boxes=st.lists(rows, min_size=2, max_size=30).filter(lambda found: set(found) != {NO_BOX}))
def test_a_track_written_and_read_back_is_the_same_track(boxes: list[tuple[int, ...]]) -> None:
    track: I32 = np.array(boxes, dtype=np.int32)
    file = tracks_from_json(tracks_to_json(track, size=SIZE, fps=Fraction(30000, 1001)).encode())
    assert (file.width, file.height, file.fps) == (*SIZE, Fraction(30000, 1001))
    assert np.array_equal(given_track(Options(boxes=file.boxes), len(track), SIZE), track)


def document(**changes: Any) -> str:
    good = {"version": 1, "width": 640, "height": 360, "fps": "25", "frames": 1, "boxes": [[0, 0, 10, 10]]}
    return json.dumps({name: value for name, value in (good | changes).items() if value != "absent"})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        "[" * 100_000,
        document(version=2),
        document(version="absent"),
        document(width=0),
        document(width=True),
        document(width=1e9),
        document(height="absent"),
        document(fps="0/0"),
        document(fps="abc"),
        document(fps=None),
        document(frames=2),
        document(boxes=[], frames=0),
        document(boxes={"0": []}),
        document(boxes=[[0, 0, 10]]),
        document(boxes=[[0, 0, 10, 10.5]]),
        document(boxes=[[0, 0, 10, True]]),
        document(boxes=[[0, 0, 641, 10]]),
        document(boxes=[["0", 0, 10, 10]]),
        document(boxes=[[0, 0, 10**400, 10]]),
        document(surprise=1),
        "\udcff",
        document() + " " * 4_000_001,
    ],
    ids=str.__len__,
)
def test_a_file_that_is_not_right_is_refused(text: str) -> None:
    assert tracks_from_json(document()).boxes == ((0, 0, 10, 10),)
    with pytest.raises(InvalidBoxes):
        tracks_from_json(text)


def test_bytes_that_are_not_text_are_refused() -> None:
    with pytest.raises(InvalidBoxes):
        tracks_from_json(b"\xff\xfe\x00{")


@settings(max_examples=200, deadline=None)
@given(data=st.one_of(st.binary(max_size=200), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["version", "width", "height", "fps", "frames", "boxes", "x"]), inner, max_size=6),
    max_leaves=20).map(json.dumps)))  # fmt: skip
def test_any_input_is_read_or_refused_by_name(data: bytes | str) -> None:
    try:
        tracks_from_json(data)
    except LipsyncError as error:
        assert isinstance(error, InvalidBoxes)


def test_a_file_for_another_input_is_refused() -> None:
    file = tracks_from_json(document(boxes=[[0, 0, 9, 9], None], frames=2))
    options = Options(boxes=file.boxes, boxes_size=(file.width, file.height))
    assert len(given_track(options, 2, SIZE)) == 2
    with pytest.raises(InvalidBoxes, match="2 boxes for 3 source frames"):
        given_track(options, 3, SIZE)
    with pytest.raises(InvalidBoxes, match="640×360, but the face input has 360×640"):
        given_track(options, 2, (360, 640))

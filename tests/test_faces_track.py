"""Tracks from synthetic detections: choosing, following, filling, smoothing, and independence of the cutting."""

from __future__ import annotations

import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync.core import NO_BOX, Detection, Index
from lipsync.errors import FaceMissing, NoFace
from lipsync.faces.chunk import ChunkDetections, source_chunks
from lipsync.faces.track import Tracker
from lipsync.options import Options

SIZE = (640, 360)
NO_PADS = (0, 0, 0, 0)
Faces = dict[int, list[Detection]]


def index_of(frame_count: int, fps: int = 25) -> Index:
    pts = np.arange(frame_count, dtype=np.int64)
    return Index(pts, pts % 25 == 0, frame_count, Fraction(1, fps))


def face(x: float, y: float, side: float = 60.0, score: float = 0.9) -> Detection:
    """A square face with its centre at x, y."""
    return Detection(x - side / 2, y - side / 2, x + side / 2, y + side / 2, score)


def cut_up(anchors: Faces, cuts: tuple[int, ...], borders: list[range]) -> list[ChunkDetections]:
    """What detect_chunk makes of this clip when it is cut at these borders."""
    chunks = []
    for part in borders:
        own_cuts = tuple(n for n in cuts if part.start < n <= part.stop)
        wanted = set(part) | set(own_cuts)
        not_seen_here = {n for n in cuts if n == part.start and n % 5 != 0}
        seen = {n: faces for n, faces in anchors.items() if n in wanted - not_seen_here}
        chunks.append(ChunkDetections(part.start, part.stop, seen, own_cuts))
    return chunks


def track_of(
    anchors: Faces, frame_count: int, *, cuts: tuple[int, ...] = (), chunk: int = 1000, fps: int = 25, **options: Any
) -> list[tuple[int, ...]]:
    options = {"pads": NO_PADS, "nosmooth": True} | options
    tracker = Tracker(frame_count, SIZE, index_of(frame_count, fps), Options(**options))
    parts = cut_up(anchors, cuts, source_chunks(frame_count, size=chunk))
    boxes = np.concatenate([*(tracker.feed(part) for part in parts), tracker.finish()])
    assert boxes.dtype == np.int32 and len(boxes) == frame_count
    return [tuple(row) for row in boxes.tolist()]


def centre(box: tuple[int, ...]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def every(k: int, frame_count: int, faces_at: Any) -> Faces:
    frames = {*range(0, frame_count, k), frame_count - 1}
    return {n: faces_at(n) for n in sorted(frames)}


def test_boxes_between_anchors_lie_on_the_straight_line() -> None:
    track = track_of(every(5, 21, lambda n: [face(100 + 2 * n, 100)]), 21)
    assert [centre(box)[0] for box in track] == [100 + 2 * n for n in range(21)]


def test_boxes_are_never_interpolated_across_a_cut() -> None:
    anchors = {0: [face(100, 100)], 5: [face(100, 100)], 6: [face(100, 100)], 7: [face(500, 200)], 9: [face(500, 200)]}
    track = track_of(anchors, 10, cuts=(7,), nosmooth=False)
    assert [centre(box)[0] for box in track] == [100] * 7 + [500] * 3


def test_smoothing_neither_leads_nor_lags_a_steady_motion() -> None:
    faces = every(1, 30, lambda n: [face(100 + 10 * n, 100)])
    smooth = [centre(box)[0] for box in track_of(faces, 30, detect_every=1, nosmooth=False)]
    assert smooth == [100 + 10 * n for n in range(30)]


def test_smoothing_is_the_mean_of_five_frames_away_from_the_ends() -> None:
    rng = np.random.default_rng(7)
    xs = 300 + rng.normal(0, 8, 20)
    faces = {n: [face(float(xs[n]), 100)] for n in range(20)}
    smooth = track_of(faces, 20, detect_every=1, nosmooth=False)
    means = [xs[n - 2 : n + 3].mean() for n in range(2, 18)]
    assert [box[0] for box in smooth[2:18]] == [round(mean - 30) for mean in means]
    assert smooth[0][0] == round(xs[0] - 30) and smooth[1][0] == round(xs[:3].mean() - 30)


def test_a_short_gap_is_bridged_and_a_long_one_is_not() -> None:
    def seen_but(first: int, last: int) -> list[tuple[int, ...]]:
        return track_of(every(5, 101, lambda n: [] if first <= n <= last else [face(100 + n, 100)]), 101)

    assert NO_BOX not in seen_but(25, 40)  # 20 and 45 are 1.0 s apart
    missing = [n for n, box in enumerate(seen_but(25, 45)) if box == NO_BOX]
    assert missing == list(range(23, 48))  # each frame does as its nearest anchor: 20 holds to 22, 50 from 48


def test_a_tie_between_two_anchors_goes_to_the_earlier() -> None:
    track = track_of({0: [face(100, 100)], 4: [], 8: []}, 9, detect_every=4)
    assert [box == NO_BOX for box in track] == [False, False, False, True, True, True, True, True, True]


def test_a_gap_is_measured_in_time_not_in_frames() -> None:
    anchors = every(5, 41, lambda n: [] if n in (10, 15) else [face(100, 100)])
    assert NO_BOX not in track_of(anchors, 41, fps=25)
    assert NO_BOX in track_of(anchors, 41, fps=10)


def test_the_largest_face_is_chosen_once_and_a_larger_one_does_not_steal() -> None:
    def faces_at(n: int) -> list[Detection]:
        return [face(100, 100, 60), face(400, 200, 40 if n < 20 else 120)]

    track = track_of(every(5, 60, faces_at), 60)
    assert {centre(box)[0] for box in track} == {100}


def test_after_a_cut_the_largest_face_is_chosen_anew() -> None:
    anchors = every(5, 60, lambda n: [face(100, 100, 60), face(400, 200, 40 if n < 20 else 120)])
    track = track_of(anchors | {19: anchors[15]}, 60, cuts=(20,))
    assert [centre(box)[0] for box in track] == [100] * 20 + [400] * 40


def test_a_face_that_is_missed_for_a_moment_is_not_replaced_by_another() -> None:
    anchors = every(5, 60, lambda n: [face(400, 200, 40)] + ([] if n in (20, 25) else [face(100, 100, 60)]))
    assert {centre(box)[0] for box in track_of(anchors, 60)} == {100}


def test_a_face_that_is_gone_for_over_a_second_gives_way_to_one_that_stayed() -> None:
    anchors = every(5, 101, lambda n: [face(400, 200, 40)] + ([face(100, 100, 60)] if n < 50 else []))
    track = track_of(anchors, 101)
    assert [centre(box)[0] for box in track] == [100] * 48 + [400] * 53


def test_the_nth_face_from_the_left_is_followed_and_nobody_takes_its_place() -> None:
    anchors = every(5, 101, lambda n: [face(400, 200)] + ([face(100, 100, 90), face(250, 100)] if n < 50 else []))
    track = track_of(anchors, 101, face_choice="index", face_index=1)
    assert [centre(box)[0] for box in track[:48]] == [250] * 48 and set(track[48:]) == {NO_BOX}


def test_highest_score_chooses_by_score() -> None:
    anchors = every(5, 30, lambda n: [face(100, 100, 90, 0.7), face(300, 100, 40, 0.9 if n == 0 else 0.6)])
    assert {centre(box)[0] for box in track_of(anchors, 30, face_choice="highest_score")} == {300}


@pytest.mark.parametrize("chunk", [7, 25, 1000])
def test_the_face_at_a_point_is_followed_both_ways_from_its_time(chunk: int) -> None:
    def faces_at(n: int) -> list[Detection]:
        return [face(100 + n, 100, 90), face(500 - n, 250, 60)]

    track = track_of(every(5, 101, faces_at), 101, chunk=chunk, face_choice="point", face_point=(455, 240, 2.0))
    assert [centre(box) for box in track] == [(500 - n, 250) for n in range(101)]


def test_a_point_in_another_scene_leaves_faces_in_other_places_alone() -> None:
    anchors = every(5, 61, lambda n: [face(100, 100)] if n < 30 else [face(500, 250)]) | {29: [face(100, 100)]}
    track = track_of(anchors, 61, cuts=(30,), face_choice="point", face_point=(500, 250, 2.0))
    assert set(track[:30]) == {NO_BOX} and {centre(box)[0] for box in track[30:]} == {500}


def test_a_point_after_the_end_takes_the_last_faces() -> None:
    track = track_of(every(5, 21, lambda n: [face(100, 100), face(300, 100)]), 21, face_choice="point",
                     face_point=(290, 90, 99.0))  # fmt: skip
    assert {centre(box)[0] for box in track} == {300}


def half_missing(n: int) -> list[Detection]:
    return [face(100 + n, 100)] if 30 <= n < 60 else []


def test_frames_without_a_face_take_the_last_or_first_box_when_asked() -> None:
    track = track_of(every(5, 121, half_missing), 121, on_missing_face="previous")
    assert {centre(box)[0] for box in track[:29]} == {130} and {centre(box)[0] for box in track[58:]} == {155}


def test_a_missing_face_is_an_error_when_asked_and_names_frame_and_time() -> None:
    with pytest.raises(FaceMissing, match=r"frame 0 \(at 0\.00 s\)"):
        track_of(every(5, 121, half_missing), 121, on_missing_face="error")
    with pytest.raises(FaceMissing, match=r"frame 8 \(at 0\.32 s\)"):
        track_of(every(5, 121, lambda n: [] if n > 5 else [face(100, 100)]), 121, on_missing_face="error")


@pytest.mark.parametrize("policy", ["passthrough", "previous", "error"])
def test_no_face_at_all_names_how_many_frames_were_looked_at(policy: str) -> None:
    tracker = Tracker(41, SIZE, index_of(41), Options(on_missing_face=policy))
    chunks = cut_up(every(5, 41, lambda n: []), (), source_chunks(41, size=20))
    assert [len(tracker.feed(chunk)) for chunk in chunks] == [0, 0, 0]
    with pytest.raises(NoFace, match=r"any of the 9 frames looked at \(among source frames 0 to 40\)"):
        tracker.finish()


def test_faces_that_were_seen_but_never_chosen_are_told_apart_from_none() -> None:
    with pytest.raises(NoFace, match="check face_choice"):
        track_of(every(5, 21, lambda n: [face(100, 100)]), 21, face_choice="index", face_index=3)


def test_pads_grow_the_box_and_stop_at_the_edges() -> None:
    track = track_of({0: [Detection(10.4, 5.6, 630.2, 352.0, 0.9)]}, 1, pads=(3, 20, 30, 4))
    assert track == [(0, 3, 634, 360)]
    assert track_of({0: [face(100, 100)]}, 1, pads=(0, 10, 0, 0)) == [(70, 70, 130, 140)]


def test_a_face_outside_the_frame_or_without_area_is_no_face() -> None:
    outside = {0: [face(100, 100)], 5: [Detection(-90.0, 10.0, 2.0, 90.0, 0.9)], 9: []}
    track = track_of(outside, 10)
    assert track[5] == NO_BOX and track[0] != NO_BOX
    for box in track:
        assert box == NO_BOX or (box[0] >= 0 and box[2] <= 640 and box[2] - box[0] >= 3)


def test_static_makes_a_track_of_one_frame() -> None:
    tracker = Tracker(50, SIZE, index_of(50), Options(static=True, pads=NO_PADS))
    tracker.feed(ChunkDetections(0, 1, {0: [face(100, 100)]}, ()))
    assert tracker.finish().tolist() == [[70, 70, 130, 130]]


def test_a_chunk_out_of_order_is_refused() -> None:
    tracker = Tracker(50, SIZE, index_of(50), Options())
    with pytest.raises(ValueError, match="must start at source frame 0"):
        tracker.feed(ChunkDetections(25, 50, {}, ()))


def test_boxes_become_final_while_the_clip_is_still_being_looked_at() -> None:
    tracker = Tracker(500, SIZE, index_of(500), Options())
    given = 0
    for chunk in cut_up(every(5, 500, lambda n: [face(100, 100)]), (), source_chunks(500, size=25)):
        given += len(tracker.feed(chunk))
        assert given >= chunk.stop - 5 - 2


def test_chunk_detections_survive_pickling() -> None:
    chunk = ChunkDetections(5, 10, {4: [face(1, 2)], 5: []}, (5,))
    assert pickle.loads(pickle.dumps(chunk)) == chunk


@st.composite
def clips(draw: st.DrawFn) -> tuple[Faces, int, tuple[int, ...]]:
    """A clip of up to 90 frames in which up to three faces wander, vanish and come back, with cuts."""
    frame_count = draw(st.integers(1, 90))
    cuts = tuple(sorted(draw(st.sets(st.integers(1, max(1, frame_count - 1)), max_size=4)) - {frame_count}))
    cuts = tuple(n for n in cuts if n < frame_count)
    frames = {*range(0, frame_count, 5), frame_count - 1, *cuts, *(n - 1 for n in cuts)}
    spot = st.tuples(st.integers(0, 640), st.integers(0, 360), st.integers(2, 150), st.integers(60, 99))
    homes = draw(st.lists(spot, min_size=0, max_size=3))
    faces: Faces = {}
    for n in sorted(frames):
        here = [home for home in homes if draw(st.integers(0, 3))]
        step = draw(st.integers(-40, 40))
        faces[n] = [face(x + step, y, side, score / 100) for x, y, side, score in here]
    return faces, frame_count, cuts


@settings(max_examples=150, deadline=None)
@given(
    clip=clips(),
    borders=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    choice=st.sampled_from(["largest", "highest_score", "index", "point"]),
    policy=st.sampled_from(["passthrough", "previous"]),
    compat=st.sampled_from(["lipsync", "reference"]),
)
def test_the_track_does_not_depend_on_where_the_clip_was_cut_into_chunks(
    clip: tuple[Faces, int, tuple[int, ...]], borders: list[int], choice: str, policy: str, compat: str
) -> None:
    faces, frame_count, cuts = clip
    starts = sorted({0, *(n for n in np.cumsum(borders).tolist() if n < frame_count)})
    parts = [range(a, b) for a, b in zip(starts, [*starts[1:], frame_count], strict=True)]
    options = Options(
        face_choice=choice, face_index=1, face_point=(300.0, 200.0, 1.5), on_missing_face=policy, compat=compat
    )

    def run(borders: list[range]) -> list[list[int]] | str:
        tracker = Tracker(frame_count, SIZE, index_of(frame_count), options)
        try:
            fed = [tracker.feed(part) for part in cut_up(faces, cuts, borders)]
            return np.concatenate([*fed, tracker.finish()]).tolist()
        except NoFace as error:
            return error.detail

    whole = run([range(frame_count)])
    assert run(parts) == whole
    if not isinstance(whole, str):
        assert len(whole) == frame_count
        for x1, y1, x2, y2 in (row for row in whole if tuple(row) != NO_BOX):
            assert x1 >= 0 and x1 + 3 <= x2 <= SIZE[0] and y1 >= 0 and y1 + 3 <= y2 <= SIZE[1]


# ---- compat="reference"


def reference_track(values: list[int], **options: Any) -> list[int]:
    """The left edges that the reference's rule makes of detections whose left edges are these."""
    anchors = {n: [Detection(v, 20.0, v + 100.0, 120.0, 0.9)] for n, v in enumerate(values)}
    return [box[0] for box in track_of(anchors, len(values), compat="reference", nosmooth=False, **options)]


@pytest.mark.parametrize(
    ("n", "smoothed"),
    [
        (1, [0]),
        (2, [5, 7]),
        (3, [15, 15, 17]),
        (4, [30, 30, 30, 30]),
        (5, [20, 24, 26, 28, 27]),
        (8, [20, 30, 40, 50, 54, 56, 58, 57]),
    ],
)
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_reference_smoothing_gives_the_reference_numbers(n: int, smoothed: list[int], chunk: int) -> None:
    assert reference_track([10 * i for i in range(n)], chunk=chunk) == smoothed


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(0, 500), min_size=1, max_size=30), chunk=st.integers(1, 10))
def test_reference_smoothing_equals_means_written_into_the_array_they_are_read_from(
    values: list[int], chunk: int
) -> None:
    rows = np.array(values, dtype=np.int64)
    for i in range(len(rows)):
        window = rows[len(rows) - 5 :] if i + 5 > len(rows) else rows[i : i + 5]
        rows[i] = np.mean(window)
    assert reference_track(values, chunk=chunk) == rows.tolist()


def test_the_reference_truncates_clips_at_zero_and_takes_the_best_score_of_every_frame() -> None:
    best = Detection(-7.9, 3.9, 99.9, 80.9, 0.9)
    track = track_of({0: [face(400, 200, 200, 0.8), best], 1: [face(400, 200, 60, 0.99), best]}, 2, compat="reference",
                     pads=(1, 2, 3, 4))  # fmt: skip
    assert track == [(0, 2, 103, 82), (367, 169, 434, 232)]


def test_the_reference_mode_invents_no_box_where_a_face_is_missing() -> None:
    anchors: Faces = {n: [] if n == 6 else [face(100, 100)] for n in range(12)}
    assert track_of(anchors, 12, compat="reference", nosmooth=False)[6] == NO_BOX
    with pytest.raises(FaceMissing, match="frame 6"):
        track_of(anchors, 12, compat="reference", on_missing_face="error")


# ---- people who cross


def test_a_passer_by_does_not_become_the_person_behind() -> None:
    def faces_at(n: int) -> list[Detection]:
        return [face(100 + 20 * n, 200, 70), face(190, 150, 60)]

    track = track_of(every(5, 26, faces_at), 26)
    assert [centre(box) for box in track] == [(100 + 20 * n, 200) for n in range(26)]


def test_after_a_passer_by_hid_the_speaker_the_speaker_is_followed_again() -> None:
    def faces_at(n: int) -> list[Detection]:
        walker = face(20 + 16 * n, 190, 50)
        return [walker] if 6 <= n <= 14 else [walker, face(200, 180, 80)]

    track = track_of(every(5, 31, faces_at), 31)
    assert {centre(box) for box in track[:6] + track[15:]} == {(200, 180)}


def test_the_face_at_a_point_is_found_again_in_place_after_a_cut_away() -> None:
    def faces_at(n: int) -> list[Detection]:
        return [face(100, 100), face(400, 100)] if not 20 <= n < 40 else [face(250, 300)]

    anchors = every(5, 61, faces_at) | {n: faces_at(n) for n in (19, 20, 39, 40)}
    for time_s in (0.0, 2.0):
        track = track_of(anchors, 61, cuts=(20, 40), face_choice="point", face_point=(400, 100, time_s))
        assert {centre(box)[0] for box in track[:20] + track[40:]} == {400}
        assert set(track[20:40]) == {NO_BOX}


@pytest.mark.parametrize(
    "choice", [{"face_choice": "index", "face_index": 0}, {"face_choice": "point", "face_point": (100.0, 100.0, 0.0)}]
)
def test_someone_in_sight_all_along_does_not_become_the_face_that_is_gone_by_passing_its_place(
    choice: dict[str, Any],
) -> None:
    def seen(n: int) -> list[Detection]:
        walker = face(500 - 2 * n, 125)
        if 100 <= n < 120:
            return []  # the walker, too, goes unseen for a moment
        return [face(100, 100), walker] if n < 25 or n >= 300 else [walker]

    track = track_of(every(5, 351, seen), 351, **choice)
    assert all(centre(box) == (100, 100) for box in track[:20])
    assert set(track[30:295]) == {NO_BOX}, "around frame 200 the walker stands half over its place"
    assert all(centre(box) == (100, 100) for box in track[300:]), "and the face itself is known again"

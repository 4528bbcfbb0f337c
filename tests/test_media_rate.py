"""The constant rate that a clip is put out at: its frames' own, whatever headers make of pauses."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from media_factory import image_bytes, video_bytes

from lipsync.core import Index, VideoInfo
from lipsync.media.index import build_index
from lipsync.media.probe import probe_face
from lipsync.media.rate import snap_fps, steady_fps
from lipsync.media.source import Blob
from lipsync.options import Limits, Options
from lipsync.plan import Timeline

RATES = [Fraction(rate) for rate in ("24000/1001", "24", "25", "30000/1001", "30", "50", "60000/1001", "60")]
TIME_BASES = [Fraction(1, 90_000), Fraction(1, 15_360), Fraction(1, 1000)]
LIMITS = Limits()


def index_at(seconds: Sequence[Fraction | float], time_base: Fraction = Fraction(1, 90_000)) -> Index:
    ticks = np.array([round(second / time_base) for second in seconds], np.int64)
    return Index(ticks, np.ones(len(ticks), bool), int(ticks[-1]) + 1, time_base)


def average(index: Index) -> Fraction:
    return (len(index) / index.duration).limit_denominator(30_000)


def timeline_of(data: bytes, **options: object) -> tuple[VideoInfo, Timeline]:
    blob = Blob.of(data, limit_bytes=10**9)
    info = probe_face(blob, LIMITS)
    assert info.video is not None
    index = build_index(blob, info, LIMITS)
    return info.video, Timeline(index, info.video, Options(**options), is_image=False, limits=LIMITS)  # type: ignore[arg-type]


# ---------------------------------------------------------------- from timestamps


@pytest.mark.parametrize("time_base", TIME_BASES, ids=str)
@pytest.mark.parametrize("fps", RATES, ids=str)
def test_a_constant_rate_is_found_whatever_the_headers_say(fps: Fraction, time_base: Fraction) -> None:
    index = index_at([n / fps for n in range(300)], time_base)
    assert steady_fps(index, fps) == steady_fps(index, fps * 97 / 100) == steady_fps(index, 2 * fps) == fps


@pytest.mark.parametrize("time_base", TIME_BASES, ids=str)
@pytest.mark.parametrize("fps", RATES, ids=str)
def test_bursts_between_holds_have_the_bursts_rate(fps: Fraction, time_base: Fraction) -> None:
    index = index_at([20 * burst + n / fps for burst in range(4) for n in range(50)], time_base)
    # where times are in milliseconds, each burst may be off by one of them
    assert steady_fps(index, average(index)) == pytest.approx(fps, rel=0.0015 if time_base == Fraction(1, 1000) else 0)


def test_a_rate_of_its_own_that_the_headers_give_exactly_is_kept() -> None:
    index = index_at([n / Fraction(125, 9) for n in range(40)], Fraction(1, 1000))
    assert steady_fps(index, Fraction(125, 9)) == Fraction(125, 9)


def test_most_frames_drawn_on_twos_leave_the_rate_of_those_on_ones() -> None:
    numbers = np.cumsum([2, 2, 2, 1, 1, 2, 2, 2] * 20)
    index = index_at([Fraction(int(n), 25) for n in numbers])
    assert steady_fps(index, average(index)) == 25


def test_a_few_frames_that_come_too_soon_do_not_count() -> None:
    seconds = sorted([n / 25 for n in range(100)] + [n / 25 + 0.002 for n in range(0, 100, 15)])
    assert steady_fps(index_at(seconds), Fraction(27)) == 25


@pytest.mark.parametrize("sd_ms", [1, 3, 5, 8])
def test_frames_that_come_unevenly_keep_the_rate_that_they_have_on_average(sd_ms: float) -> None:
    draw = np.random.default_rng(4)
    index = index_at(sorted((np.arange(300) / 30 + draw.normal(0, sd_ms / 1000, 300)).tolist()))
    assert steady_fps(index, Fraction(30)) == pytest.approx(30, rel=0)


def test_twins_do_not_make_a_clip_fast() -> None:
    seconds = [
        period * 7 / 30 + at for period in range(20) for at in (0, 0.003, *(0.003 + n * 0.0384 for n in range(1, 6)))
    ]
    assert 25 <= steady_fps(index_at(seconds), Fraction(30)) <= 30


def test_film_with_pulldown_keeps_its_rate() -> None:
    index = Index(np.cumsum([0, *[3003, 4505] * 74]).astype(np.int64), np.ones(149, bool), 556000, Fraction(1, 90_000))
    assert steady_fps(index, Fraction(24_000, 1001)) == Fraction(24_000, 1001)


@pytest.mark.parametrize("at_s", [(0, 3, 3.06), (0, 0.06, 3.06), (0, 3, 3.06, 3.12)], ids=str)
def test_a_hold_in_a_clip_of_few_frames_is_one(at_s: tuple[float, ...]) -> None:
    assert steady_fps(index_at(at_s), Fraction(1)) == pytest.approx(1 / 0.06, rel=0.001)


def test_a_camera_that_trembles_has_the_common_rate_that_it_means() -> None:
    draw = np.random.default_rng(3)
    index = index_at((np.arange(200) / 30 + draw.normal(0, 0.001, 200)).tolist())
    assert steady_fps(index, Fraction(29)) == 30


def test_one_frame_has_the_rate_of_its_headers() -> None:
    assert steady_fps(index_at([0.0]), Fraction(25)) == 25


def test_rates_between_the_common_ones_stay() -> None:
    assert snap_fps(Fraction(29_970_030, 1_000_000)) == Fraction(30_000, 1001)
    assert snap_fps(Fraction(125, 9)) == Fraction(125, 9)


# ---------------------------------------------------------------- from files


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_a_screen_recording_that_stands_still_for_long_moves_at_its_own_rate(container: str) -> None:
    pts = [3600 * n for n in (*range(25), *range(2000, 2025))]  # 79 s hold, 0.6 frames a second all in all
    data = video_bytes(frames=50, pts=pts, size=(64, 64), container=container, number_frames=False)
    _, timeline = timeline_of(data)
    assert timeline.fps == 25 and len(timeline.grid) == 2025
    assert timeline.grid.tolist() == [*range(25), *[24] * 1975, *range(25, 50)], "no frame is left out"
    assert timeline_of(data, fps=Fraction(30))[1].fps == 30, "what is asked for wins"


def test_a_clip_slower_or_faster_than_the_limits_is_put_out_at_the_limit() -> None:
    pts = [90_000 * 3 * n for n in range(4)]
    assert timeline_of(video_bytes(frames=4, pts=pts, size=(64, 64), number_frames=False))[1].fps == 1
    assert timeline_of(video_bytes(frames=50, fps=125, size=(64, 64), number_frames=False))[1].fps == 120


def test_the_reference_goes_by_the_average() -> None:
    pts = [3600 * n for n in (*range(25), *range(100, 125))]
    video, timeline = timeline_of(
        video_bytes(frames=50, pts=pts, size=(64, 64), number_frames=False), compat="reference"
    )
    assert timeline.fps == video.fps == 10
    assert timeline.grid.tolist() == list(range(50))


def test_fragments_whose_average_counts_a_gap_in_front_have_their_frames_rate() -> None:
    data = video_bytes(
        frames=60,
        fps=30,
        audio_seconds=2,
        audio_rate=16_000,
        container_options={"movflags": "frag_keyframe+empty_moov"},
    )
    pts = [512 * n + (n > 0) * 984 for n in range(60)]  # as a sound that begins before 0 moves all but the first
    moved = video_bytes(frames=60, pts=pts, time_base=Fraction(1, 15_360), size=(64, 64), number_frames=False)
    assert timeline_of(data)[1].fps == timeline_of(moved)[1].fps == 30


def test_an_avi_that_counts_fields_shows_each_frame_once() -> None:
    pts, time_base = [2 * n for n in range(75)], Fraction(1, 50)
    data = video_bytes(frames=75, pts=pts, time_base=time_base, b_frames=2, container="avi")
    video, timeline = timeline_of(data)
    assert video.fps == 50, "this is what the headers say"
    assert timeline.fps == 25
    assert timeline.grid.tolist() == list(range(75))


def test_an_animation_with_a_long_last_picture_moves_at_its_own_rate() -> None:
    data = image_bytes(format="webp", animation=4, duration_ms=[40, 40, 40, 5000])
    assert timeline_of(data)[1].fps == 25

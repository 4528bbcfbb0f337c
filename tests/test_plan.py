"""The timeline, its segments and its runs: pure arithmetic against independent counts."""

from fractions import Fraction
from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsync.core import Index, VideoInfo
from lipsync.errors import LimitExceeded
from lipsync.options import Limits, Options
from lipsync.plan import RunPlanner, SegmentCutter, Timeline, Tuning, falls, goes_down

RATES = [Fraction(24000, 1001), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(50),
         Fraction(60000, 1001), Fraction(60)]  # fmt: skip


def clip(frames: int, fps: Fraction, *, gop: int = 25, time_base: Fraction = Fraction(1, 90_000)) -> Index:
    ticks = np.array([round(n / fps / time_base) for n in range(frames)], np.int64)
    return Index(ticks, np.arange(frames) % gop == 0, round(frames / fps / time_base), time_base)


def timeline(index: Index, rate: Fraction, *, is_image: bool = False, **options: object) -> Timeline:
    video = VideoInfo("h264", 64, 64, rate, float(index.duration), len(index))
    return Timeline(index, video, Options(**options), is_image=is_image, limits=Limits())  # type: ignore[arg-type]


STILL = Index(np.zeros(1, np.int64), np.ones(1, bool), 0, Fraction(1, 1000))


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("time_base", [Fraction(1, 90_000), Fraction(1, 1000), Fraction(1, 15_360)])
def test_a_constant_rate_maps_every_source_frame_once_even_with_rounded_timestamps(fps, time_base):
    plan = timeline(clip(1500, fps, time_base=time_base), fps)
    assert plan.grid.tolist() == list(range(1500))


def test_a_variable_rate_shows_the_frame_whose_time_it_is():
    ticks = np.array([0, 40, 80, 500, 540], np.int64)
    index = Index(ticks, np.array([1, 0, 0, 0, 0], bool), 1000, Fraction(1, 1000))
    plan = timeline(index, Fraction(25))
    middles = (np.arange(25) * 40) + 20
    assert plan.grid.tolist() == [int(np.flatnonzero(ticks <= m)[-1]) for m in middles]


@pytest.mark.parametrize("fps", RATES)
def test_every_output_frame_of_the_voice_is_there(fps):
    plan = timeline(STILL, fps, is_image=True, fps=fps)
    for seconds in (Fraction(1, 1000), Fraction(10), Fraction(9_600_001, 960_000), Fraction(599)):
        assert plan.frame_count(seconds, 0) == ceil(seconds * fps)


def test_the_reference_count_is_that_of_the_fact_table():
    columns = 1 + 160_000 // 200
    counts = [
        timeline(STILL, fps, is_image=True, fps=fps, compat="reference").frame_count(Fraction(10), columns)
        for fps in (Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(60))
    ]
    assert counts == [247, 296, 296, 591]


@pytest.mark.parametrize("fps", [Fraction(1), Fraction(2), Fraction(5), Fraction(10), Fraction(12)], ids=str)
@pytest.mark.parametrize("samples", [4_000, 16_000, 31_999, 161_600])
def test_the_reference_count_is_its_own_at_low_rates_too(fps, samples):
    columns = 1 + samples // 200
    wanted, i = 1, 0
    while int(i * 80 / float(fps)) + 16 <= columns:
        wanted, i = wanted + 1, i + 1
    plan = timeline(STILL, fps, is_image=True, fps=fps, compat="reference")
    assert plan.frame_count(Fraction(samples, 16_000), columns) == wanted


def test_the_reference_count_at_a_low_rate_may_outlast_the_voice():
    plan = timeline(STILL, Fraction(5), is_image=True, fps=Fraction(5), compat="reference")
    assert plan.frame_count(Fraction(10), 801) == 51
    clip_s = Fraction(2)
    cut = timeline(clip(10, Fraction(5)), Fraction(5), compat="reference", sync_mode="cut_off")
    assert cut.frame_count(clip_s, 161 + 20) == 10, "what is heard beyond the cut makes no frames"


def test_the_reference_rule_ends_with_the_last_sixteen_columns():
    plan = timeline(STILL, Fraction(25), is_image=True, compat="reference")
    starts = plan.mel_starts(0, 247, columns=801)
    assert starts[:4].tolist() == [0, 3, 6, 9]
    assert starts[-1] == 801 - 16
    assert (starts[:-1] + 16 <= 801).all()


@pytest.mark.parametrize("fps", RATES)
def test_mel_windows_do_not_drift_over_ten_minutes(fps):
    plan = timeline(STILL, fps, is_image=True, fps=fps)
    last = int(600 * fps) - 1
    starts = plan.mel_starts(last, last + 1, columns=None)
    assert 0 <= 80 * last / fps - int(starts[0]) < 1


def test_an_audio_offset_shifts_what_is_heard_by_columns():
    plan = timeline(STILL, Fraction(25), is_image=True, audio_offset_ms=-40.0)
    assert plan.mel_starts(0, 3, columns=None).tolist() == [-4, 0, 3]
    assert plan.mel_starts(1, 2, columns=None)[0] == int(80 * 0 / 25), "-40 ms pairs frame n with window n-1 at 25 fps"


def expected_sources(mode: str, size: int, total: int) -> list[int]:
    if mode == "loop":
        return [i % size for i in range(total)]
    if mode == "bounce":
        once = list(range(size)) + list(range(size - 2, 0, -1))
        return [once[i % len(once)] for i in range(total)]
    if mode == "remap":
        return [i * size // total for i in range(total)]
    return [min(i, size - 1) for i in range(total)]


@given(mode=st.sampled_from(["loop", "bounce", "silence", "remap"]), size=st.integers(1, 40), total=st.integers(1, 200))
def test_sync_modes_show_what_they_promise(mode, size, total):
    plan = timeline(clip(size, Fraction(25)), Fraction(25), sync_mode=mode)
    assert plan.source_frames(0, total, total=total).tolist() == expected_sources(mode, size, total)


def test_cut_off_and_silence_bound_the_voice_by_the_clip_and_images_are_never_bounded():
    index = clip(50, Fraction(25))
    assert timeline(index, Fraction(25), sync_mode="cut_off").span.at_most == 2
    assert timeline(index, Fraction(25), sync_mode="silence").span.at_least == 2
    for mode in ("cut_off", "silence"):
        still = timeline(STILL, Fraction(25), is_image=True, sync_mode=mode).span
        assert still.at_least is None and still.at_most is None


@pytest.mark.parametrize("fps", [Fraction(1), Fraction(60)])
def test_an_output_rate_beyond_the_limits_is_refused(fps):
    video = VideoInfo("h264", 64, 64, Fraction(25), 1.0, 25)
    with pytest.raises(LimitExceeded, match="frames per second"):
        Timeline(clip(25, Fraction(25)), video, Options(fps=fps), is_image=False, limits=Limits(min_fps=2, max_fps=50))


@given(heard=st.integers(16, 4000), fps=st.sampled_from(RATES), offset=st.integers(-500, 500))
def test_frames_heard_are_exactly_those_whose_window_is_known(heard, fps, offset):
    plan = timeline(STILL, fps, is_image=True, fps=fps, audio_offset_ms=float(offset))
    count = plan.frames_heard(heard)
    starts = plan.mel_starts(0, count + 1, columns=None)
    assert (starts[:-1] + 16 <= heard).all()
    assert starts[-1] + 16 > heard


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    stops=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    gop=st.integers(1, 60),
    mode=st.sampled_from(["loop", "bounce", "silence"]),
)
def test_segments_cover_the_timeline_once_however_it_becomes_known(lengths, stops, gop, mode):
    index = clip(70, Fraction(25), gop=gop)
    plan = timeline(index, Fraction(25), sync_mode=mode)
    tuning = Tuning(segment_frames=tuple(lengths))
    cutter = SegmentCutter(plan, index, tuning=tuning, longest=50)
    total = max(stops)
    segments = [s for stop in sorted(stops) for s in cutter.cut(stop, total=None, columns=None)]
    segments += cutter.cut(total, total=total, columns=None)
    assert [s.number for s in segments] == list(range(len(segments)))
    assert [s.first_frame for s in segments] == np.cumsum([0, *map(len, segments)])[:-1].tolist()
    sources = np.concatenate([s.source_frames for s in segments])
    assert sources.tolist() == expected_sources(mode, 70, total)
    starts = np.concatenate([s.mel_starts for s in segments])
    assert starts.tolist() == [i * 80 // 25 for i in range(total)]
    assert all(len(s) <= max(lengths) for s in segments)


def decoded_twice(index: Index, pieces: list[np.ndarray]) -> tuple[int, int]:
    planner = RunPlanner(index, tuning=Tuning())
    again, runs = 0, 1
    for piece, following in pairwise(pieces):
        if planner.ends_after(piece, next_source=int(following[0])):
            runs += 1
            again += int(following[0]) - index.keyframe_before(int(following[0]))
    return again, runs


@given(gop=st.integers(1, 3000), frames=st.integers(100, 2000))
def test_runs_never_decode_more_than_a_tenth_and_an_early_few_twice(gop, frames):
    index = clip(frames, Fraction(25), gop=gop)
    plan = timeline(index, Fraction(25))
    cutter = SegmentCutter(plan, index, tuning=Tuning(), longest=128)
    pieces = [s.source_frames for s in cutter.cut(frames, total=frames, columns=None)]
    again, _ = decoded_twice(index, pieces)
    assert again <= frames / 10 + Tuning().early


def test_the_first_segments_are_runs_of_their_own_even_where_one_keyframe_is_all_there_is():
    index = clip(3000, Fraction(25), gop=3000)
    plan = timeline(index, Fraction(25))
    pieces = [
        s.source_frames
        for s in SegmentCutter(plan, index, tuning=Tuning(), longest=128).cut(3000, total=3000, columns=None)
    ]
    planner = RunPlanner(index, tuning=Tuning())
    ends = [planner.ends_after(piece, next_source=int(after[0])) for piece, after in pairwise(pieces)]
    assert ends[:3] == [True, True, False]
    assert decoded_twice(index, pieces) == (8 + 32, 3)


@pytest.mark.parametrize("gop", [12, 25, 48, 250])
def test_clips_with_keyframes_are_rendered_by_many_runs(gop):
    index = clip(3000, Fraction(25), gop=gop)
    plan = timeline(index, Fraction(25))
    pieces = [
        s.source_frames
        for s in SegmentCutter(plan, index, tuning=Tuning(), longest=128).cut(3000, total=3000, columns=None)
    ]
    _, runs = decoded_twice(index, pieces)
    assert runs >= 3000 / max(gop, 128) / 2


@pytest.mark.parametrize(("clip_frames", "total"), [(2000, 5000), (300, 3000), (130, 900)])
def test_a_clip_with_one_keyframe_that_bounces_is_decoded_once_for_each_way_and_once_for_each_turn(clip_frames, total):
    index = clip(clip_frames, Fraction(25), gop=clip_frames)
    plan = timeline(index, Fraction(25), sync_mode="bounce")
    cutter = SegmentCutter(plan, index, tuning=Tuning(), longest=128)
    pieces = [s.source_frames for s in cutter.cut(total, total=total, columns=None)]
    planner = RunPlanner(index, tuning=Tuning(early=0))
    runs = [[pieces[0]]]
    for piece, following in pairwise(pieces):
        if planner.ends_after(piece, next_source=int(following[0])):
            runs.append([])
        runs[-1].append(following)
    assert all(goes_down(run) for run in runs if falls(run[0]) and len(run) > 1), "no run goes on beyond a turn"
    # each run's pass begins at the keyframe, frame 0; a turn within a segment makes it begin once more
    decoded = sum(int(max(piece.max() for piece in run)) + 1 for run in runs)
    turns = total // clip_frames
    assert decoded <= 1.1 * total + (turns + 1) * clip_frames


def test_what_falls_is_told_from_what_wraps_stands_or_rises():
    assert falls(np.array([5, 4, 4, 3], np.int32))
    for other in ([3, 4, 5], [5, 5, 5], [4, 5, 4], [5, 4, 5], [98, 99, 0, 1], [7]):
        assert not falls(np.array(other, np.int32))

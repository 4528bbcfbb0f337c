"""The index: every shown frame's time and keyframe, found without decoding; lies and losses are noticed."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from media_factory import audio_bytes, faststart, image_bytes, stream_copy_cut, truncated, video_bytes

from lipsync.core import Index, MediaInfo
from lipsync.errors import DecodeTimeout, LimitExceeded, NoVideoStream, TruncatedMedia
from lipsync.media.index import build_index
from lipsync.media.probe import probe_face, probe_voice
from lipsync.media.source import Blob
from lipsync.options import Limits

LIMITS = Limits()


def index_of(data: bytes, limits: Limits = LIMITS) -> Index:
    blob = Blob.of(data, limit_bytes=10**9)
    return build_index(blob, probe_face(blob, LIMITS), limits)


def seconds(index: Index) -> list[float]:
    return [float((int(tick) - int(index.pts_ticks[0])) * index.time_base) for tick in index.pts_ticks]


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts", "flv"])
@pytest.mark.parametrize("b_frames", [0, 2])
def test_frames_come_in_presentation_order_with_their_keyframes(container: str, b_frames: int) -> None:
    index = index_of(video_bytes(frames=40, gop=10, b_frames=b_frames, container=container))
    assert seconds(index) == pytest.approx([n / 25 for n in range(40)], abs=0.001)
    assert np.flatnonzero(index.is_key).tolist() == [0, 10, 20, 30]
    assert float(index.duration) == pytest.approx(1.6, abs=0.002)
    assert not index.is_still


def test_avi_without_presentation_times_is_indexed() -> None:
    index = index_of(video_bytes(frames=40, gop=10, container="avi", codec="mpeg4"))
    assert seconds(index) == pytest.approx([n / 25 for n in range(40)])
    assert np.flatnonzero(index.is_key).tolist() == [0, 10, 20, 30]


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_a_variable_rate_keeps_its_own_times(container: str) -> None:
    pts = np.cumsum(np.random.default_rng(5).integers(2000, 9000, 30)).tolist()
    index = index_of(video_bytes(frames=30, pts=pts, container=container, b_frames=2))
    assert seconds(index) == pytest.approx([(tick - pts[0]) / 90_000 for tick in pts], abs=0.002)


def test_a_fragmented_mp4_is_indexed_to_its_end() -> None:
    data = video_bytes(frames=40, gop=10, container_options={"movflags": "frag_keyframe+empty_moov"})
    assert len(index_of(data)) == 40


@pytest.mark.parametrize("b_frames", [0, 2])
def test_a_cut_without_re_encoding_shows_only_what_its_edit_list_says(b_frames: int) -> None:
    index = index_of(stream_copy_cut(video_bytes(frames=75, gop=25, b_frames=b_frames), start_s=1.52))
    assert len(index) == 37  # frames 38…74
    assert np.flatnonzero(index.is_key).tolist() == [12]  # frame 50; frame 25, where decoding starts, is hidden
    assert index.keyframe_before(3) == 0


def test_a_recording_that_began_in_the_middle_starts_at_its_first_keyframe() -> None:
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(video_bytes(frames=40, gop=15, container="ts"))) as source,
        av.open(buffer, "w", format="mpegts") as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(source.streams.video[0])):
            if packet.dts is not None and number >= 4:
                packet.stream = stream
                output.mux(packet)
    index = index_of(buffer.getvalue())
    assert len(index) == 25  # from frame 15 on
    assert np.flatnonzero(index.is_key).tolist() == [0, 15]


def test_a_still_is_one_frame_without_a_duration() -> None:
    index = index_of(image_bytes())
    assert index.is_still and len(index) == 1 and index.duration == 0


@pytest.mark.parametrize("format, mode", [("gif", "P"), ("webp", "RGB"), ("png", "RGB"), ("avif", "RGB")])
def test_an_animation_has_its_own_times(format: str, mode: str) -> None:
    index = index_of(image_bytes(format=format, mode=mode, animation=4, duration_ms=[40, 100, 60, 200]))
    assert index.pts_ticks.tolist() == [0, 40, 140, 200]
    assert (index.end_ticks, index.time_base) == (400, Fraction(1, 1000))
    assert index.is_key.tolist() == [True, False, False, False]


def test_an_animated_avif_has_the_times_of_its_picture_track_to_the_millisecond() -> None:
    index = index_of(
        image_bytes(format="avif", mode="RGBA", animation=90, size=(64, 64), duration_ms=[33, 33, 34] * 30)
    )
    assert (len(index), index.end_ticks) == (90, 3000)


@pytest.mark.parametrize("format, mode", [("gif", "P"), ("webp", "RGB"), ("png", "RGB")])
def test_frames_that_ask_for_no_time_are_shown_as_browsers_do(format: str, mode: str) -> None:
    assert index_of(image_bytes(format=format, mode=mode, animation=3, duration_ms=0)).end_ticks == 300


@pytest.mark.parametrize("format, mode", [("gif", "P"), ("webp", "RGB"), ("png", "RGB"), ("avif", "RGB")])
@pytest.mark.parametrize("keep", [0.4, 0.9])
def test_a_cut_off_animation_is_reported(format: str, mode: str, keep: float) -> None:
    data = image_bytes(format=format, mode=mode, animation=6)
    with pytest.raises(TruncatedMedia, match="cut off"):
        index_of(truncated(data, keep=keep))


def test_a_single_frame_video_is_no_still() -> None:
    index = index_of(video_bytes(frames=1))
    assert len(index) == 1 and not index.is_still and index.duration == Fraction(1, 25)


# ---------------------------------------------------------------- headers that lie


def test_frames_are_counted_whatever_the_headers_say() -> None:
    data = video_bytes(frames=60, size=(64, 64), container="mkv")  # mkv declares no count
    with pytest.raises(LimitExceeded, match="more than 59 frames"):
        index_of(data, Limits(frames=59))
    assert len(index_of(data, Limits(frames=60))) == 60


def test_time_is_measured_whatever_the_headers_say() -> None:
    data = video_bytes(frames=60, size=(64, 64), container="mkv")
    with pytest.raises(LimitExceeded, match="span more than 2 s"):
        index_of(data, Limits(duration_s=2.0))


def test_a_density_above_the_highest_rate_is_refused() -> None:
    data = video_bytes(frames=60, size=(64, 64), pts=[90 * n for n in range(60)], container="mkv")  # 1 ms apart
    blob = Blob.of(data, limit_bytes=10**9)
    info = probe_face(blob, Limits(max_fps=2000))
    with pytest.raises(LimitExceeded, match="frames per second"):
        build_index(blob, info, LIMITS)


def test_a_rate_far_above_the_highest_is_refused() -> None:
    with pytest.raises(LimitExceeded, match=r"shows 1000\.0 frames per second"):
        index_of(video_bytes(frames=5, fps=1000, container="avi", codec="mpeg4"))


def test_demuxing_stands_under_the_wall_clock() -> None:
    with pytest.raises(DecodeTimeout, match="limit"):
        index_of(video_bytes(frames=60), Limits(wall_clock_min_s=1e-9, wall_clock_ratio=1e-9))


def test_frames_that_are_listed_but_not_there_are_missed() -> None:
    data = bytearray(faststart(video_bytes(frames=40)))
    at = data.index(b"mdat") - 4
    data[at : at + 4] = bytes(4)  # the samples are said to reach to the end of the file, wherever that is
    assert len(index_of(bytes(data))) == 40
    with pytest.raises(TruncatedMedia, match="lists 40 frames but holds"):
        index_of(truncated(bytes(data), keep=0.7))


@pytest.mark.parametrize("audio_s", [None, 10.0, 4.0])
def test_an_flv_that_was_cut_off_is_reported(audio_s: float | None) -> None:
    data = video_bytes(frames=250, container="flv", audio_seconds=audio_s, audio_rate=44_100)
    assert len(index_of(data)) == 250
    for keep in (0.5, 0.95):
        with pytest.raises(TruncatedMedia, match="declares 10"):
            index_of(truncated(data, keep=keep))


def test_an_flv_whose_sound_goes_on_after_its_picture_is_whole() -> None:
    data = video_bytes(frames=50, container="flv", audio_seconds=10.0, audio_rate=44_100)
    assert len(index_of(data)) == 50


def test_an_flv_that_was_recorded_live_does_not_say_how_long_it_is() -> None:
    data = bytearray(video_bytes(frames=250, container="flv"))
    at = data.index(b"duration") + len(b"duration") + 1
    data[at : at + 8] = bytes(8)
    assert 100 < len(index_of(truncated(bytes(data), keep=0.5))) < 150


def test_a_voice_has_no_index() -> None:
    blob = Blob.of(audio_bytes(), limit_bytes=10**9)
    with pytest.raises(NoVideoStream):
        build_index(blob, probe_voice(blob, LIMITS), LIMITS)


def test_an_index_of_real_media_counts_what_a_decoder_finds(assets: Any) -> None:
    for name, count in (("facenet_video.mp4", 105), ("latentsync_demo1_video.mp4", None)):
        blob = Blob.of(assets / name, limit_bytes=10**9)
        info: MediaInfo = probe_face(blob, LIMITS)
        index = build_index(blob, info, LIMITS)
        assert info.video is not None and len(index) == (count or info.video.frame_count)
        assert np.all(np.diff(index.pts_ticks) > 0)

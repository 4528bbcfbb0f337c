"""The stream and the progressive file: every frame there, sound and picture in time from end to end."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from flash_clip import RATES, Clip, assert_in_time, encode, play, sound_of

from lipsync.media.mp4 import write_progressive_bytes
from lipsync.options import Options

# ---------------------------------------------------------------- in time


@pytest.mark.parametrize("fps", RATES, ids=lambda fps: f"{float(fps):.3f}")
def test_sound_and_picture_keep_time_at_every_rate(fps: Fraction | int) -> None:
    clip = Clip(Fraction(fps), 48_000)
    stream = encode(clip, [1, 1, 7, 24, 1, 40])
    assert_in_time(clip, play(stream), first_click_is_whole=False)
    assert_in_time(clip, play(write_progressive_bytes(stream)), first_click_is_whole=True)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 192_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_sound_and_picture_keep_time_for_every_voice(rate: int, channels: int) -> None:
    clip = Clip(Fraction(25), rate, channels=channels)
    stream = encode(clip, [8, 24, 64])
    assert_in_time(clip, play(stream), first_click_is_whole=False)
    assert_in_time(clip, play(write_progressive_bytes(stream)), first_click_is_whole=True)


def test_there_is_no_drift_over_a_minute() -> None:
    clip = Clip(Fraction(30_000, 1001), 44_100, seconds=60.0)
    stream = encode(clip, [8, 24, 64, 128])
    assert_in_time(clip, play(stream), first_click_is_whole=False)
    assert_in_time(clip, play(write_progressive_bytes(stream)), first_click_is_whole=True)


def test_h265_keeps_time_too() -> None:
    clip = Clip(Fraction(25), 48_000)
    stream = encode(clip, [8, 24, 64], Options(codec="h265", preset="ultrafast"))
    assert_in_time(clip, play(stream), first_click_is_whole=False)
    progressive = write_progressive_bytes(stream)
    assert_in_time(clip, play(progressive), first_click_is_whole=True)
    with av.open(io.BytesIO(progressive)) as container:
        assert container.streams.video[0].codec_tag == "hvc1"


def test_one_frame_a_segment_is_a_whole_clip() -> None:
    clip = Clip(Fraction(50), 16_000)  # most segments hold no packet at all
    stream = encode(clip, [1])
    assert_in_time(clip, play(stream), first_click_is_whole=False)
    assert_in_time(clip, play(write_progressive_bytes(stream)), first_click_is_whole=True)


def test_a_player_that_knows_no_timestamps_is_in_time_as_well() -> None:
    clip = Clip(Fraction(25), 16_000)
    with av.open(io.BytesIO(encode(clip, [8, 24]))) as container:
        signal, start, _ = sound_of(container)
    assert start == 0  # so that samples alone tell the time
    at = clip.flashes[2] / clip.fps * 16_000
    assert abs(int(np.flatnonzero(np.abs(signal[round(at) - 800 :]) > 0.4)[0]) - 800) < 160


def test_the_stream_has_no_negative_time_and_no_edit_list_while_the_file_has_one() -> None:
    stream = encode(Clip(Fraction(25), 48_000), [8, 24])
    assert b"elst" not in stream
    progressive = write_progressive_bytes(stream)
    assert b"elst" in progressive
    at = progressive.rindex(b"elst") + 4
    assert struct.unpack_from(">I", progressive, at + 12)[0] == 1_024  # the priming that a player leaves out


def test_the_stream_only_lacks_what_the_encoders_priming_would_add() -> None:
    clip = Clip(Fraction(25), 48_000)
    stream = encode(clip, [8, 24])
    with av.open(io.BytesIO(stream)) as joined, av.open(io.BytesIO(write_progressive_bytes(stream))) as whole:
        (first, _, _), (second, _, _) = sound_of(joined), sound_of(whole)
    assert len(first) == len(second)
    np.testing.assert_allclose(first[1_024:], second[1_024:], atol=1e-5)
    assert np.abs(first[:1_024] - second[:1_024]).max() > 0.1


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="no ffprobe on PATH")
@pytest.mark.parametrize("fps", [Fraction(24_000, 1001), Fraction(25), Fraction(60)])
def test_ffprobe_finds_every_frame_in_order(fps: Fraction, tmp_path: Path) -> None:
    clip = Clip(fps, 48_000)
    stream = encode(clip, [1, 7, 24])
    entries = ["-show_entries", "stream=nb_read_frames,avg_frame_rate:packet=dts_time"]
    for name, data in (("stream.mp4", stream), ("file.mp4", write_progressive_bytes(stream))):
        path = tmp_path / name
        path.write_bytes(data)
        found = subprocess.run(
            ["ffprobe", "-v", "error", "-count_frames", "-select_streams", "v:0", "-of", "json", *entries, str(path)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stderr == ""
        report = json.loads(found.stdout)
        assert int(report["streams"][0]["nb_read_frames"]) == clip.frame_count
        assert Fraction(report["streams"][0]["avg_frame_rate"]) == fps
        times = [float(packet["dts_time"]) for packet in report["packets"]]
        assert all(after > before for before, after in pairwise(times))

"""The generated media say what the other tests believe they say."""

from __future__ import annotations

import io

import av
import cv2
import numpy as np
import pytest
from media_factory import audio_bytes, image_bytes, numbered, read_number, stream_copy_cut, truncated, video_bytes


def test_a_number_reads_back_at_any_size() -> None:
    for number in (0, 1, 7, 255, 2048, 4095):
        picture = numbered(number, 161, 121)
        assert read_number(picture) == number
        assert read_number(cv2.resize(picture, (64, 48), interpolation=cv2.INTER_AREA)) == number


def test_a_picture_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="neither black nor white"):
        read_number(np.full((120, 160, 3), 128, np.uint8))


@pytest.mark.parametrize("container, codec", [("mp4", "libx264"), ("mkv", "libx265"), ("avi", "mpeg4")])
def test_videos_carry_their_numbers_and_are_the_same_bytes_each_time(container: str, codec: str) -> None:
    data = video_bytes(frames=7, container=container, codec=codec)
    assert data == video_bytes(frames=7, container=container, codec=codec)
    with av.open(io.BytesIO(data)) as media:
        numbers = [read_number(frame.to_ndarray(format="bgr24")) for frame in media.decode(video=0)]
    assert numbers == list(range(7))


def test_a_stream_copy_cut_starts_inside_a_group_of_pictures() -> None:
    with av.open(io.BytesIO(stream_copy_cut(video_bytes(frames=75), start_s=1.52))) as media:
        first = next(media.decode(video=0))
    assert read_number(first.to_ndarray(format="bgr24")) == 38


def test_sounds_and_images_have_the_size_asked_for() -> None:
    with av.open(io.BytesIO(audio_bytes(seconds=0.5, sample_rate=44_100, channels=8))) as media:
        stream = media.streams.audio[0]
        assert (stream.codec_context.sample_rate, stream.codec_context.layout.nb_channels) == (44_100, 8)
        assert sum(frame.samples for frame in media.decode(stream)) == 22_050
    assert image_bytes(format="png").startswith(b"\x89PNG")
    assert len(truncated(image_bytes(), keep=0.5)) == len(image_bytes()) // 2

"""Probing: what inputs are, their limits before a frame is decoded, and that nothing else is opened."""

from __future__ import annotations

import re
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from media_factory import (
    PLAYLISTS,
    audio_bytes,
    faststart,
    image_bytes,
    movie_elsewhere,
    read_number,
    secret_movie,
    stream_copy_cut,
    video_bytes,
)
from media_factory import truncated as cut_off

from lipsync.core import Color, MediaInfo
from lipsync.errors import (
    InputError,
    LimitExceeded,
    NoAudioStream,
    NoVideoStream,
    TruncatedMedia,
    UnreadableMedia,
    UnsupportedMedia,
)
from lipsync.media.container import AUDIO_CODECS, VIDEO_CODECS, open_demuxer
from lipsync.media.index import build_index
from lipsync.media.probe import probe_face, probe_voice
from lipsync.media.source import Blob
from lipsync.options import Limits

LIMITS = Limits()
HDR = {"matrix": "bt2020", "codec": "libx265", "pix_fmt": "yuv420p10le"}


def face(data: bytes, limits: Limits = LIMITS) -> MediaInfo:
    return probe_face(Blob.of(data, limit_bytes=10**9), limits)


def voice(data: bytes, limits: Limits = LIMITS) -> MediaInfo:
    return probe_voice(Blob.of(data, limit_bytes=10**9), limits)


def video_of(info: MediaInfo) -> Any:
    assert info.video is not None
    return info.video


# ---------------------------------------------------------------- what is found


@pytest.mark.parametrize(
    "container, codec", [("mp4", "libx264"), ("mkv", "libx265"), ("avi", "mpeg4"), ("ts", "libx264")]
)
def test_a_video_is_described(container: str, codec: str) -> None:
    info = face(video_bytes(frames=50, size=(160, 120), container=container, codec=codec, audio_seconds=2))
    video = video_of(info)
    assert (info.kind, video.width, video.height, video.fps) == ("video", 160, 120, 25)
    assert video.duration_s == pytest.approx(2, abs=0.1)
    assert info.audio is not None and info.audio.sample_rate_hz == 48_000


@pytest.mark.parametrize("fps", ["24000/1001", "24", "25", "30000/1001", "30", "50", "60000/1001", "60"])
@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
def test_frame_rates_are_exact_fractions(fps: str, container: str) -> None:
    data = video_bytes(frames=60, size=(64, 64), fps=Fraction(fps), container=container)
    assert video_of(face(data)).fps == Fraction(fps)


def test_a_cut_without_re_encoding_keeps_its_frame_rate() -> None:
    assert video_of(face(stream_copy_cut(video_bytes(frames=75), start_s=1.52))).fps == 25


def test_a_recording_without_a_duration_is_measured() -> None:
    data = video_bytes(frames=50, container="webm", codec="libvpx-vp9", container_options={"live": "1"})
    with open_demuxer(Blob.of(data, limit_bytes=10**9), "matroska") as container:
        assert container.duration is None
    video = video_of(face(data))
    assert (video.fps, video.duration_s) == (25, pytest.approx(2.0))


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_tags_are_found_and_the_size_is_as_shown(container: str, rotation: int) -> None:
    video = video_of(face(video_bytes(frames=2, size=(96, 160), rotation=rotation, container=container)))
    assert (video.rotation_deg, video.width, video.height) == (rotation, 96, 160)


@pytest.mark.parametrize("container", ["mp4", "mkv", "avi", "ts"])
@pytest.mark.parametrize("aspect", [None, "4/3", "16/11", "2", "8/9"])
def test_the_shape_of_a_pixel_is_found(container: str, aspect: str | None) -> None:
    wanted = None if aspect is None else Fraction(aspect)
    video = video_of(face(video_bytes(frames=2, pixel_aspect=wanted, container=container)))
    assert (video.pixel_aspect, video.width, video.height) == (wanted or 1, 160, 120)


def test_the_shape_of_a_pixel_turns_with_the_picture_and_an_absurd_one_is_square() -> None:
    assert video_of(face(video_bytes(frames=2, pixel_aspect=Fraction(4, 3), rotation=90))).pixel_aspect == Fraction(
        3, 4
    )
    assert video_of(face(video_bytes(frames=2, pixel_aspect=Fraction(5)))).pixel_aspect == 1


@pytest.mark.parametrize(
    "made, color",
    [
        ({}, Color("bt709")),
        ({"matrix": "bt601"}, Color("bt601")),
        ({"full_range": True}, Color("bt709", full_range=True)),
        (HDR | {"transfer": 16}, Color("bt2020", transfer="pq")),
        (HDR | {"transfer": 18}, Color("bt2020", transfer="hlg")),
        ({"container": "avi", "codec": "mpeg4"}, Color("bt601")),
        ({"container": "avi", "codec": "mpeg4", "size": (1280, 720)}, Color("bt709")),
    ],
)
def test_colors_are_those_of_the_tags_or_of_the_size(made: dict[str, Any], color: Color) -> None:
    made = {k: v for k, v in made.items() if k != "full_range"} | (
        {"full_range": True} if made.get("full_range") else {}
    )
    assert video_of(face(video_bytes(frames=2, **made))).color == color


@pytest.mark.parametrize(
    "made, size",
    [
        ({"format": "png"}, (160, 120)),
        ({"format": "jpeg", "orientation": 6}, (120, 160)),
        ({"format": "jpeg", "orientation": 3}, (160, 120)),
        ({"format": "jpeg", "size": (6000, 1000)}, (4096, 683)),
        ({"format": "heic"}, (160, 120)),
        ({"format": "avif"}, (160, 120)),
    ],
)
def test_an_image_is_described_as_it_will_be_shown(made: dict[str, Any], size: tuple[int, int]) -> None:
    info = face(image_bytes(**made))
    assert (info.kind, video_of(info).width, video_of(info).height) == ("image", *size)
    assert (video_of(info).frame_count, video_of(info).duration_s) == (1, 0)


@pytest.mark.parametrize(
    "made", [{"format": "gif", "mode": "P"}, {"format": "webp"}, {"format": "png"}, {"format": "avif"}]
)
def test_an_animation_is_described(made: dict[str, Any]) -> None:
    info = face(image_bytes(animation=5, duration_ms=50, **made))
    assert (info.kind, video_of(info).frame_count, video_of(info).fps) == ("animation", 5, 20)
    assert face(image_bytes(**made)).kind == "image"


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"container": "mp3", "codec": "libmp3lame"},
        {"container": "flac", "codec": "flac"},
        {"container": "ogg", "codec": "libopus"},
        {"container": "adts", "codec": "aac"},
        {"container": "m4a", "codec": "aac"},
        {"container": "m4a", "codec": "alac"},
        {"container": "aiff", "codec": "pcm_s16be"},
        {"container": "aiff", "codec": "pcm_mulaw"},
        {"container": "caf", "codec": "alac"},
        {"container": "caf", "codec": "adpcm_ima_qt"},
        {"container": "au", "codec": "pcm_s16be"},
        {"container": "au", "codec": "pcm_mulaw", "sample_rate": 8000},
        {"container": "ac3", "codec": "ac3"},
        {"container": "eac3", "codec": "eac3"},
        {"container": "wv", "codec": "wavpack"},
        {"container": "tta", "codec": "tta"},
        {"container": "asf", "codec": "wmav1", "sample_rate": 44_100},
        {"container": "asf", "codec": "wmav2", "sample_rate": 44_100},
        {"container": "ogg", "codec": "flac"},
        {"container": "mp2", "codec": "mp2"},
        {"codec": "pcm_alaw", "sample_rate": 8000},
        {"codec": "adpcm_ms"},
        {"codec": "adpcm_ima_wav"},
        {"codec": "g722", "sample_rate": 16_000},
        {"codec": "g726", "sample_rate": 8000},
        {"channels": 8, "sample_rate": 192_000, "codec": "pcm_f32le"},
        {"sample_rate": 8000},
    ],
)
def test_a_voice_is_described(made: dict[str, Any]) -> None:
    info = voice(audio_bytes(seconds=1, **made))
    assert info.kind == "audio" and info.audio is not None
    assert info.audio.sample_rate_hz == made.get("sample_rate", 48_000)
    assert info.audio.channels == made.get("channels", 1)
    assert info.audio.duration_s == pytest.approx(1, abs=0.1)


def test_the_page_of_formats_names_every_codec_that_is_accepted_and_no_other() -> None:
    page = (Path(__file__).parents[1] / "docs" / "formats.md").read_text()
    for row, codecs in (("Video codecs", VIDEO_CODECS), ("Audio codecs", AUDIO_CODECS)):
        line = next(line for line in page.splitlines() if line.startswith(f"| {row} |"))
        assert set(re.findall(r"`(\w+)`", line)) == codecs


def test_the_sound_of_a_video_is_a_voice_under_the_video_s_byte_limit() -> None:
    data = video_bytes(frames=5, audio_seconds=1)
    info = voice(data, Limits(audio_bytes=100))
    assert info.kind == "video" and info.audio is not None and info.audio.codec == "aac"
    with pytest.raises(LimitExceeded, match="bytes"):
        voice(data, Limits(video_bytes=100))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "data, error",
    [
        (audio_bytes, NoVideoStream),
        (lambda: video_bytes(frames=2, codec="ffv1", container="mkv"), UnsupportedMedia),
        (lambda: video_bytes(frames=60, codec="libx264", container="mpeg"), UnsupportedMedia),
        (lambda: video_bytes(frames=2, codec="qtrle", pix_fmt="rgb24", container="mov"), UnsupportedMedia),
        (lambda: b"\x00\x00\x00\x18ftypmp42" + bytes(1000), UnreadableMedia),
        (lambda: bytes(500), UnreadableMedia),
        *((lambda name=name: PLAYLISTS[name], UnsupportedMedia) for name in PLAYLISTS),
    ],
)
def test_a_face_that_is_none_is_refused_by_kind(data: Any, error: type[InputError]) -> None:
    with pytest.raises(error):
        face(data())


@pytest.mark.parametrize(
    "data, error",
    [
        (lambda: video_bytes(frames=2), NoAudioStream),
        (image_bytes, NoAudioStream),
        (lambda: audio_bytes(codec="adpcm_yamaha"), UnsupportedMedia),
        (lambda: audio_bytes(sample_rate=1000), LimitExceeded),
        (lambda: audio_bytes(sample_rate=384_000, seconds=0.1), LimitExceeded),
        (lambda: PLAYLISTS["sdp"], UnsupportedMedia),
    ],
)
def test_a_voice_that_is_none_is_refused_by_kind(data: Any, error: type[InputError]) -> None:
    with pytest.raises(error):
        voice(data())


@pytest.mark.parametrize(
    "made, limits, said",
    [
        ({"size": (32, 96)}, {}, "each side"),
        ({"size": (640, 64)}, {"max_side": 512}, "pixels a side"),
        ({"size": (320, 240)}, {"video_pixels": 320 * 239}, "in all"),
        ({"frames": 50}, {"duration_s": 1.5}, "lasts"),
        ({"frames": 50}, {"frames": 49}, "50 frames"),
        ({}, {"video_bytes": 1000}, "bytes"),
    ],
)
def test_a_video_beyond_a_limit_is_refused_from_its_headers(
    made: dict[str, Any], limits: dict[str, Any], said: str
) -> None:
    with pytest.raises(LimitExceeded, match=said):
        face(video_bytes(**({"frames": 5} | made)), Limits(**limits))


@pytest.mark.parametrize(
    "made, limits, said",
    [
        ({"size": (32, 96)}, {}, "each side"),
        ({"size": (6000, 70)}, {}, "narrow"),
        ({"size": (300, 300)}, {"image_pixels": 89_999}, "pixels are allowed"),
        ({}, {"image_bytes": 100}, "bytes"),
        ({"format": "gif", "mode": "P", "animation": 20}, {"frames": 19}, "19 frames"),
        ({"format": "webp", "animation": 20, "duration_ms": 1000}, {"duration_s": 19.0}, "lasts"),
        ({"format": "webp", "animation": 2}, {"video_pixels": 100}, "animation is 160×120"),
    ],
)
def test_an_image_beyond_a_limit_is_refused_from_its_headers(
    made: dict[str, Any], limits: dict[str, Any], said: str
) -> None:
    with pytest.raises(LimitExceeded, match=said):
        face(image_bytes(**made), Limits(**limits))


def test_a_png_that_declares_a_gigapixel_is_refused_unopened() -> None:
    data = bytearray(image_bytes())
    data[16:24] = struct.pack(">II", 40_000, 40_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(LimitExceeded, match="40000×40000"):
        face(bytes(data))


def test_a_voice_beyond_a_limit_is_refused_from_its_headers() -> None:
    data = audio_bytes(seconds=2, channels=2)
    for limits, said in (
        (Limits(channels=1), "2 channels"),
        (Limits(duration_s=1.0), "lasts 2.0 s"),
        (Limits(audio_bytes=1000), "bytes"),
    ):
        with pytest.raises(LimitExceeded, match=said):
            voice(data, limits)


# ---------------------------------------------------------------- cut off


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_a_cut_off_mp4_with_its_headers_in_front_is_reported(keep: float) -> None:
    whole = faststart(video_bytes(frames=60))
    assert video_of(face(whole)).frame_count == 60
    with pytest.raises(TruncatedMedia, match="cut off"):
        face(cut_off(whole, keep=keep))


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    "made",
    [
        {},
        {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "gop": 10},
        {"container": "mkv"},
        {"container": "webm", "codec": "libvpx-vp9"},
        {"container": "avi", "codec": "mpeg4"},
    ],
)
def test_cut_off_videos_are_reported(made: dict[str, Any], keep: float) -> None:
    with pytest.raises(TruncatedMedia, match="cut off"):
        face(cut_off(video_bytes(frames=60, **made), keep=keep))


@pytest.mark.parametrize(
    "made", [{}, {"container": "aiff", "codec": "pcm_s16be"}, {"container": "m4a", "codec": "aac"}]
)
def test_cut_off_voices_are_reported(made: dict[str, Any]) -> None:
    with pytest.raises(TruncatedMedia, match="cut off"):
        voice(cut_off(audio_bytes(seconds=1, **made)))


def test_a_wav_written_to_a_pipe_is_whole_whatever_its_sizes_say() -> None:
    data = bytearray(audio_bytes(seconds=1))
    at = data.index(b"data")
    for size in (0xFFFFFFFF, 0x7FFFFFFF, 0):
        data[4:8] = data[at + 4 : at + 8] = struct.pack("<I", size)
        info = voice(bytes(data))
        assert info.audio is not None and info.audio.sample_rate_hz == 48_000


def test_what_follows_a_whole_file_is_not_judged() -> None:
    for data in (video_bytes(frames=5), video_bytes(frames=5, container="mkv")):
        assert video_of(face(data + PLAYLISTS["zip"] + bytes(500))).width == 160


# ---------------------------------------------------------------- nothing else is opened


def first_number(container: Any) -> int:
    return read_number(next(container.decode(video=0)).to_ndarray(format="bgr24"))


def test_an_mp4_that_points_at_another_file_does_not_make_us_read_it(tmp_path: Path) -> None:
    other = tmp_path / "secret.mov"
    other.write_bytes(secret_movie())
    path = tmp_path / "poisoned.mov"
    path.write_bytes(movie_elsewhere(other))

    naive = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(str(path), options=naive) as container:
        assert first_number(container) == 1000  # the poison works where nothing is done against it
    blob = Blob.of(path, limit_bytes=10**9)
    with pytest.raises(UnreadableMedia, match="holds 0"):
        build_index(blob, probe_face(blob, LIMITS), LIMITS)


def test_an_untrusted_name_inside_a_demuxer_s_reach_stays_closed() -> None:
    blob = Blob.of(PLAYLISTS["m3u8 to file"], limit_bytes=10**9)
    for demuxer in ("hls", "concat", "sdp", "dash", "image2", "rtsp"):
        with pytest.raises((UnreadableMedia, UnsupportedMedia)):
            open_demuxer(blob, demuxer)


def test_codecs_outside_the_list_are_not_even_tried() -> None:
    data = video_bytes(frames=3, codec="qtrle", pix_fmt="rgb24", container="mov")
    with open_demuxer(Blob.of(data, limit_bytes=10**9), "mov") as container:
        assert container.streams.video[0].codec_context.pix_fmt is None  # FFmpeg found out by decoding else


def test_the_file_s_name_is_never_asked(tmp_path: Path) -> None:
    playlist, movie, photo = tmp_path / "a.mp4", tmp_path / "b.png", tmp_path / "c.mp4"
    playlist.write_bytes(PLAYLISTS["m3u8 to file"])
    movie.write_bytes(video_bytes(frames=2))
    photo.write_bytes(image_bytes(format="jpeg"))
    with pytest.raises(UnsupportedMedia, match="HLS playlist"):
        probe_face(Blob.of(playlist, limit_bytes=10**9), LIMITS)
    assert probe_face(Blob.of(movie, limit_bytes=10**9), LIMITS).container == "mov"
    assert probe_face(Blob.of(photo, limit_bytes=10**9), LIMITS).container == "JPEG"

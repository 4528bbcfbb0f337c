"""Content decides: what the first bytes say, and that scripts and playlists open nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from media_factory import PLAYLISTS, audio_bytes, image_bytes, video_bytes

from lipsync.errors import UnreadableMedia, UnsupportedMedia
from lipsync.media.sniff import ContentType, sniff


@pytest.mark.parametrize(
    "container, codec, name",
    [
        ("mp4", "libx264", "mov"),
        ("mov", "libx264", "mov"),
        ("3gp", "libx264", "mov"),
        ("mkv", "libx264", "matroska"),
        ("webm", "libvpx-vp9", "matroska"),
        ("avi", "mpeg4", "avi"),
        ("ts", "libx264", "mpegts"),
        ("flv", "libx264", "flv"),
        ("mpeg", "mpeg2video", "mpeg"),
        ("asf", "wmv2", "asf"),
    ],
)
def test_video_containers_are_known(container: str, codec: str, name: str) -> None:
    assert sniff(video_bytes(frames=2, container=container, codec=codec)[:4096]) == ContentType("container", name)


@pytest.mark.parametrize(
    "container, codec, name",
    [
        ("wav", "pcm_s16le", "wav"),
        ("mp3", "libmp3lame", "mp3"),
        ("flac", "flac", "flac"),
        ("ogg", "libopus", "ogg"),
        ("adts", "aac", "aac"),
        ("m4a", "aac", "mov"),
        ("aiff", "pcm_s16be", "aiff"),
        ("w64", "pcm_s16le", "w64"),
        ("caf", "pcm_s16le", "caf"),
        ("au", "pcm_s16be", "au"),
        ("ac3", "ac3", "ac3"),
        ("eac3", "eac3", "eac3"),
        ("wv", "wavpack", "wv"),
        ("tta", "tta", "tta"),
    ],
)
def test_sound_files_are_known(container: str, codec: str, name: str) -> None:
    data = audio_bytes(seconds=0.2, container=container, codec=codec)
    assert sniff(data[:4096]) == ContentType("container", name)


def test_an_mp3_without_its_tag_and_a_flac_behind_one_are_known() -> None:
    mp3 = audio_bytes(seconds=0.2, container="mp3", codec="libmp3lame")
    size = 10 + (mp3[6] << 21 | mp3[7] << 14 | mp3[8] << 7 | mp3[9])
    assert sniff(mp3[size : size + 100]).name == "mp3"
    assert sniff(mp3[:size] + audio_bytes(seconds=0.1, container="flac", codec="flac")).name == "flac"


@pytest.mark.parametrize("step", [188, 192, 204])
def test_a_transport_stream_is_known_by_its_packets(step: int) -> None:
    ts = video_bytes(frames=2, container="ts")
    packets = [ts[at : at + 188] for at in range(0, len(ts), 188)]
    lead, trail = (bytes(4), b"") if step == 192 else (b"", bytes(step - 188))
    assert sniff(b"".join(lead + packet + trail for packet in packets)[:4096]).name == "mpegts"


@pytest.mark.parametrize(
    "head, said",
    [
        (b"MAC \x96\x0f", "Monkey's Audio"),
        (b"\x02#!SILK_V3", "SILK"),
        (b"\x06\x0e\x2b\x34\x02\x05", "MXF"),
        (b"Creative Voice File\x1a", "Creative Voice"),
        (b"\x00\x00\x00\x01\x67\x42", "raw H.264"),
    ],
)
def test_media_of_a_kind_that_is_not_accepted_is_named(head: bytes, said: str) -> None:
    with pytest.raises(UnsupportedMedia, match=said):
        sniff(head + bytes(100))


@pytest.mark.parametrize(
    "format, name",
    [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP"), ("gif", "GIF"), ("avif", "AVIF"), ("heic", "HEIF")],
)
def test_images_are_known(format: str, name: str) -> None:
    assert sniff(image_bytes(format=format)[:4096]) == ContentType("image", name)


@pytest.mark.parametrize(
    "name, said",
    [
        ("m3u8 to http", "HLS playlist"),
        ("m3u8 to file", "HLS playlist"),
        ("m3u8 after a byte order mark", "HLS playlist"),
        ("ffconcat", "ffconcat script"),
        ("concat without a header", "concat script"),
        ("dash", "DASH manifest"),
        ("sdp", "SDP"),
        ("html", "HTML page"),
        ("svg", "SVG"),
        ("zip", "zip archive"),
        ("text", "text file"),
    ],
)
def test_what_is_no_media_is_named(name: str, said: str) -> None:
    with pytest.raises(UnsupportedMedia, match=said):
        sniff(PLAYLISTS[name])


def test_a_playlist_in_utf_16_is_still_a_playlist() -> None:
    with pytest.raises(UnsupportedMedia, match="HLS playlist"):
        sniff("\ufeff#EXTM3U\nhttp://127.0.0.1:9/a.ts\n".encode("utf-16-le"))


def test_polyglots_are_what_they_begin_with() -> None:
    assert sniff(video_bytes(frames=2) + PLAYLISTS["zip"]).name == "mov"
    assert sniff(image_bytes(format="jpeg") + PLAYLISTS["html"]).name == "JPEG"


@pytest.mark.parametrize("garbage", [bytes(100), bytes(range(256)), b"\xff", b"RIFF\x01\x02\x03\x04QUAX"])
def test_garbage_is_unreadable(garbage: bytes) -> None:
    with pytest.raises(UnreadableMedia, match="begins with"):
        sniff(garbage)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_type_or_a_typed_error(head: bytes) -> None:
    try:
        assert sniff(head).kind in ("image", "container")
    except (UnsupportedMedia, UnreadableMedia) as error:
        assert error.detail.endswith(".")

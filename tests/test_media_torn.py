"""Streams without a length: what was cut off inside a packet, page, block or frame is noticed; whole files never are."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import media_factory as make
import numpy as np
import pytest

from lipsync.errors import TruncatedMedia
from lipsync.media.index import build_index
from lipsync.media.probe import probe_face, probe_voice
from lipsync.media.sniff import sniff
from lipsync.media.source import Blob
from lipsync.media.structure import check_whole
from lipsync.options import Limits
from lipsync.voice.decode import decode

LIMITS = Limits()
NULL_PACKET = b"\x47\x1f\xff\x10" + b"\xff" * 184
ID3V1 = b"TAG" + b"x" * 125


def noise(seconds: float, *, channels: int = 1) -> Any:
    return (0.2 * np.random.default_rng(7).standard_normal((channels, round(seconds * 48_000)))).astype(np.float32)


def sound(container: str, codec: str, **options: str) -> bytes:
    """Four seconds of noise: frames of many sizes, where the codec has them."""
    buffer = io.BytesIO()
    samples = noise(4)
    with av.open(buffer, "w", format=container, container_options={"fflags": "+bitexact"} | options) as output:
        stream = output.add_stream(codec, rate=48_000, layout="mono")
        make.write_samples(output, stream, seconds=4, samples=samples)
    return buffer.getvalue()


def film(container: str, codec: str = "libx264", **options: str) -> bytes:
    return make.video_bytes(frames=60, codec=codec, container=container, audio_seconds=2.0, container_options=options)


def is_whole(data: bytes) -> bool:
    try:
        check_whole(Blob.of(data, limit_bytes=1 << 30), sniff(data[:4096]))
    except TruncatedMedia as error:
        assert "cut off" in error.detail
        return False
    return True


def with_step(ts: bytes, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """The packets of a transport stream as a camcorder (192 bytes) or a tuner (204 bytes) writes them."""
    return b"".join(before + ts[at : at + 188] + after for at in range(0, len(ts), 188))


def without_end_of_stream(ogg: bytes) -> bytes:
    data = bytearray(ogg)
    data[data.rindex(b"OggS") + 5] &= ~4
    return bytes(data)


def ape_tag() -> bytes:
    mark = struct.pack("<8sIII", b"APETAGEX", 2000, 32 + 40, 1)
    return mark + struct.pack("<I8x", 0xA0000000) + b"x" * 40 + mark + struct.pack("<I8x", 0x80000000)


def bare_mp3(**options: str) -> bytes:
    return sound("mp3", "libmp3lame", write_xing="0", id3v2_version="0", **options)


STREAMS: dict[str, Callable[[], bytes]] = {
    "ts": lambda: film("ts"),
    "ts in steps of 192": lambda: with_step(film("ts"), before=b"\x00\x01\x02\x03"),
    "ts in steps of 204": lambda: with_step(film("ts"), after=b"\x11" * 16),
    "ts of sound alone": lambda: sound("mpegts", "mp2"),
    "opus": lambda: sound("ogg", "libopus"),
    "flac in ogg": lambda: sound("ogg", "flac"),
    "chained ogg": lambda: sound("ogg", "libopus") + sound("ogg", "flac"),
    "live webm": lambda: film("webm", "libvpx", live="1"),
    "live mkv": lambda: film("mkv", live="1"),
    "aac": lambda: sound("adts", "aac"),
    "mp3": bare_mp3,
    "mp3 with a header": lambda: sound("mp3", "libmp3lame"),
    "mp2": lambda: sound("mp2", "mp2"),
    "ac3": lambda: sound("ac3", "ac3"),
    "eac3": lambda: sound("eac3", "eac3"),
    "wavpack": lambda: sound("wv", "wavpack"),
    "tta": lambda: sound("tta", "tta"),
    "au": lambda: sound("au", "pcm_s16be"),
    "wmv": lambda: make.video_bytes(frames=60, codec="wmv2", container="asf"),
}
WHOLE: dict[str, Callable[[], bytes]] = {
    "ts and null packets": lambda: film("ts") + 40 * NULL_PACKET,
    "ts and zeros": lambda: film("ts") + bytes(5000),
    "ts and a line break": lambda: film("ts") + b"\n",
    "two ts, the first of them cut": lambda: film("ts")[:50_000] + film("ts"),
    "ogg of a live recording": lambda: without_end_of_stream(sound("ogg", "libopus")),
    "ogg and a tag": lambda: sound("ogg", "libopus") + ID3V1,
    "live webm and zeros": lambda: film("webm", "libvpx", live="1") + bytes(100),
    "mkv and zip": lambda: film("mkv") + make.PLAYLISTS["zip"],
    "aac and ID3v1": lambda: sound("adts", "aac") + ID3V1,
    "mp3 and ID3v1": lambda: bare_mp3(write_id3v1="1"),
    "mp3 and an APE tag": lambda: bare_mp3() + ape_tag(),
    "mp3 and both": lambda: bare_mp3() + ape_tag() + ID3V1,
    "mp3 and zeros": lambda: bare_mp3() + bytes(3000),
    "wavpack and a tag": lambda: sound("wv", "wavpack") + ape_tag(),
    "tta and a tag": lambda: sound("tta", "tta") + ID3V1,
    "au of unknown size": lambda: sound("au", "pcm_s16be").replace(struct.pack(">I", 2 * 4 * 48_000), b"\xff" * 4, 1),
    "mp3 whose last frame lacks its padding": lambda: bare_mp3()[:-1],
}


@pytest.mark.parametrize("name", [*STREAMS, *WHOLE])
def test_a_whole_stream_is_never_refused(name: str) -> None:
    assert is_whole((STREAMS | WHOLE)[name]())


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_was_cut_off_is_noticed(name: str) -> None:
    data = STREAMS[name]()
    cuts = np.random.default_rng(0).integers(len(data) // 5, len(data), 60)
    # a cut may fall between two pieces, or take so little of one that an encoder might have left it out
    assert sum(is_whole(data[:cut]) for cut in cuts) <= 8


@pytest.mark.parametrize("role", ["face", "voice"])
@pytest.mark.parametrize("container", ["ts", "mkv"])
def test_a_cut_stream_is_refused_before_anything_is_decoded(container: str, role: str) -> None:
    data = film(container, **({"live": "1"} if container == "mkv" else {}))
    probe = probe_face if role == "face" else probe_voice
    probe(Blob.of(data, limit_bytes=1 << 30), LIMITS)
    with pytest.raises(TruncatedMedia, match="in the middle of its last"):
        probe(Blob.of(data[: len(data) * 7 // 10 + 1], limit_bytes=1 << 30), LIMITS)


def test_only_the_end_of_a_large_stream_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = sound("ogg", "libopus")
    read = 0

    class Counting(io.BytesIO):
        def read(self, count: int | None = -1, /) -> bytes:
            nonlocal read
            found = super().read(count)
            read += len(found)
            return found

    blob = Blob.of(data * 200, limit_bytes=1 << 30)
    monkeypatch.setattr(Blob, "open", lambda blob: Counting(data * 200))
    check_whole(blob, sniff(data))
    assert 0 < read < 300_000 < blob.byte_count


# ---------------------------------------------------------------- mp4 in fragments


def fragmented(*, flags: str = "", audio_seconds: float | None = None) -> bytes:
    return make.video_bytes(
        frames=60,
        gop=10,
        audio_seconds=audio_seconds,
        container_options={"movflags": f"frag_keyframe+empty_moov+default_base_moof{flags}"},
    )


def cut_after_fragments(mp4: bytes, count: int) -> bytes:
    ends = [start + size for kind, start, size in make.boxes_of(mp4) if kind == "mdat"]
    assert len(ends) > count
    return mp4[: ends[count - 1]]


def declaring(mp4: bytes, *, seconds: float) -> bytes:
    """The same with a header (mehd) that tells how long all fragments are, in milliseconds as ffmpeg's movie header."""
    mehd = struct.pack(">I4sII", 16, b"mehd", 0, round(seconds * 1000))
    data = bytearray(mp4)
    for name in (b"mvex", b"moov"):
        at = data.index(name) - 4
        struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] + len(mehd))
    at = data.index(b"mvex") + 4
    data[at:at] = mehd
    return bytes(data)


def test_an_mp4_cut_between_fragments_is_noticed_where_it_lists_them(tmp_path: Path) -> None:
    path = tmp_path / "listed.mp4"  # the muxer reads its file again, by its name
    options = {"movflags": "empty_moov+default_base_moof+global_sidx", "frag_duration": "500000"}
    with av.open(io.BytesIO(film("mp4"))) as source, av.open(str(path), "w", options=options) as output:
        streams = {stream.index: output.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream_index]
                output.mux(packet)
    whole = path.read_bytes()
    assert whole.count(b"sidx") >= 1
    assert is_whole(whole)
    assert not is_whole(cut_after_fragments(whole, 3))


def test_fragments_that_are_listed_one_by_one_do_not_tell_of_those_to_come() -> None:
    whole = fragmented(flags="+dash")
    assert is_whole(whole)
    assert is_whole(cut_after_fragments(whole, 3))
    assert not is_whole(cut_after_fragments(whole, 3)[:-10])


@pytest.mark.parametrize("audio_seconds", [None, 2.0])
def test_an_mp4_cut_between_fragments_is_noticed_where_it_tells_their_duration(audio_seconds: float | None) -> None:
    whole = declaring(fragmented(audio_seconds=audio_seconds), seconds=2.4)
    for data, is_cut in ((whole, False), (cut_after_fragments(whole, 3), True)):
        blob = Blob.of(data, limit_bytes=1 << 30)
        info = probe_face(blob, LIMITS)
        if is_cut:
            with pytest.raises(TruncatedMedia, match=r"declares 2\.40 s"):
                build_index(blob, info, LIMITS)
        else:
            assert len(build_index(blob, info, LIMITS)) == 60


def test_a_voice_cut_between_fragments_is_noticed_where_it_tells_their_duration() -> None:
    flags = "empty_moov+default_base_moof"
    whole = declaring(sound("mp4", "aac", movflags=flags, frag_duration="500000"), seconds=4.0)
    for data, is_cut in ((whole, False), (cut_after_fragments(whole, 3), True)):
        blob = Blob.of(data, limit_bytes=1 << 30)
        blocks = decode(blob, probe_voice(blob, LIMITS), limits=LIMITS)
        if is_cut:
            with pytest.raises(TruncatedMedia, match=r"declares 4\.00 s"):
                list(blocks)
        else:
            assert sum(block.samples.shape[1] for block in blocks) == pytest.approx(4 * 48_000, abs=3_000)

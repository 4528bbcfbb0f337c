"""Voices of every kind, and what is wrong with some of them."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import librosa
import media_factory as make
import numpy as np
import pytest

from lipsync.core import F32, VoiceChunk
from lipsync.errors import (
    DecodeTimeout,
    InvalidOption,
    LimitExceeded,
    NoAudioStream,
    NonFiniteAudio,
    TruncatedMedia,
    UnreadableMedia,
)
from lipsync.media.probe import probe_voice
from lipsync.media.source import Blob
from lipsync.options import Limits
from lipsync.voice.decode import decode
from lipsync.voice.mel import mel_spectrogram
from lipsync.voice.resample import Resampler
from lipsync.voice.voice import Waveform, voice_chunks

LIMITS = Limits()


def chunks_of(data: bytes, *, limits: Limits = LIMITS) -> list[VoiceChunk]:
    blob = Blob.of(data, limit_bytes=1 << 30)
    return list(voice_chunks(blob, probe_voice(blob, LIMITS), limits=limits))


def mel_of(chunks: list[VoiceChunk]) -> F32:
    return np.concatenate([chunk.mel for chunk in chunks], axis=1)


def signal_of(data: bytes) -> tuple[F32, int]:
    """(channels, n) of a file, and its rate."""
    blob = Blob.of(data, limit_bytes=1 << 30)
    blocks = list(decode(blob, probe_voice(blob, LIMITS), limits=LIMITS))
    assert len({(block.sample_rate_hz, block.layout) for block in blocks}) == 1
    return np.concatenate([block.samples for block in blocks], axis=1), blocks[0].sample_rate_hz


def noise(seconds: float, *, rate: int, channels: int = 1) -> F32:
    random = np.random.default_rng(7)
    return (0.2 * random.standard_normal((channels, round(seconds * rate)))).clip(-1, 1).astype(np.float32)


LOSSLESS = [
    ("wav", "pcm_u8", 8_000, 1, 2 / 255),
    ("wav", "pcm_s16le", 16_000, 1, 0),
    ("wav", "pcm_s24le", 44_100, 2, 0),
    ("wav", "pcm_s32le", 48_000, 2, 0),
    ("wav", "pcm_f32le", 96_000, 2, 0),
    ("wav", "pcm_f64le", 22_050, 1, 0),
    ("wav", "pcm_s16le", 48_000, 8, 0),
    ("flac", "flac", 192_000, 1, 0),
    ("aiff", "pcm_s16be", 44_100, 2, 0),
    ("mov", "pcm_s16le", 44_100, 6, 0),
]


@pytest.mark.parametrize(("container", "codec", "rate", "channels", "step"), LOSSLESS)
def test_a_lossless_voice_comes_out_as_it_went_in(
    container: str, codec: str, rate: int, channels: int, step: float
) -> None:
    samples = (np.round(noise(0.5, rate=rate, channels=channels) * 32_768) / 32_768).astype(np.float32)
    decoded, found = signal_of(make.audio_bytes(samples=samples, sample_rate=rate, codec=codec, container=container))
    assert found == rate
    assert decoded.dtype == np.float32
    assert decoded.shape == samples.shape
    # the codec's own step of quantisation, where it is coarser than 16 bits
    tolerance = step or 1 / 32_768
    np.testing.assert_allclose(decoded, samples, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("container", "codec", "rate", "channels"),
    [
        ("mp3", "libmp3lame", 44_100, 2),
        ("mp3", "libmp3lame", 8_000, 1),
        ("ogg", "libopus", 48_000, 2),
        ("webm", "libopus", 48_000, 1),
        ("m4a", "aac", 44_100, 6),
        ("mp4", "aac", 16_000, 1),
        ("mp4", "alac", 44_100, 2),
        ("wv", "wavpack", 44_100, 2),
        ("tta", "tta", 44_100, 2),
        ("ogg", "flac", 48_000, 1),
        ("au", "pcm_mulaw", 8_000, 1),
        ("wav", "g722", 16_000, 1),
    ],
)
def test_a_coded_voice_begins_where_it_began_and_has_its_length(
    container: str, codec: str, rate: int, channels: int
) -> None:
    samples = np.zeros((channels, 2 * rate), np.float32)
    burst = slice(rate // 2, rate // 2 + rate // 20)
    samples[:, burst] = 0.5 * np.sin(2 * np.pi * 100 * np.arange(rate // 20) / rate)
    decoded, found = signal_of(make.audio_bytes(samples=samples, sample_rate=rate, codec=codec, container=container))
    assert found == rate
    assert decoded.shape == samples.shape
    loud = np.flatnonzero(np.abs(decoded[0]) > 0.25)
    expected = np.flatnonzero(np.abs(samples[0]) > 0.25)
    assert abs(loud[0] - expected[0]) / rate < 0.002


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [
        ("ac3", "ac3", 48_000),
        ("eac3", "eac3", 48_000),
        ("asf", "wmav2", 44_100),
        ("wav", "adpcm_ms", 22_050),
        ("wav", "adpcm_ima_wav", 22_050),
        ("caf", "adpcm_ima_qt", 44_100),
        ("mp2", "mp2", 48_000),
    ],
)
def test_a_codec_that_pads_its_blocks_is_heard_to_its_end(container: str, codec: str, rate: int) -> None:
    data = make.audio_bytes(seconds=2.0, sample_rate=rate, codec=codec, container=container)
    decoded, found = signal_of(data)
    assert found == rate
    assert decoded.shape[1] / rate == pytest.approx(2.0, abs=0.06)
    assert np.abs(decoded[:, rate // 2 : rate]).max() > 0.2


def test_voices_of_telephones_are_heard() -> None:
    amr = b"#!AMR\n" + 50 * (b"\x3c" + bytes(31))
    wide = b"#!AMR-WB\n" + 50 * (b"\x44" + bytes(60))
    blocks = np.random.default_rng(0).bytes(25 * 65)
    form = struct.pack("<4sIHHIIHHHH", b"fmt ", 20, 0x31, 1, 8_000, 1_625, 65, 0, 2, 320)
    gsm = struct.pack("<4sI4s", b"RIFF", 36 + len(blocks), b"WAVE") + form
    gsm += struct.pack("<4sI", b"data", len(blocks)) + blocks
    for data, rate in ((amr, 8_000), (wide, 16_000), (gsm, 8_000)):
        decoded, found = signal_of(data)
        assert (found, decoded.shape[1]) == (rate, rate)


@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (48_000, 1), (22_050, 1), (8_000, 2), (192_000, 1)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # librosa.load imports modules that Python 3.13 drops
def test_sixteen_kilohertz_mono_is_what_librosa_loads(rate: int, channels: int, tmp_path: Path) -> None:
    path = tmp_path / "voice.wav"
    samples = noise(1.7, rate=rate, channels=channels)
    path.write_bytes(make.audio_bytes(samples=samples, sample_rate=rate, codec="pcm_f32le"))
    expected, _ = librosa.load(path, sr=16_000)
    decoded, _ = signal_of(path.read_bytes())
    resampler = Resampler(rate, 16_000, channels=1)
    mono = decoded.mean(axis=0, keepdims=True)
    ours = np.concatenate([*(resampler.feed(part) for part in np.array_split(mono, 7, axis=1)), resampler.finish()], 1)
    assert ours.shape == (1, len(expected))
    np.testing.assert_allclose(ours[0], expected, rtol=0, atol=1e-7)
    assert np.array_equal(mel_of(chunks_of(path.read_bytes())), mel_spectrogram(ours[0]))


def test_sixteen_kilohertz_mono_is_not_touched() -> None:
    samples = noise(1.3, rate=16_000)
    data = make.audio_bytes(samples=samples, sample_rate=16_000, codec="pcm_f32le")
    assert np.array_equal(mel_of(chunks_of(data)), mel_spectrogram(samples[0]))


@pytest.mark.needs_assets
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_real_speech_gives_the_mel_of_librosa(assets: Path) -> None:
    path = assets / "ljspeech_LJ001-0014.wav"
    expected, _ = librosa.load(path, sr=16_000)
    np.testing.assert_allclose(mel_of(chunks_of(path.read_bytes())), mel_spectrogram(expected), rtol=0, atol=1e-5)


# ---------------------------------------------------------------- where the sound starts


def delayed(data: bytes, *, audio_s: float, skip: tuple[float, float] | None = None, container: str = "mp4") -> bytes:
    """The same packets with the sound moved by ``audio_s``; those between ``skip`` seconds are lost."""
    buffer = io.BytesIO()
    options = {"movie_timescale": "48000"} if container == "mp4" else {}  # edit lists to the sample, not to 1 ms
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(buffer, "w", format=container, container_options=options) as output,
    ):
        streams = {stream.index: output.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is None or packet.pts is None:
                continue
            at_s = float(packet.pts * packet.time_base)
            if packet.stream.type == "audio":
                if skip is not None and skip[0] <= at_s < skip[1]:
                    continue
                packet.pts += round(audio_s / packet.time_base)
                packet.dts += round(audio_s / packet.time_base)
            packet.stream = streams[packet.stream.index]
            output.mux(packet)
    return buffer.getvalue()


def test_sound_that_starts_after_its_picture_is_led_in_by_silence() -> None:
    plain = make.video_bytes(frames=50, audio_seconds=2.0)
    before, rate = signal_of(plain)
    after, _ = signal_of(delayed(plain, audio_s=0.5))
    lead = after.shape[1] - before.shape[1]
    assert abs(lead - rate // 2) <= 2
    assert not after[:, : lead - 1_024].any()
    np.testing.assert_allclose(after[:, lead + 2_048 : lead + 40_000], before[:, 2_048:40_000], atol=1e-3)


def test_sound_without_a_picture_starts_with_its_first_sample() -> None:
    plain = make.audio_bytes(seconds=2.0, codec="aac", container="mp4")
    moved = delayed(plain, audio_s=5.0)
    before, after = signal_of(plain)[0], signal_of(moved)[0]
    assert abs(after.shape[1] - before.shape[1]) <= 1_024


def test_lost_packets_are_heard_as_silence_so_that_the_rest_keeps_its_time() -> None:
    plain = make.audio_bytes(seconds=4.0, codec="libopus", container="webm")
    lost = delayed(plain, audio_s=0.0, skip=(1.0, 2.0), container="webm")
    before, after = signal_of(plain)[0], signal_of(lost)[0]
    assert abs(after.shape[1] - before.shape[1]) < 100
    assert not after[:, 56_000:90_000].any()
    assert np.abs(after[:, 110_000:180_000]).max() > 0.2


def test_a_voice_that_changes_its_rate_on_the_way_keeps_the_first_one() -> None:
    parts = [
        make.audio_bytes(seconds=1.0, sample_rate=rate, channels=channels, codec="aac", container="adts")
        for rate, channels in ((44_100, 2), (22_050, 1))
    ]
    decoded, rate = signal_of(b"".join(parts))
    assert (rate, decoded.shape[0]) == (44_100, 2)
    assert abs(decoded.shape[1] / rate - 2.0) < 0.25
    assert np.abs(decoded[:, -15_000:-5_000]).max() > 0.15


# ---------------------------------------------------------------- what is refused


def test_nan_and_infinite_samples_are_an_error_of_their_own() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        samples = noise(2, rate=16_000)
        samples[0, 20_000] = bad
        with pytest.raises(NonFiniteAudio, match="NaN"):
            chunks_of(make.audio_bytes(samples=samples, sample_rate=16_000, codec="pcm_f32le"))
        with pytest.raises(NonFiniteAudio):
            list(voice_chunks(Waveform(samples, 16_000), None, limits=LIMITS))
    huge = np.full((1, 4_000), 1e300)
    with pytest.raises(NonFiniteAudio):
        list(voice_chunks(Waveform(huge, 16_000), None, limits=LIMITS))  # type: ignore[arg-type]


def test_no_samples_are_no_sound() -> None:
    with pytest.raises(NoAudioStream):
        list(voice_chunks(Waveform(np.zeros(0, np.float32), 16_000), None, limits=LIMITS))
    with pytest.raises((NoAudioStream, UnreadableMedia)):
        chunks_of(make.audio_bytes(samples=np.zeros((1, 0), np.float32), sample_rate=16_000))


def test_a_picture_alone_is_no_voice() -> None:
    with pytest.raises(NoAudioStream):
        chunks_of(make.video_bytes(frames=3))


def test_the_duration_is_limited_by_what_is_heard_not_by_what_is_declared() -> None:
    data = make.audio_bytes(seconds=4.0, sample_rate=16_000)
    with pytest.raises(LimitExceeded, match="2 s"):
        chunks_of(data, limits=Limits(duration_s=2.0))


def test_a_chunk_is_not_handed_out_beyond_the_limit() -> None:
    heard = []
    with pytest.raises(LimitExceeded):
        for chunk in voice_chunks(Waveform(noise(9, rate=16_000), 16_000), None, limits=Limits(duration_s=5.0)):
            heard.append(chunk.duration)
    assert max(heard) <= 5.5


@pytest.mark.parametrize(("rate", "channels"), [(1_000, 1), (384_000, 1), (16_000, 9)])
def test_rates_and_channels_beyond_the_limits_are_refused(rate: int, channels: int) -> None:
    with pytest.raises(LimitExceeded):
        list(voice_chunks(Waveform(np.zeros((channels, 4_000), np.float32), rate), None, limits=LIMITS))


def test_decoding_has_a_wall_clock() -> None:
    with pytest.raises(DecodeTimeout):
        chunks_of(make.audio_bytes(), limits=Limits(wall_clock_min_s=1e-9, wall_clock_ratio=1e-9))


def test_the_wall_clock_stands_still_while_nobody_asks_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("lipsync.voice.decode.time.monotonic", lambda: now[0])
    blob = Blob.of(make.audio_bytes(seconds=3.0), limit_bytes=1 << 30)
    count = 0
    for _ in decode(blob, probe_voice(blob, LIMITS), limits=LIMITS):
        now[0] += 100.0
        count += 1
    assert count > 2


@pytest.mark.parametrize(
    ("container", "codec", "keep"),
    [("flac", "flac", 0.6), ("flac", "flac", 0.95), ("mp3", "libmp3lame", 0.6), ("flv", "libmp3lame", 0.6)],
)
def test_a_voice_that_was_cut_off_is_reported(container: str, codec: str, keep: float) -> None:
    data = make.audio_bytes(seconds=8.0, sample_rate=44_100, codec=codec, container=container)
    assert chunks_of(data)
    with pytest.raises(TruncatedMedia, match=r"declares 8\.\d\d s|in the middle of its last frame"):
        chunks_of(make.truncated(data, keep=keep))


@pytest.mark.parametrize("rate", [8_000, 192_000])
def test_a_flac_is_held_to_its_last_frames(rate: int) -> None:
    data = make.audio_bytes(samples=noise(4, rate=rate), sample_rate=rate, codec="flac", container="flac")
    assert float(chunks_of(data)[-1].duration) == 4.0
    with pytest.raises(TruncatedMedia):
        chunks_of(make.truncated(data, keep=0.9))


def test_a_flac_that_was_written_to_a_pipe_does_not_say_how_long_it_is() -> None:
    data = bytearray(make.audio_bytes(samples=noise(4, rate=48_000), codec="flac", container="flac"))
    count = int.from_bytes(data[21:26], "big") & ((1 << 36) - 1)
    assert count == 4 * 48_000
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    assert float(chunks_of(make.truncated(bytes(data), keep=0.8))[-1].duration) < 3.9


@pytest.mark.parametrize(("container", "codec"), [("mkv", "libx264"), ("webm", "libvpx")])
def test_a_matroska_whose_picture_goes_on_after_its_sound_is_whole(container: str, codec: str) -> None:
    data = make.video_bytes(frames=75, codec=codec, audio_seconds=1.5, container=container)
    assert float(chunks_of(data)[-1].duration) == pytest.approx(1.5, abs=0.05)


def test_a_matroska_whose_sound_starts_late_is_whole() -> None:
    data = delayed(make.audio_bytes(seconds=1.5, codec="aac", container="m4a"), audio_s=2.0, container="matroska")
    assert float(chunks_of(data)[-1].duration) == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize(("container", "codec"), [("mkv", "libx264"), ("webm", "libvpx")])
def test_a_matroska_that_was_cut_off_is_reported_before_it_is_decoded(container: str, codec: str) -> None:
    data = make.video_bytes(frames=75, codec=codec, audio_seconds=1.5, container=container)
    with pytest.raises(TruncatedMedia, match="declares"):
        probe_voice(Blob.of(make.truncated(data, keep=0.9), limit_bytes=1 << 30), LIMITS)


def test_of_an_flv_with_a_picture_the_sound_may_be_the_shorter_track() -> None:
    data = make.video_bytes(frames=100, audio_seconds=1.0, container="flv", audio_rate=44_100)
    assert float(chunks_of(data)[-1].duration) == pytest.approx(1.0, abs=0.1)


def test_a_damaged_packet_is_heard_as_silence_and_many_are_an_error() -> None:
    data = make.audio_bytes(seconds=4.0, codec="flac", container="flac", samples=noise(4, rate=48_000))
    random = np.random.default_rng(0)
    few, many = bytearray(data), bytearray(data)
    few[len(few) // 2 : len(few) // 2 + 40] = bytes(40)
    for at in random.integers(len(many) // 10, len(many), 4_000):
        many[at] ^= 0xFF
    assert abs(float(chunks_of(bytes(few))[-1].duration) - 4.0) < 0.25
    with pytest.raises(UnreadableMedia):
        chunks_of(bytes(many))


@pytest.mark.parametrize(
    ("samples", "rate"),
    [
        (np.zeros(100, np.int16), 16_000),
        (np.zeros((1, 2, 3), np.float32), 16_000),
        (np.zeros(100, np.float32), 16_000.5),
        (np.zeros(100, np.float32), True),
    ],
)
def test_a_waveform_that_cannot_be_a_voice_is_an_invalid_option(samples: F32, rate: int) -> None:
    with pytest.raises(InvalidOption):
        Waveform(samples, rate)


def test_the_lead_is_measured_in_exact_time() -> None:
    # 29.97 fps and 44.1 kHz have no common clock
    plain = make.video_bytes(frames=40, fps=Fraction(30_000, 1001), audio_seconds=1.3)
    before, rate = signal_of(plain)
    after, _ = signal_of(delayed(plain, audio_s=1001 / 30_000 * 10))
    assert abs(after.shape[1] - before.shape[1] - 1001 / 3_000 * rate) <= 2

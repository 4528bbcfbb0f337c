"""The voice in chunks: nothing lost, nothing late, nothing held; and the AAC that goes into the output."""

from __future__ import annotations

import itertools
import math
import pickle
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction

import av
import media_factory as make
import numpy as np
import pytest

from lipsync.core import F32, AudioPacket, VoiceChunk
from lipsync.media.probe import probe_voice
from lipsync.media.source import Blob
from lipsync.options import Limits
from lipsync.voice.aac import AAC_RATES_HZ, AacEncoder, aac_rate
from lipsync.voice.mel import SILENCE, mel_spectrogram
from lipsync.voice.resample import Resampler
from lipsync.voice.voice import Waveform, voice_chunks

LIMITS = Limits()


def wave(seconds: float, *, rate: int = 48_000, channels: int = 1) -> Waveform:
    random = np.random.default_rng(3)
    samples = 0.1 * random.standard_normal((channels, round(seconds * rate)))
    return Waveform(samples.astype(np.float32), rate)


def chunks_of(source: Waveform, *, chunk_s: float = 10.0, **span: Fraction) -> list[VoiceChunk]:
    return list(voice_chunks(source, None, limits=LIMITS, chunk_s=chunk_s, **span))


def packets_of(chunks: list[VoiceChunk]) -> list[AudioPacket]:
    return [packet for chunk in chunks for packet in chunk.packets]


def mel_of(chunks: list[VoiceChunk]) -> F32:
    return np.concatenate([chunk.mel for chunk in chunks], axis=1)


def decoded(chunks: list[VoiceChunk]) -> F32:
    """(channels, n): what a decoder makes of the packets, from time 0 on."""
    made = chunks[0].audio_format
    context = av.CodecContext.create("aac", "r")
    context.extradata = made.extradata
    parts = []
    for packet in packets_of(chunks):
        for frame in context.decode(av.Packet(packet.data)):
            parts.append(frame.to_ndarray())
    return np.concatenate(parts, axis=1)[:, 1_024:]


# ---------------------------------------------------------------- chunks


def test_the_first_chunk_is_small_and_the_others_are_as_long_as_asked() -> None:
    chunks = chunks_of(wave(8.3), chunk_s=2.0)
    lengths = np.diff([0.0, *(float(chunk.duration) for chunk in chunks)])
    assert 0.8 < lengths[0] < 1.1
    assert all(1.8 < length < 2.3 for length in lengths[1:-1])
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 192_000])
def test_the_length_is_exact_and_chunks_do_not_change_what_is_heard(rate: int) -> None:
    source = wave(3.21, rate=rate)
    few, many = chunks_of(source, chunk_s=60.0), chunks_of(source, chunk_s=0.3)
    assert len(many) > len(few) + 3
    assert few[-1].duration == many[-1].duration == Fraction(source.samples.shape[1], rate)
    assert np.array_equal(mel_of(few), mel_of(many))
    assert packets_of(few) == packets_of(many)
    assert mel_of(few).shape[1] == 1 + math.ceil(source.samples.shape[1] * 16_000 / rate) // 200


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8])
def test_the_mel_hears_the_average_of_all_channels(channels: int) -> None:
    source = wave(0.7, rate=16_000, channels=channels)
    assert np.array_equal(mel_of(chunks_of(source)), mel_spectrogram(source.samples.mean(axis=0)))


def test_a_chunk_lasts_as_long_as_its_packets_do() -> None:
    chunks = chunks_of(wave(5.0, rate=16_000), chunk_s=1.0)
    end = Fraction(0)
    for chunk in chunks:
        if chunk.packets:
            end = Fraction(chunk.packets[-1].pts + chunk.packets[-1].duration, chunk.audio_format.sample_rate_hz)
        assert chunk.duration <= end
    assert chunks[-1].duration == 5


def test_a_very_short_voice_has_fewer_columns_than_the_generator_hears_at_once() -> None:
    chunks = chunks_of(wave(0.1, rate=16_000))
    assert len(chunks) == 1
    assert chunks[0].is_last
    assert chunks[0].duration == Fraction(1, 10)
    assert chunks[0].mel.shape == (80, 9)
    assert len(chunks[0].packets) >= 2


def test_one_sample_is_a_voice() -> None:
    chunks = chunks_of(Waveform(np.array([0.5], np.float32), 8_000))
    assert chunks[-1].duration == Fraction(1, 8_000)
    assert mel_of(chunks).shape == (80, 1)
    assert packets_of(chunks)[0].pts == -1_024


def test_a_voice_is_padded_with_silence_or_cut_to_a_span() -> None:
    source = wave(2.0, rate=16_000)
    longer, shorter = chunks_of(source, at_least=Fraction(7, 2)), chunks_of(source, at_most=Fraction(5, 4))
    assert longer[-1].duration == Fraction(7, 2)
    assert (mel_of(longer)[:, 170:] == SILENCE).all()
    assert shorter[-1].duration == Fraction(5, 4)
    beyond = 20_000 + 4_000  # the mel hears a quarter of a second past the cut
    assert np.array_equal(mel_of(shorter), mel_spectrogram(source.samples[:, :beyond][0]))
    assert chunks_of(source, at_least=Fraction(1), at_most=Fraction(3))[-1].duration == 2


@pytest.mark.parametrize("frames", [1, 7, 50])
def test_a_span_of_whole_frames_stays_that_many_frames(frames: int) -> None:
    fps, source = Fraction(30_000, 1001), wave(1.0, rate=44_100)
    for span in ({"at_most": frames / fps}, {"at_least": (30 + frames) / fps}):
        expected = min(frames, 30) if "at_most" in span else 30 + frames
        assert math.ceil(chunks_of(source, **span)[-1].duration * fps) == expected


def test_cutting_stops_reading() -> None:
    class Endless(Waveform):
        def blocks(self) -> Iterator:  # type: ignore[type-arg]
            first = next(iter(super().blocks()))
            while True:
                yield first

    endless = Endless(wave(1.0).samples, 48_000)
    assert chunks_of(endless, at_most=Fraction(5, 2))[-1].duration == Fraction(5, 2)


def test_a_waveform_survives_pickling_and_a_file_of_it_sounds_the_same() -> None:
    source = wave(1.5, rate=16_000, channels=2)
    again = pickle.loads(pickle.dumps(source))
    data = make.audio_bytes(samples=source.samples, sample_rate=16_000, codec="pcm_f32le")
    blob = Blob.of(data, limit_bytes=1 << 30)
    from_file = list(voice_chunks(blob, probe_voice(blob, LIMITS), limits=LIMITS))
    assert packets_of(chunks_of(again)) == packets_of(from_file)
    assert np.array_equal(mel_of(chunks_of(again)), mel_of(from_file))


def test_mono_is_one_row_or_none() -> None:
    source = wave(0.5)
    flat = Waveform(source.samples[0], 48_000)
    assert packets_of(chunks_of(flat)) == packets_of(chunks_of(source))


def test_memory_does_not_grow_with_the_voice() -> None:
    def peak(seconds: float) -> int:
        tile = wave(10.0, rate=16_000).samples
        data = make.audio_bytes(samples=np.tile(tile, round(seconds / 10)), sample_rate=16_000)
        blob = Blob.of(data, limit_bytes=1 << 30)
        info = probe_voice(blob, LIMITS)
        del tile, data
        tracemalloc.start()
        for _ in voice_chunks(blob, info, limits=LIMITS):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10.0)
    assert peak(120.0) < peak(30.0) + 1_000_000


# ---------------------------------------------------------------- AAC


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        *((rate, rate) for rate in (8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000)),
        *((37_800, 32_000), (50_000, 48_000), (176_400, 96_000), (192_000, 96_000)),
    ],
)
def test_the_output_has_the_voices_own_rate_or_the_nearest_that_aac_knows(rate: int, expected: int) -> None:
    assert aac_rate(rate) == expected
    assert expected in AAC_RATES_HZ
    assert chunks_of(wave(0.2, rate=rate))[0].audio_format.sample_rate_hz == expected


@pytest.mark.parametrize(("rate", "channels"), [(48_000, 1), (16_000, 2), (44_100, 6), (50_000, 1), (192_000, 8)])
def test_packets_follow_each_other_from_the_priming_to_the_voices_end(rate: int, channels: int) -> None:
    source = wave(1.3, rate=rate, channels=channels)
    chunks = chunks_of(source, chunk_s=0.25)
    packets, made = packets_of(chunks), chunks[0].audio_format
    assert packets[0].pts == -1_024
    for before, after in itertools.pairwise(packets):
        assert after.pts == before.pts + before.duration
    end = packets[-1].pts + packets[-1].duration
    assert end == math.ceil(source.samples.shape[1] * Fraction(made.sample_rate_hz, rate))
    assert all(packet.data for packet in packets)


@pytest.mark.parametrize(
    ("layout", "channels", "kept"),
    [
        ("mono", 1, "mono"),
        ("1 channels", 1, "mono"),
        ("stereo", 2, "stereo"),
        ("2.1", 3, "stereo"),
        ("quad", 4, "stereo"),
        ("5.0(side)", 5, "5.0"),
        ("5.1", 6, "5.1"),
        ("5.1(side)", 6, "5.1"),
        ("7 channels", 7, "stereo"),
        ("7.1", 8, "7.1"),
        ("7.1(wide)", 8, "stereo"),
    ],
)
def test_channels_stay_where_aac_has_the_layout_and_become_stereo_elsewhere(
    layout: str, channels: int, kept: str
) -> None:
    encoder = AacEncoder(sample_rate_hz=44_100, layout=layout)
    assert encoder.format.layout == kept
    packets = encoder.feed(np.full((channels, 9_000), 0.1, np.float32)) + encoder.finish()
    assert packets[-1].pts + packets[-1].duration == 9_000
    assert encoder.format.bit_rate_bps <= 64_000 * max(2.5, channels)


def test_a_mix_to_stereo_keeps_the_sides_and_cannot_exceed_the_loudest() -> None:
    rate, names = 48_000, [channel.name for channel in av.AudioLayout("quad").channels]
    t = np.arange(rate) / rate
    samples = np.zeros((4, rate), np.float32)
    samples[names.index("FL")] = np.sin(2 * np.pi * 500 * t)
    samples[names.index("BR")] = np.sin(2 * np.pi * 900 * t)
    encoder = AacEncoder(sample_rate_hz=rate, layout="quad")
    packets = tuple(encoder.feed(samples) + encoder.finish())
    heard = decoded([VoiceChunk(np.empty((80, 0), np.float32), packets, encoder.format, Fraction(1), True)])
    left, right = (np.abs(np.fft.rfft(channel[4_096 : 4_096 + rate // 2])) for channel in heard)
    assert np.argmax(left) == 250
    assert np.argmax(right) == 450
    assert np.abs(heard).max() <= 1.0


@pytest.mark.parametrize("rate", [16_000, 44_100, 50_000])
def test_the_output_sounds_like_the_voice_and_starts_with_it(rate: int) -> None:
    t = np.arange(2 * rate) / rate
    samples = (0.4 * np.sin(2 * np.pi * (200 + 600 * t) * t)).astype(np.float32)
    chunks = chunks_of(Waveform(samples, rate))
    heard = decoded(chunks)[0]
    made_rate = chunks[0].audio_format.sample_rate_hz
    resampler = Resampler(rate, made_rate, channels=1)
    expected = np.concatenate([resampler.feed(samples[None]), resampler.finish()], axis=1)[0]
    heard = heard[: len(expected)]
    assert np.corrcoef(heard, expected)[0, 1] > 0.995
    assert np.correlate(heard[1_000:-1_000], expected[950:-950], "valid").argmax() == 50


def test_sound_beyond_full_scale_is_cut_off_and_does_not_stop_the_encoder() -> None:
    loud = Waveform(np.float32(1e30) * np.sign(wave(0.5).samples), 48_000)
    assert chunks_of(loud)[-1].duration == Fraction(1, 2)


def test_equal_voices_make_equal_packets() -> None:
    source = wave(1.0, rate=44_100, channels=2)
    assert packets_of(chunks_of(source)) == packets_of(chunks_of(source))

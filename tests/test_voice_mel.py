"""The mel spectrogram against librosa's own, against the reference's known numbers, and against itself in pieces."""

from __future__ import annotations

import subprocess
import sys

import librosa
import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync.core import F32
from lipsync.voice.mel import SILENCE, MelStream, PadMode, mel_spectrogram

MODES: tuple[PadMode, ...] = ("constant", "reflect")


def speechlike(seconds: float, *, seed: int = 0) -> F32:
    """(n,) float32 at 16 kHz: tones that come and go over noise."""
    n = round(seconds * 16_000)
    t = np.arange(n) / 16_000
    noise = np.random.default_rng(seed).standard_normal(n)
    tones = sum(np.sin(2 * np.pi * hz * t) for hz in (140, 700, 1_900, 5_000))
    return (0.1 * tones * (np.sin(2 * np.pi * 3 * t) > 0) + 0.01 * noise).astype(np.float32)


def reference_mel(samples: F32, pad_mode: str) -> F32:
    """The reference's recipe written down with librosa and scipy, step by step."""
    emphasised = scipy.signal.lfilter([1, -0.97], [1], samples)
    spectrum = np.abs(librosa.stft(y=emphasised, n_fft=800, hop_length=200, win_length=800, pad_mode=pad_mode))
    bands = np.dot(librosa.filters.mel(sr=16_000, n_fft=800, n_mels=80, fmin=55, fmax=7600), spectrum)
    level = 20 * np.log10(np.maximum(1e-5, bands)) - 20
    return np.clip(8 * ((level + 100) / 100) - 4, -4, 4).astype(np.float32)


def in_pieces(samples: F32, sizes: list[int], pad_mode: PadMode) -> F32:
    stream, columns, at = MelStream(pad_mode=pad_mode), [], 0
    for size in [*sizes, len(samples)]:
        columns.append(stream.feed(samples[at : at + size]))
        at += size
    return np.concatenate([*columns, stream.finish()], axis=1)


@pytest.mark.parametrize("pad_mode", MODES)
@pytest.mark.parametrize("samples", [801, 1_600, 3_000, 12_345, 80_000])
def test_the_mel_is_the_references_to_the_last_bit_that_matters(samples: int, pad_mode: PadMode) -> None:
    voice = speechlike(samples / 16_000)
    ours, theirs = mel_spectrogram(voice, pad_mode=pad_mode), reference_mel(voice, pad_mode)
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    assert np.ptp(ours) > 3  # the voice is not silence
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("samples", [1, 199, 200, 201, 399, 400, 3_000, 160_000])
@pytest.mark.parametrize("pad_mode", MODES)
def test_there_is_one_column_more_than_hops(samples: int, pad_mode: PadMode) -> None:
    assert mel_spectrogram(np.zeros(samples, np.float32), pad_mode=pad_mode).shape == (80, 1 + samples // 200)


def test_silence_is_minus_four_exactly() -> None:
    assert np.array_equal(mel_spectrogram(np.zeros(1_000, np.float32)), np.full((80, 6), SILENCE, np.float32))


def test_the_loudest_sound_is_four() -> None:
    assert mel_spectrogram(50 * speechlike(1)).max() == 4.0


def test_padding_changes_the_two_columns_at_each_edge_and_no_other() -> None:
    zeros, mirrored = (mel_spectrogram(speechlike(1), pad_mode=mode) for mode in MODES)
    changed = np.flatnonzero((zeros != mirrored).any(axis=0))
    assert set(changed) == {0, 1, zeros.shape[1] - 2, zeros.shape[1] - 1}


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 9_000),
    sizes=st.lists(st.integers(0, 2_500), max_size=12),
    pad_mode=st.sampled_from(MODES),
)
def test_pieces_make_the_same_columns_bit_for_bit(samples: int, sizes: list[int], pad_mode: PadMode) -> None:
    voice = speechlike(samples / 16_000, seed=samples)
    assert np.array_equal(in_pieces(voice, sizes, pad_mode), mel_spectrogram(voice, pad_mode=pad_mode))


def test_columns_come_out_as_soon_as_a_block_of_them_is_final() -> None:
    stream = MelStream()
    columns = stream.feed(speechlike(1))
    assert columns.shape[1] == (16_000 - 400) // 200 // 16 * 16
    assert np.array_equal(columns, mel_spectrogram(speechlike(2))[:, : columns.shape[1]])


def test_a_long_voice_is_not_kept() -> None:
    stream = MelStream()
    for _ in range(50):
        stream.feed(speechlike(0.5))
    held = sum(value.nbytes for value in vars(stream).values() if isinstance(value, np.ndarray))
    assert held < 16 * 200 * 8 + 2 * 800 * 8


@pytest.mark.serial
def test_after_warm_up_the_first_mel_of_a_fresh_process_takes_no_time() -> None:
    script = (
        "import time, numpy as np\n"
        "from lipsync.voice.mel import mel_spectrogram, warm_up\n"
        "warm_up(); samples = np.ones(16_000, np.float32); started = time.process_time()\n"
        "mel_spectrogram(samples); print(time.process_time() - started)\n"
    )
    spent_s = float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert spent_s < 0.2

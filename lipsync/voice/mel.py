"""The log-mel spectrogram that the generator hears: 80 bands, 80 columns a second, at once or as sound arrives."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np

from lipsync.core import F32, F64

PadMode = Literal["constant", "reflect"]

SAMPLE_RATE_HZ = 16_000
COLUMNS_PER_S = 80
BANDS = 80
SILENCE = -4.0
"""The value of every band where nothing is heard; also what a caller pads with outside [0, T)."""

_WINDOW, _HOP = 800, 200
_EDGE = _WINDOW // 2
_PRE_EMPHASIS = 0.97
_FLOOR, _REFERENCE_DB, _RANGE_DB = 1e-5, 20.0, 100.0
_BLOCK_COLUMNS = 16


def mel_spectrogram(samples_16k: F32, *, pad_mode: PadMode = "constant") -> F32:
    """(80, T) float32 in -4…4 of a mono signal (n,) at 16 kHz, with T = 1 + n // 200.

    A voice shorter than 0.1875 s has fewer than the 16 columns that the generator hears at once; T is left as it is
    and the caller pads with SILENCE.
    """
    stream = MelStream(pad_mode=pad_mode)
    return np.concatenate([stream.feed(samples_16k), stream.finish()], axis=1)


def warm_up() -> None:
    """Import librosa's filters and make one column, so that the first voice does not wait a second for it."""
    mel_spectrogram(np.zeros(_HOP, np.float32))


class MelStream:
    """The same columns as ``mel_spectrogram``, bit for bit, from samples in pieces of any size; memory is constant.

    Column t is final once sample 200 t + 399 was heard. Columns are always computed in blocks that begin at a
    multiple of 16, because a matrix product rounds differently at different shapes; up to 15 final columns wait.
    """

    def __init__(self, *, pad_mode: PadMode = "constant") -> None:
        self._pad_mode = pad_mode
        self._last_sample = np.zeros(1, np.float32)
        self._signal: F64 = np.empty(0)  # emphasised, padded on the left once it has begun, from the next column on
        self._has_begun = False
        self._heard = 0
        self._emitted = 0

    def feed(self, samples_16k: F32) -> F32:
        """(80, m) float32: the columns that are now final. ``samples_16k`` is (n,) mono at 16 kHz."""
        if not len(samples_16k):
            return _no_columns()
        before = np.concatenate([self._last_sample, samples_16k[:-1]]).astype(np.float64)
        self._last_sample = samples_16k[-1:].astype(np.float32)
        self._heard += len(samples_16k)
        self._signal = np.concatenate([self._signal, samples_16k.astype(np.float64) + -_PRE_EMPHASIS * before])
        if not self._has_begun:
            if len(self._signal) <= _EDGE:
                return _no_columns()
            self._signal = np.concatenate([self._left_edge(), self._signal])
            self._has_begun = True
        complete = (len(self._signal) - _WINDOW) // _HOP + 1
        return self._take(max(0, complete) // _BLOCK_COLUMNS * _BLOCK_COLUMNS)

    def finish(self) -> F32:
        """(80, m) float32: the rest, so that 1 + n // 200 columns came out in all."""
        mode = self._pad_mode
        if not self._heard:
            self._signal = np.zeros(_WINDOW)
        elif self._has_begun:
            tail = np.zeros(_EDGE) if mode == "constant" else self._signal[-2 : -_EDGE - 2 : -1]
            self._signal = np.concatenate([self._signal, tail])
        else:
            self._signal = np.pad(self._signal, _EDGE, mode=mode)
        return self._take(1 + self._heard // _HOP - self._emitted)

    def _left_edge(self) -> F64:
        return np.zeros(_EDGE) if self._pad_mode == "constant" else self._signal[_EDGE:0:-1]

    def _take(self, count: int) -> F32:
        """The next ``count`` columns of the signal, which is then dropped as far as no later column needs it."""
        blocks = [_no_columns()]
        for first in range(0, count, _BLOCK_COLUMNS):
            width = min(_BLOCK_COLUMNS, count - first)
            blocks.append(_columns(self._signal[first * _HOP :], width))
        self._signal = self._signal[count * _HOP :]
        self._emitted += count
        return np.concatenate(blocks, axis=1)


def _columns(signal: F64, count: int) -> F32:
    """(80, count) float32 from windows of the padded signal; computed as a whole block whatever ``count`` is."""
    windows = np.zeros((_BLOCK_COLUMNS, _WINDOW))
    windows[:count] = np.lib.stride_tricks.sliding_window_view(signal, _WINDOW)[: count * _HOP : _HOP]
    magnitude = np.abs(np.fft.rfft(windows * _hann(), axis=1))  # (16, 401) float64
    energy = _filters() @ magnitude.T  # (80, 16) float64
    level_db = 20.0 * np.log10(np.maximum(_FLOOR, energy)) - _REFERENCE_DB
    normal = np.clip(8.0 * ((level_db + _RANGE_DB) / _RANGE_DB) - 4.0, -4.0, 4.0)
    return normal[:, :count].astype(np.float32)


@cache
def _filters() -> F64:
    """(80, 401): librosa's Slaney filters, rounded to float32 as librosa gives them, for a product in float64."""
    from librosa.filters import mel

    matrix: F64 = mel(sr=SAMPLE_RATE_HZ, n_fft=_WINDOW, n_mels=BANDS, fmin=55, fmax=7600).astype(np.float64)
    return matrix


@cache
def _hann() -> F64:
    from librosa.filters import get_window

    window: F64 = get_window("hann", _WINDOW, fftbins=True)
    return window


def _no_columns() -> F32:
    return np.empty((BANDS, 0), np.float32)

"""Sample-rate conversion of sound that arrives in pieces; the same samples as librosa.load makes of the whole."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import soxr

from lipsync.core import F32


class Resampler:
    """From one rate to another with soxr HQ, in pieces of any size; equal rates pass through untouched.

    N samples in come to ceil(N · out / in) samples out, as in librosa: soxr's own count is cut, or filled with zeros.
    """

    def __init__(self, rate_in_hz: int, rate_out_hz: int, *, channels: int) -> None:
        self._ratio = Fraction(rate_out_hz, rate_in_hz)
        self._channels = channels
        self._taken = 0
        self._given = 0
        self._stream = None
        if rate_in_hz != rate_out_hz:
            self._stream = soxr.ResampleStream(rate_in_hz, rate_out_hz, channels, dtype="float32", quality="HQ")

    def feed(self, samples: F32) -> F32:
        """(channels, m) float32 for (channels, n) float32; m lags behind."""
        self._taken += samples.shape[1]
        if self._stream is None:
            return samples
        return self._count(self._convert(samples, last=False))

    def finish(self) -> F32:
        """(channels, m) float32: the rest."""
        nothing: F32 = np.zeros((self._channels, 0), np.float32)
        if self._stream is None:
            return nothing
        rest = self._convert(nothing, last=True)
        missing = math.ceil(self._taken * self._ratio) - self._given - rest.shape[1]
        if missing > 0:
            rest = np.concatenate([rest, np.zeros((self._channels, missing), np.float32)], axis=1)
        return self._count(rest)

    def _convert(self, samples: F32, *, last: bool) -> F32:
        assert self._stream is not None
        shaped = np.ascontiguousarray(samples.T) if self._channels > 1 else samples[0]
        converted: F32 = self._stream.resample_chunk(shaped, last=last)
        return converted.reshape(-1, self._channels).T

    def _count(self, samples: F32) -> F32:
        room = math.ceil(self._taken * self._ratio) - self._given
        samples = samples[:, :room]
        self._given += samples.shape[1]
        return samples

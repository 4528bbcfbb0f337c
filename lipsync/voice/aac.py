"""The voice as it goes into the output: AAC packets, made as the sound arrives by one encoder for the whole voice."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

from lipsync.core import F32, AudioFormat, AudioPacket
from lipsync.voice.resample import Resampler

AAC_RATES_HZ = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350)
_FRAME = 1024
_KEPT_LAYOUTS = {
    "mono": "mono", "1 channels": "mono",
    "stereo": "stereo", "2 channels": "stereo", "downmix": "stereo",
    "3.0": "3.0", "4.0": "4.0", "5.0": "5.0", "5.0(side)": "5.0",
    "5.1": "5.1", "5.1(side)": "5.1", "7.1": "7.1",
}  # fmt: skip
"""Layouts that AAC numbers itself, so that every player knows them; the others are mixed down to stereo."""
_HALF = float(np.sqrt(0.5))


def aac_rate(sample_rate_hz: int) -> int:
    """The rate nearest to the voice's own that AAC knows; the lower one of two that are as near."""
    return min(AAC_RATES_HZ, key=lambda rate: (abs(rate - sample_rate_hz), rate))


class AacEncoder:
    """One voice's AAC stream, in pieces of any size; memory is constant.

    The first packet has pts -1024: FFmpeg's encoder is primed with as many samples of silence. Pieces of other sizes
    make the same packets. Samples beyond -1…1 are cut off there, as a player would.
    """

    def __init__(self, *, sample_rate_hz: int, layout: str) -> None:
        rate = aac_rate(sample_rate_hz)
        self._mix = None if layout in _KEPT_LAYOUTS else _stereo_mix(layout)
        name = _KEPT_LAYOUTS.get(layout, "stereo")
        channels = av.AudioLayout(name).nb_channels
        self._context = av.CodecContext.create("aac", "w")
        self._context.sample_rate = rate
        self._context.layout = name
        self._context.format = "fltp"
        self._context.time_base = Fraction(1, rate)
        self._context.bit_rate = {1: 96_000, 2: 160_000}.get(channels, 64_000 * channels)
        # WHY: at these bit rates nearer to real recordings than the default coder, for less than half its work
        self._context.options = {"aac_coder": "fast"}
        self._context.open()
        # low rates allow less than was asked for: the context knows what it will use
        self.format = AudioFormat(rate, name, self._context.extradata or b"", self._context.bit_rate or 0)
        self._resampler = Resampler(sample_rate_hz, rate, channels=channels)
        self._pending: F32 = np.zeros((channels, 0), np.float32)
        self._encoded = 0

    def feed(self, samples: F32) -> list[AudioPacket]:
        """The packets that are now ready; ``samples`` is (channels of the layout, n) float32 at the voice's rate."""
        mixed = samples if self._mix is None else self._mix @ samples
        return self._encode(self._resampler.feed(mixed), is_last=False)

    def finish(self) -> list[AudioPacket]:
        """The rest. The last packet's duration ends where the voice ends."""
        return self._encode(self._resampler.finish(), is_last=True) + self._packets(None)

    def _encode(self, samples: F32, *, is_last: bool) -> list[AudioPacket]:
        waiting = np.concatenate([self._pending, np.clip(samples, -1.0, 1.0)], axis=1)
        whole = waiting.shape[1] if is_last else waiting.shape[1] // _FRAME * _FRAME
        packets: list[AudioPacket] = []
        for first in range(0, whole, _FRAME):
            packets += self._packets(waiting[:, first : min(first + _FRAME, whole)])
        self._pending = waiting[:, whole:].copy()
        return packets

    def _packets(self, samples: F32 | None) -> list[AudioPacket]:
        frame = None
        if samples is not None:
            # packed, since a frame cannot be made from eight planes
            packed = np.ascontiguousarray(samples.T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=self.format.layout)
            frame.sample_rate = self.format.sample_rate_hz
            frame.pts, frame.time_base = self._encoded, Fraction(1, self.format.sample_rate_hz)
            self._encoded += samples.shape[1]
        return [
            AudioPacket(packet.pts or 0, packet.duration or _FRAME, bytes(packet))
            for packet in self._context.encode(frame)
        ]


def _stereo_mix(layout: str) -> F32:
    """(2, channels): left to the left, centres and unknown channels to both, scaled so that nothing can exceed 1."""
    gains = np.array([_gains(channel.name) for channel in av.AudioLayout(layout).channels], np.float64).T
    mix: F32 = (gains / max(1e-9, float(gains.sum(axis=1).max()))).astype(np.float32)
    return mix


def _gains(name: str) -> tuple[float, float]:
    """How loud a channel is on the left and on the right."""
    if name.startswith("LFE"):
        return 0.0, 0.0
    if name in ("FL", "DL", "FLC", "WL"):
        return 1.0, 0.0
    if name in ("FR", "DR", "FRC", "WR"):
        return 0.0, 1.0
    if name.endswith("L"):
        return _HALF, 0.0
    if name.endswith("R"):
        return 0.0, _HALF
    return _HALF, _HALF

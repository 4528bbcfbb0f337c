"""The voice as the pipeline takes it: chunks of mel columns and AAC packets, while the rest is still being decoded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lipsync.core import F32, AudioPacket, MediaInfo, VoiceChunk
from lipsync.errors import InvalidOption, LimitExceeded, NoAudioStream, NonFiniteAudio
from lipsync.media.source import Blob
from lipsync.options import Limits
from lipsync.voice.aac import AacEncoder
from lipsync.voice.decode import Block, decode
from lipsync.voice.mel import SAMPLE_RATE_HZ, MelStream, PadMode
from lipsync.voice.resample import Resampler

FIRST_CHUNK_S = 1.0
HEARD_AHEAD_S = Fraction(1, 4)  # a little more than a mel window
_PADDING_S = 0.5  # a decoder may give this much more than was declared: padding of the last packets
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}  # by count; other counts are mixed down evenly


@dataclass(frozen=True, slots=True, eq=False)
class Waveform:
    """A voice that is already in memory: float samples in -1…1, (n,) mono or (channels, n).

    Raises InvalidOption where the array or the rate cannot be a voice.
    """

    samples: F32
    sample_rate_hz: int

    def __post_init__(self) -> None:
        samples = np.asarray(self.samples)
        if samples.dtype.kind != "f":
            raise InvalidOption(f"The waveform holds {samples.dtype}; give floats in -1…1 (int16: divide by 32768).")
        if samples.ndim not in (1, 2):
            raise InvalidOption(f"The waveform has the shape {samples.shape}; give (samples,) or (channels, samples).")
        if isinstance(self.sample_rate_hz, bool) or not isinstance(self.sample_rate_hz, int | np.integer):
            raise InvalidOption(
                f"The sample rate must be a whole number of samples per second, not {self.sample_rate_hz!r}."
            )
        object.__setattr__(self, "samples", samples)
        object.__setattr__(self, "sample_rate_hz", int(self.sample_rate_hz))

    def blocks(self) -> Iterator[Block]:
        """The samples in blocks of a quarter of a second."""
        samples = self.samples[None] if self.samples.ndim == 1 else self.samples
        channels, step = samples.shape[0], max(1, math.ceil(self.sample_rate_hz / 4))
        layout = _LAYOUTS.get(channels, f"{channels} channels")
        for first in range(0, samples.shape[1], step):
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as that
                block = samples[:, first : first + step].astype(np.float32)
            yield Block(block, self.sample_rate_hz, layout)


def voice_chunks(
    source: Blob | Waveform,
    info: MediaInfo | None,
    *,
    limits: Limits,
    mel_pad_mode: PadMode = "constant",
    chunk_s: float = 10.0,
    at_least: Fraction | None = None,
    at_most: Fraction | None = None,
    ahead: Fraction = Fraction(0),
    shown_from: Fraction | None = None,
) -> Iterator[VoiceChunk]:
    """The voice in order: a first chunk after about a second, then one every ``chunk_s``; memory is constant.

    ``info`` is what ``probe_voice`` says of a blob; None for a waveform. ``at_least`` and ``at_most`` (seconds) pad the
    voice with silence and cut it; the mel of a voice that is cut goes on for ``HEARD_AHEAD_S`` and ``ahead``, because a
    mouth moves ahead of its sound. A chunk's ``duration`` is how much of the voice its packets and those before it
    cover, and on the last chunk the exact length of the voice, whose last packet may hold a little more. A voice under
    0.1875 s has fewer than 16 mel columns in all; pad with ``mel.SILENCE``. ``shown_from`` is that of ``decode``.

    Raises NoAudioStream, NonFiniteAudio, LimitExceeded (while decoding, whatever the headers declared), and the errors
    of ``decode``.
    """
    heard_until = None if at_most is None else at_most + HEARD_AHEAD_S + ahead
    blocks = _cut(_checked(_blocks(source, info, limits, shown_from), limits), at_least=at_least, at_most=heard_until)
    yield from _chunks(_gathered(blocks), mel_pad_mode=mel_pad_mode, chunk_s=chunk_s, at_most=at_most)


def _blocks(
    source: Blob | Waveform, info: MediaInfo | None, limits: Limits, shown_from: Fraction | None
) -> Iterator[Block]:
    if isinstance(source, Waveform):
        return source.blocks()
    if info is None:
        raise ValueError("a blob needs the MediaInfo that probe_voice gives")
    return decode(source, info, limits=limits, shown_from=shown_from)


def _checked(blocks: Iterable[Block], limits: Limits) -> Iterator[Block]:
    """The blocks, held to the limits as they come: headers may say anything."""
    count = 0
    for block in blocks:
        if not count:
            _check_format(block, limits)
        count += block.samples.shape[1]
        if count > (limits.duration_s + _PADDING_S) * block.sample_rate_hz:
            raise LimitExceeded(f"The voice lasts more than {limits.duration_s:g} s, the most allowed. Shorten it.")
        if not np.isfinite(block.samples).all():
            at_s = (count - block.samples.shape[1]) / block.sample_rate_hz
            raise NonFiniteAudio(f"The voice holds NaN or infinite samples (near {at_s:.2f} s). Export it again.")
        yield block
    if not count:
        raise NoAudioStream("The voice has 0 samples. Send a voice with sound.")


def _check_format(block: Block, limits: Limits) -> None:
    rate, channels = block.sample_rate_hz, block.samples.shape[0]
    if not limits.min_sample_rate_hz <= rate <= limits.max_sample_rate_hz:
        raise LimitExceeded(
            f"The voice has {rate} samples per second; {limits.min_sample_rate_hz} to {limits.max_sample_rate_hz} are "
            "allowed. Resample it."
        )
    if not 1 <= channels <= limits.channels:
        raise LimitExceeded(f"The voice has {channels} channels; 1 to {limits.channels} are allowed. Mix it down.")


def _cut(blocks: Iterable[Block], *, at_least: Fraction | None, at_most: Fraction | None) -> Iterator[Block]:
    """The blocks up to ``at_most`` seconds, then silence up to ``at_least``."""
    count, block = 0, None
    for block in blocks:
        room = block.samples.shape[1] if at_most is None else math.floor(at_most * block.sample_rate_hz) - count
        taken = block.samples[:, :room]
        count += taken.shape[1]
        yield Block(taken, block.sample_rate_hz, block.layout)
        if room <= block.samples.shape[1] and at_most is not None:
            break
    if block is None or at_least is None:
        return
    missing = math.floor(at_least * block.sample_rate_hz) - count
    while missing > 0:
        silence = np.zeros((block.samples.shape[0], min(missing, block.sample_rate_hz)), np.float32)
        missing -= silence.shape[1]
        yield Block(silence, block.sample_rate_hz, block.layout)


def _gathered(blocks: Iterable[Block]) -> Iterator[Block]:
    """The same sound in blocks of a quarter of a second or more: codec frames are small, and each call costs."""
    held: list[Block] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += block.samples.shape[1]
        if count * 4 >= block.sample_rate_hz:
            yield _joined(held)
            held, count = [], 0
    if held:
        yield _joined(held)


def _joined(blocks: list[Block]) -> Block:
    first = blocks[0]
    samples = np.concatenate([block.samples for block in blocks], axis=1)
    return Block(samples, first.sample_rate_hz, first.layout)


def _chunks(
    blocks: Iterable[Block], *, mel_pad_mode: PadMode, chunk_s: float, at_most: Fraction | None
) -> Iterator[VoiceChunk]:
    making: _Making | None = None
    due_s = FIRST_CHUNK_S
    for block in blocks:
        making = making or _Making(block, pad_mode=mel_pad_mode, at_most=at_most)
        making.feed(block.samples)
        if making.heard >= due_s:
            yield making.chunk(is_last=False)
            due_s = float(making.heard) + chunk_s
    if making is not None:
        making.finish()
        yield making.chunk(is_last=True)


class _Making:
    """What the next chunk holds so far, and the three streams that fill it."""

    def __init__(self, first: Block, *, pad_mode: PadMode, at_most: Fraction | None) -> None:
        self._rate = first.sample_rate_hz
        self._most = None if at_most is None else math.floor(at_most * self._rate)
        self._to_16k = Resampler(self._rate, SAMPLE_RATE_HZ, channels=1)
        self._mel = MelStream(pad_mode=pad_mode)
        self._aac = AacEncoder(sample_rate_hz=self._rate, layout=first.layout)
        self._count = 0
        self._covered = Fraction(0)
        self._columns: list[F32] = []
        self._packets: list[AudioPacket] = []

    @property
    def heard(self) -> Fraction:
        return Fraction(self._count, self._rate)

    def feed(self, samples: F32) -> None:
        spoken = samples if self._most is None else samples[:, : self._most - self._count]
        self._count += spoken.shape[1]
        mono = samples.mean(axis=0, keepdims=True)  # as librosa.load(mono=True)
        self._columns.append(self._mel.feed(self._to_16k.feed(mono)[0]))
        if spoken.shape[1]:
            self._packets += self._aac.feed(spoken)

    def finish(self) -> None:
        self._columns += [self._mel.feed(self._to_16k.finish()[0]), self._mel.finish()]
        self._packets += self._aac.finish()

    def chunk(self, *, is_last: bool) -> VoiceChunk:
        if self._packets:
            last = self._packets[-1]
            self._covered = max(Fraction(0), Fraction(last.pts + last.duration, self._aac.format.sample_rate_hz))
        chunk = VoiceChunk(
            mel=np.concatenate(self._columns, axis=1),
            packets=tuple(self._packets),
            audio_format=self._aac.format,
            duration=self.heard if is_last else min(self.heard, self._covered),
            is_last=is_last,
        )
        self._columns, self._packets = [], []
        return chunk

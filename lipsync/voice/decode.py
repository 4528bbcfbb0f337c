"""The voice of a media file as plain sound: one unbroken signal at one rate, decoded a little at a time.

Where the sound starts. The voice begins with the file's first sample, whatever timestamp that has: live recordings
and broadcast streams begin at any hour. Only beside a picture is the distance to it kept: sound that starts after
the video's first frame is led in by silence. Where a clip is face and voice both, what sounds before its first frame is
left out, so that it stays in step with itself; another face's voice loses no word for having begun early.
Gaps later on (lost packets, a recorder that paused) are filled with silence, as a player does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import av.container
import numpy as np

from lipsync.core import F32, MediaInfo
from lipsync.errors import DecodeTimeout, NoAudioStream, TruncatedMedia, UnreadableMedia
from lipsync.media.container import audio_stream, media_errors, open_demuxer, video_stream
from lipsync.media.source import Blob
from lipsync.media.structure import fragments_duration_s
from lipsync.options import Limits

_SHORTEST_GAP_S = Fraction(1, 10)  # less is the jitter of recorders' timestamps
_LONGEST_PADDING = 2048  # samples that a last packet may hold beyond the sound's end
_DURATION_IS_COUNTED = frozenset({"mov", "flac", "aiff", "w64", "caf", "avi", "au", "wv", "tta"})
"""Elsewhere it is estimated, or, as in Matroska, that of the longest track, which may be a picture or subtitles."""
_SCALES = {"u8": 128.0, "s16": 32768.0, "s32": 2147483648.0, "flt": 1.0, "dbl": 1.0}


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A stretch of sound. All blocks of one voice have the same rate and layout."""

    samples: F32  # (channels, n), nominally in -1…1
    sample_rate_hz: int
    layout: str
    """FFmpeg's name of the channel layout, such as "stereo"; "3 channels" where their meaning is unknown."""


def decode(blob: Blob, info: MediaInfo, *, limits: Limits, shown_from: Fraction | None = None) -> Iterator[Block]:
    """The sound of a probed input, in blocks of a codec frame or so; encoder priming is left out.

    ``shown_from`` is given where the input's own picture is shown with it: the time of the first frame shown, by the
    file's timestamps. The sound then begins there.

    A packet that cannot be decoded is heard as silence. The wall clock counts only time spent in here. Raises
    NoAudioStream where there is no sample, UnreadableMedia where more than a tenth is damaged, TruncatedMedia where
    there is less than the headers count, DecodeTimeout.
    """
    clock = _Clock(limits)
    with open_demuxer(blob, info.container) as container, media_errors("decode the voice"):
        stream = audio_stream(container)
        if stream is None:
            raise NoAudioStream("The voice input has no sound track. Send a sound file, or a video with sound.")
        starts_at = _picture_start(container) if shown_from is None else shown_from
        joiner = _Joiner(starts_at=starts_at, leaves_out_earlier=shown_from is not None)
        frames = _trimmed(_frames(container, stream, clock), end=_counted_end(stream, info))
        for block in joiner.join(frames):
            clock.pause()
            yield block
            clock.resume(heard_s=joiner.heard_s)
        if joiner.heard_s == 0:
            raise NoAudioStream("The voice's sound track is empty: 0 samples. Send a file with sound.")
        _check_whole(joiner, info, declared_s=_declared_s(blob, container, stream, info))


class _Clock:
    """A wall clock that stands still while the consumer works: waiting for a busy renderer is no fault of the input."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._allowed_s = limits.wall_clock_s(0.0)
        self._spent_s = 0.0
        self._since = time.monotonic()

    def pause(self) -> None:
        self._spent_s += time.monotonic() - self._since

    def resume(self, *, heard_s: float) -> None:
        self._since = time.monotonic()
        self._allowed_s = self._limits.wall_clock_s(heard_s)

    def check(self) -> None:
        if self._spent_s + time.monotonic() - self._since > self._allowed_s:
            raise DecodeTimeout(
                f"Decoding the voice took longer than {self._allowed_s:g} s, the limit. Send a shorter or simpler file."
            )


def _frames(container: av.container.InputContainer, stream: av.AudioStream, clock: _Clock) -> Iterator[av.AudioFrame]:
    decoded = damaged = 0
    for packet in container.demux(stream):
        clock.check()
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            damaged += 1
            continue
        for frame in frames:
            decoded += 1
            if frame.samples:
                yield frame
    if damaged * 10 > damaged + decoded and damaged > 1:
        raise UnreadableMedia(
            f"{damaged} of the voice's {damaged + decoded} packets cannot be decoded. Re-encode the file."
        )


def _trimmed(frames: Iterable[av.AudioFrame], *, end: Fraction | None) -> Iterator[tuple[av.AudioFrame, int]]:
    """Each frame with how many of its samples count: the last one without the padding that an encoder added."""
    held: av.AudioFrame | None = None
    for frame in frames:
        if held is not None:
            yield held, held.samples
        held = frame
    if held is None:
        return
    count, start = held.samples, _start_of(held)
    if end is not None and start is not None:
        excess = round((start - end) * held.sample_rate) + count
        if 0 < excess < count and excess <= _LONGEST_PADDING:
            count -= excess
    yield held, count


class _Joiner:
    """Makes one signal of decoded frames: at the first frame's rate and layout, gaps filled with silence."""

    def __init__(self, *, starts_at: Fraction | None, leaves_out_earlier: bool) -> None:
        self._starts_at = starts_at
        self._leaves_out_earlier = leaves_out_earlier
        self._early = 0  # samples to be left out yet
        self._rate = 0
        self._channels = 0
        self._layout = ""
        self._expected: Fraction | None = None
        self._converter: av.AudioResampler | None = None
        self._converts: tuple[str, str, int] | None = None
        self._count = 0
        self.longest_frame_s = 0.0

    @property
    def heard_s(self) -> float:
        return self._count / self._rate if self._rate else 0.0

    def join(self, frames: Iterable[tuple[av.AudioFrame, int]]) -> Iterator[Block]:
        for frame, count in frames:
            if not self._rate:
                self._begin(frame)
            self.longest_frame_s = max(self.longest_frame_s, count / frame.sample_rate)
            start = _start_of(frame)
            yield from self._silence_before(start)
            begins = start if start is not None else self._expected
            self._expected = None if begins is None else begins + Fraction(count, frame.sample_rate)
            yield from self._blocks(self._converted(frame, count))
        if self._converter is not None:
            yield from self._blocks([_as_float(frame) for frame in self._converter.resample(None)])

    def _begin(self, frame: av.AudioFrame) -> None:
        self._rate, self._layout = frame.sample_rate, frame.layout.name
        self._channels = frame.layout.nb_channels
        if self._rate <= 0 or self._channels <= 0:
            raise UnreadableMedia("The voice decodes to sound without a rate or channels. Re-encode the file.")
        start = _start_of(frame)
        lead = start - self._starts_at if start is not None and self._starts_at is not None else Fraction(0)
        self._expected = start - lead if start is not None and lead > 0 else start
        if self._leaves_out_earlier and lead < 0:
            self._early = round(-lead * self._rate)

    def _silence_before(self, start: Fraction | None) -> Iterator[Block]:
        if start is None or self._expected is None:
            return
        gap = start - self._expected
        if gap < _SHORTEST_GAP_S and self._count:
            return
        missing = round(gap * self._rate)
        while missing > 0:
            count = min(missing, self._rate)
            missing -= count
            yield from self._blocks([np.zeros((self._channels, count), np.float32)])

    def _converted(self, frame: av.AudioFrame, count: int) -> list[F32]:
        """A chained or spliced file may change its rate, layout or sample format on the way; the first one stays."""
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        fits = kind[1:] == (self._layout, self._rate) and kind[0].rstrip("p") in _SCALES
        parts: list[F32] = []
        if self._converter is not None and kind != self._converts:
            parts = [_as_float(rest) for rest in self._converter.resample(None)]
            self._converter = None
        if fits:
            return [*parts, _as_float(frame)[:, :count]]
        if self._converter is None:
            self._converter = av.AudioResampler(format="flt", layout=self._layout, rate=self._rate)
            self._converts = kind
        return [*parts, *(_as_float(part) for part in self._converter.resample(frame))]

    def _blocks(self, parts: Iterable[F32]) -> Iterator[Block]:
        for samples in parts:
            self._count += samples.shape[1]
            early = min(self._early, samples.shape[1])
            self._early -= early
            if early < samples.shape[1]:
                yield Block(samples[:, early:], self._rate, self._layout)


def _as_float(frame: av.AudioFrame) -> F32:
    """(channels, n) float32, integers scaled to -1…1."""
    name = frame.format.name
    raw = frame.to_ndarray()
    shaped = raw if frame.format.is_planar else raw.reshape(-1, frame.layout.nb_channels).T
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is refused as that
        samples = shaped.astype(np.float32)
    scale = _SCALES[name.rstrip("p")]
    if name.startswith("u8"):
        samples -= np.float32(128.0)
    return samples if scale == 1.0 else samples * np.float32(1.0 / scale)


def _start_of(frame: av.AudioFrame) -> Fraction | None:
    return frame.pts * frame.time_base if frame.pts is not None and frame.time_base else None


def _picture_start(container: av.container.InputContainer) -> Fraction | None:
    stream = video_stream(container)
    if stream is None or stream.start_time is None or stream.time_base is None:
        return None
    return stream.start_time * stream.time_base


def _counted_end(stream: av.AudioStream, info: MediaInfo) -> Fraction | None:
    """Where the sound ends by the sample table of an mp4, the one container that leaves padding in."""
    if info.container != "mov" or not stream.duration or stream.duration <= 0 or stream.time_base is None:
        return None
    return ((stream.start_time or 0) + stream.duration) * stream.time_base


def _check_whole(joiner: _Joiner, info: MediaInfo, *, declared_s: float | None) -> None:
    if declared_s is None:
        return
    # a flac counts its samples, and a damaged frame or two at its end are let pass; others round, or count padding
    tolerance_s = 2 * joiner.longest_frame_s if info.container == "flac" else 0.02 * declared_s + 0.5
    if joiner.heard_s < declared_s - tolerance_s:
        raise TruncatedMedia(
            f"The voice declares {declared_s:.2f} s but holds {joiner.heard_s:.2f} s: it was cut off. Send all of it."
        )


def _declared_s(
    blob: Blob, container: av.container.InputContainer, stream: av.AudioStream, info: MediaInfo
) -> float | None:
    """Seconds of sound by the headers; None where they estimate, or know only how long the longest track is."""
    if info.container == "mov" and len(container.streams) == 1:
        fragments_s = fragments_duration_s(blob)
        if fragments_s:
            return fragments_s
    if info.audio is None or not _is_duration_counted(stream, info):
        return None
    return info.audio.duration_s


def _is_duration_counted(stream: av.AudioStream, info: MediaInfo) -> bool:
    """Whether the declared duration is the sound's own, and no estimate."""
    if info.container == "mp3":  # one that tells its encoder's delay tells its number of frames with it
        return (stream.start_time or 0) > 0
    if info.container == "flv":  # declares the longest of its tracks
        return info.kind == "audio"
    return info.container in _DURATION_IS_COUNTED and bool(stream.duration)

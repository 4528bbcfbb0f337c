"""The index of a face input: every source frame's time and the keyframes, by demuxing alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np

from lipsync.core import I64, Index, MediaInfo, VideoInfo
from lipsync.errors import LimitExceeded, NoVideoStream, TruncatedMedia, UnreadableMedia
from lipsync.media.animation import frame_durations_ms
from lipsync.media.container import Deadline, comes_in_order, media_errors, shown_at, video_stream
from lipsync.media.probe import open_media
from lipsync.media.sniff import ContentType
from lipsync.media.source import Blob
from lipsync.media.structure import fragments_duration_s
from lipsync.options import Limits

_MILLISECOND = Fraction(1, 1000)
_DENSER = 1.1
"""Frames may come this much denser than the highest frame rate before the input is refused."""


def build_index(blob: Blob, info: MediaInfo, limits: Limits) -> Index:
    """Times and keyframes of all frames that a player would show; a still has one frame, an animation Pillow's.

    Raises TruncatedMedia where the file holds less than its headers list, LimitExceeded where it holds more than
    allowed (whatever its headers say), DecodeTimeout, UnreadableMedia, NoVideoStream.
    """
    if info.video is None:
        raise NoVideoStream("The face input has no picture. Send an image or a video as the face.")
    if info.kind == "image":
        return Index(np.zeros(1, np.int64), np.ones(1, bool), 0, _MILLISECOND)
    if info.kind == "animation":
        return _animation_index(blob, info, limits)
    packets = _Packets(limits, in_order=comes_in_order(info.container, info.video.codec))
    with open_media(blob, info) as container:
        stream = video_stream(container)
        if stream is None or not stream.time_base:
            raise NoVideoStream("The face input has no picture. Send an image or a video as the face.")
        declared_s = _declared_end_s(blob, info)
        deadline = Deadline(limits.wall_clock_s(info.video.duration_s))
        packets.read(container, stream, deadline, every_track=declared_s > 0)
        packets.check_count(listed=len(stream.index_entries) if info.container == "mov" else 0)
        packets.check_end(declared_s=declared_s)
        return packets.index(stream.time_base, info.video)


def _declared_end_s(blob: Blob, info: MediaInfo) -> float:
    """Where the longest track ends by the headers of a file that lists no frames; 0 where they do not say."""
    if info.container == "flv" and info.video is not None:
        return info.video.duration_s
    return fragments_duration_s(blob) if info.container == "mov" else 0.0


def _animation_index(blob: Blob, info: MediaInfo, limits: Limits) -> Index:
    durations = frame_durations_ms(blob, ContentType("image", info.container), limits)
    ends = np.cumsum(durations, dtype=np.int64)
    is_key = np.zeros(len(ends), bool)
    is_key[0] = True
    return Index(ends - durations, is_key, int(ends[-1]), _MILLISECOND)


@dataclass
class _Packets:
    """What is kept of each packet while demuxing."""

    limits: Limits
    in_order: bool
    times: list[int] = field(default_factory=list)
    keys: list[bool] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    count: int = 0
    first_key: int | None = None
    starts_hidden: bool = False
    """The first keyframe is one that is decoded but not shown, as a cut without re-encoding leaves it."""
    end: Fraction = Fraction(0)
    """Where the last packet of any track that was read ends, seconds."""

    def read(
        self,
        container: av.container.InputContainer,
        stream: av.VideoStream,
        deadline: Deadline,
        *,
        every_track: bool = False,
    ) -> None:
        """Keep what matters of the stream's packets; with ``every_track`` those of the others count for ``end``."""
        base = stream.time_base or Fraction(1)
        tracks = () if every_track else (stream,)
        earliest = latest = 0
        with media_errors("read the frames' times"):
            for packet in container.demux(*tracks):
                time = shown_at(packet, in_order=self.in_order)
                if time is None or packet.size == 0 or packet.is_corrupt:
                    continue
                deadline.check()
                self.end = max(self.end, (time + (packet.duration or 0)) * packet.time_base)
                if packet.stream_index != stream.index:
                    continue
                self.count += 1
                self._add(time, packet)
                earliest, latest = (time, time) if self.count == 1 else (min(earliest, time), max(latest, time))
                if (latest - earliest) * base > self.limits.duration_s:
                    raise LimitExceeded(
                        f"The video's frames span more than {self.limits.duration_s:g} s, the limit. Shorten it."
                    )
                if self.count > self.limits.frames:
                    raise LimitExceeded(f"The video has more than {self.limits.frames} frames, the limit. Shorten it.")

    def _add(self, time: int, packet: av.Packet) -> None:  # type: ignore[type-arg]
        if packet.is_keyframe and self.first_key is None:
            self.first_key, self.starts_hidden = time, packet.is_discard
        if not packet.is_discard:
            self.times.append(time)
            self.keys.append(packet.is_keyframe)
            self.durations.append(packet.duration or 0)

    def check_count(self, *, listed: int) -> None:
        if self.count < listed:
            raise TruncatedMedia(
                f"The file lists {listed} frames but holds {self.count}: it was cut off. Send all of it."
            )

    def check_end(self, *, declared_s: float) -> None:
        """What is declared is the end of the longest track; some writers leave out how long the last packet lasts."""
        if float(self.end) < 0.99 * declared_s - 0.2:
            raise TruncatedMedia(
                f"The video declares {declared_s:.2f} s but holds {float(self.end):.2f} s: it was cut off. "
                "Send all of it."
            )

    def index(self, time_base: Fraction, video: VideoInfo) -> Index:
        times, first = np.unique(np.array(self.times, np.int64), return_index=True)
        keys, durations = np.array(self.keys, bool)[first], np.array(self.durations, np.int64)[first]
        if self.first_key is not None and not self.starts_hidden:
            # frames before the first keyframe cannot be decoded: a recording that began in the middle
            decodable = times >= self.first_key
            times, keys, durations = times[decodable], keys[decodable], durations[decodable]
        if len(times) == 0:
            raise UnreadableMedia("The video holds no frame that can be decoded. Re-encode it.")
        # an AVI may count fields: its frames then come at every other tick, and last one by their own account
        lasting = 0 if self.in_order else int(durations[-1])
        end = int(times[-1]) + (lasting or _usual_step(times, time_base, video.fps))
        index = Index(times, keys, end, time_base)
        self._check_density(index)
        return index

    def _check_density(self, index: Index) -> None:
        rate = len(index) / float(index.duration)
        if rate > self.limits.max_fps * _DENSER and len(index) > 1:
            raise LimitExceeded(
                f"The video shows {rate:.1f} frames per second; at most {self.limits.max_fps:g} are allowed. "
                "Re-encode it at a common rate."
            )


def _usual_step(times: I64, time_base: Fraction, fps: Fraction) -> int:
    if len(times) > 1:
        return max(1, int(np.median(np.diff(times))))
    return max(1, round(1 / (fps * time_base)))

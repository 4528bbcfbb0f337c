"""Frames of a video by number: seeks to keyframes, decodes onward where that is no more work, matches by time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import av
import numpy as np

from lipsync.core import Index, MediaInfo
from lipsync.errors import TruncatedMedia, UnreadableMedia
from lipsync.media.container import WorkClock, comes_in_order, media_errors, shown_at, video_stream
from lipsync.media.probe import open_media
from lipsync.media.source import Blob

_SEEK_COST = 3
"""A seek is worth while when it saves more than this many frames of decoding."""
_EARLIER_KEYS = 3


class VideoFrames:
    """A decoder over one video. Frames that it does not deliver are replaced by the nearest one, up to 1 %.

    Not thread-safe. Decoding must not take longer than ``clock`` allows.
    """

    def __init__(self, blob: Blob, info: MediaInfo, index: Index, *, clock: WorkClock, threads: int) -> None:
        assert info.video is not None
        self._blob, self._info, self._index, self._threads = blob, info, index, threads
        self._clock = clock
        self._allowed_missing = max(len(index) // 100, min(3, len(index) // 10))
        self._counts = comes_in_order(info.container, info.video.codec)
        self._tolerance = int(np.diff(index.pts_ticks).min()) // 2 if len(index) > 1 else 0
        self._instead: dict[int, int] = {}
        self._container: av.container.InputContainer | None = None
        self._stream: av.VideoStream | None = None
        self._frames: Iterator[av.VideoFrame] | None = None
        self._number = -1
        self._frame: av.VideoFrame | None = None
        self.decoded_count = 0

    def frame(self, number: int) -> av.VideoFrame:
        """The frame shown as source frame ``number``. Raises UnreadableMedia, TruncatedMedia, DecodeTimeout."""
        with self._clock:
            while True:
                wanted = self._instead.get(number, number)
                if wanted == self._number and self._frame is not None:
                    return self._frame
                self._approach(wanted)
                self._decode_to(wanted)

    def close(self) -> None:
        self._frames = self._frame = self._stream = None
        if self._container is not None:
            self._container.close()
            self._container = None

    # ------------------------------------------------------------ decoding

    def _decode_to(self, wanted: int) -> None:
        """Decode until ``wanted`` is at hand, or is known to be missing."""
        assert self._frames is not None
        while self._number < wanted:
            with media_errors("decode the video"):
                frame = next(self._frames, None)
            if frame is None:
                self._mark_missing(range(self._number + 1, len(self._index)), instead=self._number)
                self._frames = None
                return
            self.decoded_count += 1
            number = self._number_of(frame)
            if number > self._number:
                self._mark_missing(range(self._number + 1, number), instead=number)
                self._number, self._frame = number, frame
            self._clock.check()

    def _number_of(self, frame: av.VideoFrame) -> int:
        """The source frame that was decoded, or -1 where the index knows of none at this time."""
        pts = frame.pts
        if self._counts or pts is None:
            return self._number + 1 if self._number + 1 < len(self._index) else -1
        times = self._index.pts_ticks
        after = int(np.searchsorted(times, pts))
        near = [(abs(int(times[number]) - pts), number) for number in (after - 1, after) if 0 <= number < len(times)]
        distance, number = min(near)
        return number if distance <= self._tolerance else -1

    def _mark_missing(self, numbers: range, *, instead: int) -> None:
        for number in numbers:
            self._instead.setdefault(number, instead)
        if len(self._instead) > self._allowed_missing:
            raise TruncatedMedia(
                f"At least {len(self._instead)} of the video's {len(self._index)} frames cannot be decoded: it was cut "
                "off or damaged. Re-encode it, or send all of it."
            )
        if instead < 0:
            raise UnreadableMedia("No frame of the video can be decoded. Re-encode it.")

    # ------------------------------------------------------------ seeking

    def _approach(self, wanted: int) -> None:
        """Seek, unless decoding onward is no more work."""
        key = self._index.keyframe_before(wanted)
        if self._frames is None or wanted <= self._number or key > self._number + _SEEK_COST:
            self._start_at(key)

    def _start_at(self, key: int) -> None:
        self._frames = self._frame = None
        self._number = key - 1
        with media_errors("seek in the video"):
            for target in self._targets(key):
                packets = self._packets_from(key, target)
                if packets is not None:
                    self._frames = self._decode(packets)
                    return
        raise UnreadableMedia(f"Frame {key} of the video, a keyframe, is not found again. Re-encode it.")

    def _targets(self, key: int) -> list[int | None]:
        """Times to seek to, each earlier than the one before (a transport stream is sought roughly), then the start."""
        if not self._index.is_key[key]:
            return [None]
        keys = np.flatnonzero(self._index.is_key[: key + 1])[::-1][:_EARLIER_KEYS]
        return [*(int(self._index.pts_ticks[earlier]) for earlier in keys), None]

    def _packets_from(self, key: int, target: int | None) -> Iterator[Any] | None:
        """Packets from the keyframe on, having sought to the time ``target``; None where the seek went too far."""
        if target is None or self._container is None:
            self._open()
        assert self._container is not None and self._stream is not None
        if target is not None:
            try:
                self._container.seek(target, stream=self._stream)
            except av.error.FFmpegError:
                return None
        packets = self._container.demux(self._stream)
        if not self._index.is_key[key]:
            return packets
        wanted = int(self._index.pts_ticks[key])
        for packet in packets:
            at = shown_at(packet, in_order=self._counts)
            if at is None or (packet.is_keyframe and at > wanted):
                return None
            if packet.is_keyframe and at == wanted:
                return chain([packet], packets)
        return None

    def _open(self) -> None:
        self.close()
        self._container = open_media(self._blob, self._info)
        self._stream = stream = video_stream(self._container)
        if stream is None:
            raise UnreadableMedia("The video track is gone. Give a file that stays as it is.")
        stream.codec_context.thread_count = self._threads
        stream.codec_context.thread_type = "AUTO" if self._threads > 1 else "NONE"

    def _decode(self, packets: Iterator[Any]) -> Iterator[av.VideoFrame]:
        for packet in packets:
            self._clock.check()
            try:
                frames = packet.decode()
            except av.error.ExitError:
                raise
            except av.error.FFmpegError:
                continue  # a damaged packet: its frame is missing, and counted as such
            yield from frames

"""Another end of the line than an encoder alone: every frame goes to a caller's function too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction

from lipsync.core import U8, AudioFormat, AudioPacket
from lipsync.media.picture import Picture
from lipsync.options import Options
from lipsync.render import Encode

FrameSink = Callable[[U8], None]
"""Gets each frame, (H, W, 3) uint8 BGR, as it is before encoding."""


class Tee:
    """An end of the line that hands frames to a sink, and to an encoder where there is one."""

    def __init__(self, sink: FrameSink, *, encode: Encode | None) -> None:
        self._sink = sink
        self._encode = encode

    def __call__(
        self,
        pictures: Iterable[Picture],
        *,
        first_frame: int,
        fps: Fraction,
        packets: Sequence[AudioPacket],
        audio_format: AudioFormat,
        options: Options,
        pixel_aspect: Fraction,
    ) -> bytes:
        seen = self._seen(pictures)
        if self._encode is None:
            for _ in seen:
                pass  # each was handed to the sink
            return b""
        return self._encode(
            seen,
            first_frame=first_frame,
            fps=fps,
            packets=packets,
            audio_format=audio_format,
            options=options,
            pixel_aspect=pixel_aspect,
        )

    def _seen(self, pictures: Iterable[Picture]) -> Iterator[Picture]:
        for picture in pictures:
            self._sink(picture.bgr())
            yield picture

"""How many frames are decoded for each one put out, detection included, by how far apart a clip's keyframes are."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from benchmarks.line import Line
from benchmarks.media import moving, speech_like
from lipsync.faces.detector import create_detector
from lipsync.media.decode import FrameReader
from lipsync.options import Options
from lipsync.voice.voice import Waveform

FRAMES = 1500
FPS = 25
DISTANCES = (25, 250, FRAMES)
SIZE = (480, 270)


class CountedReaders:
    """While it is entered, every FrameReader that is opened is kept, to be asked what it decoded."""

    def __init__(self) -> None:
        self._opened: list[FrameReader] = []
        self._original = FrameReader.__init__

    def __enter__(self) -> CountedReaders:
        opened, original = self._opened, self._original

        def counted(reader: FrameReader, *args: Any, **kwargs: Any) -> None:
            original(reader, *args, **kwargs)
            opened.append(reader)

        FrameReader.__init__ = counted  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *_: object) -> None:
        FrameReader.__init__ = self._original  # type: ignore[method-assign]

    @property
    def decoded(self) -> int:
        return sum(reader.decoded_count for reader in self._opened)


def decode_count(face: bytes, options: Options, *, frames: int) -> tuple[int, float]:
    """Frames decoded for so many put out, and their ratio."""
    with CountedReaders() as readers:
        report = Line(create_detector("centerface")).run_once(
            face, Waveform(speech_like(frames / FPS), 16_000), options
        )
    assert report.frame_count == frames, report
    return readers.decoded, round(readers.decoded / frames, 2)


def main() -> None:
    # every frame is decoded to look for cuts, however few are looked at for faces
    options = Options(preset="ultrafast", detect_every=25)
    cases = []
    for distance in DISTANCES:
        decoded, ratio = decode_count(moving(*SIZE, frames=FRAMES, gop=distance), options, frames=FRAMES)
        cases.append({"keyframe_distance": distance, "decoded": decoded, "ratio": ratio})
    face = moving(*SIZE, frames=FRAMES, gop=FRAMES)
    decoded, ratio = decode_count(face, replace(options, sync_mode="bounce"), frames=2 * FRAMES)
    bounce = {"keyframe_distance": FRAMES, "frames": 2 * FRAMES, "decoded": decoded, "ratio": ratio}
    print(json.dumps({"frames": FRAMES, "cases": cases, "bounce": bounce}))


if __name__ == "__main__":
    main()

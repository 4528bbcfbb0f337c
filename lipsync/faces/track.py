"""The track: for each source frame the face box that is pasted over, or none, made in order while chunks come in.

Choosing and following is in ``link``, frames between anchors in ``fill``, pads and smoothing in ``smooth`` and
``reference``. What a frame gets never depends on how the source was cut into chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from lipsync.core import I32, NO_BOX, Index
from lipsync.errors import FaceMissing, NoFace
from lipsync.faces.chunk import ChunkDetections
from lipsync.faces.fill import Filler
from lipsync.faces.link import Anchor, FollowBest, Follower, Linked, create_follower
from lipsync.faces.reference import ForwardMean
from lipsync.faces.smooth import REACH, Box, CentredMean, Smoother
from lipsync.options import Options


class Tracker:
    """Feed it every chunk in order. Nothing is final before the first face is seen, so NoFace comes before any box.

    ``size`` is the full frame's (width, height) after geometry. ``frame_count`` may be less than the index has (then
    the track ends there); ``static`` makes a track of one frame. Boxes become final about 1 s of video after they
    were fed, with ``face_choice="point"`` not before that point in time.
    """

    def __init__(self, frame_count: int, size: tuple[int, int], index: Index, options: Options) -> None:
        self._frame_count = 1 if options.static else frame_count
        self._index = index
        self._options = options
        self._follower = _create_follower(options)
        self._filler = Filler(bridge=options.compat != "reference")
        self._smoother = _create_smoother(options, size)
        self._missing = MissingFaces(options.on_missing_face, index)
        self._stop = 0
        self._last_anchor = -1
        self._looked_at = 0
        self._seen = 0

    def feed(self, chunk: ChunkDetections) -> I32:
        """(m, 4) boxes x1 y1 x2 y2 that are now final, for the next m source frames; NO_BOX where there is no face.

        Raises FaceMissing with ``on_missing_face="error"``.
        """
        if chunk.first != self._stop:
            raise ValueError(f"the next chunk must start at source frame {self._stop}, not {chunk.first}")
        self._stop = chunk.stop
        boxes: list[Box] = []
        for anchor in self._anchors(chunk):
            boxes.extend(self._missing.feed(self._boxes(self._follower.feed(anchor))))
        return _as_array(boxes)

    def finish(self) -> I32:
        """The boxes of all frames that are left. Raises NoFace if there never was one, FaceMissing as ``feed`` does."""
        boxes = self._missing.feed(self._boxes(self._follower.finish()))
        for row in self._filler.finish(self._frame_count):
            boxes.extend(self._missing.feed(self._smoother.feed(row)))
        boxes.extend(self._missing.feed(self._smoother.finish()))
        if self.first_face is None:
            raise self.no_face(shown=self._frame_count)
        return _as_array(boxes)

    @property
    def settled(self) -> int:
        """Leading source frames of which it is certain whether they have a face, their boxes given or not."""
        return self._missing.fed

    @property
    def first_face(self) -> int | None:
        """The first of the settled frames that has one."""
        return self._missing.first_face

    def _anchors(self, chunk: ChunkDetections) -> Iterator[Anchor]:
        cuts = set(chunk.cuts)
        for frame, faces in sorted(chunk.anchors.items()):
            # WHY: both neighbours of a chunk border may have looked at the frame after it; they saw the same.
            if self._last_anchor < frame < self._frame_count:
                self._last_anchor = frame
                self._looked_at += 1
                self._seen += bool(faces)
                yield Anchor(frame, time_of(self._index, frame), faces, frame in cuts)

    def _boxes(self, linked: Iterable[Linked]) -> Iterator[Box]:
        for anchor in linked:
            for row in self._filler.feed(anchor):
                yield from self._smoother.feed(row)

    def no_face(self, *, shown: int) -> NoFace:
        """What to raise where none of the first ``shown`` source frames has a face, and no others count."""
        if self.first_face is not None:
            return NoFace(
                f"The first face comes with source frame {self.first_face}, but only the first {shown} are shown. "
                "Begin the video where its face is, or give box (top bottom left right) or boxes."
            )
        searched = "source frame 0" if self._stop == 1 else f"among source frames 0 to {self._stop - 1}"
        frames = f"{self._looked_at} frame{'' if self._looked_at == 1 else 's'} looked at ({searched})"
        if self._seen:
            return NoFace(
                f"Faces were found in {self._seen} of the {frames}, but none that can be used: check face_choice, "
                "face_index (faces are counted from 0 at the left) and pads, or give box."
            )
        return NoFace(
            f"No face was found in any of the {frames}. A larger, frontal, well lit face helps, and so may another "
            "detector or a smaller detect_every; or give box (top bottom left right) or boxes."
        )


class MissingFaces:
    """What becomes of frames without a face; holds all boxes back until the first face."""

    def __init__(self, policy: Literal["passthrough", "previous", "error"], index: Index | None) -> None:
        self.fed = 0
        self.first_face: int | None = None
        """The first frame with a face, of those that were fed."""
        self._policy = policy
        self._index = index
        self._given = 0
        self._last: Box = NO_BOX

    def feed(self, boxes: Iterable[Box]) -> list[Box]:
        ready: list[Box] = []
        for box in boxes:
            self.fed += 1
            if box == NO_BOX and self.first_face is None:
                continue
            if self.first_face is None:
                self.first_face, self._last = self.fed - 1, box
                ready += [self._fill() for _ in range(self.first_face)]
            if box == NO_BOX:
                ready.append(self._fill())
            else:
                self._last = box
                self._given += 1
                ready.append(box)
        return ready

    def _fill(self) -> Box:
        frame = self._given
        self._given += 1
        if self._policy == "error":
            when = "" if self._index is None else f" (at {time_of(self._index, frame):.2f} s)"
            raise FaceMissing(
                f"Source frame {frame}{when} has no face. Use "
                "on_missing_face=passthrough to leave such frames as they are, or previous to use the last box."
            )
        return self._last if self._policy == "previous" else NO_BOX


def time_of(index: Index, frame: int) -> float:
    """Seconds from the first frame's start to this frame's."""
    return float((int(index.pts_ticks[frame]) - int(index.pts_ticks[0])) * index.time_base)


def _create_follower(options: Options) -> Follower:
    if options.compat == "reference":
        return FollowBest()
    return create_follower(options.face_choice, index=options.face_index, point=options.face_point)


def _create_smoother(options: Options, size: tuple[int, int]) -> Smoother:
    if options.compat == "reference":
        return ForwardMean(pads=options.pads, size=size, smooth=not options.nosmooth)
    return CentredMean(pads=options.pads, size=size, reach=0 if options.nosmooth else REACH)


def _as_array(boxes: list[Box]) -> I32:
    return np.array(boxes, dtype=np.int32).reshape(-1, 4)

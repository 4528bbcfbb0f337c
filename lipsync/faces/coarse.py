"""Looking at a small picture first: where a large face shows there, the larger picture would tell nothing more."""

from __future__ import annotations

from collections.abc import Sequence

from lipsync.core import U8, Detection, Index
from lipsync.faces.detector import Detector
from lipsync.faces.link import MOST_GROWTH_APART
from lipsync.media.decode import small_size
from lipsync.media.planes import shrink
from lipsync.options import Options

COARSE_SIDE = 256
"""The small picture's longer side."""
SURELY_SEEN = 16.0
"""Faces with sides of so many pixels are found by every detector: 10 px never are, 14 px mostly."""
LARGE = SURELY_SEEN * MOST_GROWTH_APART
"""Where the largest face has this many pixels a side, any that was missed is too small to be taken for it."""


def settles_early(options: Options, index: Index) -> bool:
    """Whether a large face is all that is asked for: the other ways of choosing count every face, the reference always
    looks closely, and a still is looked at only once."""
    return options.face_choice == "largest" and options.compat != "reference" and not index.is_still


class CoarseFirst:
    """A detector that looks at frames at ``COARSE_SIDE``, and again as they are where no large face was found.

    What it finds in a frame depends on that frame alone.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self.name = detector.name

    def detect(self, frames: Sequence[U8]) -> list[list[Detection]]:
        """Faces of each frame, best first; see Detector."""
        if not frames or max(frames[0].shape[:2]) <= COARSE_SIDE:
            return self._detector.detect(frames)
        height, width = frames[0].shape[:2]
        size = small_size(width, height, COARSE_SIDE)
        scale = width / size[0], height / size[1]
        coarse = self._detector.detect([shrink(frame, size) for frame in frames])
        found = {n: [face.scaled(*scale) for face in faces] for n, faces in enumerate(coarse) if _shows_large(faces)}
        rest = [n for n in range(len(frames)) if n not in found]
        if rest:
            found.update(zip(rest, self._detector.detect([frames[n] for n in rest]), strict=True))
        return [found[n] for n in range(len(frames))]


def _shows_large(faces: Sequence[Detection]) -> bool:
    return any(face.area >= LARGE**2 for face in faces)

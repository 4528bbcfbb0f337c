"""The one seam of face detection: a protocol, and the choice among its implementations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from lipsync.core import U8, Detection
from lipsync.errors import DetectorUnavailable, InvalidOption

DetectorName = Literal["auto", "yunet", "centerface", "s3fd", "none"]


class Detector(Protocol):
    """Finds faces in frames; safe to call from several threads at once."""

    @property
    def name(self) -> str: ...

    def detect(self, frames: Sequence[U8]) -> list[list[Detection]]:
        """Faces of each (H, W, 3) uint8 BGR frame, best first, in pixels of that frame. All frames have one size."""
        ...


def create_detector(
    name: DetectorName,
    *,
    weights: Path | None = None,
    device: str = "cpu",
    face_det_batch_size: int = 16,
) -> Detector:
    """The detector called ``name``; ``auto`` is yunet where ``weights`` is given, else centerface.

    ``weights`` is yunet's .onnx or s3fd's .pth; ``device`` and ``face_det_batch_size`` matter to s3fd only.
    Raises DetectorUnavailable (with what to do), InvalidOption for ``none``, and CheckpointError for bad s3fd weights.
    """
    if name == "auto":
        name = "yunet" if weights is not None else "centerface"
    if name == "yunet":
        from lipsync.faces.yunet import YuNet

        return YuNet(_need(weights, "yunet", "run 'lipsync weights pull yunet', or use detector=centerface"))
    if name == "centerface":
        from lipsync.faces.centerface import CenterFace

        return CenterFace(weights)
    if name == "s3fd":
        from lipsync.faces.s3fd import S3FD

        path = _need(
            weights, "s3fd", "give the path of s3fd.pth ('lipsync weights list' says where its authors offer it)"
        )
        return S3FD(path, device=device, batch_size=face_det_batch_size)
    raise InvalidOption(f"detector={name} detects nothing: give box or boxes, and make no detector.")


def _need(weights: Path | None, name: str, advice: str) -> Path:
    if weights is None:
        raise DetectorUnavailable(f"The detector {name} has no weights here: {advice}.")
    return weights

"""Faces that nothing has seen before: the same picture or clip in other bytes."""

from __future__ import annotations

PICTURE_BYTES = b"\xff\xd8"
CLIP_MARK = b"ftyp"


def marked(face: bytes, number: int) -> bytes:
    """With a comment in a JPEG, or a box that is skipped in an MP4. Raises ValueError for anything else."""
    mark = b"%020d" % number
    if face.startswith(PICTURE_BYTES):
        return face[:2] + b"\xff\xfe" + (len(mark) + 2).to_bytes(2, "big") + mark + face[2:]
    if face[4:8] == CLIP_MARK:
        return face + (len(mark) + 8).to_bytes(4, "big") + b"free" + mark
    raise ValueError(
        "Only a JPEG and an MP4 can be made fresh for every request. Leave --fresh out, or convert the face."
    )

"""Boxes that the caller gives instead of detection: one for all frames, one per frame, or a JSON file of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from lipsync.core import I32, NO_BOX, Index
from lipsync.errors import InvalidBoxes, NoFace
from lipsync.faces.smooth import SMALLEST_SIDE, Box
from lipsync.faces.track import MissingFaces
from lipsync.options import FourInts, Options, parse_fps

VERSION = 1
LARGEST_FILE = 4_000_000
"""Bytes; 18,000 frames with four-digit edges take 0.5 MB."""
MOST_FRAMES = 100_000


def given_track(options: Options, frame_count: int, size: tuple[int, int], index: Index | None = None) -> I32:
    """(frame_count, 4) boxes from ``options.box`` or ``options.boxes``: no pads, no smoothing, no clipping.

    ``boxes`` holds one per source frame, or one for all; null means no face there, which ``on_missing_face`` decides.
    ``static`` makes a track of one frame. Raises InvalidBoxes where a box does not fit into ``size`` (width, height)
    or the number of boxes is another; NoFace where all are null; FaceMissing.
    """
    frame_count = 1 if options.static else frame_count
    if options.boxes_size not in (None, size):
        raise InvalidBoxes(
            f"The boxes are for frames of {_by(options.boxes_size)}, but the face input has {_by(size)}. Run lipsync "
            "detect on this input, with the same resize_factor, rotate and crop."
        )
    if options.box is not None:
        top, bottom, left, right = options.box
        rows: list[FourInts | None] = [(left, top, right, bottom)] * frame_count
    else:
        rows = _per_frame(options, frame_count)
    for frame, row in enumerate(rows):
        if row is not None:
            _check_fits(row, size, where="box" if options.box is not None else f"boxes[{frame}]")
    missing = MissingFaces(options.on_missing_face, index)
    boxes = missing.feed(NO_BOX if row is None else row for row in rows)
    if missing.first_face is None:
        raise NoFace(f"All {frame_count} given boxes are null: there is no face to work on. Give at least one box.")
    return np.array(boxes, dtype=np.int32).reshape(-1, 4)


def _by(size: tuple[int, int] | None) -> str:
    return "×".join(map(str, size or ()))


def _per_frame(options: Options, frame_count: int) -> list[FourInts | None]:
    assert options.boxes is not None, "called only where box or boxes is given"
    if len(options.boxes) == 1:
        return list(options.boxes) * frame_count
    if options.static and options.boxes:
        return list(options.boxes[:1])
    if len(options.boxes) != frame_count:
        raise InvalidBoxes(
            f"There are {len(options.boxes)} boxes for {frame_count} source frames: give one per source frame "
            "(null where there is no face), or exactly one for all."
        )
    return list(options.boxes)


def _check_fits(box: Box, size: tuple[int, int], *, where: str) -> None:
    x1, y1, x2, y2 = box
    width, height = size
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise InvalidBoxes(
            f"{where} = x1 {x1}, y1 {y1}, x2 {x2}, y2 {y2} does not lie within the {width}×{height} frame: it needs "
            f"0 <= x1 < x2 <= {width} and 0 <= y1 < y2 <= {height}."
        )
    if min(x2 - x1, y2 - y1) < SMALLEST_SIDE:
        raise InvalidBoxes(f"{where} is {x2 - x1}×{y2 - y1} pixels; it must be at least 4×4.")


@dataclass(frozen=True, slots=True)
class GivenBoxes:
    """A track as a file: what it was made for, and a box or None per source frame. ``boxes`` is an option's value."""

    width: int
    height: int
    fps: Fraction
    boxes: tuple[FourInts | None, ...]


def tracks_to_json(boxes: I32, *, size: tuple[int, int], fps: Fraction) -> str:
    """(N, 4) boxes, NO_BOX where there is no face, as the file that ``lipsync detect`` writes."""
    rows = [None if tuple(row) == NO_BOX else row for row in boxes.tolist()]
    head = {"version": VERSION, "width": size[0], "height": size[1], "fps": str(fps), "frames": len(rows)}
    return json.dumps(head | {"boxes": rows}, separators=(",", ":")) + "\n"


def tracks_from_json(data: bytes | str) -> GivenBoxes:
    """Reads and checks what ``tracks_to_json`` wrote. Raises InvalidBoxes."""
    if len(data) > LARGEST_FILE:
        raise InvalidBoxes(f"The file of boxes has {len(data)} bytes; at most {LARGEST_FILE} are read.")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidBoxes(f"The file of boxes is not JSON ({error}). lipsync detect writes such files.") from error
    _require(isinstance(document, dict), "the top level must be an object")
    unknown = sorted(set(document) - {"version", "width", "height", "fps", "frames", "boxes"})
    _require(not unknown, f"unknown keys {unknown[:3]}")
    _require(document.get("version") == VERSION, f"version must be {VERSION}")
    width, height = (_side(document, name) for name in ("width", "height"))
    rows = document.get("boxes")
    _require(isinstance(rows, list) and 0 < len(rows) <= MOST_FRAMES, f"boxes must list 1 to {MOST_FRAMES} boxes")
    _require(document.get("frames") == len(rows), f"frames must be the number of boxes, {len(rows)}")
    boxes = tuple(_box(row, i, (width, height)) for i, row in enumerate(rows))
    return GivenBoxes(width, height, _fps(document), boxes)


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise InvalidBoxes(f"The file of boxes is not valid: {rule}. lipsync detect writes such files.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _side(document: dict[str, Any], name: str) -> int:
    value: Any = document.get(name)
    _require(_is_int(value) and 1 <= value <= 1_000_000, f"{name} must be a whole number of pixels")
    return int(value)


def _fps(document: dict[str, Any]) -> Fraction:
    try:
        return parse_fps(document.get("fps"))
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        raise InvalidBoxes('The file of boxes is not valid: fps must be like "25" or "30000/1001".') from None


def _box(row: Any, i: int, size: tuple[int, int]) -> FourInts | None:
    if row is None:
        return None
    _require(isinstance(row, list) and len(row) == 4 and all(map(_is_int, row)), f"boxes[{i}] must be 4 whole numbers")
    box = (row[0], row[1], row[2], row[3])
    _check_fits(box, size, where=f"boxes[{i}]")
    return box

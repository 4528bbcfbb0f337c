"""A contact sheet: frames of a video in a grid, with their times, as one PNG."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from lipsync.core import U8, Source
from lipsync.errors import OutputError
from lipsync.media.decode import FrameReader, Geometry
from lipsync.media.index import build_index
from lipsync.media.picture import Box
from lipsync.media.probe import probe_face
from lipsync.media.source import Blob
from lipsync.options import Limits


def write_contact_sheet(
    video: Source,
    target: str | os.PathLike[str],
    *,
    count: int = 24,
    columns: int = 6,
    tile_width: int = 320,
    part: Box | None = None,
    captions: Sequence[tuple[float, str]] = (),
) -> None:
    """Write ``count`` frames, spread evenly over the video, to the PNG file ``target``; of each the whole or ``part``,
    x1 y1 x2 y2. Each has its time on it, and what the last of ``captions`` (seconds, words) to have begun says.
    Raises OutputError."""
    limits = Limits()
    blob = Blob.of(video, limit_bytes=limits.video_bytes)
    info = probe_face(blob, limits)
    index = build_index(blob, info, limits)
    chosen = np.unique(np.linspace(0, len(index) - 1, count).round().astype(int)).tolist()
    with FrameReader(blob, info, index, geometry=Geometry(), limits=limits) as reader:
        tiles = [_tile(picture.bgr(part), tile_width) for picture in reader.read(chosen)]
    for tile, frame in zip(tiles, chosen, strict=True):
        seconds = float((int(index.pts_ticks[frame]) - int(index.pts_ticks[0])) * index.time_base)
        _write(tile, f"{seconds:.2f} s", 16)
        _write(tile, next((said for start_s, said in reversed(captions) if start_s <= seconds), ""), len(tile) - 8)
    if not cv2.imwrite(os.fspath(Path(target)), _grid(tiles, columns)):
        raise OutputError(f"Cannot write {target}. Choose a writable place and a name that ends in .png.")


def _write(tile: U8, words: str, baseline: int) -> None:
    cv2.putText(tile, words, (6, baseline), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)


def _tile(frame: U8, width: int) -> U8:
    height = max(1, round(frame.shape[0] * width / frame.shape[1]))
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _grid(tiles: list[U8], columns: int) -> U8:
    rows = math.ceil(len(tiles) / columns)
    height, width = tiles[0].shape[:2]
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for at, tile in enumerate(tiles):
        y, x = at // columns * height, at % columns * width
        sheet[y : y + height, x : x + width] = tile
    return sheet

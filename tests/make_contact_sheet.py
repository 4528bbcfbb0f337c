"""Draws docs/images/real_media.png: what the library does to real faces, from the whole pipeline, decoded again.

``python -m tests.make_contact_sheet [FILE.png]``; needs the folder of real media (see docs/real_media.md).
"""

import asyncio
import io
import json
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from lipsync.core import U8
from lipsync.detection import find_track
from lipsync.faces.detector import Detector, DetectorName, create_detector
from lipsync.local import LocalStages
from lipsync.media.source import Blob
from lipsync.options import Options
from lipsync.output import read_bytes
from lipsync.pipeline import Job, synchronise
from tests.conftest import ASSETS
from tests.fakes import Copying
from tests.test_real_media import CLIP, LIMITS, PORTRAIT, STREET, VOICES, YUNET, pictures, voice_of

TARGET = Path(__file__).resolve().parents[1] / "docs" / "images" / "real_media.png"
WIDTH = 1056
CAPTION = 16
BACKGROUND = 24
COLORS = {"yunet": (80, 255, 80), "centerface": (80, 80, 255)}  # BGR
Boxes = dict[str, list[list[int]]]


class Brighter(Copying):
    """The crop itself, 20 levels brighter: as wrong as a generator's tint may be."""

    async def generate(self, *asked, **more) -> U8:
        return np.minimum(await super().generate(*asked, **more), 235) + np.uint8(20)


class Noise(Copying):
    """Grey noise, to show where a patch comes through."""

    async def generate(self, *asked, **more) -> U8:
        patches = await super().generate(*asked, **more)
        return np.random.default_rng(0).integers(0, 256, (*patches.shape[:3], 1), dtype=np.uint8).repeat(3, axis=3)


VIEWS = (
    ("its own crop, feathered", Copying, "feather"),
    ("20 brighter, overwritten", Brighter, "none"),
    ("20 brighter, feathered", Brighter, "feather"),
    ("noise, feathered", Noise, "feather"),
)


def main(target: Path = TARGET) -> None:
    """Write the sheet as a PNG of 256 colours."""
    rows = [_row(face, voice) for face, voice in zip((CLIP, PORTRAIT, STREET), VOICES, strict=True)]
    rows.append(_strip(CLIP, range(0, 250, 32), columns=8, crop=(420, 1200)))
    rows.append(_strip(STREET, range(0, 40, 5), columns=4, crop=(560, 1000)))
    sheet = Image.fromarray(np.ascontiguousarray(np.vstack(rows)[..., ::-1]))
    buffer = io.BytesIO()
    palette = sheet.quantize(256)
    sheet.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(buffer, "png", optimize=True)
    target.write_bytes(buffer.getvalue())
    print(f"{target}: {sheet.width} x {sheet.height}, {len(buffer.getvalue()) // 1000} kB")


def _row(face: str, voice: str) -> U8:
    """One face: where it was found, the source, and what each kind of patch makes of it."""
    boxes = _boxes(face)
    source = next(pictures(ASSETS / face)).bgr()
    x1, y1, x2, y2 = boxes["yunet"][0]
    reach, x, y = (y2 - y1) * 4 // 5, (x1 + x2) // 2, (y1 + y2) // 2
    window = np.s_[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach]
    width = WIDTH // (2 + len(VIEWS))
    tiles = [_tile(source[window], "source", width)]
    for title, generator, blend in VIEWS:
        mp4 = _speak(ASSETS / face, ASSETS / voice, generator(), Options(detector="yunet", blend=blend))
        tiles.append(_tile(next(pictures(mp4)).bgr()[window], title, width))
    found = _tile(_square(_draw(source, boxes, 0), 640), "yunet green, centerface red", width)
    return np.hstack([found, *(cv2.resize(tile, found.shape[1::-1]) for tile in tiles)])


def _speak(face: Path, voice: Path, generator: Copying, options: Options) -> bytes:
    stages = LocalStages(generator, create_detector=_detector, workers=2)
    try:
        job = Job(Blob.of(face, limit_bytes=10**9), voice_of(voice, 0.2), options, LIMITS)
        return asyncio.run(read_bytes(synchronise(job, stages)))
    finally:
        stages.close()


def _detector(name: DetectorName) -> Detector:
    return create_detector(name, weights=ASSETS / YUNET if name == "yunet" else None)


def _strip(face: str, frames: range, *, columns: int, crop: tuple[int, int]) -> U8:
    """The same person over time, with both detectors' tracks; ``crop`` says which rows of the frame to show."""
    boxes = _boxes(face)
    shown = (picture.bgr() for picture in pictures(ASSETS / face))
    drawn = {n: _draw(frame, boxes, n) for n, frame in enumerate(shown) if n in frames}
    tiles = [_tile(frame[crop[0] : crop[1]], f"{n / 25:.2f} s", WIDTH // columns) for n, frame in drawn.items()]
    return np.vstack([np.hstack(tiles[at : at + columns]) for at in range(0, len(tiles), columns)])


def _boxes(face: str) -> Boxes:
    track = partial(find_track, ASSETS / face, yunet_path=ASSETS / YUNET)
    return {name: json.loads(track(Options(detector=name)))["boxes"] for name in COLORS}


def _draw(frame: U8, boxes: Boxes, n: int) -> U8:
    for name, color in COLORS.items():
        if box := boxes[name][n]:
            cv2.rectangle(frame, (box[0], box[1]), (box[2], box[3]), color, max(frame.shape) // 240)
    return frame


def _tile(frame: U8, caption: str, width: int) -> U8:
    """The frame at a width, with its caption above."""
    height = round(frame.shape[0] * width / frame.shape[1])
    tile = np.full((height + CAPTION, width, 3), BACKGROUND, np.uint8)
    tile[CAPTION:, : width - 2] = cv2.resize(frame, (width - 2, height), interpolation=cv2.INTER_AREA)
    cv2.putText(tile, caption, (2, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.33, (230, 230, 230), 1, cv2.LINE_AA)
    return tile


def _square(frame: U8, side: int) -> U8:
    """The whole frame in a square, with bars."""
    square = np.full((side, side, 3), BACKGROUND, np.uint8)
    height, width = (round(edge * side / max(frame.shape)) for edge in frame.shape[:2])
    y, x = (side - height) // 2, (side - width) // 2
    square[y : y + height, x : x + width] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    return square


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

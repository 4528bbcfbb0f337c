"""The ladder as a picture: a bar per row, frames a second, with the quality beside it. Drawn with OpenCV alone."""

from __future__ import annotations

import os
from typing import Any

import cv2
import numpy as np

from lipsync.bench.table import where
from lipsync.core import U8
from lipsync.errors import OutputError

Result = dict[str, Any]

_WIDTH, _LINE, _TOP, _LEFT, _RIGHT = 1100, 30, 84, 330, 230
_FINE = 2  # drawn so much larger, then scaled down
_INK, _FAINT, _BAR, _FIRST = (40, 40, 40), (150, 150, 150), (180, 130, 60), (170, 170, 170)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def write_chart(result: Result, path: str | os.PathLike[str]) -> None:
    """A PNG of some 1,100 pixels across. Raises OutputError."""
    done, data = cv2.imencode(".png", draw_chart(result))
    try:
        assert done
        with open(path, "wb") as file:
            file.write(data.tobytes())
    except OSError as error:
        raise OutputError(f"{os.fspath(path)} cannot be written: {error.strerror or error}.") from error


def draw_chart(result: Result) -> U8:
    """(H, W, 3) BGR."""
    rows = result["rows"]
    height = _TOP + _LINE * len(rows) + 40
    canvas = np.full((height * _FINE, _WIDTH * _FINE, 3), 255, np.uint8)
    on = "one thread of a CPU" if result["device"] == "cpu" else result["machine"]["chip"]["name"]
    _write(canvas, f"Generator alone, on {on}: frames a second", (20, 32), size=0.62, thick=2)
    _write(canvas, where(result) + "; " + result["machine"]["date"], (20, 56), size=0.42, ink=_FAINT)
    measured = [row for row in rows if "frames_per_s" in row]
    fastest = max((row["frames_per_s"] for row in measured), default=1.0)
    for n, row in enumerate(rows):
        y = _TOP + n * _LINE
        _write(canvas, row["name"], (20, y + 14), size=0.42)
        if row not in measured:
            _write(canvas, f"not measured: {row['not_measured']}"[:100], (_LEFT, y + 14), size=0.4, ink=_FAINT)
            continue
        length = max(2, round((_WIDTH - _LEFT - _RIGHT) * row["frames_per_s"] / fastest))
        color = _FIRST if row is measured[0] else _BAR
        corners = [(x * _FINE, at * _FINE) for x, at in ((_LEFT, y), (_LEFT + length, y + 19))]
        cv2.rectangle(canvas, corners[0], corners[1], color, thickness=-1)
        quality = "equal" if row["largest_difference"] == 0 else f"{row['psnr_db']} dB"
        _write(
            canvas, f"{row['frames_per_s']}  x{row['times_first']}  {quality}", (_LEFT + length + 8, y + 14), size=0.42
        )
    foot = "x: times the first row. dB: PSNR of the patches against the plain network in fp32."
    _write(canvas, foot, (20, height - 14), size=0.4, ink=_FAINT)
    return np.asarray(cv2.resize(canvas, (_WIDTH, height), interpolation=cv2.INTER_AREA), np.uint8)


def _write(
    canvas: U8,
    text: str,
    at: tuple[int, int],
    *,
    size: float,
    ink: tuple[int, int, int] = _INK,
    thick: int = 1,
) -> None:
    x, y = at
    cv2.putText(
        canvas, text, (x * _FINE, y * _FINE), _FONT, size * _FINE, ink, thick * _FINE - (thick > 1), cv2.LINE_AA
    )

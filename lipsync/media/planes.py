"""A decoded frame of any pixel format as a picture, upright and in 8-bit 4:2:0; or as small BGR pixels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from lipsync.core import U8, Color, VideoInfo
from lipsync.media.color import U16, ToneMapper
from lipsync.media.container import media_errors
from lipsync.media.geometry import Geometry, mirror, mirror_pixels, turn, turn_pixels
from lipsync.media.picture import Picture

_AS_THEY_ARE = frozenset({"yuv420p", "yuvj420p", "yuva420p"})
_SWS_MATRIX = {"bt709": 1, "bt601": 5, "bt2020": 9}


class FrameConverter:
    """Frames of one video to pictures. 8-bit 4:2:0 SDR planes are views of the decoder's memory, never converted."""

    def __init__(self, info: VideoInfo, geometry: Geometry) -> None:
        self._info = info
        self._geometry = geometry
        self._coded = (info.height, info.width) if info.rotation_deg in (90, 270) else (info.width, info.height)
        self._reformatter = VideoReformatter()
        self._small_reformatters: dict[tuple[int, int], VideoReformatter] = {}
        self._tone_mapper = ToneMapper(info.color) if info.color.transfer != "sdr" else None
        self.size = geometry.size(info)

    def picture(self, frame: av.VideoFrame) -> Picture:
        """The frame upright, after tone mapping and the geometry options."""
        picture = self._coded_picture(frame)
        picture = turn(mirror(picture) if self._info.is_mirrored else picture, self._info.rotation_deg)
        return picture if self._geometry.changes_nothing else self._geometry.apply(picture, self._info)

    def shrinking(self, frame: av.VideoFrame) -> Callable[[tuple[int, int]], U8]:
        """What makes (h, w, 3) BGR of the frame at a size (width, height): straight from YUV where nothing has to be
        cut or tone-mapped."""
        if self._geometry.crop is not None or self._tone_mapper is not None:
            return partial(shrink, self.picture(frame).bgr())
        return partial(self._small, frame)

    def _small(self, frame: av.VideoFrame, size: tuple[int, int]) -> U8:
        degrees = (self._info.rotation_deg + 90 * self._geometry.rotate) % 360
        width, height = size[::-1] if degrees in (90, 270) else size
        # a scaler keeps its tables for one size
        scaler = self._small_reformatters.setdefault(size, VideoReformatter())
        with media_errors("convert the frame"):
            small = scaler.reformat(
                frame,
                width,
                height,
                "bgr24",
                src_colorspace=_SWS_MATRIX[self._info.color.matrix],
                src_color_range=self._range,
                interpolation=Interpolation.BILINEAR,
                threads=1,
            )
        pixels = _plane(small, 0, np.uint8, width * 3).reshape(height, width, 3)
        return turn_pixels(mirror_pixels(pixels) if self._info.is_mirrored else pixels, degrees)

    @property
    def _range(self) -> int:
        return ColorRange.JPEG if self._info.color.full_range else ColorRange.MPEG

    def _coded_picture(self, frame: av.VideoFrame) -> Picture:
        if self._tone_mapper is not None:
            return self._tone_mapped(frame, self._tone_mapper)
        color = self._info.color
        if (frame.width, frame.height) == self._coded:
            if frame.format.name in _AS_THEY_ARE:
                return _picture(frame, color)
            if frame.format.name == "nv12":
                pairs = _plane(frame, 1, np.uint8, (frame.width + 1) // 2 * 2)
                u, v = np.ascontiguousarray(pairs[:, ::2]), np.ascontiguousarray(pairs[:, 1::2])
                return Picture(_plane(frame, 0, np.uint8, frame.width), u, v, color)
        return _picture(self._reformat(frame, "yuv420p"), color)

    def _reformat(self, frame: av.VideoFrame, format: str) -> av.VideoFrame:
        matrix = _SWS_MATRIX[self._info.color.matrix]
        width, height = self._coded
        return self._reformatter.reformat(
            frame,
            width,
            height,
            format,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=self._range,
            dst_color_range=self._range,
            interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP,
            threads=1,
        )

    def _tone_mapped(self, frame: av.VideoFrame, mapper: ToneMapper) -> Picture:
        if frame.format.name != "yuv420p10le" or (frame.width, frame.height) != self._coded:
            frame = self._reformat(frame, "yuv420p10le")
        width, height = self._coded
        whole = (2 * ((width + 1) // 2), 2 * ((height + 1) // 2))
        y = _plane(frame, 0, np.uint16, width)
        u, v = (
            cast(U16, cv2.resize(_plane(frame, n, np.uint16, whole[0] // 2), whole))[:height, :width] for n in (1, 2)
        )
        return Picture.from_bgr(mapper.to_bgr(y, u, v))


def shrink(bgr: U8, size: tuple[int, int]) -> U8:
    """(h, w, 3) at ``size`` (width, height), by area."""
    same = (bgr.shape[1], bgr.shape[0]) == size
    return bgr if same else cast(U8, cv2.resize(bgr, size, interpolation=cv2.INTER_AREA))


def _picture(frame: av.VideoFrame, color: Color) -> Picture:
    half = (frame.width + 1) // 2
    y, u, v = (_plane(frame, n, np.uint8, width) for n, width in ((0, frame.width), (1, half), (2, half)))
    return Picture(y, u, v, color)


def _plane(frame: av.VideoFrame, number: int, dtype: type[Any], columns: int) -> npt.NDArray[Any]:
    """A read-only view of a plane without its row padding; it keeps the frame's memory alive."""
    plane = frame.planes[number]
    samples = np.frombuffer(cast(Any, plane), dtype).reshape(-1, plane.line_size // np.dtype(dtype).itemsize)
    view = samples[: plane.height, :columns]
    view.setflags(write=False)
    return view

"""All options, in one place: what a request may ask for, what an engine is built with, what inputs may be.

Every field carries its help text; the docs' tables, the command line and the server's schema are made from here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lipsync.errors import InvalidOption

SyncMode = Literal["loop", "bounce", "cut_off", "silence", "remap"]
FourInts = tuple[int, int, int, int]


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an input may be at most. Checked on headers, before anything is decoded, and again while decoding.

    Raises InvalidOption where a limit is not positive.
    """

    video_bytes: int = _option(200_000_000, "largest video file, bytes")
    image_bytes: int = _option(25_000_000, "largest image file, bytes")
    audio_bytes: int = _option(50_000_000, "largest voice file, bytes (a video given as voice may have video_bytes)")
    video_pixels: int = _option(3840 * 2160, "most pixels in a video frame")
    image_pixels: int = _option(50_000_000, "most pixels in an image")
    min_side: int = _option(64, "shortest side of a face input, pixels")
    max_side: int = _option(4096, "longest side of a video, pixels (an image is scaled down to it)")
    duration_s: float = _option(600.0, "longest face video and longest voice, seconds")
    min_fps: float = _option(1.0, "lowest frame rate of the output; a slower clip is put out at it")
    max_fps: float = _option(120.0, "highest frame rate, of source and output")
    frames: int = _option(18_000, "most frames in a face video")
    min_sample_rate_hz: int = _option(8_000, "lowest sample rate of a voice")
    max_sample_rate_hz: int = _option(192_000, "highest sample rate of a voice")
    channels: int = _option(8, "most channels of a voice")
    wall_clock_min_s: float = _option(30.0, "decoding may take this long, or wall_clock_ratio × duration if longer")
    wall_clock_ratio: float = _option(2.0, "see wall_clock_min_s")

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise InvalidOption(f"limit {item.name} must be a positive number, not {value!r}.")

    def wall_clock_s(self, duration_s: float) -> float:
        return max(self.wall_clock_min_s, self.wall_clock_ratio * duration_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What one request may ask for. Raises InvalidOption on construction."""

    sync_mode: SyncMode = _option("loop", "what happens where face video and voice differ in length")
    fps: Fraction | None = _option(
        None, "output frames per second (a number or N/D); default: the video's own, 25 for images"
    )
    audio_offset_ms: float = _option(0.0, "the mouth hears the voice this much later (negative: earlier)")
    mel_pad_mode: Literal["constant", "reflect"] = _option(
        "constant", "edge padding of the mel: today's librosa, or the reference's pinned 0.7 (reflect)"
    )
    compat: Literal["lipsync", "reference"] = _option(
        "lipsync", "reference: chunk count, per-frame detection and integer smoothing as the original"
    )

    detector: Literal["auto", "yunet", "centerface", "s3fd", "none"] = _option(
        "auto", "face detector; auto: yunet if its weights are here, else centerface"
    )
    detect_every: int = _option(5, "look for faces on every k-th source frame and at scene cuts")
    face_choice: Literal["largest", "highest_score", "index", "point"] = _option(
        "largest", "which of several faces speaks"
    )
    face_index: int = _option(0, "with face_choice=index: n-th face from the left at the first frame with faces")
    face_point: tuple[float, float, float] | None = _option(
        None, "with face_choice=point: x, y in pixels and a time in seconds"
    )
    on_missing_face: Literal["passthrough", "previous", "error"] = _option(
        "passthrough", "a frame without a face stays as it is, takes the last box, or fails the request"
    )
    box: FourInts | None = _option(
        None, "top bottom left right: one fixed face box, no detection, no pads, no smoothing"
    )
    boxes: tuple[FourInts | None, ...] | None = _option(
        None, "x1 y1 x2 y2 (or null) per source frame, as lipsync detect writes them"
    )
    boxes_size: tuple[int, int] | None = _option(
        None, "width height of the frames that boxes were made for; checked against the face input"
    )
    pads: FourInts = _option((0, 10, 0, 0), "top bottom left right, pixels added to the detected face")
    nosmooth: bool = _option(False, "do not smooth boxes over time")
    static: bool = _option(False, "use only the first frame of a video")
    resize_factor: int = _option(1, "divide a video's width and height by this before anything else")
    rotate: bool = _option(False, "turn a video 90 degrees clockwise (on top of its own rotation tag)")
    crop: FourInts | None = _option(
        None, "top bottom left right, cut from a video after resizing and rotating; -1: the edge"
    )

    blend: Literal["feather", "none"] = _option(
        "feather", "feather hides the seam of the pasted face; none overwrites the box as the original does"
    )
    codec: Literal["h264", "h265"] = _option("h264", "video codec of the output")
    crf: int = _option(18, "quality: lower is better and larger")
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] = _option(
        "veryfast", "x264/x265 effort"
    )
    encoder_threads: int = _option(1, "threads of one segment's encoder; changes the bytes, so never automatic")
    resize: tuple[int, int] | None = _option(None, "width height of the output")
    label: bool = _option(False, "draw a visible 'AI-generated' label")

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, _convert(item.name, getattr(self, item.name)))
        self._check_ranges()
        self._check_combinations()

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Options:
        """Options by name, each value as JSON has it. Raises InvalidOption, also for a name that is none."""
        for name in given:
            if name not in _HINTS:
                raise InvalidOption(f"There is no option {_short(name)}. The options are {', '.join(_HINTS)}.")
        return cls(**given)

    @classmethod
    def from_json(cls, text: str | bytes) -> Options:
        """What ``to_json`` wrote: one JSON object, each option at most once. Raises InvalidOption."""
        return cls.from_mapping(named_values(text))

    def to_json(self) -> str:
        """One JSON object of the options that differ from their defaults, frame rates as "N/D"."""
        return json.dumps(self.changed(), default=str, separators=(",", ":"))

    def changed(self) -> dict[str, Any]:
        """Those that differ from their defaults, by name, for ``from_mapping``."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {item.name: values[item.name] for item in fields(self) if values[item.name] != item.default}

    def _check_ranges(self) -> None:
        _in_range("fps", None if self.fps is None else float(self.fps), 1, 120)
        _in_range("audio_offset_ms", self.audio_offset_ms, -10_000, 10_000)
        _in_range("detect_every", self.detect_every, 1, 250)
        _in_range("face_index", self.face_index, 0, 1000)
        _in_range("resize_factor", self.resize_factor, 1, 16)
        _in_range("crf", self.crf, 0, 51)
        _in_range("encoder_threads", self.encoder_threads, 1, 64)
        for pad in self.pads:
            _in_range("pads", pad, -4096, 4096)
        for side in self.resize or ():
            _in_range("resize", side, 64, 4096)

    def _check_combinations(self) -> None:
        if self.box is not None:
            top, bottom, left, right = self.box
            if not (0 <= top < bottom and 0 <= left < right):
                raise InvalidOption(
                    f"box must be top bottom left right with 0 <= top < bottom and 0 <= left < right, not {self.box}."
                )
            if self.boxes is not None:
                raise InvalidOption("give box (one for all frames) or boxes (one per frame), not both.")
        if self.face_choice == "point" and self.face_point is None:
            raise InvalidOption("face_choice=point needs face_point: x, y in pixels and a time in seconds.")
        if self.detector == "none" and self.box is None and self.boxes is None:
            raise InvalidOption("detector=none needs box or boxes.")
        if self.crop is not None and any(edge < -1 for edge in self.crop):
            raise InvalidOption(f"crop must be top bottom left right, each at least -1, not {self.crop}.")


_RATE = re.compile(r"\d{1,7}(\.\d{1,9})?(/\d{1,7})?")
Precision = Literal["fp32", "fp16", "bf16"]


def named_values(text: str | bytes) -> dict[str, Any]:
    """A JSON object's values by name, each name at most once. Raises InvalidOption."""
    try:
        given = json.loads(text, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise InvalidOption(f'The options are not JSON ({error}). Send an object such as {{"crf": 20}}.') from error
    if not isinstance(given, dict):
        raise InvalidOption('The options must be one JSON object, such as {"crf": 20}.')
    return given


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    given = dict(pairs)
    if len(given) != len(pairs):
        raise ValueError("a name is there twice")
    return given


def _in_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not (low <= value <= high):
        raise InvalidOption(f"{name} must be between {low} and {high}, not {value}.")


def _convert(name: str, value: Any) -> Any:
    hint = _HINTS[name]
    try:
        return _as(hint, value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise InvalidOption(
            f"{name}={_short(value)} is not valid: {error or 'wrong type'}. Expected {_say(hint)}."
        ) from error


def _as(hint: Any, value: Any) -> Any:
    """``value`` as the annotated type, strictly: JSON lists become tuples, numbers keep their kind, no truthiness."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        if not isinstance(value, str) or value not in args:
            raise ValueError("not one of the choices")
        return value
    if origin is tuple:
        items = list(value) if isinstance(value, list | tuple) else None
        if items is None:
            raise TypeError("not a list")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_as(args[0], item) for item in items)
        if len(items) != len(args):
            raise ValueError(f"needs {len(args)} values")
        return tuple(_as(arg, item) for arg, item in zip(args, items, strict=True))
    if origin is not None:  # a union with None
        return None if value is None else _as(next(arg for arg in args if arg is not type(None)), value)
    if hint is Fraction:
        return parse_fps(value)
    if hint is bool:
        if not isinstance(value, bool):
            raise TypeError("not true or false")
        return value
    return _number(hint, value)


def _number(hint: type, value: Any) -> float | int:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError("not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not finite")
    if hint is int and number != int(number):
        raise ValueError("not a whole number")
    return int(value) if hint is int else number


def parse_fps(value: Any) -> Fraction:
    """A frame rate as an exact fraction: 25, "30000/1001", "29.97" (taken as 30000/1001), 23.976.

    Decimal spellings of the NTSC rates become the exact ones, so that 29.97 does not drift. Raises ValueError.
    """
    if isinstance(value, bool):
        raise TypeError("not a number")
    if isinstance(value, str) and not _RATE.fullmatch(value):
        raise ValueError("not a number or N/D")  # Fraction("1e999999999") would compute for ever
    rate = Fraction(value) if isinstance(value, int | Fraction | str) else Fraction(str(float(value)))
    if not 0 < rate < 1_000_000:
        raise ValueError("must be above zero and reasonable")
    ntsc = Fraction(round(rate) * 1000, 1001)
    return ntsc if abs(rate - ntsc) < Fraction(1, 200) and rate.denominator != 1 else rate.limit_denominator(100_000)


def _say(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(args)
    if origin is tuple and args[-1] is not Ellipsis:
        return f"{len(args)} numbers"
    if origin is tuple:
        return "a list"
    if origin is not None:
        return " or ".join(_say(arg) for arg in args if arg is not type(None))
    return {
        "Fraction": "a frame rate such as 25 or 30000/1001",
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
    }[hint.__name__]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_HINTS = get_type_hints(Options)

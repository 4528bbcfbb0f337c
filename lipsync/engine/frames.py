"""Frames to draw: crops and mel as callers send them, checked, and several callers' frames as one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lipsync.core import F32, U8
from lipsync.errors import InputError, NonFiniteAudio
from lipsync.model.wav2lip import FACE_SIDE, MEL_BANDS, MEL_WINDOW

if TYPE_CHECKING:
    from lipsync.engine.cuda import OnDevice

SILENCE = -4.0
_CROP = (FACE_SIDE, FACE_SIDE, 3)


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Frames to draw. Crops and mel are shared between them; each frame names its crop and its first mel column."""

    crops: U8  # (C, 96, 96, 3) BGR
    crop_index: npt.NDArray[np.int64]  # (n,)
    mel: F32  # (80, T)
    mel_starts: npt.NDArray[np.int64]  # (n,)
    is_packed: bool = False
    """Whether crops and mel are arrays of its own, with little in them that these frames do not use, and whether every
    window lies inside the mel."""
    on_device: OnDevice | None = None
    """Copies of crops and mel that are on their way to the device, or there."""

    def __len__(self) -> int:
        return len(self.crop_index)

    def take(self, which: slice | npt.NDArray[np.int64]) -> Frames:
        return Frames(self.crops, self.crop_index[which], self.mel, self.mel_starts[which])

    def padded(self, count: int) -> Frames:
        """``count`` frames; those added repeat the last, so that they can be no worse than it."""
        which = np.minimum(np.arange(count), len(self) - 1)
        return replace(self, crop_index=self.crop_index[which], mel_starts=self.mel_starts[which])


Empty = Callable[[tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]]


def join(parts: Sequence[Frames], *, empty: Empty = np.empty) -> Frames:
    """The parts' frames in a row, packed: each used crop and each heard column is copied once, to where it travels.

    The parts' mels stand side by side with sixteen silent columns around each, so that a window that reaches over
    the end of its own mel hears silence, and never its neighbour.
    """
    used = [np.unique(part.crop_index, return_inverse=True) for part in parts]
    heard = [_heard(part) for part in parts]
    crops = empty((sum(len(which) for which, _ in used), *_CROP), np.uint8)
    mel = empty((MEL_BANDS, sum(len(h) + MEL_WINDOW for h in heard) + MEL_WINDOW), np.float32)
    mel.fill(SILENCE)
    crop_index, mel_starts = [], []
    first_crop, first_column = 0, MEL_WINDOW
    for part, (which, where), columns in zip(parts, used, heard, strict=True):
        # NOTE: mode, because with the default numpy fills a buffer first and copies it to ``out``
        np.take(part.crops, which, axis=0, out=crops[first_crop : first_crop + len(which)], mode="clip")
        mel[:, first_column : first_column + len(columns)] = part.mel[:, columns.start : columns.stop]
        crop_index.append(where + first_crop)
        own = np.clip(part.mel_starts - columns.start, -MEL_WINDOW, len(columns))  # beyond these all is silence
        mel_starts.append(own + first_column)
        first_crop += len(which)
        first_column += len(columns) + MEL_WINDOW
    return Frames(crops, np.concatenate(crop_index), mel, np.concatenate(mel_starts), is_packed=True)


def _heard(part: Frames) -> range:
    """The columns of the part's mel that its windows reach."""
    end = part.mel.shape[1]
    if not len(part):
        return range(0)
    first = int(np.clip(part.mel_starts.min(), 0, end))
    return range(first, int(np.clip(part.mel_starts.max() + MEL_WINDOW, first, end)))


def check_frames(crops: U8, crop_index: npt.ArrayLike, mel: F32, mel_starts: npt.ArrayLike) -> Frames:
    """The arguments of ``Engine.generate``, checked. Raises InputError and NonFiniteAudio."""
    index, starts = np.asarray(crop_index), np.asarray(mel_starts)
    if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[1:] != _CROP:
        raise InputError(f"crops must be uint8 (C, 96, 96, 3), not {crops.dtype} {crops.shape}.")
    if mel.dtype != np.float32 or mel.ndim != 2 or len(mel) != MEL_BANDS:
        raise InputError(f"mel must be float32 (80, T), not {mel.dtype} {mel.shape}.")
    for name, numbers in (("crop_index", index), ("mel_starts", starts)):
        if numbers.ndim != 1 or (len(numbers) and numbers.dtype.kind not in "iu"):
            raise InputError(f"{name} must be whole numbers (n,), not {numbers.dtype} {numbers.shape}.")
    if len(index) != len(starts):
        raise InputError(f"crop_index and mel_starts must be of one length, not {len(index)} and {len(starts)}.")
    if len(index) and not (index.min() >= 0 and index.max() < len(crops)):
        raise InputError(f"crop_index reaches from {index.min()} to {index.max()}, but there are {len(crops)} crops.")
    if not np.isfinite(mel).all():
        raise NonFiniteAudio("the mel holds NaN or infinite values. Check the voice's samples.")
    return Frames(crops, index.astype(np.int64), mel, starts.astype(np.int64))

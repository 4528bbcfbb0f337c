"""One step of the engine: uint8 crops and a mel in, uint8 patches out, all arithmetic where the weights are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lipsync.core import F32, U8
from lipsync.errors import InputError, NonFiniteAudio
from lipsync.model.wav2lip import FACE_SIDE, MEL_BANDS, MEL_WINDOW, Wav2Lip

SILENCE = -4.0
_CROP = (FACE_SIDE, FACE_SIDE, 3)
_FULL_SCALE = 255.0


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Frames to draw. Crops and mel are shared between them; each frame names its crop and its first mel column."""

    crops: U8  # (C, 96, 96, 3) BGR
    crop_index: npt.NDArray[np.int64]  # (n,)
    mel: F32  # (80, T)
    mel_starts: npt.NDArray[np.int64]  # (n,)

    def __len__(self) -> int:
        return len(self.crop_index)

    def take(self, which: slice | npt.NDArray[np.int64]) -> Frames:
        return Frames(self.crops, self.crop_index[which], self.mel, self.mel_starts[which])

    def padded(self, count: int) -> Frames:
        """``count`` frames; those added repeat the last, so that they can be no worse than it."""
        return self.take(np.minimum(np.arange(count), len(self) - 1))

    def upload(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """crops (n, 96, 96, 3) uint8 and windows (n, 1, 80, 16) float32 on the device; only what is used travels."""
        used, where = np.unique(self.crop_index, return_inverse=True)
        first = int(np.clip(self.mel_starts.min(), 0, self.mel.shape[1]))
        stop = int(np.clip(self.mel_starts.max() + MEL_WINDOW, first, self.mel.shape[1]))
        crops = torch.from_numpy(self.crops[used]).to(device)[torch.from_numpy(where).to(device)]
        mel = torch.from_numpy(self.mel[:, first:stop].copy()).to(device)
        return crops, gather_windows(mel, torch.from_numpy(self.mel_starts - first).to(device))


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


def gather_windows(mel: Tensor, starts: Tensor) -> Tensor:
    """mel (80, T) and starts (n,) int64 → (n, 1, 80, 16); columns before 0 and from T on are silence."""
    beyond = mel.shape[1]
    silent = mel.new_full((MEL_BANDS, 1), SILENCE)
    columns = starts[:, None] + torch.arange(MEL_WINDOW, device=mel.device)
    columns = torch.where((columns >= 0) & (columns < beyond), columns, beyond)
    return torch.cat((mel, silent), dim=1)[:, columns].permute(1, 0, 2).unsqueeze(1).contiguous()


class Step(nn.Module):
    """The network between its uint8 ends. Wraps a generator that is already on its device and in its format."""

    full_scale: Tensor

    def __init__(self, model: Wav2Lip, *, device: torch.device, dtype: torch.dtype, channels_last: bool) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        # A tensor on the device: by a plain number CUDA multiplies with 1/255, which misses the quotient's last bit.
        self.register_buffer("full_scale", torch.tensor(_FULL_SCALE, device=device), persistent=False)

    def forward(self, crops: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
        """crops (n, 96, 96, 3) uint8, windows (n, 1, 80, 16) float32 → patches like crops, and (n,) finite?"""
        shown = crops.float() / self.full_scale
        hidden = shown.clone()
        hidden[:, FACE_SIDE // 2 :] = 0
        faces = torch.cat((hidden, shown), dim=3).permute(0, 3, 1, 2)
        drawn = self.model(windows.to(self.dtype), faces.to(self.dtype).contiguous(memory_format=self.memory_format))
        drawn = drawn.float()
        patches = (drawn * _FULL_SCALE).permute(0, 2, 3, 1).to(torch.uint8).contiguous()  # truncates, as the reference
        return patches, drawn.isfinite().flatten(1).all(dim=1)

"""One step of the engine: uint8 crops and a mel in, uint8 patches out, all arithmetic where the weights are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lipsync.engine.frames import SILENCE
from lipsync.model.wav2lip import FACE_SIDE, MEL_BANDS, MEL_WINDOW, Wav2Lip

_FULL_SCALE = 255.0


def gather_windows(mel: Tensor, starts: Tensor) -> Tensor:
    """mel (80, T) and starts (n,) int64 in 0..T-16 → (n, 1, 80, 16). Packed frames have silence in their mel."""
    return mel.unfold(1, MEL_WINDOW, 1).index_select(1, starts).permute(1, 0, 2).unsqueeze(1).contiguous()


def blank_batch(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Black faces that hear silence, to run a step before there is anything to draw."""
    crops = torch.zeros((count, FACE_SIDE, FACE_SIDE, 3), dtype=torch.uint8, device=device)
    return crops, torch.full((count, 1, MEL_BANDS, MEL_WINDOW), SILENCE, device=device)


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

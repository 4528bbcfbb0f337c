"""BatchNorm folded into the convolutions before it: the same function with half the layers, for inference only."""

from __future__ import annotations

import copy

import torch
from torch import nn

from lipsync.model.wav2lip import Wav2Lip


def fold(model: Wav2Lip) -> Wav2Lip:
    """A copy of ``model`` in eval mode whose 50 blocks are a convolution each. ``model`` itself is left alone."""
    folded = copy.deepcopy(model).eval()
    for block in folded.blocks():
        convolution, norm = block.conv_block
        _absorb(convolution, norm)
        block.conv_block = nn.Sequential(convolution)
    return folded


@torch.no_grad()
def _absorb(convolution: nn.Module, norm: nn.Module) -> None:
    assert isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None and convolution.bias is not None
    # In float64, so that each folded weight is rounded once.
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    shape = (1, -1, 1, 1) if isinstance(convolution, nn.ConvTranspose2d) else (-1, 1, 1, 1)  # where outputs stand
    bias = (convolution.bias.double() - norm.running_mean.double()) * scale + norm.bias.double()
    convolution.weight.copy_(convolution.weight.double() * scale.view(shape))
    convolution.bias.copy_(bias)

"""Layers of the generator that are set by hand: pixels that pass through unchanged, and a code for action weights.

The decoder's first block turns the voice into a *code* of action weights; the rest of the network draws what it says.
So the two halves are trained apart: the code's meaning is fixed here, and pictures never wait for the voice.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from lipsync.demo.hearing import HEARD, Hearing
from lipsync.demo.widths import WIDTHS
from lipsync.model.wav2lip import Block, Wav2Lip

_STEEPNESS = 4.0
_LOGIT = ((0.0, 9.707), (0.2, -5.400), (0.8, 5.351))
_LOGIT_BASE = -3.233
"""The logit of a colour as hinges (where, slope): least squares over 0.01..0.98, 2/255 rms after the sigmoid."""


def code_rows() -> tuple[Tensor, Tensor]:
    """The code's weight (D, spoken) and bias (D,): each action rising above, or falling below, many thresholds."""
    width, count = WIDTHS.decoder[0], len(HEARD)
    weight, bias = torch.zeros(width, count), torch.zeros(width)
    for row in range(count * (width // count)):
        action, place = row % count, row // count
        sign = 1.0 if place % 2 == 0 else -1.0
        threshold = place / (width // count) * 1.1
        weight[row, action] = sign * _STEEPNESS
        bias[row] = -sign * _STEEPNESS * threshold
    return weight, bias


def encode_actions(actions: Tensor) -> Tensor:
    """Action weights (B, actions) → the code (B, D, 1, 1) that the decoder's first block is to give."""
    weight, bias = code_rows()
    return torch.relu(actions[:, HEARD] @ weight.T + bias)[:, :, None, None]


def connect_voice(net: Wav2Lip, hearing: Hearing, gain: Tensor) -> None:
    """Put the trained ear into the generator: encoder copied, decoder block 0 = code of the heard actions.

    ``gain`` (spoken,) widens what was heard around its mean, since an uncertain ear speaks too softly.
    """
    net.audio_encoder.load_state_dict(hearing.encoder.state_dict())
    mean, spread = hearing.get_buffer("mean"), hearing.get_buffer("spread")
    head, offset = hearing.head.weight * spread[:, None], hearing.head.bias * spread + mean
    head, offset = head * gain[:, None], (offset - mean) * gain + mean
    weight, bias = code_rows()
    convolution, norm = _parts(net, "face_decoder_blocks.0.0")
    with torch.no_grad():
        convolution.weight.copy_((weight @ head)[:, :, None, None])
        _bias(convolution).copy_(weight @ offset + bias)
    _pass(norm)


def pass_pixels(net: Wav2Lip) -> list[nn.BatchNorm2d]:
    """Start from a generator that repeats its reference picture; returns the BatchNorms that must stay as they are."""
    (first, first_norm), (last, last_norm) = _parts(net, "face_encoder_blocks.0.0"), _parts(net, "output_block.0")
    rgb, drawn = cast(nn.Conv2d, net.output_block[1]), WIDTHS.decoder[6]
    with torch.no_grad():
        first.weight[:6] = 0
        _bias(first).zero_()
        last.weight[:9] = 0
        _bias(last).zero_()
        rgb.weight.mul_(0.1)
        rgb.weight[:, :9] = 0
        _bias(rgb).fill_(_LOGIT_BASE)
        for colour in range(3):
            first.weight[colour, 3 + colour, 3, 3] = 1  # the whole picture
            first.weight[3 + colour, colour, 3, 3] = 1  # the one without its lower half
            for k, (threshold, slope) in enumerate(_LOGIT):
                last.weight[3 * k + colour, drawn + colour, 1, 1] = 1
                _bias(last)[3 * k + colour] = -threshold
                rgb.weight[colour, 3 * k + colour] = slope
    for norm in (first_norm, last_norm):
        _pass(norm)
    return [first_norm, last_norm]


def _parts(net: Wav2Lip, path: str) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """The convolution and the BatchNorm of the block at this path."""
    block = cast(Block, net.get_submodule(path))
    return cast(nn.Conv2d, block.conv_block[0]), cast(nn.BatchNorm2d, block.conv_block[1])


def _bias(convolution: nn.Conv2d) -> Tensor:
    if convolution.bias is None:
        raise ValueError("the generator's convolutions have biases; this one has none.")
    return convolution.bias


def _pass(norm: nn.BatchNorm2d) -> None:
    """Make a BatchNorm do nothing in eval mode."""
    with torch.no_grad():
        norm.get_buffer("running_mean").zero_()
        norm.get_buffer("running_var").fill_(1 - norm.eps)
        norm.weight.fill_(1)
        norm.bias.zero_()


def draw_rows(net: Wav2Lip, code: Tensor, faces: Tensor, *, top: int = 0) -> Tensor:
    """The picture (B, 3, 96 - top, 96) for a code and faces (B, 6, 96, 96); rows above ``top`` (even) cost nothing."""
    skips = net.encode_faces(faces)
    x = torch.cat((code, skips.pop()), 1)
    blocks = list(net.face_decoder_blocks)
    for block in blocks[1:-1]:
        x = torch.cat((block(x), skips.pop()), 1)
    x = blocks[-1](x[:, :, top // 2 :])
    drawn: Tensor = net.output_block(torch.cat((x, skips.pop()[:, :, top:]), 1))
    return drawn


def is_drawing(name: str) -> bool:
    """Whether a parameter belongs to the half that draws, by its name."""
    return not name.startswith(("audio_encoder.", "face_decoder_blocks.0."))


def norms(net: Wav2Lip) -> list[nn.BatchNorm2d]:
    """All BatchNorms of the half that draws."""
    return [module for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d) and is_drawing(name)]

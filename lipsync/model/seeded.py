"""A generator with seeded random weights that is alive: it answers faces and voices with clearly different pictures.

It draws no faces. Plainly random weights draw one grey and do not hear the voice, so a test with them shows nothing;
these are calibrated on seeded patterns, layer by layer, until the output spreads and follows the mel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lipsync.model.wav2lip import FACE_SIDE, MEL_BANDS, MEL_WINDOW, REFERENCE, Wav2Lip, Widths

_EXAMPLES = 24
_LOGIT_SPREAD = 1.6
_SKIP_GAIN = 0.35
"""Decoder weights on the face's skips are this much weaker, or they would drown the voice level by level."""


def seeded_generator(seed: int, *, widths: Widths = REFERENCE) -> Wav2Lip:
    """Equal weights for an equal seed and widths: eval mode, float32, on the CPU. Leaves torch's own seed alone."""
    source = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = Wav2Lip(widths)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        _draw_weights(model, source)
        _calibrate(model, *_patterns(source))
    return model.requires_grad_(False).eval()


def _draw_weights(model: Wav2Lip, source: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            inputs = module.weight.numel() / module.out_channels
            module.weight.normal_(0, (2 / inputs) ** 0.5, generator=source)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # every convolution here has one
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    for stage, below in zip(list(model.face_decoder_blocks)[1:], model.widths.decoder, strict=False):
        stage[0].conv_block[0].weight[below:] *= _SKIP_GAIN  # type: ignore[index]


def _calibrate(model: Wav2Lip, mel: Tensor, faces: Tensor) -> None:
    """BatchNorm statistics become those of the examples; the last layer is scaled so that the sigmoid spreads."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    last = model.output_block[1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    seen: list[Tensor] = []
    hook = last.register_forward_hook(lambda _module, _inputs, logits: seen.append(logits))
    model.train()(mel, faces)
    hook.remove()
    spread, mean = torch.std_mean(seen[0].double(), dim=(0, 2, 3))
    scale = _coarse(_LOGIT_SPREAD / spread)
    last.weight *= scale.view(-1, 1, 1, 1)
    last.bias.copy_(-_coarse(mean) * scale)
    for norm in norms:
        norm.momentum = 0.1
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(_coarse(norm.running_mean))
        norm.running_var.copy_(_coarse(norm.running_var))


def _coarse(values: Tensor) -> Tensor:
    """Rounded to eight bits, so that another processor's last digits do not show in the weights."""
    return values.bfloat16().float()


def _patterns(source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random mels (N, 1, 80, 16) in -4..4 and faces (N, 6, 96, 96) in 0..1, from smooth and faint to harsh and grainy.

    Wide variety keeps the statistics true for photographs, drawings and noise alike.
    """
    mel = (_mixture((1, MEL_BANDS, MEL_WINDOW), (20, 8), source) * 12 - 6).clamp(-4, 4)
    crop = _mixture((3, FACE_SIDE, FACE_SIDE), (12, 12), source)
    masked = crop.clone()
    masked[:, :, FACE_SIDE // 2 :] = 0
    return mel, torch.cat((masked, crop), dim=1)


def _mixture(shape: tuple[int, int, int], cells: tuple[int, int], source: torch.Generator) -> Tensor:
    """(N, *shape) in 0..1: blotches of the size of a cell and grain, each of any strength, around any brightness."""
    blotches = torch.rand(_EXAMPLES, shape[0], *cells, generator=source) - 0.5
    grain = torch.rand(_EXAMPLES, *shape, generator=source) - 0.5
    contrast, roughness, brightness = torch.rand(3, _EXAMPLES, 1, 1, 1, generator=source)
    smooth = interpolate(blotches, shape[1:], mode="bilinear") * 1.6 * contrast
    mixed: Tensor = brightness * 0.8 + 0.1 + smooth + grain * roughness
    return mixed.clamp(0, 1)

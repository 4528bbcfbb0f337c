"""A folded network as oneDNN likes it best: weights in its own order, shortcut and ReLU inside each convolution."""

from __future__ import annotations

import copy
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from lipsync.model.wav2lip import FACE_SIDE, MEL_BANDS, MEL_WINDOW, Block, Wav2Lip

_OPERATORS = (
    "_convolution_pointwise",
    "_convolution_transpose_pointwise",
    "_reorder_convolution_weight",
    "_reorder_convolution_transpose_weight",
)
"""Those that torch's own compiler puts in the place of frozen convolutions. They are not public, hence ``can_pack``."""
_UNDILATED, _ONE_GROUP = [1, 1], 1


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch and this processor have what ``pack`` needs for this format."""
    has_it = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    is_x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    if not has_it or not is_x86 or not all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(model: Wav2Lip, batch: int) -> Wav2Lip:
    """A copy of a folded, channels_last ``model`` on a CPU, for inference alone: the same function, quickest with
    ``batch`` frames. An order chosen without knowing what a layer will be given can make a small one 50 times slower.
    """
    packed = copy.deepcopy(model)
    for name, shape in _input_shapes(packed, batch).items():
        parent, _, key = name.rpartition(".")
        setattr(packed.get_submodule(parent), key, PackedBlock(cast(Block, packed.get_submodule(name)), shape))
    return packed


def _input_shapes(model: Wav2Lip, batch: int) -> dict[str, tuple[int, ...]]:
    """What each block is given where the network draws so many frames: as where it draws one, which is tried."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, _block: nn.Module, given: tuple[Tensor, ...]) -> None:
        shapes[name] = (batch, *given[0].shape[1:])

    names = {name: block for name, block in model.named_modules() if isinstance(block, Block)}
    hooks = [block.register_forward_pre_hook(partial(note, name)) for name, block in names.items()]
    dtype = next(model.parameters()).dtype
    mel, faces = torch.zeros(1, 1, MEL_BANDS, MEL_WINDOW), torch.zeros(1, 6, FACE_SIDE, FACE_SIDE)
    with torch.inference_mode():
        Wav2Lip.forward(model, mel.to(dtype), faces.to(dtype))
    for hook in hooks:
        hook.remove()
    return shapes


class PackedBlock(nn.Module):
    """A folded ``Block`` as one call of oneDNN. Its weight is opaque: it has no strides, and cannot be saved."""

    def __init__(self, block: Block, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        convolution = cast(nn.Conv2d | nn.ConvTranspose2d, block.conv_block[0])
        self._bias = None if convolution.bias is None else convolution.bias.detach()
        self._padding, self._stride = [int(side) for side in convolution.padding], list(convolution.stride)
        self._residual = block.residual
        self._grows = isinstance(convolution, nn.ConvTranspose2d)
        self._output_padding = list(convolution.output_padding)
        place = [self._padding, self._output_padding] if self._grows else [self._padding]
        reorder = "_reorder_convolution_transpose_weight" if self._grows else "_reorder_convolution_weight"
        self._weight: Tensor = getattr(torch.ops.mkldnn, reorder)(
            convolution.weight.detach(), *place, self._stride, _UNDILATED, _ONE_GROUP, list(input_shape)
        )

    def forward(self, x: Tensor) -> Tensor:
        shape = self._stride, _UNDILATED, _ONE_GROUP
        drawn: Tensor
        if self._grows:
            drawn = torch.ops.mkldnn._convolution_transpose_pointwise(
                x, self._weight, self._bias, self._padding, self._output_padding, *shape, "relu", [], ""
            )
        elif self._residual:
            drawn = torch.ops.mkldnn._convolution_pointwise.binary(
                x, x, self._weight, self._bias, self._padding, *shape, "add", 1.0, "relu", [], ""
            )
        else:
            drawn = torch.ops.mkldnn._convolution_pointwise(
                x, self._weight, self._bias, self._padding, *shape, "relu", [], ""
            )
        return drawn

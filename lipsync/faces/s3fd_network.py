"""The network of S3FD: a VGG-16 trunk with six levels of face scores and boxes, and its strict loading."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from lipsync.errors import CheckpointMismatch, CheckpointNotFound, CheckpointUnreadable

PARAMETER_COUNT = 22_459_110
TENSOR_COUNT = 65

TRUNK = (
    (("conv1_1", 3, 64), ("conv1_2", 64, 64)),
    (("conv2_1", 64, 128), ("conv2_2", 128, 128)),
    (("conv3_1", 128, 256), ("conv3_2", 256, 256), ("conv3_3", 256, 256)),
    (("conv4_1", 256, 512), ("conv4_2", 512, 512), ("conv4_3", 512, 512)),
    (("conv5_1", 512, 512), ("conv5_2", 512, 512), ("conv5_3", 512, 512)),
)
"""Stages of 3×3 convolutions (name, in, out), each stage followed by halving."""
NORMS = {"conv3_3_norm": (256, 10.0), "conv4_3_norm": (512, 8.0), "conv5_3_norm": (512, 5.0)}
"""The last three stages' outputs are looked at after normalising: channels, first scale."""
LEVELS = {
    "conv3_3_norm": (256, 4),
    "conv4_3_norm": (512, 2),
    "conv5_3_norm": (512, 2),
    "fc7": (1024, 2),
    "conv6_2": (512, 2),
    "conv7_2": (256, 2),
}
"""What faces are read from, finest first: channels, class scores. The finest has three kinds of background."""


class ChannelNorm(nn.Module):
    """Divides by the length of each position's channel vector and scales channels by a learnt weight."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        length = x.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10
        return x / length * self.weight[None, :, None, None]


class S3FDNetwork(nn.Module):
    """(B, 3, H, W) in; twelve maps out: per level, finest first, class scores (B, 2, h, w) and offsets (B, 4, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        for name, inputs, outputs in (layer for stage in TRUNK for layer in stage):
            self.add_module(name, nn.Conv2d(inputs, outputs, 3, padding=1))
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=3)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        self.conv6_1 = nn.Conv2d(1024, 256, 1)
        self.conv6_2 = nn.Conv2d(256, 512, 3, stride=2, padding=1)
        self.conv7_1 = nn.Conv2d(512, 128, 1)
        self.conv7_2 = nn.Conv2d(128, 256, 3, stride=2, padding=1)
        for name, (channels, scale) in NORMS.items():
            self.add_module(name, ChannelNorm(channels, scale))
        for name, (channels, classes) in LEVELS.items():
            self.add_module(f"{name}_mbox_conf", nn.Conv2d(channels, classes, 3, padding=1))
            self.add_module(f"{name}_mbox_loc", nn.Conv2d(channels, 4, 3, padding=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        seen: dict[str, Tensor] = {}
        for stage in TRUNK:
            for name, _, _ in stage:
                x = relu(self.get_submodule(name)(x))
            norm = f"{stage[-1][0]}_norm"
            if norm in NORMS:
                seen[norm] = self.get_submodule(norm)(x)
            x = max_pool2d(x, 2)
        seen["fc7"] = relu(self.fc7(relu(self.fc6(x))))
        seen["conv6_2"] = relu(self.conv6_2(relu(self.conv6_1(seen["fc7"]))))
        seen["conv7_2"] = relu(self.conv7_2(relu(self.conv7_1(seen["conv6_2"]))))
        return [head for name in LEVELS for head in self._heads(name, seen[name])]

    def _heads(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        classes: Tensor = self.get_submodule(f"{name}_mbox_conf")(x)
        offsets: Tensor = self.get_submodule(f"{name}_mbox_loc")(x)
        background = classes[:, :-1].amax(dim=1, keepdim=True)
        return torch.cat([background, classes[:, -1:]], dim=1), offsets


def load_s3fd(path: Path) -> S3FDNetwork:
    """The network with the weights of ``s3fd.pth``, in evaluation mode.

    Nothing in the file is run. Raises CheckpointNotFound, CheckpointUnreadable, CheckpointMismatch.
    """
    state = _read(path)
    network = S3FDNetwork()
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) if isinstance(tensor, Tensor) else None for name, tensor in state.items()}
    if wanted != given:
        wrong = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise CheckpointMismatch(
            f"{path} does not hold S3FD: {len(wrong)} of {TENSOR_COUNT} tensors are missing, extra or of another "
            f"shape ({', '.join(map(str, wrong[:3]))}, …). Use s3fd-619a316812.pth as its authors offer it."
        )
    network.load_state_dict(state, strict=True)
    return network.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointNotFound(f"There is no S3FD file at {path}. 'lipsync weights list' says where to get it.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError, KeyError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise CheckpointUnreadable(
            f"{path} is not a file of plain torch weights ({reason}): a web page saved by mistake, or a cut download? "
            "Get s3fd.pth (89,843,225 bytes) again."
        ) from error
    if not isinstance(state, dict):
        raise CheckpointMismatch(f"{path} holds a {type(state).__name__}, not the table of S3FD's tensors.")
    return state

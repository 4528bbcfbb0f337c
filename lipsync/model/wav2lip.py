"""The Wav2Lip generator as the paper draws it: a face encoder with skips, a voice encoder, a face decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

FACE_SIDE = 96
MEL_BANDS = 80
MEL_WINDOW = 16
"""Mel columns that the generator hears for one output frame."""


@dataclass(frozen=True, slots=True)
class Widths:
    """Channels of each stage; the defaults are the published network's. Narrower ones keep its layers and names."""

    face: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 512)
    voice: tuple[int, ...] = (32, 64, 128, 256, 512)
    decoder: tuple[int, ...] = (512, 512, 512, 384, 256, 128, 64)
    output: int = 32

    def __post_init__(self) -> None:
        lengths = (len(self.face), len(self.voice), len(self.decoder))
        if lengths != (7, 5, 7) or min(*self.face, *self.voice, *self.decoder, self.output) < 1:
            raise ValueError(f"widths need 7 face, 5 voice and 7 decoder stages of at least one channel, not {self}.")

    def __str__(self) -> str:
        rows = ((item.name, getattr(self, item.name)) for item in fields(self))
        return ", ".join(f"{name} {'-'.join(map(str, row)) if isinstance(row, tuple) else row}" for name, row in rows)


REFERENCE = Widths()


class Block(nn.Module):
    """Convolution, BatchNorm, an optional shortcut, ReLU. The shortcut is added before the ReLU."""

    def __init__(self, convolution: nn.Conv2d | nn.ConvTranspose2d, *, residual: bool = False) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv_block(x)
        if self.residual:
            y += x
        return nn.functional.relu(y, inplace=True)


class Wav2Lip(nn.Module):
    """Draws the face that says what is heard. Key names are those of the published checkpoints (352 entries)."""

    def __init__(self, widths: Widths = REFERENCE) -> None:
        super().__init__()
        self.widths = widths
        self.face_encoder_blocks = _face_encoder(widths.face)
        self.audio_encoder = _voice_encoder(widths.voice)
        self.face_decoder_blocks = _face_decoder(widths)
        self.output_block = nn.Sequential(
            _conv(widths.decoder[6] + widths.face[0], widths.output, 3, padding=1),
            nn.Conv2d(widths.output, 3, 1),
            nn.Sigmoid(),
        )

    def forward(self, mel: Tensor, faces: Tensor) -> Tensor:
        """mel (B, 1, 80, 16) in -4..4 and faces (B, 6, 96, 96) in 0..1 → (B, 3, 96, 96) in 0..1.

        Channels of faces: the crop with rows 48..95 set to 0, then the whole crop, both BGR.
        """
        return self.draw(self.audio_encoder(mel), self.encode_faces(faces))

    def encode_faces(self, faces: Tensor) -> list[Tensor]:
        """faces (B, 6, 96, 96) → the seven skips, from 96 × 96 down to 1 × 1."""
        skips: list[Tensor] = []
        x = faces
        for block in self.face_encoder_blocks:
            x = block(x)
            skips.append(x)
        return skips

    def draw(self, voice: Tensor, skips: list[Tensor]) -> Tensor:
        """voice (B, C, 1, 1), the voice encoder's answer, and the face encoder's skips → (B, 3, 96, 96)."""
        x = voice
        for block, skip in zip(self.face_decoder_blocks, reversed(skips), strict=True):
            x = torch.cat((block(x), skip), dim=1)
        drawn: Tensor = self.output_block(x)
        return drawn

    def blocks(self) -> Iterator[Block]:
        """The 50 blocks, in the order of their names."""
        return (module for module in self.modules() if isinstance(module, Block))


def read_widths(shapes: Mapping[str, tuple[int, ...]]) -> Widths:
    """The widths that a state dict's shapes show. Raises KeyError, IndexError or ValueError if they show none."""

    def out(path: str) -> int:
        return shapes[f"{path}.conv_block.0.weight"][0]

    def out_transposed(path: str) -> int:
        return shapes[f"{path}.conv_block.0.weight"][1]

    return Widths(
        face=tuple(out(f"face_encoder_blocks.{i}.0") for i in range(7)),
        voice=tuple(out(f"audio_encoder.{i}") for i in (0, 3, 6, 9, 11)),
        decoder=(out("face_decoder_blocks.0.0"), *(out_transposed(f"face_decoder_blocks.{i}.0") for i in range(1, 7))),
        output=out("output_block.0"),
    )


def _conv(inputs: int, outputs: int, kernel: int, *, stride: int | tuple[int, int] = 1, padding: int = 0) -> Block:
    return Block(nn.Conv2d(inputs, outputs, kernel, stride, padding))


def _up(inputs: int, outputs: int) -> Block:
    """Doubles height and width."""
    return Block(nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1))


def _same(width: int, count: int) -> list[Block]:
    return [Block(nn.Conv2d(width, width, 3, padding=1), residual=True) for _ in range(count)]


def _face_encoder(w: tuple[int, ...]) -> nn.ModuleList:
    halve = {"stride": 2, "padding": 1}
    return nn.ModuleList(
        [
            nn.Sequential(_conv(6, w[0], 7, padding=3)),  # 96 × 96
            nn.Sequential(_conv(w[0], w[1], 3, **halve), *_same(w[1], 2)),  # 48
            nn.Sequential(_conv(w[1], w[2], 3, **halve), *_same(w[2], 3)),  # 24
            nn.Sequential(_conv(w[2], w[3], 3, **halve), *_same(w[3], 2)),  # 12
            nn.Sequential(_conv(w[3], w[4], 3, **halve), *_same(w[4], 2)),  # 6
            nn.Sequential(_conv(w[4], w[5], 3, **halve), *_same(w[5], 1)),  # 3
            nn.Sequential(_conv(w[5], w[6], 3), _conv(w[6], w[6], 1)),  # 1
        ]
    )


def _voice_encoder(w: tuple[int, ...]) -> nn.Sequential:
    return nn.Sequential(
        _conv(1, w[0], 3, padding=1),  # 80 × 16
        *_same(w[0], 2),
        _conv(w[0], w[1], 3, stride=(3, 1), padding=1),  # 27 × 16
        *_same(w[1], 2),
        _conv(w[1], w[2], 3, stride=3, padding=1),  # 9 × 6
        *_same(w[2], 2),
        _conv(w[2], w[3], 3, stride=(3, 2), padding=1),  # 3 × 3
        *_same(w[3], 1),
        _conv(w[3], w[4], 3),  # 1 × 1
        _conv(w[4], w[4], 1),
    )


def _face_decoder(widths: Widths) -> nn.ModuleList:
    w, skip = widths.decoder, widths.face
    return nn.ModuleList(
        [
            nn.Sequential(_conv(widths.voice[4], w[0], 1)),  # 1 × 1
            nn.Sequential(Block(nn.ConvTranspose2d(w[0] + skip[6], w[1], 3)), *_same(w[1], 1)),  # 3
            nn.Sequential(_up(w[1] + skip[5], w[2]), *_same(w[2], 2)),  # 6
            nn.Sequential(_up(w[2] + skip[4], w[3]), *_same(w[3], 2)),  # 12
            nn.Sequential(_up(w[3] + skip[3], w[4]), *_same(w[4], 2)),  # 24
            nn.Sequential(_up(w[4] + skip[2], w[5]), *_same(w[5], 2)),  # 48
            nn.Sequential(_up(w[5] + skip[1], w[6]), *_same(w[6], 2)),  # 96
        ]
    )

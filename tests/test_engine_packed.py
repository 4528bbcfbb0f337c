"""Blocks as single calls of oneDNN: the same function as the folded network, where a machine has them."""

from __future__ import annotations

import copy
import platform
import sys

import numpy as np
import pytest
import torch

from lipsync.engine import Engine, Techniques
from lipsync.engine import network as network_module
from lipsync.engine import packed as packed_module
from lipsync.engine.packed import PackedBlock, can_pack, pack
from lipsync.model.folding import fold
from lipsync.model.seeded import seeded_generator
from lipsync.model.wav2lip import Wav2Lip
from tests.engine_cases import NARROW, arguments

wants_packing = pytest.mark.skipif(not can_pack(torch.float32), reason="wants oneDNN on an x86 processor")


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="wants Linux on x86")
def test_the_torch_that_is_installed_still_has_the_operators() -> None:
    assert can_pack(torch.float32), "torch moved what packing calls; see lipsync/engine/packed.py"


@pytest.fixture(scope="module")
def folded() -> Wav2Lip:
    model: Wav2Lip = fold(seeded_generator(4, widths=NARROW)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def inputs(count: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(count)
    mel, faces = torch.rand(count, 1, 80, 16, generator=draw) * 8 - 4, torch.rand(count, 6, 96, 96, generator=draw)
    return mel.to(dtype), faces.to(dtype).contiguous(memory_format=torch.channels_last)


@wants_packing
@pytest.mark.parametrize("count", [1, 3, 8, 17])
def test_a_packed_network_draws_what_the_folded_one_draws_in_batches_of_any_size(folded: Wav2Lip, count: int) -> None:
    packed = pack(folded, 8)
    assert sum(isinstance(module, PackedBlock) for module in packed.modules()) == 50
    with torch.inference_mode():
        wanted, drawn = folded(*inputs(count)), packed(*inputs(count))
    assert wanted.std() * 255 >= 40
    assert (wanted - drawn).abs().max() * 255 <= 0.05


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="wants oneDNN with bf16")
def test_packing_bf16_costs_no_more_quality_than_bf16_itself(folded: Wav2Lip) -> None:
    half: Wav2Lip = copy.deepcopy(folded).to(torch.bfloat16)
    with torch.inference_mode():
        exact = folded(*inputs(8))
        plain, packed = half(*inputs(8, torch.bfloat16)).float(), pack(half, 8)(*inputs(8, torch.bfloat16)).float()
    assert (packed - exact).square().mean() <= 1.1 * (plain - exact).square().mean()


@wants_packing
def test_packing_leaves_the_folded_network_alone(folded: Wav2Lip) -> None:
    before = {name: value.clone() for name, value in folded.state_dict().items()}
    pack(folded, 8)
    assert not any(isinstance(module, PackedBlock) for module in folded.modules())
    assert all(torch.equal(before[name], value) for name, value in folded.state_dict().items())


@wants_packing
def test_an_engine_packs_unless_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[Wav2Lip] = []

    def noted(model: Wav2Lip, batch: int) -> Wav2Lip:
        packed.append(model)
        return pack(model, batch)

    monkeypatch.setattr(network_module, "pack", noted)
    model = seeded_generator(4, widths=NARROW)
    for techniques in (Techniques(packed=False), Techniques(folded=False), Techniques(channels_last=False)):
        Engine(model, device="cpu", techniques=techniques).generate(*arguments(3))
    Engine(model, device="cpu", exact=True).generate(*arguments(3))
    assert not packed
    Engine(model, device="cpu").generate(*arguments(3))
    assert len(packed) == 1


def test_without_one_of_the_operators_the_engine_draws_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded_generator(4, widths=NARROW)
    wanted = Engine(model, device="cpu", techniques=Techniques(packed=False)).generate(*arguments(8))
    monkeypatch.setattr(packed_module, "_OPERATORS", (*packed_module._OPERATORS, "_no_such_operator"))
    assert not can_pack(torch.float32)
    assert np.array_equal(Engine(model, device="cpu").generate(*arguments(8)), wanted)

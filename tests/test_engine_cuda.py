"""The engine on a CUDA device: the CPU's pictures, at half precision and compiled too."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from lipsync.core import U8
from lipsync.engine import Engine
from lipsync.model.seeded import seeded_generator
from tests.engine_cases import arguments, make

pytestmark = pytest.mark.needs_cuda

HALF_PRECISION_DB = 40.0
"""Seeded weights amplify rounding more than trained ones do: fp16 on a CPU is at 44.9 dB with them."""


@pytest.fixture
def cuda() -> str:
    if not torch.cuda.is_available():
        if os.environ.get("FAIL_WITHOUT_CUDA") == "1":
            pytest.fail("there is no CUDA device, and FAIL_WITHOUT_CUDA=1")
        pytest.skip("no CUDA device")
    return "cuda"


def psnr(a: U8, b: U8) -> float:
    return float(10 * np.log10(255**2 / ((a.astype(int) - b) ** 2).mean()))


def test_cuda_draws_what_the_cpu_draws(cuda: str) -> None:
    seeded, given = seeded_generator(9), arguments(40)
    expected = make(seeded, exact=True).generate(*given)
    exact = Engine(seeded, device=cuda, exact=True).generate(*given)
    assert np.abs(expected.astype(int) - exact).max() <= 1 and (expected != exact).mean() <= 0.003
    assert psnr(Engine(seeded, device=cuda).generate(*given), exact) >= HALF_PRECISION_DB


def test_a_cuda_frame_does_not_depend_on_its_neighbours(cuda: str) -> None:
    crops, index, mel, starts = arguments(64)
    engine = Engine(seeded_generator(9), device=cuda)
    drawn = engine.generate(crops, index, mel, starts)
    order = np.random.default_rng(2).permutation(64)
    assert np.array_equal(engine.generate(crops, index[order], mel, starts[order]), drawn[order])


def test_compiled_on_cuda_draws_the_same_faces(cuda: str) -> None:
    seeded, given = seeded_generator(9), arguments(40)
    exact = Engine(seeded, device=cuda, exact=True).generate(*given)
    compiled = Engine(seeded, device=cuda, compile="auto", batch_size=64, buckets=[64])
    assert compiled.info.compiled and compiled.warm_up() > 0
    assert psnr(compiled.generate(*given), exact) >= HALF_PRECISION_DB

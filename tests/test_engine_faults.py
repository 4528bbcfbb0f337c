"""Faults of a device, injected on a CPU: no frame is lost to memory or overflow, and a poisoned device says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from lipsync.errors import DeviceOutOfMemory, EngineError, NonFiniteOutput
from lipsync.model.seeded import seeded_generator
from lipsync.model.wav2lip import Wav2Lip
from tests.engine_cases import NARROW, arguments, make


@pytest.fixture(scope="module")
def model() -> Wav2Lip:
    return seeded_generator(4, widths=NARROW)


class CrampedModel(Wav2Lip):
    """Fits only so many frames into memory."""

    fits: ClassVar[int] = 5
    error: ClassVar[Callable[[], Exception]] = staticmethod(lambda: torch.OutOfMemoryError("CUDA out of memory."))

    def forward(self, mel: Tensor, faces: Tensor) -> Tensor:
        if len(faces) > self.fits:
            raise self.error()
        return super().forward(mel, faces)


@pytest.fixture
def cramped(model: Wav2Lip, monkeypatch: pytest.MonkeyPatch) -> type[CrampedModel]:
    monkeypatch.setattr(CrampedModel, "fits", 5)
    return CrampedModel


def like(kind: type[Wav2Lip], model: Wav2Lip) -> Wav2Lip:
    made = kind(NARROW).eval()
    made.load_state_dict(model.state_dict())
    return made


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
        MemoryError,
    ],
    ids=["cuda allocator", "cpu allocator", "cublas", "python"],
)
def test_out_of_memory_halves_the_batch_and_loses_no_frame(
    error: Callable[[], Exception],
    cramped: type[CrampedModel],
    model: Wav2Lip,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cramped, "error", staticmethod(error))
    given = arguments(43)
    engine = make(like(cramped, model), batch_size=32, buckets=[16])
    drawn = engine.generate(*given)
    assert np.array_equal(drawn, make(model, batch_size=4, buckets=[4]).generate(*given))
    assert (engine.counts.out_of_memory, engine.counts.batch_ceiling, engine.counts.frames) == (3, 4, 43)
    engine.generate(*given)
    assert engine.counts.out_of_memory == 3, "the ceiling is remembered"
    assert engine.healthy


def test_not_even_one_frame_fitting_is_an_error_of_its_own(
    cramped: type[CrampedModel], model: Wav2Lip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cramped, "fits", 0)
    engine = make(like(cramped, model))
    with pytest.raises(DeviceOutOfMemory, match="one frame alone"):
        engine.generate(*arguments(9))
    assert engine.counts.out_of_memory == 4  # at 8, 4, 2 and 1
    assert engine.healthy, "memory may be free again later"
    monkeypatch.setattr(cramped, "fits", 5)
    assert len(engine.generate(*arguments(9))) == 9


class OverflowingModel(Wav2Lip):
    """Draws NaN for marked faces in the formats named."""

    broken: ClassVar[tuple[torch.dtype, ...]] = ()

    def forward(self, mel: Tensor, faces: Tensor) -> Tensor:
        drawn = super().forward(mel, faces)
        if faces.dtype in self.broken:
            drawn[faces[:, 3, 0, 0] == 1] = float("nan")  # marked by a first pixel of 255
        return drawn


@pytest.mark.parametrize(
    ("broken", "rescue", "redone"),
    [
        ((torch.float16,), "bf16", 2),
        ((torch.float16, torch.bfloat16), "fp32", 4),
        ((torch.bfloat16,), "fp32", 2),
    ],
)
def test_only_frames_that_overflow_are_redone(
    broken: tuple[torch.dtype, ...],
    rescue: Any,
    redone: int,
    model: Wav2Lip,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OverflowingModel, "broken", broken)
    precision: Any = "fp16" if torch.float16 in broken else "bf16"
    crops, index, mel, starts = arguments(6, crops=6)
    index = np.arange(6)
    crops[:, 0, 0, 0] = 0
    crops[[1, 4], 0, 0, 0] = 255
    engine = make(like(OverflowingModel, model), precision=precision)
    drawn = engine.generate(crops, index, mel, starts)
    usual = make(model, precision=precision).generate(crops, index, mel, starts)
    rescued = make(model, precision=rescue).generate(crops, index, mel, starts)
    assert not np.array_equal(usual[1], rescued[1]), "else this test could not tell them apart"
    for i in range(6):
        assert np.array_equal(drawn[i], rescued[i] if i in (1, 4) else usual[i]), i
    assert engine.counts.redone == redone and engine.healthy


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_frames_that_overflow_everywhere_are_an_error(
    precision: Any, model: Wav2Lip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OverflowingModel, "broken", (torch.float16, torch.bfloat16, torch.float32))
    crops, _, mel, starts = arguments(6, crops=6)
    crops[:, 0, 0, 0] = 0
    crops[[2, 4], 0, 0, 0] = 255
    engine = make(like(OverflowingModel, model), precision=precision)
    with pytest.raises(NonFiniteOutput, match=r"2 of 6 frames .* the first of them frame 2"):
        engine.generate(crops, np.arange(6), mel, starts)
    assert engine.healthy
    sound = np.array([0, 1, 3, 5])
    assert len(engine.generate(crops, sound, mel, starts[sound])) == 4, "its neighbours can be drawn without it"


class FailingModel(Wav2Lip):
    """A device whose context is poisoned."""

    calls: ClassVar[list[int]] = []

    def forward(self, mel: Tensor, faces: Tensor) -> Tensor:
        self.calls.append(len(faces))
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore lines")


def test_a_poisoned_device_is_reported_and_never_used_again() -> None:
    FailingModel.calls.clear()
    engine = make(FailingModel(NARROW))
    assert engine.healthy
    with pytest.raises(EngineError, match=r"illegal memory access was encountered\. Start a new process") as raised:
        engine.generate(*arguments(3))
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert not engine.healthy
    with pytest.raises(EngineError, match="the device failed before"):
        engine.generate(*arguments(3))
    assert FailingModel.calls == [8]

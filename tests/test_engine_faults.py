"""Faults of a device, injected on a CPU: no frame is lost to memory or overflow, and a poisoned device says so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipsync.engine.engine import SWITCH_AFTER_CALLS
from lipsync.engine.frames import Frames
from lipsync.engine.runner import CpuRunner, Pending, Run
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


def while_recording() -> RuntimeError:
    error = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    error.__context__ = torch.OutOfMemoryError("CUDA out of memory.")
    return error


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
        lambda: RuntimeError("GET was unable to find an engine to execute this computation"),
        MemoryError,
        lambda: while_recording(),
    ],
    ids=["cuda allocator", "cpu allocator", "cublas", "cudnn", "python", "while a graph is recorded"],
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


# Switching over.


def marked(count: int, bad: int) -> Any:
    """Arguments of which the first frames are marked to overflow."""
    crops, _, mel, starts = arguments(count, crops=count)
    crops[:, 0, 0, 0] = 0
    crops[:bad, 0, 0, 0] = 255
    return crops, np.arange(count), mel, starts


def test_after_repeated_rescues_the_engine_switches_over_and_says_why(
    model: Wav2Lip, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(OverflowingModel, "broken", (torch.float16,))
    engine = make(like(OverflowingModel, model), precision="fp16")
    for _ in range(SWITCH_AFTER_CALLS - 1):
        engine.generate(*marked(8, bad=1))
    assert engine.info.precision == "fp16" and engine.notes == ()
    engine.generate(*marked(8, bad=1))
    assert engine.info.precision == "bf16"
    assert "drawn in bf16 from now on" in engine.notes[0] and "in fp16" in engine.notes[0]
    assert engine.notes[0] in caplog.text
    redone = engine.counts.redone
    drawn = engine.generate(*marked(8, bad=3))
    assert np.array_equal(drawn, make(model, precision="bf16").generate(*marked(8, bad=3)))
    assert engine.counts.redone == redone and len(engine.notes) == 1
    monkeypatch.setattr(OverflowingModel, "broken", (torch.float16, torch.bfloat16))
    for _ in range(SWITCH_AFTER_CALLS):
        assert engine.info.precision == "bf16", "what was counted in fp16 does not count in bf16"
        engine.generate(*marked(8, bad=1))
    assert engine.info.precision == "fp32" and len(engine.notes) == 2


def test_an_engine_that_rarely_has_to_redo_a_frame_stays_as_it_is(
    model: Wav2Lip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OverflowingModel, "broken", (torch.bfloat16,))
    monkeypatch.setattr("lipsync.engine.engine.SWITCH_AT_SHARE", 0.3)  # 1 in 100 would take a CPU long
    engine = make(like(OverflowingModel, model), precision="bf16")
    for _ in range(SWITCH_AFTER_CALLS + 2):
        engine.generate(*marked(8, bad=2))
    assert engine.counts.rescued_calls == SWITCH_AFTER_CALLS + 2
    assert engine.info.precision == "bf16" and engine.notes == ()


def test_frames_that_no_format_can_draw_are_no_reason_to_switch(
    model: Wav2Lip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OverflowingModel, "broken", (torch.float16, torch.bfloat16, torch.float32))
    engine = make(like(OverflowingModel, model), precision="fp16")
    for _ in range(SWITCH_AFTER_CALLS + 2):
        with pytest.raises(NonFiniteOutput):
            engine.generate(*marked(8, bad=1))
    assert engine.info.precision == "fp16" and engine.counts.rescued_calls == 0


def test_logits_that_overflow_are_drawn_again_although_a_sigmoid_would_hide_them(model: Wav2Lip) -> None:
    bright = copy.deepcopy(model)
    last = cast(nn.Conv2d, bright.output_block[1])
    assert last.bias is not None
    with torch.no_grad():
        last.bias[2] = 7e4  # more than fp16 holds
    engine = make(bright, precision="fp16")
    drawn = engine.generate(*arguments(3))
    assert (drawn[..., 2] == 255).all() and drawn[..., :2].std() > 10
    assert engine.counts.redone == 3


# Several batches under way, as a device that computes by itself has them.


class LateRunner(CpuRunner):
    """Begins at once and fails or answers only when collected, as a CUDA device does."""

    in_flight = 2

    def __init__(self) -> None:
        self.log: list[str] = []
        self.under_way = 0
        self.fits = 1000
        self.fails_at: int | None = None  # the batch that poisons the device

    def begin(self, frames: Frames, bucket: int, run: Run) -> Pending:
        if bucket > self.fits:
            self.log.append(f"too large {bucket}")
            raise torch.OutOfMemoryError("CUDA out of memory.")
        number = sum(line.startswith("begin") for line in self.log)
        self.log.append(f"begin {number}")
        self.under_way += 1
        assert self.under_way <= self.in_flight
        return Late(self, number, super().begin(frames, bucket, run))


class Late:
    def __init__(self, runner: LateRunner, number: int, batch: Pending) -> None:
        self._runner, self._number, self._batch = runner, number, batch

    def collect(self) -> tuple[Any, Any]:
        self._runner.log.append(f"collect {self._number}")
        self._runner.under_way -= 1
        if self._number == self._runner.fails_at:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return self._batch.collect()


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> LateRunner:
    runner = LateRunner()
    monkeypatch.setattr("lipsync.engine.engine.open_runner", lambda *_: runner)
    return runner


def test_the_next_batch_begins_before_the_last_is_collected_and_order_is_kept(late: LateRunner, model: Wav2Lip) -> None:
    given = arguments(43)
    drawn = make(model, batch_size=10, buckets=[10]).generate(*given)
    assert late.log == [
        "begin 0", "begin 1", "collect 0", "begin 2", "collect 1", "begin 3", "collect 2", "begin 4", "collect 3",
        "collect 4",
    ]  # fmt: skip
    assert np.array_equal(drawn, make(model, batch_size=10, buckets=[10]).generate(*given))


def test_memory_that_runs_out_while_another_batch_is_under_way_loses_neither(late: LateRunner, model: Wav2Lip) -> None:
    given = arguments(43)
    engine = make(model, batch_size=16, buckets=[4, 8, 16])
    engine.generate(*given)
    late.log.clear()
    late.fits = 8
    drawn = engine.generate(*given)
    assert late.log[0] == "too large 16" and engine.counts.out_of_memory == 1
    assert engine.batch_size == 8 == engine.counts.batch_ceiling
    assert np.array_equal(drawn, make(model, batch_size=8, buckets=[4, 8]).generate(*given))


def test_a_device_that_fails_while_it_computes_is_seen_when_its_batch_is_collected(
    late: LateRunner, model: Wav2Lip
) -> None:
    late.fails_at = 1
    engine = make(model, batch_size=10, buckets=[10])
    with pytest.raises(EngineError, match="illegal memory access"):
        engine.generate(*arguments(43))
    assert late.log == ["begin 0", "begin 1", "collect 0", "begin 2", "collect 1"]
    assert not engine.healthy
    with pytest.raises(EngineError, match="failed before"):
        engine.generate(*arguments(3))
    assert len(late.log) == 5, "and it is left alone"


def test_a_device_that_fails_while_frames_are_made_ready_is_not_healthy(late: LateRunner, model: Wav2Lip) -> None:
    def empty(shape: tuple[int, ...], dtype: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    engine = make(model)
    parts = [engine.check(*arguments(3))]
    late.empty = empty  # type: ignore[method-assign]  # pinned memory asks the device
    with pytest.raises(EngineError, match="Start a new process"):
        engine.stage(parts)
    assert not engine.healthy


def test_no_room_to_stage_in_is_no_fault(late: LateRunner, model: Wav2Lip) -> None:
    def stage(frames: Frames) -> Frames:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    late.stage = stage  # type: ignore[method-assign]
    engine = make(model)
    given = arguments(6)
    assert np.array_equal(engine.draw(engine.stage([engine.check(*given)])), engine.generate(*given))
    assert engine.healthy

"""S3FD: its shape, its decoding against an independent one, its files, and what it does when memory runs out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lipsync.core import F32, U8, Detection
from lipsync.errors import (
    CheckpointMismatch,
    CheckpointNotFound,
    CheckpointUnreadable,
    DeviceOutOfMemory,
    DeviceUnavailable,
    EngineError,
)
from lipsync.faces.s3fd import S3FD, as_input, decode
from lipsync.faces.s3fd_network import PARAMETER_COUNT, TENSOR_COUNT, S3FDNetwork, load_s3fd


def seeded_network() -> S3FDNetwork:
    torch.manual_seed(3)
    network = S3FDNetwork()
    for name, weight in network.named_parameters():
        if name.endswith("_conf.weight"):
            weight.data *= 40
    return network


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, with scores spread far beyond rounding, so that some cells of a random picture are faces."""
    network = seeded_network()
    path = tmp_path_factory.mktemp("s3fd") / "s3fd.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def detector(weights: Path) -> S3FD:
    return S3FD(weights)


def frames(count: int, height: int = 64, width: int = 96) -> list[U8]:
    rng = np.random.default_rng(11)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def test_the_network_has_the_published_number_of_tensors_and_parameters() -> None:
    state = S3FDNetwork().state_dict()
    assert len(state) == TENSOR_COUNT == 65
    assert sum(tensor.numel() for tensor in state.values()) == PARAMETER_COUNT == 22_459_110
    assert state["conv3_3_norm_mbox_conf.weight"].shape == (4, 256, 3, 3)
    assert [float(state[f"conv{n}_3_norm.weight"][0]) for n in (3, 4, 5)] == [10.0, 8.0, 5.0]


def test_the_maps_of_a_720p_frame_have_the_published_sizes() -> None:
    with torch.device("meta"):
        maps = S3FDNetwork()(torch.empty(2, 3, 720, 1280))
    assert [tuple(each.shape[2:]) for each in maps[0::2]] == [
        (180, 320), (90, 160), (45, 80), (26, 44), (13, 22), (7, 11)
    ]  # fmt: skip
    assert all(each.shape[:2] == (2, 2) for each in maps[0::2])
    assert all(each.shape[:2] == (2, 4) for each in maps[1::2])


def test_the_finest_level_takes_the_strongest_of_three_backgrounds() -> None:
    network = S3FDNetwork()
    x = torch.randn(1, 256, 3, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        raw = network.get_submodule("conv3_3_norm_mbox_conf")(x)
        classes, _ = network._heads("conv3_3_norm", x)
    assert torch.equal(classes[:, 0], raw[:, :3].max(dim=1).values)
    assert torch.equal(classes[:, 1], raw[:, 3])


def test_the_input_is_rgb_less_the_means_of_bgr() -> None:
    frame = np.array([[[1, 2, 3]]], dtype=np.uint8)  # B, G, R
    assert as_input([frame])[0, :, 0, 0].tolist() == [3 - 104, 2 - 117, 1 - 123]


# ---- decoding


def decode_slowly(maps: Sequence[F32]) -> list[list[float]]:
    """The same from the page of facts, cell by cell in plain arithmetic: x1 y1 x2 y2 score, in score order."""
    found: list[list[float]] = []
    for level in range(6):
        stride = 4 * 2**level
        classes, offsets = maps[2 * level], maps[2 * level + 1]
        for row in range(classes.shape[1]):
            for column in range(classes.shape[2]):
                background, face = (math.exp(float(classes[i, row, column])) for i in (0, 1))
                score = face / (background + face)
                if score <= 0.05:
                    continue
                dx, dy, dw, dh = (float(offsets[i, row, column]) for i in range(4))
                side = 4 * stride
                cx, cy = stride / 2 + column * stride + 0.1 * dx * side, stride / 2 + row * stride + 0.1 * dy * side
                w, h = side * math.exp(0.2 * dw), side * math.exp(0.2 * dh)
                found.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, score])
    found.sort(key=lambda box: -box[4])
    kept: list[list[float]] = []
    for box in found:
        if all(_overlap_in_whole_pixels(box, other) <= 0.3 for other in kept):
            kept.append(box)
    return [box for box in kept if box[4] > 0.5]


def _overlap_in_whole_pixels(a: list[float], b: list[float]) -> float:
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    area = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return w * h / (sum(area) - w * h)


@pytest.mark.parametrize("seed", range(5))
def test_decoding_equals_a_slow_independent_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps: list[F32] = []
    for level in range(6):
        h, w = max(1, 24 >> level), max(1, 32 >> level)
        maps.append(rng.normal([[[2.0]], [[0.0]]], 1.5, (2, h, w)).astype(np.float32))
        maps.append(rng.normal(0, 1, (4, h, w)).astype(np.float32))
    slow = decode_slowly(maps)
    faces = [[face.x1, face.y1, face.x2, face.y2, face.score] for face in decode(maps)]
    assert len(slow) > 5
    np.testing.assert_allclose(faces, slow, rtol=1e-4, atol=1e-3)


def test_a_frame_without_a_face_gives_an_empty_list() -> None:
    maps: list[F32] = []
    for _ in range(6):
        classes = np.zeros((2, 3, 3), np.float32)
        classes[0] = 9.0
        maps += [classes, np.zeros((4, 3, 3), np.float32)]
    assert decode(maps) == []


def assert_same_faces(a: list[list[Detection]], b: list[list[Detection]]) -> None:
    assert [len(faces) for faces in a] == [len(faces) for faces in b] and all(a)
    for some, others in zip(a, b, strict=True):
        for one, other in zip(some, others, strict=True):
            assert (one.x1, one.y1, one.x2, one.y2, one.score) == pytest.approx(
                (other.x1, other.y1, other.x2, other.y2, other.score), abs=1e-3
            )


def test_boxes_do_not_depend_on_the_batch(detector: S3FD) -> None:
    pictures = frames(3)
    assert_same_faces(detector.detect(pictures), [detector.detect([picture])[0] for picture in pictures])


# ---- memory


def failing(monkeypatch: pytest.MonkeyPatch, detector: S3FD, error: Exception, *, above: int) -> list[int]:
    """Makes the network raise on batches larger than ``above``; gives the batch sizes that were tried."""
    tried: list[int] = []
    network = detector._network

    def forward(batch: torch.Tensor) -> Any:
        tried.append(len(batch))
        if len(batch) > above:
            raise error
        return network.forward(batch)

    monkeypatch.setattr(detector, "_network", forward)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        MemoryError("Unable to allocate 1.5 GiB for an array"),
    ],
    ids=["CUDA", "CPU", "numpy"],
)
def test_a_batch_that_does_not_fit_is_halved_and_the_smaller_size_is_kept(
    weights: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    detector = S3FD(weights, batch_size=8)
    whole = detector.detect(frames(9))
    tried = failing(monkeypatch, detector, error, above=2)
    assert_same_faces(detector.detect(frames(9)), whole)
    assert tried == [8, 4, 2, 2, 2, 2, 1]
    assert detector.batch_size == 2


def test_one_frame_that_does_not_fit_is_a_typed_error(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = S3FD(weights, batch_size=4)
    tried = failing(monkeypatch, detector, torch.cuda.OutOfMemoryError("CUDA out of memory"), above=0)
    with pytest.raises(DeviceOutOfMemory, match="one 96×64 frame"):
        detector.detect(frames(4))
    assert tried == [4, 2, 1]


def test_any_other_failure_is_told_with_its_cause_and_never_retried(
    detector: S3FD, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = failing(monkeypatch, detector, RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), above=0)
    with pytest.raises(EngineError, match="CUDNN_STATUS_EXECUTION_FAILED") as caught:
        detector.detect(frames(4))
    assert tried == [4]
    assert not isinstance(caught.value, DeviceOutOfMemory)


def test_a_device_that_is_not_there_is_named(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceUnavailable, match="device=cpu"):
        S3FD(weights, device="cuda")


# ---- files


def test_a_saved_network_loads_strictly_and_bit_for_bit(weights: Path) -> None:
    state, loaded = seeded_network().state_dict(), load_s3fd(weights).state_dict()
    assert all(torch.equal(state[name], loaded[name]) for name in state)


def test_files_that_are_not_s3fd_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="no S3FD file"):
        load_s3fd(tmp_path / "none.pth")
    page = tmp_path / "page.pth"
    page.write_bytes(b"<!DOCTYPE html><html>Not found</html>")
    with pytest.raises(CheckpointUnreadable, match="web page"):
        load_s3fd(page)
    other = tmp_path / "other.pth"
    torch.save({"conv1_1.weight": torch.zeros(64, 3, 3, 3), "extra": torch.zeros(1)}, other)
    with pytest.raises(CheckpointMismatch, match="65 tensors"):
        load_s3fd(other)
    torch.save([1, 2], other)
    with pytest.raises(CheckpointMismatch, match="holds a list"):
        load_s3fd(other)


def test_a_cut_download_is_unreadable(weights: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pth"
    cut.write_bytes(weights.read_bytes()[:1_000_000])
    with pytest.raises(CheckpointUnreadable):
        load_s3fd(cut)


class _RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran.txt"),))


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1_1.weight": _RunsCode()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointUnreadable):
        load_s3fd(tmp_path / "evil.pth")
    assert not (tmp_path / "ran.txt").exists()

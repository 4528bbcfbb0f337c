"""Checkpoints: every container and convention loads to the same weights; every wrong file gets its own sentence."""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lipsync.checkpoints import convert, inspect, load_generator
from lipsync.errors import (
    CheckpointMismatch,
    CheckpointNotFound,
    CheckpointUnreadable,
    CheckpointUntrusted,
    OutputError,
)
from lipsync.model.seeded import seeded_generator
from lipsync.model.wav2lip import Wav2Lip, Widths

NARROW = Widths(face=(4, 4, 8, 8, 12, 16, 16), voice=(4, 6, 8, 12, 20), decoder=(16, 12, 16, 12, 8, 8, 4), output=5)
PARAMETERS = sum(p.numel() for p in Wav2Lip(NARROW).parameters())


@pytest.fixture(scope="module")
def model() -> Wav2Lip:
    return seeded_generator(5, widths=NARROW)


@pytest.fixture
def state(model: Wav2Lip) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def save_bare(state: dict[str, Tensor], path: Path) -> None:
    torch.save(state, path)


def save_wrapped(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"state_dict": state, "optimizer": {"state": {}}, "global_step": 3, "global_epoch": 1}, path)


def save_parallel(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)


def save_legacy(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)


def save_safetensors(state: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(state, path)


def save_torchscript(state: dict[str, Tensor], path: Path) -> None:
    model = Wav2Lip(NARROW).eval()
    model.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.zeros(1, 1, 80, 16), torch.zeros(1, 6, 96, 96))
        torch.jit.trace(model, example, check_trace=False).save(str(path))


@pytest.mark.parametrize(
    ("save", "container"),
    [
        (save_bare, "torch_zip"),
        (save_wrapped, "torch_zip"),
        (save_parallel, "torch_zip"),
        (save_legacy, "torch_legacy"),
        (save_safetensors, "safetensors"),
        (save_torchscript, "torchscript"),
    ],
)
def test_every_container_loads_to_the_same_weights(
    save: Callable[[dict[str, Tensor], Path], None], container: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "misleading-name.jpg"
    save(state, path)
    loaded = load_generator(path, trust_torchscript=True)
    assert loaded.widths == NARROW
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert loaded.state_dict().keys() == state.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    info = inspect(path, trust_torchscript=True)
    assert (info.kind, info.container, info.widths, info.entries) == ("generator", container, NARROW, 352)
    assert (info.parameters, info.dtype) == (PARAMETERS, "fp32")
    assert info.byte_count == path.stat().st_size
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_loaded_weights_do_not_depend_on_the_file_any_more(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    save_bare(state, path)
    loaded = load_generator(path)
    with path.open("r+b") as file:  # a mapping shared with the file would see this
        file.write(bytes(path.stat().st_size))
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_become_float32(
    dtype: torch.dtype, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "half.pth"
    half = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_bare(half, path)
    loaded = load_generator(path)
    assert inspect(path).dtype == {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype in (torch.float32, torch.int64)
        assert torch.equal(tensor, half[name].to(tensor.dtype)), name


def test_published_widths_load(tmp_path: Path) -> None:
    published = seeded_generator(2)
    torch.save({"state_dict": published.state_dict()}, tmp_path / "wav2lip.pth")
    info = inspect(tmp_path / "wav2lip.pth")
    assert info.widths == Widths() and info.parameters == 36_298_035
    loaded = load_generator(tmp_path / "wav2lip.pth")
    assert torch.equal(loaded.output_block[1].weight, published.output_block[1].weight)


def test_torchscript_wants_explicit_trust(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_torchscript(state, tmp_path / "model.pt")
    for use in (load_generator, inspect):
        with pytest.raises(CheckpointUntrusted, match="trust_torchscript"):
            use(tmp_path / "model.pt")
    with pytest.raises(CheckpointUntrusted):
        convert(tmp_path / "model.pt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


# Files that hold no checkpoint.


def make_file(content: bytes) -> Callable[[Path, dict[str, Tensor]], None]:
    return lambda path, _state: (path.write_bytes(content), None)[1]


def make_cut(save: Callable[[dict[str, Tensor], Path], None], keep: float) -> Callable[[Path, dict[str, Tensor]], None]:
    def make(path: Path, state: dict[str, Tensor]) -> None:
        save(state, path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return make


def make_foreign_zip(path: Path, _state: dict[str, Tensor]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("wav2lip.pth", b"inside")


def make_damaged_pickle(path: Path, state: dict[str, Tensor]) -> None:
    save_bare(state, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, b"\x80\x02]q\x00garbage" if name.endswith("data.pkl") else content)


def make_damaged_header(path: Path, state: dict[str, Tensor]) -> None:
    save_safetensors(state, path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"data_offsets"', b'"data_offsetz"', 1))


UNREADABLE: dict[str, tuple[Callable[[Path, dict[str, Tensor]], None], str]] = {
    "empty": (make_file(b""), "is empty"),
    "web page": (make_file(b"\n<!DOCTYPE html><html><title>Google Drive</title></html>"), "is a web page"),
    "web page without doctype": (make_file(b"<HTML><body>404</body>"), "is a web page"),
    "web page by its meta": (make_file(b'<meta charset="utf-8"><title>Sign in</title>'), "is a web page"),
    "web page by its head": (make_file(b"\xef\xbb\xbf \r\n<head>\n<meta name=x>"), "is a web page"),
    "web page after a comment": (make_file(b"\n\n<!-- saved -->\n<html>"), "is a web page"),
    "web page by its script": (make_file(b"<script>location='/login'</script>"), "is a web page"),
    "web page by its title": (make_file(b"<TITLE>Too many requests</TITLE>"), "is a web page"),
    "text in brackets": (make_file(b"<metadata of mine>"), "begins with b'<metadata of'"),
    "lfs pointer": (make_file(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"), "git lfs pull"),
    "text": (make_file(b"404: Not Found"), "begins with b'404: Not Fou'"),
    "plain pickle": (make_file(pickle.dumps({"a": 1})), "no checkpoint that this library can read"),
    "other zip": (make_foreign_zip, "unpack it first"),
    "cut zip": (make_cut(save_bare, 0.6), "cut short or damaged: its zip directory"),
    "cut legacy pickle": (make_cut(save_legacy, 0.6), "cut short or damaged"),
    "cut legacy header": (make_cut(save_legacy, 0.001), "cut short or damaged"),
    "cut safetensors": (make_cut(save_safetensors, 0.6), "bytes that its header declares are there"),
    "cut safetensors header": (make_cut(save_safetensors, 0.002), "header of"),
    "damaged safetensors header": (make_damaged_header, "damaged safetensors header"),
    "damaged pickle": (make_damaged_pickle, "damaged"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_file_that_is_no_checkpoint_is_named_for_what_it_is(
    kind: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    make, sentence = UNREADABLE[kind]
    path = tmp_path / "wav2lip_gan.pth"
    make(path, state)
    for use in (load_generator, inspect):
        with pytest.raises(CheckpointUnreadable) as raised:
            use(path)
        assert sentence in raised.value.detail and str(path) in raised.value.detail


def test_a_missing_file_a_folder_and_a_pipe_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="does not exist"):
        load_generator(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointUnreadable, match="is a folder"):
        load_generator(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointUnreadable, match="not a regular file"):
        load_generator(tmp_path / "pipe")


# Checkpoints of something else.


def s3fd_entries() -> dict[str, Tensor]:
    return {
        "conv1_1.weight": torch.zeros(64, 3, 3, 3),
        "conv3_3_norm.weight": torch.zeros(256),
        "conv3_3_norm_mbox_conf.weight": torch.zeros(4, 256, 3, 3),
    }


def with_entry(state: dict[str, Tensor], name: str, tensor: Tensor) -> dict[str, Tensor]:
    return {**state, name: tensor}


def without_entry(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


FIRST = "face_encoder_blocks.0.0.conv_block.0.weight"
LAST = "output_block.1.bias"
VARIANCE = "audio_encoder.3.conv_block.1.running_var"

MISMATCHED: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "optimizer in a checkpoint": (lambda _: {"optimizer": {"state": {}}, "global_step": 1}, "optimizer's state"),
    "bare optimizer": (lambda _: {"state": {}, "param_groups": []}, "optimizer's state"),
    "optimizer beside an empty state dict": (
        lambda _: {"state_dict": {}, "optimizer": {"state": {}}},
        "optimizer's state",
    ),
    "optimizer beside none": (lambda _: {"state_dict": None, "optimizer": {}, "global_step": 3}, "optimizer's state"),
    "empty state dict": (lambda _: {"state_dict": {}, "global_step": 3}, "holds an empty 'state_dict'"),
    "no state dict": (lambda _: {"state_dict": None}, "holds an empty 'state_dict'"),
    "list for a state dict": (lambda s: {"state_dict": list(s.values())}, "'state_dict' of type list"),
    "state dict within": (lambda s: {"state_dict": {"generator": s}}, "generator is of type dict"),
    "state dict with numbers": (lambda s: {"state_dict": {**s, "epoch": 3}}, "epoch is of type int"),
    "other wrapping": (lambda s: {"net": s, "epoch": 3}, "holds net, epoch, but no state dict"),
    "empty dict": (lambda _: {}, "holds no tensors"),
    "list": (lambda _: [1, 2], "holds no tensors (a list)"),
    "tensor": (lambda _: torch.zeros(3), "holds no tensors (a Tensor)"),
    "detector": (lambda _: s3fd_entries(), "S3FD, a face detector"),
    "expert": (lambda _: {"face_encoder.0.conv_block.0.weight": torch.zeros(2, 2)}, "lip-sync expert"),
    "unknown entry": (lambda s: with_entry(s, "extra.weight", torch.zeros(1)), "1 unknown such as extra.weight"),
    "missing entry": (lambda s: without_entry(s, LAST), f"1 missing such as {LAST}"),
    "unrelated network": (lambda _: {"fc.weight": torch.zeros(2, 2)}, "352 missing such as"),
    "other shape": (lambda s: with_entry(s, FIRST, torch.zeros(4, 6, 5, 5)), "has shape (4, 6, 5, 5)"),
    "15 input channels": (lambda s: with_entry(s, FIRST, torch.zeros(4, 15, 7, 7)), "has shape (4, 15, 7, 7)"),
    "scalar for a weight": (lambda s: with_entry(s, FIRST, torch.zeros(())), "has shape ()"),
    "float64": (lambda s: with_entry(s, FIRST, s[FIRST].double()), "as float64; fp32, fp16 and bf16"),
    "integers": (lambda s: with_entry(s, FIRST, s[FIRST].to(torch.int8)), "as int8"),
    "sparse": (lambda s: with_entry(s, FIRST, s[FIRST].to_sparse()), "fp32, fp16 and bf16"),
    "spread over one value": (lambda s: with_entry(s, FIRST, torch.zeros(1).expand(4, 6, 7, 7)), "fewer values"),
    "nan": (lambda s: with_entry(s, LAST, torch.tensor([0.0, float("nan"), 0.0])), f"damaged: {LAST}"),
    "infinite": (lambda s: with_entry(s, LAST, torch.tensor([0.0, float("inf"), 0.0])), f"damaged: {LAST}"),
    "negative variance": (lambda s: with_entry(s, VARIANCE, -s[VARIANCE]), f"damaged: {VARIANCE}"),
}


@pytest.mark.parametrize("kind", MISMATCHED)
def test_a_checkpoint_of_something_else_says_what_it_holds(kind: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    make, sentence = MISMATCHED[kind]
    path = tmp_path / "other.pth"
    torch.save(make(state), path)
    with pytest.raises(CheckpointMismatch) as raised:
        load_generator(path)
    assert sentence in raised.value.detail and str(path) in raised.value.detail


# Generators for larger faces: known to have more layers than the 96 × 96 one, some of them PReLU, whose slope is saved.

AT_EACH_SIDE = {
    # sides of the face encoder's maps, block by block: halved until one value is left
    256: (256, 128, 64, 32, 16, 8, 4, 1),
    288: (288, 144, 72, 36, 18, 9, 5, 3, 1),
    384: (384, 192, 96, 48, 24, 12, 6, 3, 1),
}


def larger_generator(side: int, activation: str) -> dict[str, Tensor]:
    """The entries of a generator for faces of ``side`` pixels: one encoder and one decoder block per size of map."""
    state: dict[str, Tensor] = {}

    def add(path: str, wide: int, out: int, kernel: int) -> None:
        state[f"{path}.conv_block.0.weight"] = torch.zeros(out, wide, kernel, kernel)
        state[f"{path}.conv_block.0.bias"] = torch.zeros(out)
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"{path}.conv_block.1.{name}"] = torch.ones(out)
        state[f"{path}.conv_block.1.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
        if activation == "prelu":
            state[f"{path}.act.weight"] = torch.full((1,), 0.25)

    count = len(AT_EACH_SIDE[side])
    for block in range(count):
        add(f"face_encoder_blocks.{block}.0", 4 if block else 6, 4, 3 if block else 7)
        add(f"face_encoder_blocks.{block}.1", 4, 4, 3)
        add(f"face_decoder_blocks.{block}.0", 8 if block else 4, 4, 3)
        add(f"face_decoder_blocks.{block}.1", 4, 4, 3)
    for layer in range(13):
        add(f"audio_encoder.{layer}", 4 if layer else 1, 4, 3)
    add("output_block.0", 8, 4, 3)
    state["output_block.1.weight"], state["output_block.1.bias"] = torch.zeros(3, 4, 1, 1), torch.zeros(3)
    return state


@pytest.mark.parametrize("save", [save_bare, save_wrapped, save_parallel, save_safetensors])
@pytest.mark.parametrize("activation", ["relu", "prelu"])
@pytest.mark.parametrize("side", AT_EACH_SIDE)
def test_a_generator_for_larger_faces_is_named_as_one(
    side: int, activation: str, save: Callable[[dict[str, Tensor], Path], None], tmp_path: Path
) -> None:
    save(larger_generator(side, activation), tmp_path / "larger.pth")
    for use in (load_generator, inspect):
        with pytest.raises(CheckpointMismatch, match=r"variant for larger faces \(256, 288 or 384 pixels"):
            use(tmp_path / "larger.pth")


@pytest.mark.parametrize(
    "added",
    [
        "face_encoder_blocks.7.0.conv_block.0.weight",
        "face_decoder_blocks.7.0.conv_block.0.weight",
        "face_encoder_blocks.1.3.conv_block.0.weight",
        "face_decoder_blocks.0.1.conv_block.0.weight",
        "audio_encoder.13.conv_block.0.weight",
        "face_encoder_blocks.0.0.act.weight",
    ],
)
def test_one_layer_more_makes_it_another_network(added: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    save_bare(with_entry(state, added, torch.zeros(1)), tmp_path / "other.pth")
    with pytest.raises(CheckpointMismatch, match=rf"variant for larger faces .*it has {added}"):
        load_generator(tmp_path / "other.pth")


def test_inspect_knows_the_detector(tmp_path: Path) -> None:
    torch.save(s3fd_entries(), tmp_path / "s3fd.pth")
    info = inspect(tmp_path / "s3fd.pth")
    assert (info.kind, info.widths, info.parameters) == ("s3fd", None, 64 * 27 + 256 + 4 * 256 * 9)


# Files that want to run code.


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("use", [load_generator, inspect])
def test_a_pickle_never_runs_code(use: Callable[[Path], object], zipped: bool, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    torch.save({"state_dict": Payload(canary)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointUntrusted, match=r"asks to run \w+\.system") as raised:
        use(path)
    assert "weights_only" not in raised.value.detail, "the sentence must not advise to switch the guard off"
    assert not canary.exists()
    torch.load(path, weights_only=False)  # the payload is real
    assert canary.exists()


def test_a_whole_pickled_module_is_refused_not_run(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(1, 1, 1), tmp_path / "module.pth")
    with pytest.raises(CheckpointUntrusted, match="asks to run"):
        load_generator(tmp_path / "module.pth")


# Conversion.


def test_conversion_keeps_every_bit(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_wrapped(state, tmp_path / "in.pth")
    info = convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert (info.container, info.dtype, info.widths) == ("safetensors", "fp32", NARROW)
    assert info == inspect(tmp_path / "out.safetensors")
    for name, tensor in load_generator(tmp_path / "out.safetensors").state_dict().items():
        assert torch.equal(tensor, state[name]), name
    again = convert(tmp_path / "out.safetensors", tmp_path / "out.safetensors")
    assert again.sha256 == info.sha256, "the same weights make the same bytes, also over the file itself"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.pth", "out.safetensors"]


def test_conversion_to_fp16_halves_the_weights_alone(state: dict[str, Tensor], tmp_path: Path) -> None:
    state[VARIANCE] = state[VARIANCE] + 1e6  # does not fit fp16, and need not
    save_bare(state, tmp_path / "in.pth")
    info = convert(tmp_path / "in.pth", tmp_path / "out.safetensors", dtype="fp16")
    assert info.dtype == "fp16" and info.byte_count < 0.75 * (tmp_path / "in.pth").stat().st_size
    for name, tensor in load_generator(tmp_path / "out.safetensors").state_dict().items():
        expected = state[name].half().float() if tensor.dim() == 4 else state[name]
        assert torch.equal(tensor, expected), name


def test_conversion_to_fp16_refuses_weights_that_do_not_fit(state: dict[str, Tensor], tmp_path: Path) -> None:
    state[FIRST][0, 0, 0, 0] = 1e6
    save_bare(state, tmp_path / "in.pth")
    with pytest.raises(CheckpointMismatch, match=f"too large for fp16 .in {FIRST}"):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors", dtype="fp16")
    assert not (tmp_path / "out.safetensors").exists()


def test_conversion_that_cannot_be_written_leaves_nothing(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_bare(state, tmp_path / "in.pth")
    with pytest.raises(OutputError, match="cannot be written"):
        convert(tmp_path / "in.pth", tmp_path / "no-such-folder" / "out.safetensors")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        convert(tmp_path / "in.pth", tmp_path / "taken")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.pth", "taken"]

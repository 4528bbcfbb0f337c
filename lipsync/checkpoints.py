"""Generator checkpoints: load one strictly, say what a file is, convert it to safetensors."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lipsync.errors import CheckpointMismatch, OutputError
from lipsync.model.containers import Container, read_tensors, sniff_container
from lipsync.model.wav2lip import Wav2Lip, Widths, read_widths

__all__ = ["CheckpointInfo", "convert", "inspect", "load_generator", "read_tensors"]

Shape = tuple[int, ...]

_ACCEPTED_DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_TRUNKS = ("face_encoder_blocks.", "audio_encoder.", "face_decoder_blocks.", "output_block.")
_USE_INSTEAD = "Give the 96 × 96 Wav2Lip generator (wav2lip.pth, wav2lip_gan.pth, or one converted from them)."


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What a checkpoint file holds. ``widths`` only for generators; ``dtype`` is that of the convolutions."""

    kind: Literal["generator", "s3fd"]
    container: Container
    widths: Widths | None
    entries: int
    parameters: int
    dtype: str
    byte_count: int
    sha256: str


def load_generator(path: str | os.PathLike[str], *, trust_torchscript: bool = False) -> Wav2Lip:
    """The generator in the file: eval mode, float32, on the CPU, sharing no memory with the file.

    Container and widths are read off the content; every name and shape must fit. Raises CheckpointNotFound,
    CheckpointUnreadable, CheckpointMismatch, CheckpointUntrusted.
    """
    tensors = read_tensors(path, trust_torchscript=trust_torchscript)
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
        model = Wav2Lip(_recognise_generator(Path(path), tensors))
    model.load_state_dict({name: _full_precision(tensor) for name, tensor in tensors.items()}, assign=True)
    return model.requires_grad_(False).eval()


def inspect(path: str | os.PathLike[str], *, trust_torchscript: bool = False) -> CheckpointInfo:
    """What the file is, read and checked as for loading. Raises what load_generator raises."""
    path = Path(path)
    tensors = read_tensors(path, trust_torchscript=trust_torchscript)
    is_s3fd = _is_s3fd(tensors)
    widths = None if is_s3fd else _recognise_generator(path, tensors)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return CheckpointInfo(
        kind="s3fd" if is_s3fd else "generator",
        container=sniff_container(path),
        widths=widths,
        entries=len(tensors),
        parameters=sum(t.numel() for name, t in tensors.items() if not name.endswith(_BUFFERS)),
        dtype=_dtype_name(next(t for t in tensors.values() if t.dim() == 4)),
        byte_count=path.stat().st_size,
        sha256=sha256,
    )


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: Literal["fp32", "fp16"] = "fp32",
    trust_torchscript: bool = False,
) -> CheckpointInfo:
    """Writes the generator in ``source`` as safetensors to ``target``, whole or not at all, and says what it wrote.

    fp16 halves the convolutions' weights only: biases and BatchNorm's statistics are few and want their digits.
    Raises what load_generator raises, CheckpointMismatch where a weight does not fit fp16, and OutputError.
    """
    state = load_generator(source, trust_torchscript=trust_torchscript).state_dict()
    if dtype == "fp16":
        state = {name: tensor.half() if tensor.dim() == 4 else tensor for name, tensor in state.items()}
        lost = [name for name, tensor in state.items() if not tensor.isfinite().all()]
        if lost:
            raise CheckpointMismatch(f"{source} has weights too large for fp16 (in {lost[0]}). Convert it to fp32.")
    _write_safetensors(state, Path(target))
    return inspect(target)


def _write_safetensors(state: dict[str, Tensor], target: Path) -> None:
    from safetensors.torch import save_file

    written: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        written = Path(name)
        os.close(handle)
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, written, metadata={"format": "pt"})
        with written.open("rb") as file:
            os.fsync(file.fileno())
        written.chmod(0o644)
        written.replace(target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}.") from error
    finally:
        if written is not None:
            written.unlink(missing_ok=True)


def _recognise_generator(path: Path, tensors: Mapping[str, Tensor]) -> Widths:
    """The widths of the generator in ``tensors``, or CheckpointMismatch saying what the file holds instead."""
    _refuse_other_networks(path, tensors)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        widths = read_widths(found)
    except (KeyError, IndexError, ValueError):
        widths = Widths()
    _compare(path, _shapes_of(widths), found)
    for name, tensor in tensors.items():
        _check_values(path, name, tensor)
    return widths


def _is_s3fd(tensors: Mapping[str, Tensor]) -> bool:
    return {"conv3_3_norm.weight", "conv3_3_norm_mbox_conf.weight"} <= set(tensors)


def _refuse_other_networks(path: Path, tensors: Mapping[str, Tensor]) -> None:
    if _is_s3fd(tensors):
        raise CheckpointMismatch(f"{path} holds S3FD, a face detector, not a generator. {_USE_INSTEAD}")
    if any(name.startswith("face_encoder.") for name in tensors):
        raise CheckpointMismatch(
            f"{path} holds the lip-sync expert that Wav2Lip was trained against, not the generator. {_USE_INSTEAD}"
        )
    if grown := _grown(tensors):
        raise CheckpointMismatch(
            f"{path} holds a variant for larger faces (256, 288 or 384 pixels; it has {grown[0]}), which is "
            f"another network. {_USE_INSTEAD}"
        )


def _grown(names: Iterable[str]) -> list[str]:
    """Layers beyond those of the 96 × 96 generator, named as its own are: other widths have no others."""
    known = _shapes_of(Widths())
    return [name for name in names if name not in known and (name.startswith(_TRUNKS) or name.endswith("act.weight"))]


def _shapes_of(widths: Widths) -> dict[str, Shape]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Wav2Lip(widths).state_dict().items()}


def _compare(path: Path, expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        parts = [
            f"{len(names)} {what} such as {names[0]}"
            for names, what in ((missing, "missing"), (unknown, "unknown"))
            if names
        ]
        raise CheckpointMismatch(
            f"{path} does not hold the generator's {len(expected)} entries: {' and '.join(parts)}. {_USE_INSTEAD}"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointMismatch(
                f"{path} holds another network: {name} has shape {found[name]} where {shape} fits. {_USE_INSTEAD}"
            )


def _check_values(path: Path, name: str, tensor: Tensor) -> None:
    counter = name.endswith("num_batches_tracked")
    if tensor.layout != torch.strided or tensor.is_quantized or not (counter or tensor.dtype in _ACCEPTED_DTYPES):
        raise CheckpointMismatch(
            f"{path} stores {name} as {_dtype_name(tensor)}; fp32, fp16 and bf16 can be used. "
            "Export it in one of these."
        )
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise CheckpointMismatch(f"{path} stores fewer values for {name} than its shape says. Download it again.")
    if not tensor.isfinite().all() or (name.endswith("running_var") and (tensor < 0).any()):
        raise CheckpointMismatch(
            f"{path} is damaged: {name} has values that no training leaves (NaN, infinite or a negative variance). "
            "Use another copy of the checkpoint."
        )


def _full_precision(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else torch.int64
    return tensor.detach().to(dtype, copy=True).contiguous()


def _dtype_name(tensor: Tensor) -> str:
    return _ACCEPTED_DTYPES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))

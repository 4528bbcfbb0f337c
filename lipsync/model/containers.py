"""Files that hold tensors, told apart by their content: what kind they are, and their tensors, without running code."""

from __future__ import annotations

import json
import os
import pickle
import re
import stat
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lipsync.errors import CheckpointMismatch, CheckpointNotFound, CheckpointUnreadable, CheckpointUntrusted

Container = Literal["torch_zip", "torch_legacy", "torchscript", "safetensors"]

_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""A pickled magic number: how torch.save began its files before it wrote zip archives."""
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_WEB_PAGE = re.compile(
    rb"<(!doctype|!--|\?xml|(html|head|meta|title|base|link|style|script|body|center|div|svg)[\s/>])"
)
_MAX_SAFETENSORS_HEADER = 100_000_000


def read_tensors(path: str | os.PathLike[str], *, trust_torchscript: bool = False) -> dict[str, Tensor]:
    """The state dict in the file, on the CPU, in the dtypes it has there; memory-mapped where the format allows it.

    Takes a bare state dict or one under "state_dict", and drops a leading "module." that all names share. A
    TorchScript archive is opened only if trusted: opening one can run code that it holds.
    Raises CheckpointNotFound, CheckpointUnreadable, CheckpointUntrusted, CheckpointMismatch.
    """
    path = Path(path)
    container = sniff_container(path)
    if container == "safetensors":
        return _without_module(_read_safetensors(path))
    if container == "torchscript":
        if not trust_torchscript:
            raise CheckpointUntrusted(
                f"{path} is a TorchScript archive, which can run code when it is opened. If you trust where it came "
                "from, allow it explicitly (trust_torchscript), best once, to convert it to safetensors."
            )
        return _without_module(_read_torchscript(path))
    return _without_module(_state_dict(path, _read_pickle(path, mapped=container == "torch_zip")))


def sniff_container(path: Path) -> Container:
    """What kind of file this is, from its content. Raises CheckpointNotFound and CheckpointUnreadable."""
    size = _regular_size(path)
    with _opened(path) as file:
        head = file.read(512)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if _WEB_PAGE.match(text):
        raise CheckpointUnreadable(
            f"{path} is a web page, not weights: the download link led to a login or confirmation page. "
            "Open the link in a browser, download the file itself and try again."
        )
    if text.startswith(_LFS_POINTER):
        raise CheckpointUnreadable(
            f"{path} is a Git LFS pointer of {size} bytes, not the weights. Run `git lfs pull` in its repository."
        )
    if head.startswith(_ZIP):
        return _sniff_zip(path, size)
    if head.startswith(_LEGACY):
        return "torch_legacy"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_SAFETENSORS_HEADER:
        _check_safetensors_size(path, size)
        return "safetensors"
    raise CheckpointUnreadable(
        f"{path} is no checkpoint that this library can read: it begins with {head[:12]!r}. "
        "Give a .pth or .pt file saved by PyTorch, or a .safetensors file."
    )


def _regular_size(path: Path) -> int:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise CheckpointNotFound(f"{path} does not exist. Check the path of the checkpoint.") from None
    except (OSError, ValueError) as error:
        raise CheckpointUnreadable(f"{path} cannot be opened: {error}.") from error
    if stat.S_ISDIR(status.st_mode):
        raise CheckpointUnreadable(f"{path} is a folder. Give the checkpoint file inside it.")
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointUnreadable(f"{path} is not a regular file. Give a checkpoint file.")
    if status.st_size == 0:
        raise CheckpointUnreadable(f"{path} is empty (0 bytes): its download failed. Download it again.")
    return status.st_size


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise CheckpointUnreadable(f"{path} cannot be opened: {error.strerror or error}.") from error


def _sniff_zip(path: Path, size: int) -> Container:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointUnreadable(
            f"{path} is cut short or damaged: its zip directory, which stands at the end, is missing after "
            f"{size} bytes. Download it again."
        ) from error
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return "torchscript"
    if "data.pkl" in inner:
        return "torch_zip"
    raise CheckpointUnreadable(
        f"{path} is a zip archive, but not one saved by PyTorch (it holds {_some(names)}). "
        "If the checkpoint is packed inside it, unpack it first."
    )


def _check_safetensors_size(path: Path, size: int) -> None:
    with _opened(path) as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
    if len(header) < length:
        raise CheckpointUnreadable(
            f"{path} is cut short: a safetensors header of {length} bytes, of which {len(header)} are there. "
            "Download it again."
        )
    try:
        entries = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in entries), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise CheckpointUnreadable(f"{path} has a damaged safetensors header. Download it again.") from error
    if size < end:
        raise CheckpointUnreadable(
            f"{path} is cut short: {size} of the {end} bytes that its header declares are there. Download it again."
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointUnreadable(f"{path} is not a sound safetensors file: {error}. Download it again.") from error
    return tensors


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch discourages TorchScript; these files exist all the same
            archive = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # TorchScript fails with whatever the archive's own code raises
        raise CheckpointUnreadable(f"{path} is a damaged TorchScript archive: {_first_line(error)}") from error
    return dict(archive.state_dict())


def _read_pickle(path: Path, *, mapped: bool) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        asked = re.search(r"(?:GLOBAL|class|callable) ([\w.]+)", str(error))
        if asked is None:
            raise CheckpointUnreadable(f"{path} is damaged: its pickle cannot be read. Download it again.") from error
        raise CheckpointUntrusted(
            f"{path} was not loaded: it asks to run {asked.group(1)}, and a checkpoint needs tensors only. "
            "If you trust the file, save its state dict alone on a machine of your own."
        ) from error
    except Exception as error:  # a damaged pickle fails with any error there is
        raise CheckpointUnreadable(
            f"{path} is cut short or damaged: {_first_line(error)} Download it again."
        ) from error


def _state_dict(path: Path, loaded: object) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointMismatch(f"{path} holds no tensors (a {type(loaded).__name__}). Give a generator's state dict.")
    inner = loaded.get("state_dict", loaded)
    if isinstance(inner, Mapping) and inner and all(isinstance(value, Tensor) for value in inner.values()):
        return {str(name): value for name, value in inner.items()}
    raise CheckpointMismatch(f"{path} {_no_weights(loaded)}")


def _no_weights(loaded: Mapping[object, object]) -> str:
    """What a file holds that has no state dict, or one that is none."""
    keys = [str(key) for key in loaded]
    has_entry, inner = "state_dict" in loaded, loaded.get("state_dict")
    is_empty = inner is None or (isinstance(inner, Mapping) and not inner)
    if is_empty and ("optimizer" in keys or {"state", "param_groups"} <= set(keys)):
        return (
            f"holds an optimizer's state ({_some(keys)}) and no weights. "
            "Give the checkpoint that was saved with its state_dict."
        )
    if not has_entry:
        return f"holds {_some(keys)}, but no state dict: tensors by name, bare or under 'state_dict'."
    if is_empty:
        return "holds an empty 'state_dict'. Give the checkpoint that was saved with its weights."
    if not isinstance(inner, Mapping):
        return f"has a 'state_dict' of type {type(inner).__name__}, where tensors by name are wanted."
    other = next((name, value) for name, value in inner.items() if not isinstance(value, Tensor))
    return f"has more than tensors in its 'state_dict': {other[0]} is of type {type(other[1]).__name__}."


def _without_module(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as before torch's DataParallel wrapped the network."""
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "nothing"


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return line if line.endswith(".") else f"{line}."

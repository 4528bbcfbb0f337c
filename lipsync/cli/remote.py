"""``lipsync remote``: make one face speak one voice on a served application."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

from lipsync.cli.parameters import takes_options
from lipsync.cli.run import AsJson
from lipsync.errors import InvalidOption
from lipsync.options import Options

if TYPE_CHECKING:
    from lipsync.client import Transfer

KEY_VARIABLE = "LIPSYNC_API_KEY"


@takes_options()
def command(
    face: Annotated[Path, typer.Argument(help="image or video with a face", show_default=False)],
    voice: Annotated[Path, typer.Argument(help="audio, or a video whose sound is used", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="mp4 file to write")] = Path("result.mp4"),
    server: Annotated[str, typer.Option(help="URL of the served application")] = "http://localhost:8000",
    api_key_env: Annotated[str, typer.Option(help="environment variable that holds the API key")] = KEY_VARIABLE,
    timeout_s: Annotated[float, typer.Option(help="give up after this many seconds, all attempts together")] = 900.0,
    as_json: AsJson = False,
    *,
    options: Options,
) -> None:
    """Have a served application make FACE speak VOICE, and write the mp4 here."""
    from lipsync.client import Client

    api_key = os.environ.get(api_key_env)
    if api_key is None and api_key_env != KEY_VARIABLE:
        raise InvalidOption(f"The environment has no {api_key_env}. Set it to the API key, or leave --api-key-env out.")
    with Client(server, api_key=api_key, timeout_s=timeout_s) as client, TransferBar(quiet=as_json) as bar:
        result = client.lipsync(face, voice, output_path=output, options=options, progress=bar)
    if as_json:
        said = {"frames": result.frames, "fps": str(result.fps), "faces": result.faces}
        timings = {"request_id": result.request_id, "timings_ms": dict(result.timings_ms)}
        print(json.dumps({"output": str(output)} | said | timings))
    else:
        seconds = float(result.frames / result.fps)
        Console(stderr=True, soft_wrap=True).print(
            f"[bold]{escape(str(output))}[/]: {result.frames} frames, {seconds:.2f} s at {float(result.fps):g} fps",
            highlight=False,
        )


class TransferBar:
    """Bytes sent, then received, on a terminal's stderr; a callback for the client's progress."""

    def __init__(self, *, quiet: bool) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<17}"),
            BarColumn(bar_width=22),
            DownloadColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("connecting", total=None)

    def __call__(self, step: Transfer) -> None:
        again = "" if step.attempt == 1 else f" ({step.attempt})"
        if step.failed is not None:
            self._bar.update(self._task, description=f"again: {step.failed.slug}"[:17], completed=0, total=None)
        elif step.received_bytes:
            self._bar.update(self._task, description="receiving" + again, completed=step.received_bytes, total=None)
        elif step.sent_bytes < step.total_bytes:
            self._bar.update(
                self._task, description="sending" + again, completed=step.sent_bytes, total=step.total_bytes
            )
        else:
            self._bar.update(self._task, description="the server works" + again, completed=0, total=None)

    def __enter__(self) -> Callable[[Transfer], None]:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._bar.stop()

"""The command line: ``lipsync run | remote | demo | detect | probe | weights | doctor | bench``.

Results go to stdout, progress and errors to stderr; with ``--json`` a result, or an error, is one JSON object. Exit
codes: 0 done; 1 a defect of ours; 2 wrong usage; 3 the input is at fault; 4 a checkpoint, weights file or detector is
missing or wrong; 5 the device failed; 6 the result cannot be written; 7 a served application refused or failed; 130
interrupted. Ctrl-C (or SIGTERM) ends the work and removes what it had begun; where that takes more than five seconds,
one more Ctrl-C ends the process as it is.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Annotated

import cv2
import typer
from rich.console import Console

from lipsync.allocator import trim_regularly
from lipsync.cli import bench, demo, doctor, inspect_inputs, remote, run, stopping, weights
from lipsync.cli.stopping import INTERRUPTED
from lipsync.errors import (
    CheckpointError,
    DetectorUnavailable,
    EngineError,
    InputError,
    InvalidOption,
    LipsyncError,
    OutputError,
    ServiceError,
    WeightsError,
)

EXIT_CODES: dict[type[LipsyncError], int] = {
    LipsyncError: 1,
    InvalidOption: 2,
    InputError: 3,
    CheckpointError: 4,
    WeightsError: 4,
    DetectorUnavailable: 4,
    EngineError: 5,
    OutputError: 6,
    ServiceError: 7,
}

app = typer.Typer(
    name="lipsync",
    help="A face and a voice in, the same face speaking that voice out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run")(run.command)
app.command("remote")(remote.command)
app.command("demo")(demo.command)
app.command("detect")(inspect_inputs.detect)
app.command("probe")(inspect_inputs.probe)
app.command("doctor")(doctor.command)
app.command("bench")(bench.command)
app.add_typer(weights.app, name="weights")


def _say_version(asked: bool) -> None:
    if asked:
        print(version("lipsync-serve"))
        raise typer.Exit


@app.callback()
def _all_commands(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="print the version and exit")
    ] = False,
) -> None:
    pass  # the option's own callback does it


def exit_code(error: LipsyncError) -> int:
    """The code of the nearest class that has one."""
    return next(EXIT_CODES[cls] for cls in type(error).__mro__ if cls in EXIT_CODES)


def main() -> None:
    """Run the command line; errors become one plain sentence (or one JSON object with ``--json``) and an exit code."""
    try:
        stopping.listen()
        code = _run()
        if code != INTERRUPTED:  # typer's word for KeyboardInterrupt
            stopping.stop_listening()
    except KeyboardInterrupt:  # where typer does not hear of it
        code = INTERRUPTED
    if code == INTERRUPTED:
        stopping.end("interrupted; nothing was left behind")
    sys.exit(code)


def _run() -> int:
    # WHY: OpenCV 5 warns for each YuNet it loads that it ignores a setting of its own
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    trim_regularly()
    try:
        # WHY: in typer's standalone mode wrong usage would be drawn as a box of several lines
        return app(standalone_mode=False) or 0
    except LipsyncError as error:
        return _fail(error)
    except typer.TyperException as misuse:
        # NOTE: a bare `lipsync` has printed its help by now, and has nothing more to say
        return _fail(_wrong_usage(misuse)) if misuse.format_message() else EXIT_CODES[InvalidOption]


def _wrong_usage(misuse: typer.TyperException) -> InvalidOption:
    said = " ".join(misuse.format_message().split())
    context = getattr(misuse, "ctx", None)
    command = "lipsync" if context is None else context.command_path
    return InvalidOption(f"{said.removesuffix('.')}. See '{command} --help'.")


def _fail(error: LipsyncError) -> int:
    """Say the error on stderr; its exit code."""
    if "--json" in sys.argv:
        print(json.dumps({"error": error.slug, "detail": error.detail}), file=sys.stderr)
    else:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error[/] ({error.slug}): ", end="")
        print(error.detail, file=sys.stderr)
    return exit_code(error)

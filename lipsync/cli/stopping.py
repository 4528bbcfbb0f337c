"""Ctrl-C and SIGTERM: the first of them ends the work in good order, and more of them do not disturb that ending."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
PATIENCE_S = 5.0
"""An ending that takes longer is cut short by the next signal."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listen() -> None:
    """From now on the first signal raises KeyboardInterrupt in the main thread, and no other does."""
    # WHY: also SIGINT, which a shell has ignored in what it starts in the background
    for number in _SIGNALS:
        signal.signal(number, _stop)


def stop_listening() -> None:
    """The work was done: signals do from now on what they do to any process."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def end(said: str) -> NoReturn:
    """End the process as an interrupted one, once nothing is left to be cleaned up."""
    with suppress(OSError):
        print(said, file=sys.stderr, flush=True)
        sys.stdout.flush()
    # WHY: not sys.exit, after which native threads abort now and then, and Python kills itself by SIGINT where the
    # interrupt came in an exec() of text, as modules have it while they are imported
    os._exit(INTERRUPTED)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, partial(_again, time.monotonic()))
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise KeyboardInterrupt from None
    # WHY: raised here, it could come between any two steps of the loop's own, and leave it waiting for what was lost
    loop.call_soon_threadsafe(_raise)


def _raise() -> NoReturn:
    raise KeyboardInterrupt


def _again(first_s: float, number: int, frame: FrameType | None) -> None:
    if time.monotonic() - first_s >= PATIENCE_S:
        # WHY: not print, which may be what was interrupted
        os.write(2, b"interrupted before the ending was over: a folder .lipsync-* may be left beside the output\n")
        os._exit(INTERRUPTED)

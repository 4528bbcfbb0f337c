"""Native code that never returns: a damaged file can do that to a decoder, and no Python ends it."""

from __future__ import annotations

import logging
import os
import threading

from lipsync.errors import EngineError
from lipsync.local import LocalStages

log = logging.getLogger("ray.serve")
_LAST_WORDS_S = 0.3


def refuse_hung_threads(stages: LocalStages, deadline_s: float) -> None:
    """For a health check. Raises EngineError where a call has been on a thread for longer than any request may take:
    nobody waits for it, and the thread is lost. The process ends itself, since an orderly shutdown would wait for that
    thread; what else it had under way is given out again."""
    if (stuck_s := stages.longest_call_s) > deadline_s:
        log.error(f"a thread has been in one call for {stuck_s:.0f} s; this replica ends itself")
        threading.Timer(_LAST_WORDS_S, os._exit, [1]).start()
        raise EngineError(f"A thread has been in one call for {stuck_s:.0f} s. This replica wants replacing.")

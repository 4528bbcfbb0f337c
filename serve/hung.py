"""Native code that never returns: a damaged file can do that to a decoder, and no Python ends it."""

from __future__ import annotations

from lipsync.errors import EngineError
from lipsync.local import LocalStages


def refuse_hung_threads(stages: LocalStages, deadline_s: float) -> None:
    """For a health check. Raises EngineError where a call has been on a thread for longer than any request may take:
    nobody waits for it, and the thread is lost; Ray replaces the replica."""
    if stages.longest_call_s > deadline_s:
        raise EngineError(
            f"A thread has been in one call for {stages.longest_call_s:.0f} s. This replica wants replacing."
        )

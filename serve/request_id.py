"""The id that a request is known by: the same in its answer's header, in a problem's body and in the log."""

from __future__ import annotations

import re
from uuid import uuid4

_HARMLESS = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def harmless(given: str) -> str:
    """The id itself where it is short and plain, else a new one."""
    return given if _HARMLESS.fullmatch(given) else uuid4().hex

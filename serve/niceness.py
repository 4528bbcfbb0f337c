"""Whose turn it is where replicas share cores."""

from __future__ import annotations

import os

_NICER_BY = 4


def give_way() -> None:
    """Media work lets those go first who answer callers, refuse them, or feed a device: each has little to do."""
    os.nice(_NICER_BY)

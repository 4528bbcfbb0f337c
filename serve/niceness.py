"""Whose turn it is where replicas share cores."""

from __future__ import annotations

import os

import ray

_NICER_BY = 4


def give_way() -> None:
    """Media work lets those go first who answer callers, refuse them, or feed a device: each has little to do.

    Only for a replica with a process of its own: in local testing it would slow everything that runs there.
    """
    if ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
        os.nice(_NICER_BY)

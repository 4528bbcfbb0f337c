"""How many Generators: by the frames that wait and how fast they go away. Light to import: the controller runs it."""

from __future__ import annotations

import math
from typing import Any

_LEAST_FRAMES_PER_S = 1.0


class FramesBacklogPolicy:
    """As many replicas as drain the cluster's backlog in ``drain_s`` at the speed that replicas were measured to have.

    One more than now at least where the backlog asks for more, and one fewer at most where it asks for fewer: Ray's own
    delays and bounds lie around this.
    """

    def __init__(self, drain_s: float = 2.0) -> None:
        self._drain_s = drain_s

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        current = int(context.target_num_replicas)
        metrics = context.aggregated_metrics or {}
        queued = sum((metrics.get("queued_frames") or {}).values())
        speeds = [speed for speed in (metrics.get("frames_per_s") or {}).values() if speed > 0]
        state = dict(context.policy_state or {})
        if speeds:
            state["frames_per_s"] = max(_LEAST_FRAMES_PER_S, sum(speeds) / len(speeds))
        speed = state.get("frames_per_s")
        if speed is None:  # nothing was ever drawn: there is nothing to go by
            return current, state
        wanted = math.ceil(queued / (speed * self._drain_s))
        return (wanted if wanted > current else max(wanted, current - 1, 1)), state

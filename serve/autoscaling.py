"""How many Generators: by the frames that wait and how fast they go away. Light to import: the controller runs it."""

from __future__ import annotations

import math
from typing import Any

_LEAST_FRAMES_PER_S = 1.0
_BUSIEST = 0.8
"""Share of the time that replicas may draw once there is one fewer of them."""


class FramesBacklogPolicy:
    """As many replicas as carry on with what is drawn now and drain the cluster's backlog in ``drain_s`` besides.

    Up at once to what is wanted; down by one, and only where the ones that stay would have time to spare, so that a
    constant load keeps its replicas. Ray's own delays and bounds lie around this.
    """

    def __init__(self, drain_s: float = 2.0) -> None:
        self._drain_s = drain_s

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        current = int(context.target_num_replicas)
        metrics = context.aggregated_metrics or {}
        queued = sum((metrics.get("queued_frames") or {}).values())
        busy = sum((metrics.get("busy_ratio") or {}).values())  # replicas' worth of drawing
        speeds = [speed for speed in (metrics.get("frames_per_s") or {}).values() if speed > 0]
        state = dict(context.policy_state or {})
        if speeds:
            state["frames_per_s"] = max(_LEAST_FRAMES_PER_S, sum(speeds) / len(speeds))
        speed = state.get("frames_per_s")
        if speed is None:  # nothing was ever drawn: there is nothing to go by
            return current, state
        backlog = queued / (speed * self._drain_s)
        wanted, needed = math.ceil(busy + backlog), math.ceil(busy / _BUSIEST + backlog)
        return (wanted if wanted > current else max(min(needed, current), current - 1, 1)), state

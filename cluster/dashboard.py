"""The Grafana dashboard, written down as rows of panels; run it to make ``grafana/dashboards/lipsync.json`` anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JSON = Path(__file__).resolve().parent / "grafana" / "dashboards" / "lipsync.json"
_SOURCE = {"type": "prometheus", "uid": "lipsync"}
_WIDTH, _HEIGHT, _COLUMNS = 8, 7, 24


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. ``queries`` are pairs of an expression and what its lines are called; ``unit`` is Grafana's name."""

    title: str
    unit: str
    about: str
    queries: tuple[tuple[str, str], ...]
    wants: str = ""
    """What a cluster must have for there to be data: "gpu", or "" for nothing."""


ROWS: dict[str, tuple[Panel, ...]] = {
    "Load": (
        Panel(
            "Requests",
            "reqps",
            "Answered, and refused for want of room.",
            (("lipsync:requests:rate5m", "answered"), ("lipsync:refused:rate5m", "refused")),
        ),
        Panel(
            "Under way",
            "short",
            "Running: admitted and worked on. Waiting: their upload or admission is under way.",
            (("lipsync:requests_running:sum", "running"), ("lipsync:requests_waiting:sum", "waiting")),
        ),
        Panel("Frames drawn", "cps", "Of all Generators, a second.", (("lipsync:frames:rate5m", "frames/s"),)),
    ),
    "Latency": (
        Panel(
            "First fragment",
            "s",
            "From admission until a stream has its first bytes.",
            (("lipsync:first_fragment_seconds:p50_5m", "p50"), ("lipsync:first_fragment_seconds:p99_5m", "p99")),
        ),
        Panel(
            "Whole request",
            "s",
            "From admission to the last fragment; long inputs take long.",
            (("lipsync:request_seconds:p50_5m", "p50"), ("lipsync:request_seconds:p99_5m", "p99")),
        ),
        Panel(
            "By stage",
            "s",
            "A request's mean time in each stage, its workers added up, as fine as the buckets: where work goes.",
            (("lipsync:stage_seconds:mean5m", "{{stage}}"),),
        ),
    ),
    "Batches": (
        Panel(
            "Fill",
            "percentunit",
            "Frames in a batch over frames it had room for. Low is bad on a busy device only.",
            (("lipsync:batch_fill:mean5m", "mean fill"),),
        ),
        Panel(
            "Sharing",
            "short",
            "Mean frames of a batch, and how many requests they are of.",
            (("lipsync:batch_frames:mean5m", "frames"), ("lipsync:batch_requests:mean5m", "requests")),
        ),
        Panel(
            "Backlog",
            "s",
            "How long the waiting frames take at the present speed.",
            (("lipsync:backlog_seconds:avg1m", "backlog"),),
        ),
    ),
    "Device and machines": (
        Panel(
            "Device busy",
            "percentunit",
            "Share of ten seconds spent drawing, by Generator replica.",
            (("ray_lipsync_device_busy_ratio", "{{replica}}"),),
        ),
        Panel(
            "GPU memory",
            "mbytes",
            "Used on each GPU.",
            (("ray_node_gram_used", "{{instance}} {{GpuIndex}}"),),
            wants="gpu",
        ),
        Panel(
            "CPU",
            "percent",
            "Of each node: the price of this service is CPU time.",
            (("ray_node_cpu_utilization", "{{instance}}"),),
        ),
        Panel("Memory", "bytes", "Used on each node.", (("ray_node_mem_used", "{{instance}}"),)),
        Panel(
            "Object store",
            "bytes",
            "Inputs, crops and patches in shared memory, by node.",
            (("sum by (instance) (ray_object_store_used_memory)", "{{instance}}"),),
        ),
        Panel(
            "Network",
            "Bps",
            "Received and sent, by node.",
            (
                ("ray_node_network_receive_speed", "{{instance}} in"),
                ("ray_node_network_send_speed", "{{instance}} out"),
            ),
        ),
    ),
    "Faults": (
        Panel(
            "Refused and wrong",
            "reqps",
            "Requests answered with an error, by reason: the caller's mistakes too.",
            (("sum by (reason) (rate(ray_lipsync_rejected_total[5m]))", "{{reason}}"),),
        ),
        Panel(
            "Survived",
            "short",
            "In ten minutes: work done again since a worker died, batches halved for memory, frames drawn again.",
            (
                ("lipsync:retries:increase10m", "retries"),
                ("lipsync:oom:increase10m", "out of memory"),
                ("lipsync:nonfinite:increase10m", "not finite"),
            ),
        ),
        Panel(
            "Not survived",
            "short",
            "Answers 500 in ten minutes, and callers who went away a second.",
            (("lipsync:server_errors:increase10m", "errors"), ("lipsync:cancelled:rate5m", "gone callers/s")),
        ),
    ),
    "Scaling": (
        Panel(
            "Replicas wanted",
            "short",
            "What the autoscaler decided.",
            (("lipsync:replicas:target", "{{deployment}}"),),
        ),
        Panel("Replicas healthy", "short", "What there is.", (("lipsync:replicas:healthy", "{{deployment}}"),)),
        Panel(
            "Replicas started",
            "short",
            "In 15 minutes, and how many of them in place of others.",
            (
                ("lipsync:replica_starts:count15m", "{{deployment}}"),
                ("lipsync:replica_restarts:count15m", "{{deployment}}, in place of others"),
            ),
        ),
    ),
}


def panels() -> Iterator[Panel]:
    """All of them, in order."""
    for row in ROWS.values():
        yield from row


def dashboard() -> dict[str, Any]:
    """As Grafana reads it."""
    drawn: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        drawn.append(
            {"type": "row", "title": title, "collapsed": False, "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1}}
        )
        y += 1
        for number, panel in enumerate(row):
            place = {"x": number % 3 * _WIDTH, "y": y + number // 3 * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
            drawn.append(_drawn(panel, place))
        y += -(-len(row) // 3) * _HEIGHT
    for number, panel_json in enumerate(drawn, start=1):
        panel_json["id"] = number
    return {
        "uid": "lipsync",
        "title": "Lip-sync",
        "tags": ["lipsync"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "panels": drawn,
    }


def _drawn(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
            for number, (expression, legend) in enumerate(panel.queries)
        ],
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    JSON.parent.mkdir(parents=True, exist_ok=True)
    JSON.write_text(text())

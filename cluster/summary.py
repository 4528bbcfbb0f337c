"""What a run of requests came to: counts, percentiles and throughput, as plain data and as a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from cluster.traffic import NOT_SENT, Outcome

LATE_S = 0.1
"""A sender that is later than this at the 99th percentile is the bottleneck itself."""


def percentiles(values: Iterable[float]) -> dict[str, float] | None:
    """Nearest-rank percentiles, which are always values that occurred; None where there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    ranks = {name: ordered[math.ceil(share * len(ordered)) - 1] for name, share in _SHARES.items()}
    return {name: round(value, 4) for name, value in ranks.items()}


_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def summarise(outcomes: Sequence[Outcome], *, duration_s: float) -> dict[str, Any]:
    """Of one run. Throughput counts what was answered within ``duration_s``: the tail after it is no steady load."""
    sent = [one for one in outcomes if one.refusal != NOT_SENT]
    in_time = [one for one in sent if not one.refusal and one.ended_s <= duration_s]
    late_s = percentiles(one.late_s for one in sent)
    return {
        "duration_s": round(duration_s, 2),
        "requests_per_s": round(len(in_time) / duration_s, 3),
        "frames_per_s": round(sum(one.frames for one in in_time) / duration_s, 2),
        "late_s": late_s,
        "is_sender_the_bottleneck": bool(late_s and late_s["p99"] > LATE_S),
        "all": _group(outcomes),
        "kinds": {name: _group([one for one in outcomes if one.kind == name]) for name in _kinds(outcomes)},
    }


def _kinds(outcomes: Iterable[Outcome]) -> list[str]:
    return sorted({one.kind for one in outcomes})


def _group(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    answered = [one for one in outcomes if not one.refusal]
    refusals = Counter(one.refusal for one in outcomes if one.refusal not in ("", NOT_SENT))
    stages = sorted({stage for one in answered for stage in one.stages_ms})
    return {
        "sent": len(outcomes) - sum(one.refusal == NOT_SENT for one in outcomes),
        "not_sent": sum(one.refusal == NOT_SENT for one in outcomes),
        "answered": len(answered),
        "refused": dict(refusals.most_common()),
        "frames": sum(one.frames for one in answered),
        "latency_s": percentiles(one.latency_s for one in answered),
        "first_fragment_s": percentiles(one.first_s - one.due_s for one in answered if one.first_s is not None),
        "stages_ms": {
            stage: percentiles(one.stages_ms[stage] for one in answered if stage in one.stages_ms) for stage in stages
        },
    }


def tables(summary: dict[str, Any]) -> list[Table]:
    """For people: requests by kind, then the server's own times by stage."""
    requests = Table(title="Requests (seconds)", caption=_caption(summary))
    for head in ("kind", "sent", "answered", "p50", "p90", "p99", "max", "1st p50", "1st p99"):
        requests.add_column(head, justify="left" if head == "kind" else "right")
    groups = summary["kinds"] | ({"all": summary["all"]} if len(summary["kinds"]) > 1 else {})
    for name, group in groups.items():
        requests.add_row(name, str(group["sent"]), str(group["answered"]), *_row(group))
    stages = Table(title="Server's time by stage (milliseconds, all workers of a request added up)")
    for head in ("stage", "p50", "p90", "p99", "max"):
        stages.add_column(head, justify="left" if head == "stage" else "right")
    for name, spent in summary["all"]["stages_ms"].items():
        stages.add_row(name, *(f"{spent[share]:.0f}" for share in _SHARES))
    return [requests, stages] if stages.row_count else [requests]


def _row(group: dict[str, Any]) -> list[str]:
    latency, first = group["latency_s"] or {}, group["first_fragment_s"] or {}
    cells = [latency.get(share) for share in _SHARES] + [first.get("p50"), first.get("p99")]
    return ["–" if cell is None else f"{cell:.2f}" for cell in cells]


def _refusals(group: dict[str, Any]) -> str:
    said = [f"{count} {slug}" for slug, count in group["refused"].items()]
    return f"\nrefused: {', '.join(said)}" if said else ""


def _caption(summary: dict[str, Any]) -> str:
    said = f"{summary['requests_per_s']:g} requests/s, {summary['frames_per_s']:g} frames/s answered in the run"
    said += _refusals(summary["all"])
    if summary["all"]["not_sent"]:
        said += f"\nnot sent, since as many were in flight as allowed: {summary['all']['not_sent']}"
    if summary["all"]["answered"] < 100:
        said += "\nof fewer than 100, p99 is the slowest"
    if summary["is_sender_the_bottleneck"]:
        said += f"\nThe sender was {summary['late_s']['p99']:.2f} s late: the figures show it as well as the server."
    return said

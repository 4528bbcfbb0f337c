"""The page's section on the served application."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.tables import at_least, at_most, table

Result = dict[str, Any]
FILL_TARGET, SHARE_TARGET, RENDERERS_TARGET = 0.95, 0.9, 3.2
LATENCY_TARGET, REFUSAL_TARGET_MS, FIRST_BYTES_TARGET = 3, 100, 1.5
BATCH, SHORT_FRAMES, LONG_FRAMES, LEAST_FRAMES, MOST_FRAMES = 512, 64, 3000, 25, 500
GENERATOR_BATCH_S, MOST_GENERATORS, MOST_RENDERERS = 8, 8, 4
LONG_REQUEST_FRAMES, SLEEP_MS = 4064, 6
REQUEST_FRAMES, ADMITTED_FRAMES, CALM = 100, 2560, 0.9

LOADS = {
    "requests": "requests answered",
    "requests_per_batch": "requests that share a batch, mean",
    "frames_per_batch": "frames in a batch, mean",
    "first_fragments": "requests whose first bytes came",
    "first_fragment_p50_s": "after how long, p50, s",
    "first_fragment_p99_s": "the same, p99, s",
}


def serving(result: Result) -> str:
    parts = [
        """## Serving

The application on a real Ray cluster on this machine, over HTTP. Where a device or an encoder stands in, it sleeps: calls, objects,
batches and order are real, and two cores do not decide. Ray Serve runs as [serving](serving.md) recommends: behind HAProxy, with
`RAY_SERVE_THROUGHPUT_OPTIMIZED=1`. `python -m benchmarks serving` measures it.
"""
    ]
    for name, part in PARTS.items():
        if name in result:
            parts.append(part(result[name]))
    return "\n".join(parts)


def shared_batches(got: Result) -> str:
    rows = [
        ("mean fill of a batch", got["mean_fill"], f"≥ {FILL_TARGET}", at_least(got["mean_fill"], FILL_TARGET)),
        ("requests that share a batch, mean", got["requests_per_batch"], "several", ""),
        ("frames a second ÷ the device's", got["throughput_share"], f"≥ {SHARE_TARGET}", at_least(got["throughput_share"], SHARE_TARGET)),
        (f"first bytes of a request of at most {SHORT_FRAMES} frames, p50, in batch times", got["first_fragment_of_short_p50_batches"], "", ""),
        ("the same, p99", got["first_fragment_of_short_p99_batches"], "", ""),
        ("requests that failed", got["failed"], "0", at_most(got["failed"], 0)),
    ]  # fmt: skip
    return f"""### Batches shared by many

{got["callers"]} callers at once, {LEAST_FRAMES} to {MOST_FRAMES} frames each (log-uniform) but for two that ask for {LONG_FRAMES} again and again; a device that takes
{got["batch_s"]} s for {BATCH} frames, full or not; {got["requests"]} requests, {got["batches"]} batches looked at.

{table(("", "measured", "wanted", ""), rows)}"""


def generators(rows: list[Result]) -> str:
    cells = [(row["generators"], row["frames_per_s"], row["share_of_linear"]) for row in rows]
    return f"""### Generators

Frames a second by the number of Generators, each a device that takes {GENERATOR_BATCH_S} s for {BATCH} frames. Target at {MOST_GENERATORS}:
at least {SHARE_TARGET} of linear: {at_least(rows[-1]["share_of_linear"], SHARE_TARGET)}.

{table(("Generators", "frames a second", "share of linear"), cells)}"""


def renderers(rows: list[Result]) -> str:
    cells = [(row["renderers"], row["took_s"], row["times_as_fast"]) for row in rows]
    return f"""### Renderers

Seconds of one request of {LONG_REQUEST_FRAMES} frames by the number of Renderers, each with one thread and an encoder that sleeps {SLEEP_MS} ms a
frame. Target at {MOST_RENDERERS}: at least {RENDERERS_TARGET} times as fast: {at_least(rows[-1]["times_as_fast"], RENDERERS_TARGET)}.

{table(("Renderers", "seconds", "times as fast as one"), cells)}"""


def overload(got: Result) -> str:
    rows = [
        (f"p99 of accepted ÷ p50 at {CALM} of capacity", got["accepted_p99_over_p50"], f"≤ {LATENCY_TARGET}", at_most(got["accepted_p99_over_p50"], LATENCY_TARGET)),
        ("a refusal, p50, ms", got["refused_p50_ms"], "", ""),
        ("a refusal, p99, ms", got["refused_p99_ms"], f"≤ {REFUSAL_TARGET_MS}", at_most(got["refused_p99_ms"], REFUSAL_TARGET_MS)),
        ("the slowest refusal, ms", got["refused_max_ms"], f"≤ {REFUSAL_TARGET_MS}", at_most(got["refused_max_ms"], REFUSAL_TARGET_MS)),
        ("the slowest answer of all, s", got["slowest_answer_s"], "", ""),
        ("refusals without Retry-After", got["without_retry_after"], "0", at_most(got["without_retry_after"], 0)),
        ("frames a second ÷ the device's, once full", got["throughput_share_of_peak"], f"≥ {SHARE_TARGET}", at_least(got["throughput_share_of_peak"], SHARE_TARGET)),
    ]  # fmt: skip
    statuses = ", ".join(map(str, got["statuses"]))
    return f"""### Overload

Requests of {REQUEST_FRAMES} frames, Poisson, at three times what a device of {got["batch_s"]} s a batch can do; {got["sent"]} sent, {got["accepted"]}
accepted, the others answered {statuses}. Admission: {ADMITTED_FRAMES} frames under way.

{table(("", "measured", "wanted", ""), rows)}"""


def stages(got: Result) -> str:
    kinds = list(got["kinds"])
    names = [name for name in got["kinds"][kinds[0]] if name != "frames_per_s_here"]
    cells = [(name, *(got["kinds"][kind][name] for kind in kinds)) for name in names]
    cells.append(("frames a second here", *(got["kinds"][kind]["frames_per_s_here"] for kind in kinds)))
    loads = [(what, *(got["loads"][kind][name] for kind in kinds)) for name, what in LOADS.items()]
    needs = [(row["frames_per_s"], *(row[kind] for kind in kinds)) for row in got["cores"]]
    return f"""### Where the CPU's time goes

CPU milliseconds per frame by kind of replica, real media and real encoding (720p, `veryfast`), a device that costs nothing:
{got["how"]}.

{table(("", *kinds), cells)}
What the CPU stages allow under that load. A device that costs nothing never has a backlog, so it takes what is there:

{table(("", *kinds), loads)}
What a Generator of a given speed therefore wants of such cores, computed from the line "all" and not measured:

{table(("frames a second of one Generator", *(f"cores, {kind}" for kind in kinds)), needs)}"""


def first_bytes(rows: list[Result]) -> str:
    cells = [
        (row["face"], row["served_ms"], row["stages_ms"], row["ratio"], at_most(row["ratio"], FIRST_BYTES_TARGET))
        for row in rows
    ]
    return f"""### First bytes

A stream's first bytes from an idle application, real everything, against the stages behind them (open, hear, look, render eight frames)
one after the other in one process; medians of nine, each with a face that no cache has seen. Target for the ratio: at most {FIRST_BYTES_TARGET}.

{table(("face", "first bytes, ms", "stages, ms", "ratio", ""), cells)}"""


PARTS: dict[str, Callable[[Any], str]] = {
    "shared_batches": shared_batches,
    "generators": generators,
    "renderers": renderers,
    "overload": overload,
    "stages": stages,
    "first_bytes": first_bytes,
}

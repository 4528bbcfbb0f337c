"""docs/benchmarks.md from docs/benchmarks.json: every figure on the page is one of the JSON's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.serving_report import serving
from benchmarks.tables import at_most, table
from lipsync.bench.rows import rows_for
from lipsync.bench.table import HEAD, end_to_end, ladder_cells, still_face, where

Result = dict[str, Any]

DOCS = Path(__file__).resolve().parents[1] / "docs"
LADDERS = {kind: DOCS / "benchmarks" / f"ladder_{kind}.json" for kind in ("cuda", "cpu")}
MEMORY_TARGET_MB = 100
DECODING_TARGET = 2.2
STILL_TARGET = 1.3
VIDEO_TARGET = 2.0
FIRST_SHARE = 64
FILL_TARGET = 0.97
WAIT_TARGET = 2.5
SCHEDULING_TARGET = 1
ONNX_TARGET = 1.0
DIFFERENT_TARGET = 0.3

INTRODUCTION = """# Benchmarks

`make bench` measures and writes `docs/benchmarks.json`; this page is made from it by `benchmarks/report.py`.
CPU time is that of all threads of the measuring process. It grows where other work keeps the cores' caches and memory
busy, so what is compared was measured in turns within one run, and ratios say more than milliseconds.
`load` is how many processes wanted a core when a measurement began, its own not yet among them.
"""


def read_ladders() -> dict[str, Result]:
    """The ladders that were measured and committed, by the kind of device."""
    return {kind: json.loads(path.read_text()) for kind, path in LADDERS.items() if path.exists()}


def page(results: Result, ladders: dict[str, Result] | None = None) -> str:
    """The whole page: the ladders, if given, and a section for each measurement that the results hold."""
    parts = [INTRODUCTION]
    if ladders is not None:
        parts.append(ladder(ladders))
    for name, section in SECTIONS.items():
        if name in results:
            parts.append(section(results[name]) + "\n" + measured_on(results[name]))
    return "\n".join(parts)


def measured_on(result: Result) -> str:
    on = result["machine"]
    where = f"{on['processor']}, {on['cores']} cores, {on['system']}, Python {on['python']}"
    return f"<sub>{where}, load {on['load']}; {result['date']}, took {result['took_s']} s.</sub>\n"


def ladder(found: dict[str, Result]) -> str:
    """The generator by itself, row by row, and then end to end; never both in one table."""
    parts = [_LADDER_HEAD]
    for kind, title in (("cuda", "On a GPU"), ("cpu", "On a CPU, which is not what the ladder is for")):
        parts.append(f"### {title}\n")
        if kind not in found:
            parts.append("Not measured: no such device was at hand. `make bench-gpu` measures these rows:\n")
            parts.append(
                table(
                    ("row", ""),
                    [(row.name, ": ".join(["not measured", *filter(None, [row.not_made])])) for row in rows_for(kind)],
                )
            )
            continue
        parts.append(_ladder_of(kind, found[kind]))
    return "\n".join(parts)


def _ladder_of(kind: str, result: Result) -> str:
    most, cost = result["ceilings"], result["cost_per_frame"]
    ceilings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in most.items())
    stages = "\n".join(f"* {line.strip()}" for line in end_to_end(result["end_to_end"]))
    machine, runs = result["machine"], f"{result['runs']} runs of {result['frames_per_run']} frames"
    return f"""{where(result)}; {machine["date"]}, load {machine["load"]}, took {result["took_s"]} s.
Generator: {result["generator"]}, {cost["gflop"]} GFLOP a frame; {runs}
or the next multiple of the batch. Ceilings: {ceilings}.

![the ladder](benchmarks/ladder_{kind}.png)

{table(HEAD, ladder_cells(result["rows"]))}
A still face's features computed once: {still_face(result["still_face"])}.

End to end:

{stages}
"""


_LADDER_HEAD = """## The ladder

The generator alone, arrays in the host's memory to arrays in the host's memory, each row in a process of its own; the
first rows are the steps that the original names, the others take one technique of ours each. PSNR and the largest
difference (levels of 255) are those of the patches from the plain network's in fp32 on the same device. Shares are of
what the same run measured for a large matrix product in that format, and for a large copy if each layer read and wrote
its maps by itself. On a CPU one thread computes, and seconds are the processor's own but for
the start; there are no shares, because torch's matrix product can be slower there than its convolutions.
"""


def memory(result: Result) -> str:
    short, long, more = result["one_minute"], result["ten_minutes"], result["more_mb"]
    runs = len(short.get("peaks_mb", [short["peak_mb"]]))
    rows = [(clip["frames"], clip["clip_mb"], clip["peak_mb"]) for clip in (short, long)]
    return f"""## Memory

Peak resident memory of the whole process for a short and a long 1080p clip, without the generator (detector
{result["detector"]}, preset {result["preset"]}): whether it grows with the clip. Runs of the
short clip: {runs}; the middle one counts. Target: the long clip needs at most {MEMORY_TARGET_MB} MB more.
It needs {more} MB more: {at_most(more, MEMORY_TARGET_MB)}.

{table(("frames", "clip, MB", "peak, MB"), rows)}"""


def decoding(result: Result) -> str:
    worst = max(case["ratio"] for case in result["cases"])
    rows = []
    for case in result["cases"]:
        distance, frames = case["keyframe_distance"], result["frames"]
        rows.append((f"{distance}: one keyframe" if distance >= frames else distance, case["decoded"], case["ratio"]))
    return f"""## Decoding

Frames decoded, detection included, for {result["frames"]} put out, by the distance of keyframes: a clip has to be
decoded once to look for faces and once to render; what is beyond that is decoded again where work starts anew.
Target: at most {DECODING_TARGET} for each frame put out. The most is {worst}: {at_most(worst, DECODING_TARGET)}.

{table(("keyframe distance", "decoded", "decoded ÷ put out"), rows)}
{_backwards(result)}
"""


def _backwards(result: Result) -> str:
    if "bounce" not in result:
        return "With `bounce`: not measured yet."
    bounce = result["bounce"]
    return (
        f"With `bounce` on a clip with one keyframe, {bounce['frames']} frames put out, half of them backwards: "
        f"{bounce['decoded']} decoded, {bounce['ratio']} for each: {at_most(bounce['ratio'], DECODING_TARGET)}."
    )


def overhead(result: Result) -> str:
    rows = []
    for case in result["cases"]:
        target = STILL_TARGET if case["is_still"] else VIDEO_TARGET
        spread = f"{case['ratios'][0]} … {case['ratios'][-1]}"
        face = case["face"] + ("" if case["made_here"] else " (file not in the project)")
        run = f"{case['rounds']} × {case['frames']}"
        figures = run, case["line_ms"], case["encode_ms"], case["ratio"], spread, target, at_most(case["ratio"], target)
        rows.append((face, case["detector"], *figures))
    head = (
        "face",
        "detector",
        "rounds × frames",
        "whole, ms",
        "encoding, ms",
        "ratio",
        "lowest … highest",
        "target",
        "",
    )
    return f"""## Overhead

CPU milliseconds per output frame of the whole line (from bytes to a file: probing, detection, voice, decoding,
cropping, pasting, encoding, joining; no generator) and of encoding the same pictures, in the same segments with the
same settings, alone; medians of rounds that take turns, each detector loaded before. The patch is the crop itself, so
that the mouth of a still does not move: the encoder's easiest case, and the ratio's hardest. A look for faces costs the
same whatever the picture holds, so it weighs most where encoding is easy and with the detector that takes longer.
Targets: at most {STILL_TARGET} for a still, {VIDEO_TARGET} for a video.

{table(head, rows)}"""


def detection(result: Result) -> str:
    rows = [
        (
            case["size"],
            look["detector"],
            look["every"],
            case["decode_ms"],
            look["ms"],
            look["closely_ms"],
            look["overlap"],
        )
        for case in result["cases"]
        for look in case["looks"]
    ]
    head = ("video", "detector", "k", "decoding alone, ms", "looking, ms", "closely, ms", "least overlap")
    return f"""## Detection

CPU milliseconds per source frame of looking for faces on every k-th frame, decoding and scene cuts included, and of
decoding alone; the least of {result["rounds"]} rounds of {result["frames"]} frames. "Looking" is at a small picture
first, as for the largest face; "closely" at a larger one alone, as for the other ways of choosing: see
[the decision](decisions/look-small-first.md). The least overlap (intersection over union) is that of the boxes that
the two find. No target.

{table(head, rows)}"""


def demo(result: Result) -> str:
    rows = [
        ("`lipsync demo`, from starting Python to the file: wall, s", result["command_wall_s"]),
        ("the same: CPU, s", result["command_cpu_s"]),
        ("frames", result["frames"]),
        ("voice, s", result["voice_s"]),
        ("in a warm process: wall, s", result["warm_wall_s"]),
        ("the same: CPU, s", result["warm_cpu_s"]),
        ("frames per second", result["frames_per_s"]),
        ("CPU per frame, ms", result["cpu_ms_per_frame"]),
        ("until a stream's first fragment, s", result["first_fragment_s"]),
        *(
            (f"frames per second, {size} generator, torch on {count} threads", rate)
            for size, rates in result.get("threads", {}).items()
            for count, rate in rates.items()
        ),
    ]
    return f"""## Demo

The packaged face speaking the packaged sentence, generator included (checkpoint: {result["checkpoint"]}): what a first
run costs, and what the next one does. Wall time is that of a machine with other work to do. No target.

{table(("", ""), rows)}"""


def engine(result: Result) -> str:
    rows = [
        (
            case["batch"],
            case["way"],
            case["ms"],
            case["times_plain"],
            case["times_onnxruntime"],
            case["max_difference_levels"],
            case["different_percent"],
        )
        for case in result["cases"]
    ]
    versions = result["versions"]
    least = min(case["times_onnxruntime"] for case in result["cases"] if case["way"] == result["default"])
    worst = max(case["different_percent"] for case in result["cases"] if case["way"] == result["default"])
    head = "batch", "way", "ms", "times plain", "times onnxruntime", "largest difference", "other after truncation, %"
    return f"""## Engine

CPU milliseconds per frame of the full-size generator on {result["threads"]} thread, by how it is laid out, the least of
{result["rounds"]} rounds that take turns; torch {versions["torch"]}, onnxruntime {versions["onnxruntime"]}. The default
on a CPU is {result["default"]}; why it is neither compiled nor in bf16: [the decision](decisions/engine-on-a-cpu.md).
Left out: {result["left_out"]}. Differences are from the plain network, in levels of 255, and how many samples are
another level after truncation.
Targets for the default: at least {ONNX_TARGET} times as fast as onnxruntime (measured: {least},
{at_most(-least, -ONNX_TARGET)}), at most {DIFFERENT_TARGET} % of samples another level (measured: {worst},
{at_most(worst, DIFFERENT_TARGET)}).

{table(head, rows)}"""


def allocator(result: Result) -> str:
    rows = [(case["generator"], case["asked"], case["ms"]) for case in result["cases"]]
    return f"""## Freed memory

CPU milliseconds per frame of a generator on one thread, batches of {result["batch"]} frames, by when the process has
freed memory given back to the system (`lipsync.allocator`); each in processes of its own that take turns, the least of
{result["rounds"]}; torch {result["torch"]}. The command line asks for every two seconds
([why](decisions/freed-memory.md)).

{table(("generator", "given back", "ms"), rows)}"""


def b_frames(result: Result) -> str:
    rows = [
        (name.replace("_", " "), case["cpu_ms_per_frame"], case["kilobytes"], case["luma_psnr_db"])
        for name, case in result.items()
        if isinstance(case, dict) and "cpu_ms_per_frame" in case
    ]
    return f"""## B-frames

What doing without B-frames costs and saves: the same pictures encoded in segments, with and without. No target; see
[the decision](decisions/fragments-without-b-frames.md).

{table(("pictures", "CPU per frame, ms", "size, kB", "luma PSNR, dB"), rows)}"""


def batcher(result: Result) -> str:
    waits = [
        (name.removeprefix("load_"), wait["mean"], wait["p99"], wait["most"], wait["mean_fill"])
        for name, wait in result["first_share_wait_in_passes"].items()
    ]
    costs = [(name.replace("_", " "), *cost.values()) for name, cost in result["cpu_ms_per_full_batch"].items()]
    fill = result["fill"]["64_requests_at_once"]
    return f"""## Batcher

The frame batcher before a simulated device: {result["cost"]}; requests of {result["sizes"]}. Mean fill with 64 requests
at once, the last pass included: {fill} (target {FILL_TARGET}). How long a request waits, in pass times, until the pass
with the last of its first {FIRST_SHARE} frames starts (target: at most {WAIT_TARGET} at the 99th percentile and a load
of 0.85):

{table(("load", "mean", "p99", "most", "mean fill"), waits)}
CPU milliseconds for each {result["batch_frames"]} frames (target for the batcher alone: {SCHEDULING_TARGET}):

{table(("calls", "batcher alone", "callers and threads too"), costs)}"""


def fresh(result: Result) -> str:
    rows = [("`make demo`", result["demo_s"]), ("`make test`", result["test_s"])]
    return f"""## From a fresh clone

Seconds of wall time in a new clone, one after the other; the first installs everything. No target.

{table(("command", "seconds"), rows)}"""


SECTIONS: dict[str, Callable[[Result], str]] = {
    "memory": memory,
    "decoding": decoding,
    "overhead": overhead,
    "detection": detection,
    "demo": demo,
    "engine": engine,
    "allocator": allocator,
    "b_frames": b_frames,
    "batcher": batcher,
    "serving": serving,
    "fresh": fresh,
}


def main() -> None:
    """Write the page anew from what is committed."""
    (DOCS / "benchmarks.md").write_text(page(json.loads((DOCS / "benchmarks.json").read_text()), read_ladders()))


if __name__ == "__main__":
    main()

"""The ladder as rows of text: what a terminal shows and what the page of benchmarks is made from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Result = dict[str, Any]
Cells = tuple[str, ...]

HEAD = (
    "row",
    "frames/s",
    "times the first",
    "mean, s",
    "± s",
    "start, s",
    "peak memory",
    "PSNR, dB",
    "largest diff.",
    "of matmul",
    "of copy",
)
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


def with_shares(result: Result) -> Result:
    """The same with each row's speed over the first's, and its share of the chip's ceilings: of the matrix product in
    its number format, and of the copy if each layer read and wrote by itself. On a CPU there are no shares: torch's
    matrix product can be slower there than its convolutions, so it is no ceiling."""
    cost, most = result["cost_per_frame"], result["ceilings"]
    first = next((row["frames_per_s"] for row in result["rows"] if "frames_per_s" in row), None)
    rows = []
    for row in result["rows"]:
        derived: Result = {}
        if "frames_per_s" in row and first is not None:
            derived = {"times_first": round(row["frames_per_s"] / first, 2)}
            if result["device"] != "cpu":
                derived |= _shares(row, cost, most)
        rows.append(row | derived)
    return result | {"rows": rows}


def _shares(row: Result, cost: Result, most: Result) -> Result:
    is_tf32 = row["precision"] == "fp32" and row["matmul"] == "high"
    flop_s = row["frames_per_s"] * cost["gflop"] * 1e9
    bytes_s = row["frames_per_s"] * cost["million_values"] * 1e6 * _BYTES[row["precision"]]
    matmul_s = most[f"matmul_{'tf32' if is_tf32 else row['precision']}_tflops"] * 1e12
    return {
        "of_matmul_percent": round(100 * flop_s / matmul_s, 1),
        "of_copy_percent": round(100 * bytes_s / (most["copy_gb_s"] * 1e9), 1),
    }


def ladder_cells(rows: list[Result]) -> Iterator[Cells]:
    """One tuple per row, as ``HEAD`` names them; what was not measured says so and why."""
    for row in rows:
        if "not_measured" in row:
            yield (row["name"], f"not measured: {row['not_measured']}", *[""] * (len(HEAD) - 2))
            continue
        yield (
            row["name"],
            f"{row['frames_per_s']}",
            f"{row['times_first']}",
            f"{row['mean_s']}",
            f"{row['sd_s']}",
            start(row),
            f"{row['device_peak_gb']} GB" if "device_peak_gb" in row else f"{row['process_peak_mb']} MB",
            "equal" if row["largest_difference"] == 0 else f"{row['psnr_db']}",
            f"{row['largest_difference']}",
            f"{row['of_matmul_percent']} %" if "of_matmul_percent" in row else "–",
            f"{row['of_copy_percent']} %" if "of_copy_percent" in row else "–",
        )


def start(row: Result) -> str:
    """Seconds, and how much of it torch had compiled in an earlier row."""
    if "compiled_now" not in row:
        return f"{row['start_s']}"
    return f"{row['start_s']} ({row['compiled_now']} compiled, {row['compiled_before']} found)"


def where(result: Result) -> str:
    """The machine in a phrase."""
    machine = result["machine"]
    chip = f"{machine['chip']['name']}, " if "chip" in machine else "no GPU, "
    return f"{chip}{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}"


def text(result: Result) -> str:
    """Everything for a terminal."""
    most, cost = result["ceilings"], result["cost_per_frame"]
    lines = [
        f"{where(result)}; {result['machine']['date']}",
        f"generator: {result['generator']}; {cost['gflop']} GFLOP a frame",
        "ceilings: " + ", ".join(f"{name} {value}" for name, value in most.items()),
        "",
        *_aligned([HEAD, *ladder_cells(result["rows"])]),
        "",
        "a still face's features computed once: " + still_face(result["still_face"]),
        "",
        *end_to_end(result["end_to_end"]),
    ]
    return "\n".join(lines)


def still_face(found: Result) -> str:
    if "not_measured" in found:
        return f"not measured: {found['not_measured']}"
    gain, target = found["gain_percent"], found["target_percent"]
    verdict = "worth it" if found["worth_it"] else "not worth it"
    return (
        f"{gain['all_still']} % faster where every frame is still, {gain['half_still']} % where half are "
        f"(wanted: {target} %): {verdict}"
    )


def end_to_end(found: Result) -> Iterator[str]:
    if "not_measured" in found:
        yield f"end to end: not measured: {found['not_measured']}"
        return
    yield f"end to end, {found['seconds']} s of voice, checkpoint {found['checkpoint']}"
    for case in found["cases"]:
        yield (
            f"  {case['face']}, {case['state']}: {case['total_s']} s, real-time factor {case['real_time_factor']}, "
            f"first fragment after {case['first_fragment_s']} s, CPU {case['cpu_s']} s"
        )
        yield "    CPU s by stage: " + ", ".join(f"{stage} {spent}" for stage, spent in case["stage_cpu_s"].items())


def _aligned(rows: list[Cells]) -> Iterator[str]:
    whole = [row for row in rows if not row[1].startswith("not measured")]
    widths = [max(len(row[column]) for row in whole) for column in range(len(rows[0]))]
    widths[0] = max(len(row[0]) for row in rows)
    for row in rows:
        if row in whole:
            yield "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        else:
            yield f"{row[0].ljust(widths[0])}  {row[1]}"

"""Models clusters of 1 to 1,000 GPUs and writes what that says: docs/scaling.md, its JSON and its chart.

python -m cluster.simulate            # minutes of simulated time, under two minutes of real time
python -m cluster.simulate --quick    # less of everything; writes to --into
python -m cluster.simulate --bench ladder/ladder_cuda.json --into mine    # costs as `lipsync bench` found them on yours
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.__main__ import machine
from cluster.autoscaling_model import burst, shipped
from cluster.charts import COLOURS, figure, name
from cluster.costs import BENCH, ROOT, Assumptions, Costs, drawn_frames_per_s
from cluster.experiments import Demand, limits, most_replicas, network, observe, ratio
from cluster.scaling_page import page
from lipsync.plan import Tuning

SLOW_GPU_FRAMES_PER_S = 1000.0
SHORT_SEGMENTS = Tuning(segment_frames=(8, 24, 32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much is simulated: seconds to warm up and to observe, by GPUs."""

    seconds: dict[int, tuple[float, float]]
    loads: dict[int, tuple[float, ...]]
    cores: tuple[int, ...] = (24, 72, 144, 288, 576)
    speeds: tuple[float, ...] = (2000.0, 8000.0, 40_000.0)
    ratio_s: float = 6.0
    middle: int = 10
    burst_until_s: int = 900


_MANY = (0.5, 0.7, 0.85, 0.95)
WHOLE = Settings(
    seconds={1: (30.0, 400.0), 10: (20.0, 60.0), 100: (12.0, 12.0), 1000: (8.0, 5.0)},
    loads={1: _MANY, 10: _MANY, 100: _MANY, 1000: (0.7,)},
)
QUICK = Settings(
    seconds={1: (10.0, 60.0), 4: (10.0, 20.0)}, loads={1: (0.5, 0.85), 4: (0.5, 0.85)},
    cores=(24, 192), ratio_s=4.0, middle=4, burst_until_s=300,
)  # fmt: skip


def simulate(settings: Settings, bench: Path = BENCH) -> dict[str, Any]:
    """Every experiment, on all cores; the results as the JSON has them. Raises KeyError where ``bench`` lacks costs."""
    costs, assumed, drawn = Costs.read(bench), Assumptions(), drawn_frames_per_s(bench)
    if drawn is not None:
        assumed = replace(assumed, gpu_frames_per_s=drawn)
    demand = Demand.of(costs, assumed)
    slow, middle = replace(assumed, gpu_frames_per_s=SLOW_GPU_FRAMES_PER_S), settings.middle
    with ProcessPoolExecutor() as pool:

        def ask(question: Callable[..., Any], **more: Any) -> Future[Any]:
            return pool.submit(question, costs, **{"assumed": assumed} | more)

        def look(gpus: int, load: float, **more: Any) -> Future[Any]:
            warm_s, for_s = settings.seconds[gpus if gpus in settings.seconds else middle]
            return ask(observe, gpus=gpus, load=load, warm_s=warm_s, for_s=for_s, **more)

        points = [(gpus, load) for gpus in sorted(settings.loads, reverse=True) for load in settings.loads[gpus]]
        latency = [look(gpus, load) for gpus, load in points]  # the longest first
        cells = [(speed, count) for speed in settings.speeds for count in settings.cores]
        ratios = [
            ask(ratio, cores=(count,), gpu_frames_per_s=(speed,), gpus=2, for_s=settings.ratio_s)
            for speed, count in cells
        ]
        segments = [
            (tuning.segment_frames[-1], look(middle, load, tuning=tuning))
            for tuning in (Tuning(), SHORT_SEGMENTS)
            for load in (0.5, 0.85)
        ]
        ingress = [look(2 * middle, 0.7, ingresses=most_replicas("Ingress")), look(2 * middle, 0.7)]
        config = shipped("Generator")
        trace = ask(
            burst, assumed=slow, config=config, burst_of=3, calm_s=60, burst_s=150, until_s=settings.burst_until_s
        )
        seen = sorted((one.result() for one in latency), key=lambda one: (one["gpus"], one["load"]))
        busiest = next(one for one in seen if one["gpus"] == middle and one["load"] >= 0.7)
        return {
            "costs": asdict(costs),
            "assumptions": assumed.said() | _measured(drawn),
            "demand": asdict(demand) | {"cpu_s": demand.cpu_s, "cpu_ms_per_frame": demand.cpu_ms_per_frame},
            "window": Tuning().window,
            "latency": seen,
            "limits": limits(costs, assumed, under_way_per_gpu=busiest["under_way"] / middle),
            "network": network(costs, assumed),
            "ratio": [row for one in ratios for row in one.result()],
            "ratio_gpus": 2,
            "segments": [{"longest": longest} | one.result() for longest, one in segments],
            "ingress": [one.result() for one in ingress],
            "burst": trace.result() | {"downscale_delay_s": config["autoscaling_config"]["downscale_delay_s"]},
        }


def _measured(drawn: float | None) -> dict[str, Any]:
    if drawn is None:
        return {}
    return {"gpu_frames_per_s": {"value": drawn, "why": "the quickest row of the same `lipsync bench`"}}


def chart(result: dict[str, Any], path: Path) -> None:
    """Latency and first fragment by load, cost by cores, and the burst."""
    made, (latency, first, cost, trace) = figure(columns=2, rows=2, title="A model, not a measurement")
    for gpus, colour in zip(sorted({one["gpus"] for one in result["latency"]}), COLOURS, strict=False):
        of_size = [one for one in result["latency"] if one["gpus"] == gpus]
        loads = [100 * one["load"] for one in of_size]
        for panel, key in ((latency, "latency_s"), (first, "first_s")):
            panel.plot(
                loads,
                [one[key]["p99"] for one in of_size],
                "o-",
                color=colour,
                label=f"{gpus:,} GPU{'s' * (gpus > 1)}, p99",
            )
            panel.plot(loads, [one[key]["p50"] for one in of_size], "o:", color=colour, alpha=0.6)
    for speed, colour in zip(sorted({one["gpu_frames_per_s"] for one in result["ratio"]}), COLOURS, strict=False):
        rows = [one for one in result["ratio"] if one["gpu_frames_per_s"] == speed]
        prices = [one["dollars_per_hour_of_video"] for one in rows]
        cost.plot(
            [one["cores_per_gpu"] for one in rows], prices, "o-", color=colour, label=f"{speed:,.0f} frames/s a GPU"
        )
    burst = result["burst"]
    trace.step(burst["seconds"], burst["running"], where="post", color=COLOURS[0], label="Generators running")
    trace.step(burst["seconds"], burst["target"], where="post", color=COLOURS[1], linestyle=":", label="wanted")
    scale = max(burst["target"]) / max(1, *burst["queued_frames"])
    waiting = [frames * scale for frames in burst["queued_frames"]]
    trace.fill_between(burst["seconds"], waiting, color="#a0aec0", alpha=0.4, label="frames waiting (scaled)")
    trace.axvspan(burst["burst_began_s"], burst["burst_ended_s"], color="#fed7d7", alpha=0.4, label="burst")
    for panel in (latency, first, cost, trace):
        panel.legend(fontsize=8, frameon=False)
        panel.set_ylim(bottom=0)
    cost.set_xscale("log")
    cores = sorted({one["cores_per_gpu"] for one in result["ratio"]})
    cost.set_xticks(cores, map(str, cores))
    cost.minorticks_off()
    name(latency, "A whole request (dotted: p50)", x="load, %", y="s")
    name(first, "Its first fragment (dotted: p50)", x="load, %", y="s")
    name(cost, "An hour of video, by cores beside each GPU", x="cores per GPU", y="$ (assumed prices)")
    name(trace, "A burst and the shipped autoscaling", x="s", y="Generators")
    made.savefig(path)


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster.simulate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less of everything, to see that it works")
    parser.add_argument("--into", type=Path, default=ROOT / "docs", help="folder of the page (default: docs)")
    parser.add_argument(
        "--bench", type=Path, default=BENCH, help="a result of `lipsync bench` (default: this project's)"
    )
    options = parser.parse_args(given)
    on, began = machine(), time.perf_counter()
    result = simulate(QUICK if options.quick else WHOLE, options.bench)
    took_s = round(time.perf_counter() - began, 1)
    result |= {"machine": on, "date": time.strftime("%Y-%m-%d"), "took_s": took_s}
    for folder in ("benchmarks", "images"):
        (options.into / folder).mkdir(parents=True, exist_ok=True)
    (options.into / "benchmarks" / "scaling.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    (options.into / "scaling.md").write_text(page(result))
    chart(result, options.into / "images" / "scaling.png")
    print(f"{took_s} s; wrote {options.into / 'scaling.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

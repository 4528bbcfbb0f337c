"""Watches the shipped autoscaling at work: two bursts with a pause between, on a cluster of its own on this machine.

    python -m cluster.autoscaling --json docs/benchmarks/autoscaling.json --chart docs/images/autoscaling.png

The settings are those of ``serve_config.yaml``, but for the delay before scaling down, which would make the run an hour
long, and the most replicas, which one machine has to hold. Devices stand in and are slow, and encoding is free, so
that two cores need not draw; replicas are real processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from benchmarks.__main__ import machine
from benchmarks.serving import Caller, closed_loop, with_client
from benchmarks.serving_cluster import CONFIG, Running, configuration, free_port, running

BATCH_S, BATCH, MOST = 0.5, 64, 4
MUCH_FRAMES = int(BATCH / BATCH_S)
"""What one of the devices draws in a second."""
BURST_S, PAUSE_S, DOWNSCALE_DELAY_S = 30.0, 75.0, 15.0
CALLERS, FRAMES = 8, 750
WATCHED = ("Generator", "Renderer", "Preprocessor", "Ingress")


def scaled(port: int) -> dict[str, Any]:
    """The shipped configuration with its autoscaling, small enough for one machine."""
    config = configuration(replicas={}, port=port, stand_in={"batch_s": BATCH_S, "batch_size": BATCH, "encode_s": 0})
    shipped = {d["name"]: d for d in yaml.safe_load(CONFIG.read_text())["applications"][0]["deployments"]}
    for deployment in config["applications"][0]["deployments"]:
        autoscaling = shipped[deployment["name"]].get("autoscaling_config")
        if autoscaling is not None:
            del deployment["num_replicas"]
            most = MOST if deployment["name"] == "Generator" else min(2, autoscaling["max_replicas"])
            changed = {"max_replicas": most, "downscale_delay_s": DOWNSCALE_DELAY_S}
            deployment["autoscaling_config"] = autoscaling | changed
    return config


def targets() -> dict[str, tuple[int, int]]:
    """Replicas wanted and replicas running, by deployment, as the controller has them."""
    from ray import serve
    from ray.serve._private.common import ReplicaState

    found = serve.status().applications["lipsync"].deployments
    states = {name: found[name].replica_states for name in WATCHED}
    ready = {name: states[name].get(ReplicaState.RUNNING, 0) for name in WATCHED}
    return {name: (ready[name] + states[name].get(ReplicaState.STARTING, 0), ready[name]) for name in WATCHED}


def backlog(app: Running) -> int | None:
    """Frames that wait for a Generator; None while one of them comes or goes and does not answer."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        return sum(int(replica["waiting_frames"]) for replica in app.stats("Generator"))
    except (RayError, RayServeException, TimeoutError):
        return None


async def watched(app: Running, samples: list[dict[str, Any]], began: float, is_over: Callable[[], bool]) -> None:
    while not is_over():
        now, waiting = await asyncio.gather(asyncio.to_thread(targets), asyncio.to_thread(backlog, app))
        at_s = round(time.perf_counter() - began, 2)
        samples.append({"at_s": at_s, "waiting_frames": waiting} | {name: list(now[name]) for name in WATCHED})
        await asyncio.sleep(0.5)


def trace(app: Running) -> dict[str, Any]:
    samples: list[dict[str, Any]] = []
    bursts: list[tuple[float, float]] = []

    async def work(client: Any) -> int:
        began, over = time.perf_counter(), False
        watching = asyncio.create_task(watched(app, samples, began, lambda: over))
        caller, failed = Caller(app.url, client), 0
        await caller.call(50)  # so that the policy knows how fast a replica is
        await asyncio.sleep(PAUSE_S)  # and has nothing to do when the first burst comes
        for _ in range(2):
            start_s = time.perf_counter() - began
            answers = await closed_loop(caller, lambda: FRAMES, callers=CALLERS, for_s=BURST_S)
            failed += sum(answer.status != 200 for answer in answers)
            bursts.append((round(start_s, 2), round(time.perf_counter() - began, 2)))
            await asyncio.sleep(PAUSE_S)
        over = True
        await watching
        return failed

    failed = with_client(work)
    return {"bursts_s": bursts, "samples": samples, "failed": failed} | judged(samples, bursts)


def judged(samples: list[dict[str, Any]], bursts: list[tuple[float, float]]) -> dict[str, Any]:
    """By deployment and burst: seconds from its start to the first replica more that was wanted (None: none was), and
    how often the wish changed direction from then on until the next."""
    decided: dict[str, list[float | None]] = {name: [] for name in WATCHED}
    turns: dict[str, list[int]] = {name: [] for name in WATCHED}
    for start_s, stop_s in bursts:
        inside = [s for s in samples if start_s <= s["at_s"] <= stop_s + PAUSE_S]
        for name in WATCHED:
            wishes = [s[name][0] for s in inside]
            more = next((s["at_s"] for s, wish in zip(inside, wishes, strict=True) if wish > wishes[0]), None)
            decided[name].append(None if more is None else round(more - start_s, 2))
            steps = [after - before for before, after in pairwise(wishes) if after != before]
            turns[name].append(sum((a > 0) != (b > 0) for a, b in pairwise(steps)))
    return {
        "decided_after_s": decided,
        "behind_backlog_s": behind_backlog(samples, bursts),
        "changes_of_direction": turns,
        "start_up_s": start_ups(samples),
    }


def behind_backlog(samples: list[dict[str, Any]], bursts: list[tuple[float, float]]) -> list[float | None]:
    """By burst: seconds from when more frames waited than one device draws in a second until more were wanted of them.
    None where either never came."""
    found: list[float | None] = []
    for start_s, stop_s in bursts:
        inside = [s for s in samples if start_s <= s["at_s"] <= stop_s]
        piled = next((s["at_s"] for s in inside if (s["waiting_frames"] or 0) > MUCH_FRAMES), None)
        more = next((s["at_s"] for s in inside if s["Generator"][0] > inside[0]["Generator"][0]), None)
        found.append(None if piled is None or more is None else round(more - piled, 2))
    return found


def start_ups(samples: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Seconds from each wish for more replicas until as many ran."""
    found: dict[str, list[float]] = {name: [] for name in WATCHED}
    for name in WATCHED:
        for before, after in pairwise(samples):
            if after[name][0] > before[name][0]:
                ran = next(
                    (s["at_s"] for s in samples if s["at_s"] >= after["at_s"] and s[name][1] >= after[name][0]), None
                )
                if ran is not None:
                    found[name].append(round(ran - after["at_s"], 2))
    return found


def chart(result: dict[str, Any], path: Path) -> None:
    from cluster.charts import COLOURS, figure, name

    made, panels = figure(columns=1, rows=1 + len(WATCHED))
    times = [s["at_s"] for s in result["samples"]]
    *panels, waiting = panels
    waiting.fill_between(times, [s["waiting_frames"] or 0 for s in result["samples"]], color="#a0aec0")
    waiting.set_ylim(bottom=0)
    for start_s, stop_s in result["bursts_s"]:
        waiting.axvspan(start_s, stop_s, color="#cbd5e0", alpha=0.4, linewidth=0)
    name(waiting, "Frames that wait for a Generator", x="seconds", y="")
    for panel, deployment, colour in zip(panels, WATCHED, COLOURS, strict=False):
        wanted = [s[deployment][0] for s in result["samples"]]
        ready = [s[deployment][1] for s in result["samples"]]
        panel.step(times, wanted, where="post", color=colour, linestyle=":", label="wanted")
        panel.step(times, ready, where="post", color=colour, label="running")
        for start_s, stop_s in result["bursts_s"]:
            panel.axvspan(start_s, stop_s, color="#cbd5e0", alpha=0.4, linewidth=0)
        panel.set_ylim(0, MOST + 0.5)
        panel.legend(fontsize=8, frameon=False)
        name(panel, f"{deployment}: replicas (bursts in gray)", x="seconds", y="")
    made.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the trace goes")
    parser.add_argument("--chart", type=Path, help="where the picture goes")
    options = parser.parse_args()
    on = machine()
    with running(scaled(free_port())) as app:
        result = trace(app) | {"machine": on, "date": time.strftime("%Y-%m-%d"), "batch_s": BATCH_S}
    if options.json:
        options.json.write_text(json.dumps(result, ensure_ascii=False) + "\n")
    if options.chart:
        chart(result, options.chart)
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}))


if __name__ == "__main__":
    main()

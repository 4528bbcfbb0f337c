"""The frame batcher with a device of fixed cost: fill, waiting and fairness in simulated time, and its own CPU time."""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from typing import Any

import numpy as np

from benchmarks.simulated import Clients, NumberDevice, Numbers, World, come_by_themselves, mixed_sizes, simulated
from lipsync.batcher import FrameBatcher
from lipsync.core import Claim

BATCH = 512
PASS_S = 0.02
RUNS = 3
SECONDS = 100.0
"""Simulated; some 5,000 passes."""


class Eager(FrameBatcher):  # type: ignore[type-arg]
    """Stages whatever waits, full or not: to measure what choosing late is worth."""

    def _may_stage(self) -> bool:
        return self._waiting.queued_frames > 0


def measure() -> dict[str, Any]:
    return {
        "batch_frames": BATCH,
        "sizes": "25 to 3,000 frames, log-uniform; segments of 8, 24, 64, then 128; 8 in flight per request",
        "cost": "every pass takes the same simulated time, full or not",
        "fill": {"64_requests_at_once": fill_at_once(64), "load_1.2": fill_under_load(1.2)},
        "first_share_wait_in_passes": {f"load_{load}": waits(load) for load in (0.5, 0.85, 0.95)},
        "staging_what_waits_instead": waits(0.85, kind=Eager),
        "beside_a_long_request": beside_a_long_request(),
        "cpu_ms_per_full_batch": {
            f"segments_of_{frames}": {"batcher": cpu_ms_alone(frames), "callers_and_threads_too": cpu_ms(frames)}
            for frames in (128, 64, 25)
        },
    }


def clients(kind: type[FrameBatcher[Any]] = FrameBatcher) -> Clients:
    world = World()
    device = NumberDevice(world, batch_size=BATCH, pass_s=PASS_S)
    return Clients(world, simulated(world, device, kind=kind), device)


def fill_at_once(requests: int) -> float:
    """Mean fill while that many requests, all there at the start, are drawn; the last pass included."""
    fills = []
    for seed in range(20):
        made = clients()
        for size in mixed_sizes(requests, np.random.default_rng(seed)):
            made.come(size)
        made.world.run()
        fills.append(float(np.mean(made.pass_frames)) / BATCH)
    return round(float(np.mean(fills)), 4)


def fill_under_load(load: float) -> float:
    made = clients()
    come_by_themselves(made, load=load, frames_per_s=BATCH / PASS_S, seconds=40.0)
    made.world.run(40.0)
    return round(float(np.mean(made.pass_frames[100:])) / BATCH, 4)


def waits(load: float, *, kind: type[FrameBatcher[Any]] = FrameBatcher) -> dict[str, float]:
    """From a request's arrival to the start of the pass with the last frame of its first share, in pass times."""
    made = clients(kind)
    come_by_themselves(made, load=load, frames_per_s=BATCH / PASS_S, seconds=SECONDS)
    made.world.run()
    in_passes = made.share_waits_s() / PASS_S
    return {
        "requests": len(in_passes),
        "mean": round(float(in_passes.mean()), 2),
        "p99": round(float(np.quantile(in_passes, 0.99)), 2),
        "most": round(float(in_passes.max()), 2),
        "mean_fill": round(float(np.mean(made.pass_frames)) / BATCH, 3),
    }


def beside_a_long_request() -> dict[str, float]:
    """A request of 50 frames comes every 7.3 passes while one of 100,000 frames is drawn."""
    made = clients()
    made.come(100_000)
    for n in range(20):
        made.world.later(n * 7.3 * PASS_S, lambda: made.come(50))
    made.world.run()
    in_passes = made.share_waits_s()[1:] / PASS_S
    return {"mean": round(float(in_passes.mean()), 2), "most": round(float(in_passes.max()), 2)}


class Still(NumberDevice):
    """Takes real time, and none of the processor's."""

    def draw(self, frames: Numbers) -> Any:
        time.sleep(0.01)
        return frames.numbers


def cpu_ms_alone(segment: int) -> float:
    """CPU time per full batch of choosing, staging, scattering and answering, on one thread, in simulated time; the
    callers, who call again when they are answered, do nothing else. The median of three runs."""
    return round(float(np.median([_cpu_ms_alone(segment, passes=300) for _ in range(RUNS)])), 3)


def _cpu_ms_alone(segment: int, *, passes: int) -> float:
    world = World()
    device = NumberDevice(world, batch_size=BATCH, pass_s=PASS_S)
    batcher = simulated(world, device)
    frames = Numbers(range(segment))

    def call(claim: Claim, _: object = None) -> None:
        if len(device.passes) < passes:
            batcher.submit(frames, claim=claim).add_done_callback(partial(call, claim))

    started = time.process_time()
    for request in range(4 * BATCH // segment):
        call(Claim(request=str(request), first_frame=1000))
    world.run()
    return 1000 * (time.process_time() - started) / len(device.passes)


def cpu_ms(segment: int) -> float:
    """The same with threads, and callers that are tasks on an event loop: all CPU time of this process per 512 frames,
    theirs included. Frames are eight bytes each, so that next to no copying is in it. The median of three runs."""
    found = []
    for _ in range(RUNS):
        device = Still(World(), batch_size=BATCH)
        batcher: FrameBatcher[Numbers] = FrameBatcher(device)
        started = time.process_time()
        asyncio.run(_call_again_and_again(batcher, segment))
        spent_s = time.process_time() - started
        batcher.close()
        found.append(1000 * spent_s / (batcher.counts.frames / BATCH))
    return round(float(np.median(found)), 3)


async def _call_again_and_again(batcher: FrameBatcher[Any], segment: int, *, calls: int = 50) -> None:
    frames = list(range(segment))

    async def client(request: int) -> None:
        claim = Claim(request=str(request), first_frame=1000)
        for _ in range(calls):
            await batcher.generate(None, frames, None, None, claim=claim)  # type: ignore[arg-type]

    await asyncio.gather(*(client(n) for n in range(4 * BATCH // segment)))


def main() -> None:
    print(json.dumps(measure()))


if __name__ == "__main__":
    main()

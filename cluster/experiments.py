"""The questions that are put to the modelled cluster, each answered with plain data."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any

from cluster.autoscaling_model import shipped, shipped_admission
from cluster.costs import PATCH_BYTES, Assumptions, Costs
from cluster.model import CALLS_AT_THE_START, CLIP_FRAMES, FPS, Cluster, Size, arrivals, lengths
from cluster.replicas import THREADS
from cluster.summary import percentiles
from lipsync.plan import Tuning

INGRESSES_ARE_BUSY = 0.5
"""Ingresses are taken so many that they are busy for this share of the time."""
VOICE_BYTES_PER_S = 32_000  # 16 kHz, 16 bits


@dataclass(frozen=True, slots=True)
class Demand:
    """What one request of the mix takes, in the mean."""

    frames: float
    render_s: float
    detect_s: float
    calls: float
    input_bytes: float
    moving_frames: float

    @classmethod
    def of(cls, costs: Costs, assumed: Assumptions, *, samples: int = 20_000) -> Demand:
        rng = random.Random(0)
        drawn = [lengths(assumed, rng) for _ in range(samples)]

        def mean(values: list[float]) -> float:
            return sum(values) / samples

        return cls(
            frames=mean([n for n, _ in drawn]),
            render_s=mean([n * (costs.video_frame_ms if v else costs.still_frame_ms) / 1e3 for n, v in drawn]),
            detect_s=mean([_detect_ms(costs, n, is_video=v) / 1e3 for n, v in drawn]),
            calls=mean([CALLS_AT_THE_START + segments(n) for n, _ in drawn]),
            input_bytes=mean(
                [(assumed.video_bytes if v else assumed.still_bytes) + n / FPS * VOICE_BYTES_PER_S for n, v in drawn]
            ),
            moving_frames=mean([n * v for n, v in drawn]),
        )  # fmt: skip

    @property
    def cpu_s(self) -> float:
        return self.render_s + self.detect_s

    @property
    def cpu_ms_per_frame(self) -> float:
        return 1000 * self.cpu_s / self.frames

    @property
    def bytes_per_frame(self) -> float:
        """Crops to a Generator and patches back; a still sends one crop."""
        return PATCH_BYTES * (1 + self.moving_frames / self.frames)


def _detect_ms(costs: Costs, frames: int, *, is_video: bool) -> float:
    return min(frames, CLIP_FRAMES) * costs.video_detect_ms if is_video else costs.look_ms


def segments(frames: int) -> int:
    head = sum(frames > cut for cut in (0, 8, 32, 96))
    return head + max(0, math.ceil((frames - 224) / 128))


def capacity_rps(demand: Demand, assumed: Assumptions, *, gpus: int) -> float:
    """Requests/s at which the cores or the GPUs, whichever come first, are busy all the time."""
    by_cores = gpus * assumed.cores_per_gpu / demand.cpu_s
    return min(by_cores, gpus * assumed.gpu_frames_per_s / demand.frames)


def size_for(demand: Demand, assumed: Assumptions, *, gpus: int, rate_per_s: float) -> Size:
    """Cores shared out as the work needs them, and Ingresses enough."""
    replicas = max(2, gpus * assumed.cores_per_gpu // THREADS)
    preprocessors = max(1, round(replicas * demand.detect_s / demand.cpu_s))
    ingresses = math.ceil(rate_per_s * demand.calls / assumed.calls_per_s / INGRESSES_ARE_BUSY)
    return Size(gpus=gpus, renderers=replicas - preprocessors, preprocessors=preprocessors, ingresses=max(1, ingresses))


def observe(
    costs: Costs,
    assumed: Assumptions,
    *,
    gpus: int,
    load: float,
    warm_s: float,
    for_s: float,
    ingresses: int | None = None,
    tuning: Tuning | None = None,
) -> dict[str, Any]:
    """A cluster at so much of its capacity: latencies of what came after ``warm_s`` and has ended."""  # fmt: skip
    demand = Demand.of(costs, assumed)
    rate_per_s = load * capacity_rps(demand, assumed, gpus=gpus)
    size = size_for(demand, assumed, gpus=gpus, rate_per_s=rate_per_s)
    size = size if ingresses is None else replace(size, ingresses=ingresses)
    cluster = Cluster(size, costs, assumed, tuning=tuning)
    arrivals(cluster, rate_per_s=rate_per_s, until_s=warm_s + for_s)
    cluster.world.run(until_s=warm_s)
    before = _counters(cluster)
    cluster.world.run(until_s=warm_s + for_s)
    frames, drawing_s, busy_s, drawn, room = (now - then for now, then in zip(_counters(cluster), before, strict=True))
    under_way = cluster.under_way
    cluster.world.run(until_s=warm_s + for_s + (10 * for_s if load < 1 and ingresses is None else 0))
    seen = [one for one in cluster.done if one.came_s >= warm_s]
    return {
        "gpus": gpus,
        "load": load,
        "requests_per_s": round(rate_per_s, 1),
        "requests": len(seen),
        "frames_per_s": round(frames / for_s),
        "latency_s": percentiles(one.ended_s - one.came_s for one in seen),
        "first_s": percentiles(one.first_s - one.came_s for one in seen),
        "gpu_busy": round(drawing_s / for_s / gpus, 3),
        "cpu_busy": round(busy_s / for_s / (THREADS * (size.renderers + size.preprocessors)), 3),
        "batch_fill": round(drawn / room, 3) if room else None,
        "under_way": under_way,
        "ingresses": size.ingresses,
    }


def _counters(cluster: Cluster) -> tuple[float, ...]:
    workers = [*cluster.renderers.replicas, *cluster.preprocessors.replicas]
    return (
        cluster.delivered_frames,
        cluster.drawing_s,
        sum(one.busy_s for one in workers),
        cluster.drawn_frames,
        cluster.batch_room,
    )


def ratio(
    costs: Costs,
    assumed: Assumptions,
    *,
    cores: tuple[int, ...],
    gpu_frames_per_s: tuple[float, ...],
    gpus: int,
    for_s: float,
) -> list[dict[str, Any]]:
    """More work than there is room for, by cores per GPU and by how fast a GPU is taken to be."""  # fmt: skip
    found = []
    for speed in gpu_frames_per_s:
        for count in cores:
            given = replace(assumed, gpu_frames_per_s=speed, cores_per_gpu=count)
            seen = observe(costs, given, gpus=gpus, load=1.5, warm_s=for_s, for_s=for_s)
            price = gpus * (given.gpu_price + count * given.core_price) / 3600
            found.append(
                {"gpu_frames_per_s": speed, "cores_per_gpu": count}
                | {key: seen[key] for key in ("frames_per_s", "gpu_busy", "cpu_busy", "batch_fill")}
                | {"dollars_per_hour_of_video": round(price / max(1, seen["frames_per_s"]) * FPS * 3600, 3)}
            )
    return found


def limits(costs: Costs, assumed: Assumptions, *, under_way_per_gpu: float) -> list[dict[str, Any]]:
    """What each GPU, with its cores at work all the time, asks of what all share; and how many GPUs that allows."""
    demand = Demand.of(costs, assumed)
    rate = capacity_rps(demand, assumed, gpus=1)
    replicas = assumed.cores_per_gpu / THREADS
    rendering = demand.render_s / demand.cpu_s
    admission = shipped_admission()
    calls_per_s = most_replicas("Ingress") * assumed.calls_per_s
    controlled = assumed.replicas_per_controller
    rows = [
        ("Renderers, shipped most", replicas * rendering, most_replicas("Renderer"), "replicas of one core"),
        (
            "Preprocessors, shipped most",
            replicas * (1 - rendering),
            most_replicas("Preprocessor"),
            "replicas of one core",
        ),
        ("Generators, shipped most", 1.0, most_replicas("Generator"), "replicas"),
        ("requests under way, shipped", under_way_per_gpu, admission["requests"], "requests"),
        ("frames under way, shipped", under_way_per_gpu * demand.frames, admission["frames"], "frames"),
        ("Ingresses, shipped most", rate * demand.calls, calls_per_s, "calls/s"),
        ("the one Admission replica", 3 * rate, assumed.answers_per_s, "calls/s"),
        ("the one Serve controller", replicas + 1, controlled, "replicas"),
    ]
    table = [
        {"what": what, "per_gpu": round(per_gpu, 2), "room": room, "unit": unit, "gpus": round(room / per_gpu, 1)}
        for what, per_gpu, room, unit in rows
    ]
    return sorted(table, key=lambda row: row["gpus"])


def network(costs: Costs, assumed: Assumptions) -> dict[str, float]:
    """Bytes/s of a node of GPUs whose Renderers are all on other nodes; each segment's Renderer pulls the inputs anew,
    which is the most: two on one node share them."""
    demand = Demand.of(costs, assumed)
    rate = capacity_rps(demand, assumed, gpus=1) * assumed.gpus_per_node
    pulls = demand.calls - CALLS_AT_THE_START + 1
    return {
        "crops_and_patches": round(rate * demand.frames * demand.bytes_per_frame),
        "crops_and_patches_at_a_full_gpu": round(
            assumed.gpu_frames_per_s * assumed.gpus_per_node * demand.bytes_per_frame
        ),
        "inputs": round(rate * demand.input_bytes * pulls),
        "room": assumed.node_bytes_per_s,
    }


def most_replicas(name: str) -> int:
    return int(shipped(name)["autoscaling_config"]["max_replicas"])

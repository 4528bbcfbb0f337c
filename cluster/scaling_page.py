"""docs/scaling.md from docs/benchmarks/scaling.json: every figure on the page is one of the JSON's."""

from __future__ import annotations

from typing import Any

from benchmarks.report import measured_on
from benchmarks.tables import table
from cluster.costs import PATCH_BYTES
from cluster.model import FPS
from lipsync.plan import Tuning

Result = dict[str, Any]
SEGMENT_FRAMES = Tuning().segment_frames[-1]

REMEDIES = {
    "Preprocessors, shipped most": "raise `max_replicas` of the Preprocessor",
    "Renderers, shipped most": "raise `max_replicas` of the Renderer, or give each more cores and `threads`",
    "Generators, shipped most": "raise `max_replicas` of the Generator",
    "requests under way, shipped": "raise `admission.requests`",
    "frames under way, shipped": "raise `admission.frames`",
    "Ingresses, shipped most": "raise `max_replicas` of the Ingress; they share nothing, so any number will do",
    "the one Admission replica": (
        "let each Ingress hold a share of the places and ask for more in blocks, so that a request costs no call; "
        "or one Admission for each group of API keys"
    ),
    "the one Serve controller": (
        "fewer, larger Renderers (16 cores each), and then cells: whole clusters side by side, callers spread over them by "
        "an ordinary load balancer. No request needs anything of another cell"
    ),
}


def page(result: Result) -> str:
    """The whole page."""
    parts = [_introduction(result), _sizes(result), _limits(result), _ratio(result), _heads(result), _burst(result)]
    return "\n".join([*parts, _assumptions(result), measured_on(result)])


def _introduction(result: Result) -> str:
    demand = result["demand"]
    return f"""# Scaling: a model of 1 to 1,000 GPUs

`make simulate` makes this page from `docs/benchmarks/scaling.json`. **Nothing here was measured on a GPU or on more than one
machine**: it is a simulation. What a frame costs on a CPU is what `lipsync bench` measured (`docs/benchmarks/ladder_cpu.json`;
`python -m cluster.simulate --bench FILE` takes yours), the frame batcher and the autoscaling policy are the shipped code in
simulated time, and the rest is assumed and listed at the end.

One request of the assumed mix has {demand["frames"]:.0f} frames in the mean and takes {demand["cpu_s"]:.1f} CPU seconds,
{demand["cpu_ms_per_frame"]:.1f} ms a frame; its Ingress makes {demand["calls"]:.1f} calls for it. The price of this product is CPU time.

![latency by load, cost by cores, and a burst](images/scaling.png)
"""


def _sizes(result: Result) -> str:
    rows = [
        (f"{one['gpus']:,}", f"{one['load']:.0%}", f"{one['requests_per_s']:,}",
         f"{one['frames_per_s']:,}{'' if _is_settled(one, result) else ' †'}", f"{_dollars(one, result):.3f}",
         _pair(one["latency_s"]), _pair(one["first_s"]), f"{one['gpu_busy']:.0%}", one["ingresses"], f"{one['under_way']:,}")
        for one in result["latency"]
    ]  # fmt: skip
    head = ("GPUs", "load", "requests/s", "frames/s", "$ per hour of video", "latency p50 / p99, s", "first fragment p50 / p99, s", "GPU busy",
            "Ingresses", "under way")  # fmt: skip
    return f"""## Latency by load

Each GPU with {result["assumptions"]["cores_per_gpu"]["value"]} cores; 100 % load is where the first of both, here the cores, is always busy. There are
as many Ingresses as keep each half idle.

{table(head, rows)}
† More than 3 % less came out than went in: what is simulated of so many GPUs is a matter of seconds, too short for it to settle;
of a thousand it takes minutes, so they have one load.
Dollars are those of the assumed prices. More replicas wait less for one another, so a larger cluster can be run fuller. A long request of a moving face is slow
by itself: of its longest segments only {result["window"]} are under way, each on one core.
"""


def _is_settled(seen: Result, result: Result) -> bool:
    return bool(seen["frames_per_s"] >= 0.97 * seen["requests_per_s"] * result["demand"]["frames"])


def _dollars(seen: Result, result: Result) -> float:
    """An hour of video, where as much as ``seen`` is made with all that is there."""
    assumed = {key: one["value"] for key, one in result["assumptions"].items()}
    an_hour = seen["gpus"] * (assumed["gpu_price"] + assumed["cores_per_gpu"] * assumed["core_price"])
    return float(an_hour / (seen["frames_per_s"] / FPS))


def _store_bytes(result: Result) -> float:
    """In the object stores for each GPU at most: the inputs, and crops and patches of whole windows."""
    per_gpu = next(row["per_gpu"] for row in result["limits"] if row["what"].startswith("requests under way"))
    segment = 2 * SEGMENT_FRAMES * PATCH_BYTES
    return float(per_gpu * (result["demand"]["input_bytes"] + result["window"] * segment))


def _limits(result: Result) -> str:
    shared, network = result["limits"], result["network"]
    rows = [
        (row["what"], f"{row['per_gpu']:,} {row['unit']}", f"{row['room']:,}", f"{row['gpus']:,}") for row in shared
    ]
    steps = []
    for size in (1, 10, 100, 1000):
        reached = [row for row in shared if size / 10 <= row["gpus"] < size]
        change = "; ".join(f"*{row['what']}:* {REMEDIES[row['what']]}" for row in reached)
        steps.append(
            f"* **{size:,} GPU{'s' * (size > 1)}.** {change or 'Nothing: the shipped configuration carries it'}."
        )
    there, full, room = (network[key] / 1e6 for key in ("crops_and_patches", "crops_and_patches_at_a_full_gpu", "room"))
    return f"""## Where the next bottleneck lies

What each GPU, its cores always at work, asks of what the whole cluster shares, and how many GPUs that allows:

{table(("shared", "each GPU takes", "room", "reached at GPUs"), rows)}
What the design should change on the way up:

{chr(10).join(steps)}

Network: where the Renderers are on other nodes than the Generators, crops and patches of one node's GPUs are
{there:,.0f} MB/s each way of the {room:,.0f} MB/s that it has, {full:,.0f} MB/s were its GPUs full; inputs pulled by Renderers are
at most {network["inputs"] / 1e6:,.0f} MB/s more, written to the object store once and read there. So {_network_word(network)}
Object store: at most {_store_bytes(result) / 1e9:.1f} GB for each GPU, were the windows of all requests under way full of the longest segments.
Both belong to each node and grow with the cluster: they say what a node must have, not how many there may be.
"""


def _network_word(network: Result) -> str:
    if network["crops_and_patches"] + network["inputs"] > network["room"]:
        return "the network is full before the cores are: keep Renderers on the Generators' nodes."
    if network["crops_and_patches_at_a_full_gpu"] > network["room"]:
        return (
            "the network carries what the cores can make, and becomes the limit where faster cores (or hardware codecs) "
            "fill the GPUs: keep Renderers on the Generators' nodes (the handle prefers them), or take 25 Gbit/s."
        )
    return "the network is not the limit."


def _ratio(result: Result) -> str:
    speeds = sorted({row["gpu_frames_per_s"] for row in result["ratio"]})
    rows = []
    for speed in speeds:
        of_speed = [row for row in result["ratio"] if row["gpu_frames_per_s"] == speed]
        best = min(of_speed, key=lambda row: row["dollars_per_hour_of_video"])
        even = speed * result["demand"]["cpu_ms_per_frame"] / 1000
        shipped = next(
            row for row in of_speed if row["cores_per_gpu"] == result["assumptions"]["cores_per_gpu"]["value"]
        )
        rows.append((f"{speed:,.0f}", f"{even:.0f}", best["cores_per_gpu"], f"{min(1.0, best['gpu_busy']):.0%}",
                     best["dollars_per_hour_of_video"], f"{min(1.0, shipped['gpu_busy']):.0%}", shipped["dollars_per_hour_of_video"]))  # fmt: skip
    cores = result["assumptions"]["cores_per_gpu"]["value"]
    head = ("a GPU's frames/s (assumed)", "cores that keep it busy, by arithmetic", "cheapest of those tried", "GPU busy there",
            "$ per hour of video", f"GPU busy with {cores}", f"$ with {cores}")  # fmt: skip
    return f"""## Cores per GPU, and what an hour of video costs

More work than there is room for, on {result["ratio_gpus"]} GPUs. A fast GPU wants more cores than machines have beside one, and most of it is
idle: share it between Generators (`generator.gpus` below 1), add nodes of CPUs alone, or use hardware codecs.

{table(head, rows)}"""


def _heads(result: Result) -> str:
    rows = [
        ("as shipped: up to 128 frames" if one["longest"] == 128 else f"up to {one['longest']} frames", f"{one['load']:.0%}",
         _pair(one["first_s"]), _pair(one["latency_s"]))
        for one in result["segments"]
    ]  # fmt: skip
    few, enough = result["ingress"]
    return f"""## Two experiments

*Segments.* A Renderer takes its work in order, and 128 frames of a moving face hold a thread for seconds: a request's first
eight frames wait behind them. Shorter segments at {result["segments"][0]["gpus"]} GPUs (each costs a call more):

{table(("segments", "load", "first fragment p50 / p99, s", "latency p50 / p99, s"), rows)}
*Ingresses.* {few["gpus"]} GPUs at {few["load"]:.0%} load ask {few["requests_per_s"]} requests/s. With {few["ingresses"]} Ingresses, the most that are shipped,
{few["frames_per_s"]:,} frames/s come out and {few["under_way"]:,} requests are under way at the end; with {enough["ingresses"]}, {enough["frames_per_s"]:,} and {enough["under_way"]:,}.
"""


def _burst(result: Result) -> str:
    burst = result["burst"]
    if burst["first_decision_after_s"] is None:
        decided = "It never decides to scale."
    else:
        decided = f"The first decision comes {burst['first_decision_after_s']} s after the burst begins"
    lasts = burst["burst_ended_s"] - burst["burst_began_s"]
    return f"""## A burst

The shipped policy and delays with GPUs of {burst["gpu_frames_per_s"]:,.0f} frames/s (a share of one, say) and cores enough: half a Generator's
worth of requests, {burst["burst_of"]} Generators' worth for {lasts} s, then half again. {decided}; at most
{burst["most_replicas"]} replicas, {burst["changes_of_direction"]} change of direction, {burst["most_queued_frames"]:,} frames waiting at the worst, while the new replicas start
(assumed: {result["assumptions"]["start_s"]["value"]:.0f} s). {burst["running"][-1]} replicas still run {burst["seconds"][-1] - burst["burst_ended_s"]:.0f} s after the burst: each step down waits for its delay of
{burst["downscale_delay_s"]} s, one replica at a time. That is calm, and it costs idle GPUs; a shorter delay is the operator's choice.
"""


def _assumptions(result: Result) -> str:
    rows = [(f"`{name}`", _said(one["value"]), one["why"]) for name, one in result["assumptions"].items()]
    costs = [(f"`{name}`", value) for name, value in result["costs"].items()]
    return f"""## What the model stands on

{table(("assumed", "value", "why"), rows)}
Left out: failures, the network's latency, memory, start-up of nodes,
caches of faces, hardware codecs, and results on their way out.

{table(("measured by `lipsync bench`, CPU ms a frame at 720p", "value"), costs)}"""


def _said(value: Any) -> str:
    return f"{value:,.10g}" if isinstance(value, int | float) else ", ".join(map(str, value))


def _pair(values: dict[str, float] | None) -> str:
    return "–" if values is None else f"{values['p50']:.2f} / {values['p99']:.2f}"

"""One row measured: how long the engine takes to start, how fast it draws, in how much memory, and how well."""

from __future__ import annotations

import asyncio
import resource
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lipsync.allocator import trim_regularly
from lipsync.bench.cost import clock_of
from lipsync.bench.inputs import Arguments, made_up
from lipsync.bench.rows import Row
from lipsync.checkpoints import load_generator
from lipsync.core import U8, Claim
from lipsync.engine import Engine, Techniques
from lipsync.model.wav2lip import MEL_WINDOW, Wav2Lip

LONGEST_SEGMENT, SHORTEST_SEGMENT = 128, 8
REQUESTS = 16
THREADS_ON_A_CPU = 1
"""One: then the processor's time says what a row costs, however busy the other cores are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to measure, and how."""

    row: Row
    device: str
    checkpoint: str
    frames: int
    compared: int
    """The first so many frames' patches are compared with the plain network's in fp32."""
    runs: int
    cache: str
    reference: str
    """A file of those patches; made by the row that is exact, read by the others."""
    started_s: float
    """When the process was asked for, by the system's clock."""

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Order:
        """Of what ``dataclasses.asdict`` made."""
        row = dict(given["row"])
        return cls(**given | {"row": Row(**row | {"techniques": Techniques(**row["techniques"])})})


def measure(order: Order) -> dict[str, Any]:
    """The row's figures. Raises what the engine raises."""
    imported_s = time.time() - order.started_s
    row, on_cuda = order.row, order.device.startswith("cuda")
    if not on_cuda:
        trim_regularly()  # as the command line does
    engine = open_engine(order, load_generator(order.checkpoint))
    made_s = time.time() - order.started_s - imported_s
    engine.warm_up()
    start: dict[str, Any] = {
        "start_s": round(time.time() - order.started_s, 2),
        "of_it_importing_s": round(imported_s, 2),
        "of_it_loading_s": round(made_s, 2),
        "of_it_warming_s": {str(bucket): round(spent, 2) for bucket, spent in engine.warm_up_s.items()},
    }
    if row.compile:
        start |= compiled_graphs()
    given = made_up(order.frames)
    if row.exact:
        np.save(order.reference, _draw(engine, first_of(given, order.compared)))
        return start
    device = torch.device(engine.info.device)
    starting = {"device_peak_while_starting_gb": _peak_gb(device)} if on_cuda else {}
    patches, timed = _timed(engine, row, given, order.runs)
    memory: dict[str, Any] = {"process_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    if on_cuda:
        memory = starting | {"device_peak_gb": _peak_gb(device)}
    quality = compare(patches[: order.compared], np.load(order.reference))
    return start | timed | memory | quality | {"notes": list(engine.notes), "frames": order.frames}


def compiled_graphs() -> dict[str, int]:
    """How many of the engine's shapes torch compiled in this process, and how many it found compiled on disk."""
    found = torch._dynamo.utils.counters["inductor"]
    made = found["fxgraph_cache_miss"] + found["fxgraph_cache_bypass"]  # the latter: what torch does not keep
    return {"compiled_now": made, "compiled_before": found["fxgraph_cache_hit"]}


def _peak_gb(device: torch.device) -> float:
    """The most that torch held since it was last asked. Held, not used: a recorded graph's maps lie in a pool of its
    own, and launching it uses no more."""
    peak = torch.cuda.max_memory_reserved(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return round(peak / 1e9, 3)


def open_engine(order: Order, model: Wav2Lip) -> Engine:
    row, on_cuda = order.row, order.device.startswith("cuda")
    return Engine(
        model,
        device=order.device,
        precision=row.precision,
        batch_size=row.batch,
        buckets=None if row.all_buckets else [row.batch],
        compile=row.compile,
        compile_cache=order.cache,
        exact=row.exact,
        techniques=None if row.exact else row.techniques,
        float32_matmul_precision=row.matmul,
        threads=None if on_cuda else THREADS_ON_A_CPU,
    )


def _timed(engine: Engine, row: Row, given: Arguments, runs: int) -> tuple[U8, dict[str, Any]]:
    """From arrays in the host's memory to arrays there; the processor's time on a CPU, else the wall's."""
    clock = clock_of(torch.device(engine.info.device))
    work = _draw_through_batcher if row.through_batcher else _draw
    patches = work(engine, given)  # warms up what the engine did not
    taken = []
    for _ in range(runs):
        started = clock()
        patches = work(engine, given)
        taken.append(clock() - started)
    mean, count = statistics.mean(taken), len(given[1])
    return patches, {
        "mean_s": round(mean, 4),
        "sd_s": round(statistics.stdev(taken), 4) if runs > 1 else 0.0,
        "frames_per_s": round(count / mean, 1),
    }


def _draw(engine: Engine, given: Arguments) -> U8:
    return engine.generate(*given)


def _draw_through_batcher(engine: Engine, given: Arguments) -> U8:
    from lipsync.batcher import FrameBatcher

    crops, index, mel, starts = given
    length = min(LONGEST_SEGMENT, max(SHORTEST_SEGMENT, len(index) // REQUESTS))
    segments = [slice(at, at + length) for at in range(0, len(index), length)]
    patches = np.empty((len(index), *crops.shape[1:]), np.uint8)

    async def request(number: int, batcher: FrameBatcher[Any]) -> None:
        claim = Claim(request=str(number))
        for part in segments[number::REQUESTS]:
            heard = mel[:, starts[part][0] : starts[part][-1] + MEL_WINDOW]
            own = starts[part] - starts[part][0]
            patches[part] = await batcher.generate(crops, index[part], heard, own, claim=claim)

    async def all_requests(batcher: FrameBatcher[Any]) -> None:
        await asyncio.gather(*(request(number, batcher) for number in range(REQUESTS)))

    batcher = FrameBatcher(engine)
    try:
        asyncio.run(all_requests(batcher))
    finally:
        batcher.close()
    return patches


def first_of(given: Arguments, count: int) -> Arguments:
    crops, index, mel, starts = given
    return crops, index[:count], mel, starts[:count]


def compare(patches: U8, reference: U8) -> dict[str, float]:
    """PSNR, the largest difference in levels of 255, and how spread the reference is: grey would prove nothing."""
    apart = np.abs(patches.astype(np.int16) - reference)
    mean_square = float((apart.astype(np.float64) ** 2).mean())
    return {
        "psnr_db": round(10 * float(np.log10(255**2 / max(mean_square, 1e-10))), 1),
        "largest_difference": int(apart.max()),
        "share_different": round(float((apart > 0).mean()), 5),
        "reference_sd": round(float(reference.std()), 1),
    }

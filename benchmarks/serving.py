"""The served application: what lies between the stages costs, how it grows with replicas, what overload does to it.

Where a device or an encoder stands in, it sleeps, so that two cores do not decide; calls, objects, batches and order
are real. ``python -m benchmarks.serving [part …]`` measures some parts alone. Ray Serve runs in the mode that the docs
recommend: behind HAProxy, with the transport that is optimised for throughput.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import cv2
import httpx
import numpy as np

from benchmarks.marked import marked
from benchmarks.serving_cluster import Running, configuration, free_port, running
from benchmarks.serving_media import ASSETS, cut_wav, scaled_jpeg

MODE = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
CALLERS = 64
BATCH, FPS = 512, 25
VOICE = ASSETS / "voice.wav"
TINY = cv2.imencode(".png", np.full((64, 64, 3), 128, np.uint8))[1].tobytes()
TINY_FIELDS = {"box": "[0, 64, 0, 64]"}
"""A face that costs next to nothing to decode, to look for and to paste."""


@dataclass(slots=True)
class Answer:
    """One request. Times are seconds; ``first_s`` and ``took_s`` count from when it should have been sent."""

    frames: int
    status: int
    sent_s: float
    first_s: float
    took_s: float
    headers: dict[str, str] = field(default_factory=dict)


class Caller:
    """Sends requests to one application."""

    def __init__(
        self, url: str, client: httpx.AsyncClient, *, face: bytes = TINY, fields: dict[str, str] | None = None
    ) -> None:
        self._url, self._client = url, client
        self._face, self._fields = face, TINY_FIELDS if fields is None else fields
        self._voices: dict[int, bytes] = {}

    async def call(
        self, frames: int, *, due_s: float | None = None, stream: bool = True, firsts: list[float] | None = None
    ) -> Answer:
        """``firsts`` is given the seconds to the first bytes when they come."""
        voice = self._voices.setdefault(frames, cut_wav(VOICE, seconds=frames / FPS))
        began = time.perf_counter() if due_s is None else due_s
        path, files = f"/v1/lipsync?stream={str(stream).lower()}", {"face": self._face, "audio": voice}
        async with self._client.stream("POST", self._url + path, files=files, data=self._fields) as answer:
            first_s = 0.0
            async for _ in answer.aiter_raw():
                if not first_s:
                    first_s = time.perf_counter() - began
                    if firsts is not None:
                        firsts.append(first_s)
            took_s = time.perf_counter() - began
            return Answer(frames, answer.status_code, began, first_s, took_s, dict(answer.headers))


async def closed_loop(caller: Caller, lengths: Callable[[], int], *, callers: int, for_s: float) -> list[Answer]:
    """Every caller sends its next request when it has the answer to the last."""
    end_s = time.perf_counter() + for_s
    answers: list[Answer] = []

    async def one() -> None:
        while time.perf_counter() < end_s:
            answers.append(await caller.call(lengths()))

    await asyncio.gather(*(one() for _ in range(callers)))
    return answers


async def open_loop(caller: Caller, frames: int, *, per_s: float, for_s: float, seed: int) -> list[Answer]:
    """Requests come when they come (Poisson), whatever became of those before."""
    rng, due_s, started = random.Random(seed), time.perf_counter(), []
    end_s = due_s + for_s
    while (due_s := due_s + rng.expovariate(per_s)) < end_s:
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        started.append(asyncio.create_task(caller.call(frames, due_s=due_s)))
    return list(await asyncio.gather(*started))


def mixed(seed: int) -> Callable[[], int]:
    """Lengths from 25 to 500 frames, log-uniform."""
    rng = random.Random(seed)
    return lambda: round(25 * 20 ** rng.random())


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(np.array(values), share * 100))


def with_client(work: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as client:
            return await work(client)

    return asyncio.run(run())


def deployed(
    app: Running, *, stand_in: dict[str, Any], replicas: dict[str, int], args: dict[str, Any] | None = None
) -> None:
    port = app.config["http_options"]["port"]
    wide = {"admission": {"requests": 512, "frames": 10_000_000}}
    more = {
        "Renderer": {"max_ongoing_requests": 64 if stand_in.get("encode_s") == 0 else 2},
        "Preprocessor": {"max_ongoing_requests": 64},
    }
    app.deploy(
        configuration(replicas=replicas, port=port, args=wide | (args or {}), stand_in=stand_in, deployments=more)
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """One that a stand-in has drawn; ``ended_s`` on the clock of ``time.time``."""

    frames: int
    room: int
    requests: int
    ended_s: float


def drawn(app: Running, *, since_s: float) -> list[list[Batch]]:
    """The batches that each Generator has ended since then."""
    batches = ([Batch(*batch) for batch in replica["batches"]] for replica in app.stats("Generator"))
    return [[batch for batch in of_replica if batch.ended_s >= since_s] for of_replica in batches]


def frames_per_s(batches: Sequence[Sequence[Batch]]) -> float:
    """Of all Generators, each from the end of its first batch to that of its last: whole batches, whole times."""
    return sum(
        sum(batch.frames for batch in later) / (later[-1].ended_s - first.ended_s)
        for first, *later in (of_replica for of_replica in batches if len(of_replica) > 1)
    )


# ---------------------------------------------------------------- parts


def shared_batches(app: Running) -> dict[str, Any]:
    """Many requests of mixed length on one device of fixed cost, beside two that never end."""
    batch_s, for_s = 1.0, 30.0
    deployed(app, stand_in={"batch_s": batch_s, "encode_s": 0}, replicas={"Renderer": 2, "Preprocessor": 2})

    async def work(client: httpx.AsyncClient) -> tuple[list[Answer], list[Answer], list[list[Batch]]]:
        caller = Caller(app.url, client)
        long = asyncio.create_task(closed_loop(caller, lambda: 3000, callers=2, for_s=for_s))
        short = asyncio.create_task(closed_loop(caller, mixed(1), callers=CALLERS - 2, for_s=for_s))
        await asyncio.sleep(5)
        since_s = time.time()
        await asyncio.sleep(for_s - 8)
        during = await asyncio.to_thread(drawn, app, since_s=since_s)
        return await short, await long, during

    short, long, during = with_client(work)
    batches = [batch for of_replica in during for batch in of_replica]
    first = [answer.first_s for answer in short if answer.frames <= 64]
    return {
        "batch_s": batch_s,
        "callers": CALLERS,
        "requests": len(short) + len(long),
        "batches": len(batches),
        "mean_fill": round(statistics.fmean(batch.frames / batch.room for batch in batches), 4),
        "requests_per_batch": round(statistics.fmean(batch.requests for batch in batches), 1),
        "throughput_share": round(frames_per_s(during) / (BATCH / batch_s), 3),
        "first_fragment_of_short_p50_batches": round(percentile(first, 0.5) / batch_s, 2),
        "first_fragment_of_short_p99_batches": round(percentile(first, 0.99) / batch_s, 2),
        "failed": sum(answer.status != 200 for answer in short + long),
    }


def generators(app: Running) -> list[dict[str, Any]]:
    """Frames a second by the number of Generators, each a device so slow that nothing else decides."""
    rows, batch_s, for_s = [], 8.0, 72.0
    for count in (1, 2, 4, 8):
        deployed(app, stand_in={"batch_s": batch_s, "encode_s": 0}, replicas={"Generator": count, "Renderer": 4})

        async def work(client: httpx.AsyncClient) -> float:
            caller = Caller(app.url, client)
            running_ = asyncio.create_task(closed_loop(caller, lambda: 500, callers=CALLERS, for_s=for_s))
            await asyncio.sleep(2 * batch_s)
            since_s = time.time()
            await asyncio.sleep(for_s - 2 * batch_s)
            speed = frames_per_s(await asyncio.to_thread(drawn, app, since_s=since_s))
            running_.cancel()
            await asyncio.gather(running_, return_exceptions=True)
            return speed

        rows.append({"generators": count, "frames_per_s": round(with_client(work), 1)})
    for row in rows:
        row["share_of_linear"] = round(row["frames_per_s"] / rows[0]["frames_per_s"] / row["generators"], 3)
    return rows


def renderers(app: Running) -> list[dict[str, Any]]:
    """Seconds of one long request by the number of Renderers, each with one thread and an encoder that sleeps."""
    rows = []
    for count in (1, 2, 4):
        deployed(
            app, stand_in={"batch_s": 0.005, "encode_s": 0.006}, replicas={"Renderer": count},
            args={"renderer": {"threads": 1}},
        )  # fmt: skip
        took = [with_client(lambda client: Caller(app.url, client).call(4064)).took_s for _ in range(2)]
        rows.append({"renderers": count, "took_s": round(min(took), 2)})
    for row in rows:
        row["times_as_fast"] = round(rows[0]["took_s"] / row["took_s"], 2)
    return rows


def overload(app: Running) -> dict[str, Any]:
    """Requests of 100 frames at 0.9 and at 3 times what a device of fixed cost can do."""
    batch_s, frames, for_s = 2.0, 100, 70.0
    capacity = BATCH / batch_s / frames  # requests a second
    deployed(
        app, stand_in={"batch_s": batch_s, "encode_s": 0}, replicas={"Renderer": 2, "Preprocessor": 2},
        args={"admission": {"requests": 64, "frames": 5 * BATCH}},
    )  # fmt: skip

    def at(load: float) -> list[Answer]:
        answers: list[Answer] = with_client(
            lambda c: open_loop(Caller(app.url, c), frames, per_s=load * capacity, for_s=for_s, seed=int(load * 10))
        )
        return answers

    calm = at(0.9)
    with ThreadPoolExecutor(1) as beside:
        storming = beside.submit(at, 3.0)
        time.sleep(5 * batch_s)  # until as much is under way as may be
        since_s = time.time()
        time.sleep(for_s - 5 * batch_s)
        speed = frames_per_s(drawn(app, since_s=since_s))
        storm = storming.result()
    accepted = [answer for answer in storm if answer.status == 200]
    refused = [answer for answer in storm if answer.status != 200]
    usual_s = percentile([answer.took_s for answer in calm if answer.status == 200], 0.5)
    return {
        "batch_s": batch_s,
        "capacity_per_s": capacity,
        "sent": len(storm),
        "accepted": len(accepted),
        "statuses": sorted({answer.status for answer in refused}),
        "without_retry_after": sum("retry-after" not in answer.headers for answer in refused),
        "p50_at_0.9_s": round(usual_s, 2),
        "accepted_p99_s": round(percentile([a.took_s for a in accepted], 0.99), 2),
        "accepted_p99_over_p50": round(percentile([a.took_s for a in accepted], 0.99) / usual_s, 2),
        "refused_p50_ms": round(percentile([a.took_s for a in refused], 0.5) * 1000, 1),
        "refused_p99_ms": round(percentile([a.took_s for a in refused], 0.99) * 1000, 1),
        "refused_max_ms": round(max(a.took_s for a in refused) * 1000, 1),
        "slowest_answer_s": round(max(a.took_s for a in storm), 2),
        "throughput_share_of_peak": round(speed / (BATCH / batch_s), 3),
    }


def stages(app: Running) -> dict[str, Any]:
    """CPU milliseconds per frame by kind of replica under many callers, with real media, detection and encoding; the
    device costs nothing. Every request brings a face that no cache has seen."""
    deployed(app, stand_in={"batch_s": 0.001}, replicas={"Renderer": 2, "Preprocessor": 1})
    warm_s, for_s = 15.0, 40.0
    rows, loads = {}, {}
    clip = (ASSETS / "clip.mp4").read_bytes()
    for kind, face in (("still 720p", scaled_jpeg(ASSETS / "face.jpg", width=1280)), ("video", clip)):

        async def work(
            client: httpx.AsyncClient, face: bytes = face
        ) -> tuple[list[Answer], list[float], Costs, Costs, list[list[Batch]]]:
            numbers = itertools.count()
            lengths, answers, firsts = mixed(2), list[Answer](), list[float]()

            async def one() -> None:
                while True:
                    fresh = Caller(app.url, client, face=marked(face, next(numbers)), fields={})
                    answer = await fresh.call(lengths(), firsts=firsts)
                    if answer.status != 200:
                        raise RuntimeError(f"a request was answered {answer.status}")
                    answers.append(answer)

            calling = asyncio.gather(*(one() for _ in range(CALLERS)))
            await asyncio.wait([calling], timeout=warm_s)
            answers.clear()
            firsts.clear()
            since_s = time.time()
            before = await asyncio.to_thread(Costs.of, app)
            await asyncio.wait([calling], timeout=for_s)
            after = await asyncio.to_thread(Costs.of, app)
            batches = await asyncio.to_thread(drawn, app, since_s=since_s)
            calling.cancel()
            with suppress(asyncio.CancelledError):
                await calling
            return answers, firsts, before, after, batches

        answers, firsts, before, after, batches = with_client(work)
        frames = after.frames - before.frames
        row = {name: round((after.cpu_s[name] - before.cpu_s[name]) / frames * 1000, 2) for name in after.cpu_s}
        rows[kind] = row | {
            "all": round(sum(row.values()), 2),
            "frames_per_s_here": round(frames / (after.at_s - before.at_s), 1),
        }
        shared = [batch for of_replica in batches for batch in of_replica]
        loads[kind] = {
            "requests": len(answers),
            "requests_per_batch": round(statistics.fmean(batch.requests for batch in shared), 2),
            "frames_per_batch": round(statistics.fmean(batch.frames for batch in shared), 1),
            "first_fragments": len(firsts),
            "first_fragment_p50_s": round(percentile(firsts, 0.5), 2),
            "first_fragment_p99_s": round(percentile(firsts, 0.99), 2),
        }
    how = (
        f"{CALLERS} callers at once for {for_s:g} s, 25 to 500 frames each (log-uniform), each with a face that "
        "no cache has seen, so that looking for it is included"
    )
    return {"how": how, "kinds": rows, "loads": loads, "cores": cores(rows)}


@dataclass(frozen=True, slots=True)
class Costs:
    """What an application has drawn and spent so far."""

    at_s: float
    frames: int
    cpu_s: dict[str, float]

    @classmethod
    def of(cls, app: Running) -> Costs:
        frames = sum(replica["frames"] for replica in app.stats("Generator"))
        return cls(time.perf_counter(), frames, cpu_s(app))


def cores(rows: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Cores that feed a Generator of a given speed: computed, not measured."""
    return [
        {"frames_per_s": speed} | {kind: round(speed * row["all"] / 1000) for kind, row in rows.items()}
        for speed in (1_000, 10_000, 40_000)
    ]


def cpu_s(app: Running) -> dict[str, float]:
    names = ("Ingress", "Preprocessor", "Renderer", "Generator")
    return {name: sum(sum(p.cpu_times()[:2]) for p in app.replicas(name)) for name in names} | {
        "rest of Ray": app.ray_cpu_s()
    }


def streamed(url: str, face: bytes) -> Callable[[httpx.AsyncClient], Awaitable[Answer]]:
    """One request of four seconds with the face and no other options."""
    return lambda client: Caller(url, client, face=face, fields={}).call(100)


def first_bytes(app: Running) -> list[dict[str, Any]]:
    """A stream's first bytes against the stages behind them, done one after the other in this process."""
    from benchmarks.first_segment import stages_s

    deployed(app, stand_in={}, replicas={}, args={"generator": {"threads": 1}})
    voice, rows = cut_wav(VOICE, seconds=4), []
    clip = (ASSETS / "clip.mp4").read_bytes()
    for kind, face in (("still 720p", scaled_jpeg(ASSETS / "face.jpg", width=1280)), ("video 720p", clip)):
        with_client(streamed(app.url, face))
        served, alone = [], []
        for number in range(9):
            fresh = marked(face, number)  # that no cache has seen; the same for both
            alone.append(stages_s(fresh, voice))
            served.append(with_client(streamed(app.url, fresh)))
        rows.append(
            {
                "face": kind,
                "served_ms": round(statistics.median(answer.first_s for answer in served) * 1000, 1),
                "stages_ms": round(statistics.median(alone) * 1000, 1),
                "ratio": round(statistics.median(a.first_s / own_s for a, own_s in zip(served, alone, strict=True)), 2),
            }
        )
    return rows


PARTS = {
    "first_bytes": first_bytes,
    "generators": generators,
    "overload": overload,
    "stages": stages,
    "shared_batches": shared_batches,
    "renderers": renderers,
}


def measure(names: Sequence[str]) -> dict[str, Any]:
    config = configuration(replicas={}, port=free_port(), stand_in={"batch_s": 0.01, "encode_s": 0})
    results: dict[str, Any] = {}
    with running(config) as app:
        for name in names:
            results[name] = PARTS[name](app)
            print(name, json.dumps(results[name]), file=sys.stderr, flush=True)
    return results


def main() -> None:
    os.environ.update(MODE)
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # Ray writes to standard output what it thinks of its processes' ends
        results = measure(sys.argv[1:] or list(PARTS))
        out.write(json.dumps(results))


if __name__ == "__main__":
    main()

"""Keeps a cluster of its own busy for half an hour, and says whether anything in it grew.

    python -m cluster.soak --minutes 30 --json docs/benchmarks/soak.json --chart docs/images/soak.png

Twenty callers with short stills and videos, whole and streamed. Memory of every process that this one started, file
descriptors, threads, shared memory and temporary files are looked at every few seconds; what they are at the end is
compared with what they were after the warm-up. A build that leaks each of them on purpose runs before, and has to be
found out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import psutil

from benchmarks.__main__ import machine
from benchmarks.serving import MODE
from benchmarks.serving_cluster import configuration, free_port, running
from cluster.mix import Inputs, Mix
from cluster.summary import summarise
from cluster.traffic import Sender, closed_loop, warm_up

CALLERS, MIX = 20, "short=2,short-video=1,short-stream=1"
REPLICAS = {"Preprocessor": 1, "Renderer": 2, "Generator": 1}
EVERY_S = 10.0
WARM_UP_SHARE = 0.25
"""Of the run: caches fill, and allocators find their size."""
REQUEST_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What the cluster held at one moment, all its processes together."""

    at_s: float
    memory_mb: float
    """Pages of no file: what a library's code takes depends on who else on the machine has it open."""
    shared_mb: float
    """In use in ``/dev/shm``: the object store."""
    files: int
    """File descriptors."""
    threads: int
    temporary: int
    """Files and folders in the temporary folder."""
    by_kind_mb: dict[str, float] = field(default_factory=dict)


BOUNDS = {"memory_mb": 100.0, "files": 30.0, "threads": 20.0, "temporary": 30.0}
"""Most growth; memory and shared memory together. Requests come and go meanwhile, each with files of its own."""


def sample(began_s: float, temporary: Path) -> Sample:
    """Of the processes that this one started, and of theirs."""
    memory, files, threads, by_kind = 0.0, 0, 0, dict[str, float]()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            own_mb = anonymous_mb(process)
            kind = kind_of(process)
            files, threads = files + process.num_fds(), threads + process.num_threads()
            memory, by_kind[kind] = memory + own_mb, by_kind.get(kind, 0.0) + own_mb
    return Sample(
        at_s=round(time.monotonic() - began_s, 1),
        memory_mb=round(memory, 1),
        shared_mb=round(shutil.disk_usage("/dev/shm").used / 1e6, 1),
        files=files,
        threads=threads,
        temporary=entries(temporary),
        by_kind_mb={kind: round(mb, 1) for kind, mb in sorted(by_kind.items())},
    )


def entries(folder: Path) -> int:
    """Files and folders below it; what goes meanwhile is not counted."""
    return sum(len(folders) + len(files) for _, folders, files in os.walk(folder))


def anonymous_mb(process: psutil.Process) -> float:
    """Memory that holds no file's content. Raises psutil.NoSuchProcess where it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(process.pid) from None
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else 0.0  # a process that has just ended has none


def kind_of(process: psutil.Process) -> str:
    """A replica's deployment, or the program's name."""
    replica = re.match(r"ray::ServeReplica:\w+:(\w+)", " ".join(process.cmdline()))
    return replica[1] if replica else process.name()


def judge(samples: Sequence[Sample]) -> dict[str, Any]:
    """Growth from the end of the warm-up to the end, by the medians of the first third and of the last, which are two
    thirds of that time apart; what grew beyond its bound.

    Raises ValueError where there are fewer than six samples after the warm-up.
    """
    steady = [one for one in samples if one.at_s >= WARM_UP_SHARE * samples[-1].at_s]
    third = len(steady) // 3
    if third < 2:
        raise ValueError(f"{len(steady)} samples after the warm-up tell nothing. Let it run for longer.")

    def growth(name: str) -> float:
        values = [float(getattr(one, name)) for one in steady]
        return round(1.5 * (statistics.median(values[-third:]) - statistics.median(values[:third])), 1)

    grown = {one.name: growth(one.name) for one in fields(Sample) if one.name not in ("at_s", "by_kind_mb")}
    in_all = grown | {"memory_mb": round(grown["memory_mb"] + max(0.0, grown["shared_mb"]), 1)}
    leaks = sorted(name for name, most in BOUNDS.items() if in_all[name] > most)
    return {"growth": grown, "leaks": leaks}


class Watch:
    """Takes samples on a thread of its own. A context manager; what went wrong there is raised at the end."""

    def __init__(self, temporary: Path) -> None:
        self.samples: list[Sample] = []
        self._temporary, self._over = temporary, threading.Event()
        self._thread = ThreadPoolExecutor(1)

    def _run(self) -> None:
        began_s = time.monotonic()
        while not self._over.wait(EVERY_S):
            self.samples.append(sample(began_s, self._temporary))
            print(json.dumps(asdict(self.samples[-1])), file=sys.stderr, flush=True)

    def __enter__(self) -> Watch:
        self._watching = self._thread.submit(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.shutdown()
        self._watching.result()


async def load(url: str, *, duration_s: float) -> Sender:
    """The callers, for so long. Raises RuntimeError where the first requests fail."""
    sender = Sender(
        url,
        mix=Mix.parse(MIX),
        inputs=Inputs(is_fresh=True),
        in_flight=CALLERS,
        timeout_s=REQUEST_TIMEOUT_S,
        attempts=1,
    )
    async with sender:
        await warm_up(sender, rounds=2)
        await closed_loop(sender, callers=CALLERS, duration_s=duration_s)
    return sender


def soak(*, minutes: float, leak: bool) -> dict[str, Any]:
    """A cluster of its own, its load, and what it grew by."""
    with tempfile.TemporaryDirectory(prefix="lipsync-soak-") as folder:
        os.environ |= MODE | {"TMPDIR": folder, "RAY_TMPDIR": tempfile.gettempdir()}
        try:
            config = configuration(
                replicas=REPLICAS,
                port=free_port(),
                args={"generator": {"threads": 1}},
                stand_in={"leaks": leak},
            )
            with running(config) as app, Watch(Path(folder)) as watch:
                sender = asyncio.run(load(app.url, duration_s=60 * minutes))
        finally:
            del os.environ["TMPDIR"]
    summary = summarise(sender.outcomes, duration_s=60 * minutes)
    return {
        "minutes": minutes,
        "callers": CALLERS,
        "leaks_on_purpose": leak,
        "requests": summary["all"]["sent"],
        "by_kind": dict(Counter(one.kind for one in sender.outcomes)),
        "answered": summary["all"]["answered"],
        "refused": summary["all"]["refused"],
        "latency_s": summary["all"]["latency_s"],
        **judge(watch.samples),
        "bounds": BOUNDS,
        "samples": [asdict(one) for one in watch.samples],
    }


def chart(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Memory and handles over time, a row for each run."""
    from cluster.charts import COLOURS, figure, name

    made, panels = figure(columns=2, rows=len(results), title="")
    for number, result in enumerate(results):
        memory, handles = panels[2 * number], panels[2 * number + 1]
        at_min = [one["at_s"] / 60 for one in result["samples"]]
        kinds = sorted({kind for one in result["samples"] for kind in one["by_kind_mb"]})
        largest = sorted(kinds, key=lambda kind: -max(o["by_kind_mb"].get(kind, 0) for o in result["samples"]))[:5]
        for kind, colour in zip(largest, COLOURS, strict=False):
            memory.plot(at_min, [o["by_kind_mb"].get(kind, 0) for o in result["samples"]], color=colour, label=kind)
        memory.plot(at_min, [o["shared_mb"] for o in result["samples"]], color=COLOURS[5], label="shared memory")
        for what, colour in zip(("files", "threads", "temporary"), COLOURS, strict=False):
            handles.plot(at_min, [one[what] for one in result["samples"]], color=colour, label=what)
        for panel in (memory, handles):
            panel.set_ylim(bottom=0)
            panel.legend(fontsize=7, frameon=False)
        what = "a build that leaks on purpose" if result["leaks_on_purpose"] else f"{CALLERS} callers"
        name(memory, f"Memory, MB: {what}", x="minutes", y="MB")
        name(handles, "File descriptors, threads, temporary files", x="minutes", y="")
    made.savefig(path)


def main(given: list[str] | None = None) -> int:
    """0 where nothing grew beyond its bound, and the build that leaks was found out."""
    parser = argparse.ArgumentParser(prog="python -m cluster.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="how long the build as it is runs")
    parser.add_argument("--leaking-minutes", type=float, default=4.0, help="how long the one that leaks runs")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--chart", type=Path, help="where the picture goes")
    options = parser.parse_args(given)
    on = machine()
    results = [soak(minutes=options.leaking_minutes, leak=True), soak(minutes=options.minutes, leak=False)]
    for result in results:
        print(json.dumps({key: value for key, value in result.items() if key != "samples"}), flush=True)
    if options.json is not None:
        text = {"machine": on, "date": time.strftime("%Y-%m-%d"), "runs": results}
        options.json.write_text(json.dumps(text, ensure_ascii=False) + "\n")
    if options.chart is not None:
        chart(results, options.chart)
    leaking, sound = results
    return 0 if set(leaking["leaks"]) == set(BOUNDS) and not sound["leaks"] and not sound["refused"] else 1


if __name__ == "__main__":
    sys.exit(main())

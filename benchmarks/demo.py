"""The packaged demo: its time, its frames a second, and how long a stream takes to its first fragment."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

import torch

from lipsync.model.seeded import seeded_generator
from lipsync.model.wav2lip import Wav2Lip
from lipsync.packaged import demo_face, demo_voice
from lipsync.pipeline import Report
from lipsync.service import LipsyncService
from lipsync.weights import default_checkpoint


def main() -> None:
    print(json.dumps({"checkpoint": checkpoint_name()} | command() | warm() | {"threads": threads()}))


def checkpoint_name() -> str:
    path = default_checkpoint()
    return "seeded stand-in" if path is None else Path(path).name


def command() -> dict[str, Any]:
    """``lipsync demo`` as a user runs it, from the start of Python to the file."""
    with tempfile.TemporaryDirectory() as folder:
        started, before = time.perf_counter(), getrusage(RUSAGE_CHILDREN)
        output = Path(folder) / "demo.mp4"
        subprocess.run(
            [sys.executable, "-m", "lipsync", "demo", "--output", str(output)], check=True, stderr=subprocess.DEVNULL
        )
        after = getrusage(RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"command_wall_s": round(time.perf_counter() - started, 1), "command_cpu_s": round(cpu_s, 1)}


def threads() -> dict[str, dict[str, float]]:
    """Frames a second by how many threads torch has, which the engine leaves to torch: the best of three turns."""
    usual = torch.get_num_threads()
    found: dict[str, dict[str, float]] = {}
    for _ in range(3):
        for size, model in (("packaged", None), ("published size, seeded", seeded_generator(0))):
            for count in (1, usual):
                torch.set_num_threads(count)
                rates, name = found.setdefault(size, {}), "1" if count == 1 else f"{count}, torch's own choice"
                rates[name] = max(rates.get(name, 0.0), warm(model)["frames_per_s"])
    return found


def warm(model: Wav2Lip | None = None) -> dict[str, Any]:
    """The same request in a process that is warm."""
    with LipsyncService(model) as service:
        for _ in service.stream(demo_face(), demo_voice()):
            break
        report, cpu = Report(), time.process_time()
        asyncio.run(_drain(service, report))
        cpu_s = time.process_time() - cpu
    return {
        "frames": report.frame_count,
        "voice_s": round(report.frame_count / float(report.fps), 2),
        "warm_wall_s": round(report.total_s, 2),
        "warm_cpu_s": round(cpu_s, 2),
        "frames_per_s": round(report.frame_count / report.total_s, 1),
        "cpu_ms_per_frame": round(1000 * cpu_s / report.frame_count, 1),
        "first_fragment_s": round(report.first_fragment_s, 2),
    }


async def _drain(service: LipsyncService, report: Report) -> None:
    async for _ in service.fragments(service.job(demo_face(), demo_voice()), report=report):
        pass  # the report is what is wanted


if __name__ == "__main__":
    main()

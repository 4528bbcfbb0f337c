"""Runs every CPU measurement, each in a process of its own, and writes the JSON and the page made from it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.report import SECTIONS, page, read_ladders

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "benchmarks.json"
PAGE = ROOT / "docs" / "benchmarks.md"
MEASUREMENTS = tuple(SECTIONS)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    return {
        "processor": cpu,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", choices=[[], *MEASUREMENTS], help="measure only these")
    only = parser.parse_args().only or list(MEASUREMENTS)
    for name in only:
        print(f"{name} …", flush=True)
        on, started = machine(), time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        )
        # read anew: another measurement may have been written meanwhile
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[name] = json.loads(done.stdout) | {
            "machine": on,
            "date": time.strftime("%Y-%m-%d"),
            "took_s": round(time.perf_counter() - started, 1),
        }
        RESULTS.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        PAGE.write_text(page(results, read_ladders()))


if __name__ == "__main__":
    main()

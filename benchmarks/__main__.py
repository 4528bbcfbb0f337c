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

from benchmarks.report import page

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "benchmarks.json"
PAGE = ROOT / "docs" / "benchmarks.md"
MEASUREMENTS = ("memory", "decoding", "overhead", "detection", "demo", "engine")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    return {"processor": cpu, "cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", choices=[[], *MEASUREMENTS], help="measure only these")
    only = parser.parse_args().only or list(MEASUREMENTS)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in only:
        print(f"{name} …", flush=True)
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        )
        results[name] = json.loads(done.stdout) | {
            "machine": machine(),
            "date": time.strftime("%Y-%m-%d"),
            "took_s": round(time.perf_counter() - started, 1),
        }
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()

"""A cluster of three nodes on this machine: the application, four minutes of mixed load on it, and a Prometheus.

    python -m cluster.demo --picture cluster-demo.png --json docs/benchmarks/cluster_demo.json [--keep]

Every query of the dashboard is put to the Prometheus, and what each panel shows is drawn. Wants Prometheus
(``apt-get install prometheus``). ``--keep`` leaves everything running until Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import machine
from benchmarks.serving_cluster import Running, free_port, running
from benchmarks.serving_media import ASSETS, cut_wav, scaled_jpeg
from cluster.dashboard import panels
from cluster.watching import Prometheus, watching

ROOT = Path(__file__).resolve().parents[1]
MINUTES, WORKERS = 4.0, 2
CALLERS = ((0.0, 1), (0.25, 5), (0.4, 12), (0.55, 5), (0.8, 1))
"""From which share of the time on, how many requests are kept under way; the application admits eight."""
KILL_AT = 0.65

FACE = scaled_jpeg(ASSETS / "face.jpg", width=640)
CLIP = (ASSETS / "clip.mp4").read_bytes()


def configuration() -> dict[str, Any]:
    """serve_config.yaml, with little room and quick to scale down, so that four minutes show everything."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = free_port()
    config["proxy_location"] = "HeadOnly"  # three nodes of one machine share its ports
    (application,) = config["applications"]
    application["args"]["admission"] = {"requests": 8, "frames": 3000}
    for deployment in application["deployments"]:
        if "autoscaling_config" in deployment:
            deployment["autoscaling_config"] |= {"downscale_delay_s": 30, "max_replicas": 3}
        if deployment["name"] in ("Preprocessor", "Renderer"):
            deployment["ray_actor_options"] = {"num_cpus": 0.25}
    return config


def ask(url: str, number: int, chance: random.Random, seen: Counter[str]) -> None:
    """One request: a still or a video, short or long, streamed or whole, now and then a wrong one."""
    face = CLIP if number % 4 == 0 else b"hello" if number % 9 == 1 else FACE
    voice = cut_wav(ASSETS / "voice.wav", seconds=chance.choice((0.5, 1.0, 1.0, 2.0, 4.0)))
    options = {"resize_factor": "2"} if number % 4 == 0 else {}
    query = "?stream=true" if number % 3 == 0 else ""
    answer = httpx.post(
        f"{url}/v1/lipsync{query}", files={"face": face, "audio": voice}, data=options, timeout=180, trust_env=False
    )
    seen[str(answer.status_code)] += 1


def load(app: Running, seen: Counter[str]) -> None:
    """Keep as many requests under way as CALLERS says, and kill a Renderer once."""
    chance, began_s = random.Random(1), time.monotonic()
    under_way: list[threading.Thread] = []
    number, killed = 0, False
    while (share := (time.monotonic() - began_s) / (MINUTES * 60)) < 1:
        wanted = [callers for start, callers in CALLERS if start <= share][-1]
        under_way = [thread for thread in under_way if thread.is_alive()]
        if len(under_way) < wanted:
            under_way.append(threading.Thread(target=ask, args=(app.url, number, chance, seen)))
            under_way[-1].start()
            number += 1
        if share > KILL_AT and not killed:
            app.replicas("Renderer")[0].kill()
            killed = True
        time.sleep(0.1)
    for thread in under_way:
        thread.join()
    time.sleep(15)  # the last reports


def asked(server: Prometheus) -> list[dict[str, Any]]:
    """For each panel, how many of its queries have a number to show; ``wants``: what a machine may lack for it."""
    rows = []
    for panel in panels():
        found = [any(_numbers(server.query(query))) for query, _ in panel.queries]
        rows.append({"panel": panel.title, "queries": len(found), "answered": sum(found), "wants": panel.wants})
    return rows


def missing(rows: list[dict[str, Any]]) -> list[str]:
    """The panels that should have all their numbers and have not."""
    return [row["panel"] for row in rows if row["answered"] < row["queries"] and not row["wants"]]


def table(rows: list[dict[str, Any]]) -> Table:
    made = Table("panel", "queries", "answered", title="The dashboard's queries")
    for row in rows:
        lacks = f" (wants a {row['wants']})" if row["answered"] < row["queries"] and row["wants"] else ""
        made.add_row(row["panel"], str(row["queries"]), f"{row['answered']}{lacks}")
    return made


def _numbers(samples: list[dict[str, Any]]) -> list[bool]:
    return [not math.isnan(float(sample["value"][1])) for sample in samples]


def main() -> int:
    """0 where every panel that this machine can fill has data."""
    parser = argparse.ArgumentParser(prog="python -m cluster.demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--picture", type=Path, default=Path("cluster-demo.png"), help="where the panels are drawn")
    parser.add_argument("--json", type=Path, help="where the table goes")
    parser.add_argument("--keep", action="store_true", help="go on running until Ctrl-C")
    options = parser.parse_args()
    console = Console()
    if shutil.which("prometheus") is None:
        console.print("Prometheus is not installed: apt-get install prometheus")
        return 1
    seen: Counter[str] = Counter()
    on = machine()
    console.print(f"Starting a head and {WORKERS} worker nodes on this machine …")
    with (
        tempfile.TemporaryDirectory() as folder,
        running(configuration(), workers=WORKERS) as app,
        watching(Path(folder), port=free_port(), interval_s=5) as server,
    ):
        console.print(f"The application: {app.url}   Prometheus: {server.url}   {MINUTES:g} minutes of load …")
        load(app, seen)
        console.print("Answers by status:", dict(sorted(seen.items())))
        rows = asked(server)
        console.print(table(rows))
        if options.json is not None:
            written = {"machine": on, "date": time.strftime("%Y-%m-%d"), "nodes": WORKERS + 1}
            written |= {"answers": dict(sorted(seen.items())), "panels": rows}
            options.json.write_text(json.dumps(written, indent=1) + "\n")
        command = [sys.executable, "-m", "cluster.plot_dashboard", server.url, str(options.picture.absolute())]
        subprocess.run([*command, "--minutes", str(MINUTES + 0.5)], cwd=ROOT, check=True)
        console.print(f"Drawn: {options.picture}")
        if options.keep:
            console.print("Ctrl-C ends it.")
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                console.print("Ending.")
    if empty := missing(rows):
        console.print(f"No data: {', '.join(empty)}")
    return 1 if empty or any(status.startswith("5") and status != "503" for status in seen) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Makes docs/images/dashboard.png: the application under four minutes of mixed load, seen through the dashboard's queries.

python -m tests.make_dashboard_picture      # wants Prometheus and matplotlib
"""

from __future__ import annotations

import os
import random
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

from benchmarks.serving_cluster import Running, free_port, running
from benchmarks.serving_media import ASSETS, cut_wav, scaled_jpeg
from tests.prometheus_server import watching

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 4.0
CALLERS = ((0.0, 1), (0.25, 5), (0.4, 12), (0.55, 5), (0.8, 1))
"""From which share of the time on, how many requests are kept under way; the application admits eight."""
KILL_AT = 0.65

FACE = scaled_jpeg(ASSETS / "face.jpg", width=640)
CLIP = (ASSETS / "clip.mp4").read_bytes()


def configuration() -> dict[str, Any]:
    """serve_config.yaml, with little room and quick to scale down, so that four minutes show everything."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = free_port()
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


def main() -> None:
    for name in ("REPLICA", "HANDLE"):
        os.environ[f"RAY_SERVE_{name}_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "1"
    seen: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        running(configuration()) as app,
        watching(Path(folder), port=free_port(), interval_s=5) as server,
    ):
        load(app, seen)
        print(dict(seen))
        command = [sys.executable, str(ROOT / "cluster/plot_dashboard.py"), server.url]
        command += [str(ROOT / "docs/images/dashboard.png"), "--minutes", str(MINUTES + 0.5)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()

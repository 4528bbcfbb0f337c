"""A real Prometheus with the shipped configuration, watching a cluster that this process has joined."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

SHIPPED = Path(__file__).resolve().parent / "prometheus"


class Prometheus:
    """Its HTTP API, as far as it is asked."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **params: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=30, trust_env=False)
        body = answer.json()
        assert body["status"] == "success", f"{params}: {body}"
        return body["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an expression now."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found


@contextmanager
def watching(folder: Path, *, port: int, interval_s: int = 1) -> Iterator[Prometheus]:
    """The shipped configuration and rules, but more often, and with the nodes that Ray's own writer finds."""
    import ray
    from ray._private.metrics_agent import PrometheusServiceDiscoveryWriter

    PrometheusServiceDiscoveryWriter(ray.get_runtime_context().gcs_address, str(folder)).write()
    config = yaml.safe_load((SHIPPED / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": f"{interval_s}s", "evaluation_interval": f"{interval_s}s"}
    (job,) = config["scrape_configs"]
    (discovery,) = job["file_sd_configs"]
    discovery["files"] = [str(folder / Path(discovery["files"][0]).name)]
    assert json.loads((folder / Path(discovery["files"][0]).name).read_text())[0]["targets"]
    shutil.copy(SHIPPED / "rules.yaml", folder)
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}", process, folder / "log")
            yield Prometheus(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path, *, within_s: float = 30.0) -> None:
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s and process.poll() is None:
        try:
            if httpx.get(f"{url}/-/ready", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass  # not yet
        time.sleep(0.2)
    raise RuntimeError(f"Prometheus did not start: {log.read_text()}")

"""A Ray cluster on this machine with the application on it, started and stopped by whoever measures or tests."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

CONFIG = Path(__file__).resolve().parents[1] / "serve_config.yaml"
HEAD_ONLY = {"on_head": 0.001}
"""Actor options' resources that keep a replica on the head node."""
WORKER: dict[str, Any] = {"num_cpus": 4, "resources": {"on_worker": 1}}
"""A worker node."""
ALONE_ON_WORKER = {"on_worker": 1}
"""Actor options' resources that give a replica a worker node on which there is no other of its kind."""
_GLANCE_S, _ENDS_WITHIN_S = 0.05, 12.0
_BROKE_OFF = re.compile(r"request \S+: (\w+) broke off \((?!busy)")


@dataclass(frozen=True, slots=True)
class Running:
    """The application, ready."""

    url: str
    cluster: Any
    config: dict[str, Any]

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Another configuration, in place; returns when it runs."""
        deploy(config)

    def stats(self, name: str) -> list[dict[str, Any]]:
        """What each replica of a stand-in says of itself."""
        from ray import serve

        handle = serve.get_deployment_handle(name, "lipsync")
        if not handle.is_initialized:
            handle._init(_run_router_in_separate_loop=True)
        found: list[dict[str, Any]] = handle.broadcast("stats").results(timeout_s=30)
        return found

    def log(self, name: str) -> str:
        """What one deployment's replicas have logged on the head node."""
        logs = Path(self.cluster.head_node.get_logs_dir_path(), "serve").glob(f"replica_lipsync_{name}_*.log")
        return "".join(log.read_text() for log in logs)

    def logged(self, name: str) -> list[dict[str, Any]]:
        """What one deployment's replicas have logged, but for a line that is still being written."""
        lines = self.log(name).splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]

    def done_again(self) -> Counter[str]:
        """How often a piece of work was given out again because it failed, by the replica's method."""
        found = (_BROKE_OFF.match(str(line.get("message"))) for line in self.logged("Ingress"))
        return Counter(match[1] for match in found if match)

    def complaints(self, name: str) -> list[str]:
        """Warnings and errors among it, with their tracebacks."""
        return [
            f"{line.get('message')}\n{line.get('exc_text', '')}"
            for line in self.logged(name)
            if line.get("levelname") in ("WARNING", "ERROR")
        ]

    def ray_cpu_s(self) -> float:
        """CPU seconds so far of this cluster's processes that are no replicas: raylets, proxies, the controller."""
        others = (p for p in psutil.Process().children(recursive=True) if "ServeReplica:lipsync" not in _title(p))
        return sum(_cpu_s(process) for process in others)

    def replicas(self, name: str) -> list[psutil.Process]:
        """The processes of one deployment's replicas, of this cluster alone."""
        return [
            process
            for process in psutil.Process().children(recursive=True)
            if _title(process).startswith(f"ray::ServeReplica:lipsync:{name}")
        ]


def at_work(processes: Sequence[psutil.Process], *, within_s: float = 10.0) -> psutil.Process:
    """The one that computes most, as soon as one computes at all; where none does ``within_s``, any."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        before_s = [_cpu_s(process) for process in processes]
        time.sleep(_GLANCE_S)
        spent_s = [_cpu_s(process) - before for process, before in zip(processes, before_s, strict=True)]
        if max(spent_s) >= 0.4 * _GLANCE_S:
            return processes[spent_s.index(max(spent_s))]
    return random.choice(processes)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def configuration(
    *,
    replicas: Mapping[str, int],
    args: Mapping[str, Any] | None = None,
    stand_in: Mapping[str, Any] | None = None,
    port: int,
    deployments: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """``serve_config.yaml`` with fixed numbers of replicas that take next to no share of a core, on ``port``.

    ``deployments`` overrides keys by deployment; ``stand_in`` is ``benchmarks.stand_ins``'s section.
    """
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["proxy_location"] = "HeadOnly"
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["import_path"] = "benchmarks.stand_ins:build"
    application["args"] |= copy.deepcopy(dict(args or {})) | {"stand_in": dict(stand_in or {})}
    for deployment in application["deployments"]:
        name = deployment["name"]
        deployment.pop("autoscaling_config", None)
        deployment["num_replicas"] = replicas.get(name, 1)
        deployment["health_check_period_s"] = 1
        options: dict[str, Any] = {"num_cpus": 0.01}
        if name in ("Ingress", "Admission"):
            options["resources"] = HEAD_ONLY
        if name == "Generator":
            options["num_gpus"] = (stand_in or {}).get("num_gpus", 0)
        deployment["ray_actor_options"] = options
        deployment.update((deployments or {}).get(name, {}))
    return config


def deploy(config: Mapping[str, Any], *, within_s: float = 120.0) -> None:
    """Give the configuration to the cluster that this process has joined, and wait until the application runs.

    Raises RuntimeError where it fails, TimeoutError.
    """
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    serve.start(proxy_location=config["proxy_location"], http_options=config["http_options"])
    client = _get_global_client()
    assert client is not None  # it raises where there is none
    client.deploy_apps(ServeDeploySchema.model_validate(config))
    end_s = time.monotonic() + within_s
    settled = 0
    while settled < 2:  # the status is RUNNING for a moment before a new configuration is taken up
        application = serve.status().applications.get("lipsync")
        status = application.status if application is not None else "absent"
        if application is not None and status == "DEPLOY_FAILED":
            raise RuntimeError(application.message)
        settled = settled + 1 if status == "RUNNING" else 0
        if time.monotonic() > end_s:
            raise TimeoutError(f"the application is {status} after {within_s} s")
        time.sleep(0.5)


def _cpu_s(process: psutil.Process) -> float:
    try:
        return float(sum(process.cpu_times()[:2]))
    except psutil.Error:
        return 0.0


@contextmanager
def running(
    config: Mapping[str, Any],
    *,
    workers: int = 0,
    num_gpus: int = 0,
    within_s: float = 120.0,
    beside: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> Iterator[Running]:
    """The application on a head node and ``workers`` more, each with ``num_gpus`` GPUs as far as Ray is told.

    ``beside`` makes more nodes, given the head's address; they are there from before the application until after it.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray gives its workers 15, so that anything else comes first
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve.before_ray:middlewares")
    for page in ("METRICS", "STATS"):  # HAProxy does not start where another one has its pages
        os.environ[f"RAY_SERVE_HAPROXY_{page}_PORT"] = str(free_port())
    import ray
    from ray.cluster_utils import Cluster

    head = {
        "num_cpus": 4,
        "num_gpus": 0 if workers else num_gpus,
        "resources": {"on_head": 1},
        "include_dashboard": False,
    }
    with ExitStack() as ending:
        cluster = Cluster(initialize_head=True, head_node_args=head)
        ending.callback(cluster.shutdown)
        for _ in range(workers):
            cluster.add_node(num_gpus=num_gpus, **WORKER)
        ending.callback(ray.shutdown)
        ray.init(address=cluster.address, log_to_driver=False, namespace="serve")
        ending.enter_context(beside(cluster.address))
        ending.callback(_shut_down)
        deploy(config, within_s=within_s)
        yield Running(f"http://127.0.0.1:{config['http_options']['port']}", cluster, dict(config))


def _shut_down() -> None:
    """Serve's own end. Behind HAProxy an Ingress would give half a minute to callers that may still come; here are
    none."""
    from ray import serve
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None  # it raises where there is none
    client.shutdown(timeout_s=_ENDS_WITHIN_S)
    serve.shutdown()  # forgets it


def free_port() -> int:
    """One that nobody has, from where neither the system nor Ray takes theirs: it is bound a while later."""
    while True:
        port = random.randint(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port

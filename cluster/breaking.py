"""A cluster that may be broken: the application on three nodes of this machine, its head's state in Redis, and the ways
to kill each kind of process of it. Only processes that this one started are ever ended."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.serving_cluster import Running, configuration, free_port, running

REPLICAS = {"Preprocessor": 2, "Renderer": 2, "Generator": 2}
ALONE = ("Admission", "Ingress")
REPLICA_KINDS = (*REPLICAS, *ALONE)
"""Kinds of replica; an Ingress takes its requests with it, and the client's own retry has to succeed."""
SPOOL_BYTES = 8_000_000
START_WITHIN_S = 480.0
LOOKS = {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2"}
"""As the Makefile and the manifests have it."""


class CannotBreak(Exception):
    """This machine does not allow an experiment; says why."""


@dataclass(slots=True)
class Breakable:
    """The running application and what it stands on."""

    app: Running
    spool: Path
    spool_is_small: bool
    has_redis: bool

    def processes(self, title: str) -> list[psutil.Process]:
        """Ours whose command line begins with ``title``."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(title):
                    found.append(process)
        return found

    def is_settled(self) -> bool:
        """Every deployment has its replicas, all running by the controller's own account, and as many processes live:
        the controller takes a moment to notice a death."""
        from ray import serve

        if len(self.processes("ray::ServeReplica:lipsync:")) < sum(REPLICAS.values()) + len(ALONE):
            return False
        try:
            deployments = serve.status().applications["lipsync"].deployments
        except Exception:  # the controller or the head is away; whatever it says, it is not settled
            return False
        return all(dict(one.replica_states) == {"RUNNING": REPLICAS.get(name, 1)} for name, one in deployments.items())


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to break it. ``strike`` breaks and returns what tells whether that has been replaced; ``bound_s`` is how
    long it may take until it has."""

    name: str
    strike: Callable[[Breakable], Callable[[], bool]]
    bound_s: float


def _killed(title: str) -> Callable[[Breakable], Callable[[], bool]]:
    def strike(target: Breakable) -> Callable[[], bool]:
        before = target.processes(title)
        if not before:
            raise RuntimeError(f"no process {title} of ours runs")
        known = {process.pid for process in before}
        before[0].kill()
        return lambda: any(process.pid not in known for process in target.processes(title)) and target.is_settled()

    return strike


def _node(target: Breakable) -> Callable[[], bool]:
    """A worker node goes with all its processes, and the operator adds another."""
    cluster = target.app.cluster
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    cluster.add_node(num_cpus=4, num_gpus=0)
    return target.is_settled


def _head(target: Breakable) -> Callable[[], bool]:
    """The head's server (GCS) dies and is started again a second later: all that it knew comes out of Redis."""
    if not target.has_redis:
        raise CannotBreak(
            "redis-server is not installed (apt-get install redis-server): the head would forget everything"
        )
    head = target.app.cluster.head_node
    head.kill_gcs_server()
    time.sleep(1.0)
    head.start_gcs_server()
    return target.is_settled


def _full_disk(target: Breakable) -> Callable[[], bool]:
    """The spool's disk is full for three seconds."""
    if not target.spool_is_small:
        raise CannotBreak("mounting a small tmpfs is not allowed here")
    filler = target.spool / "filler"
    with suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(65_536))
            file.flush()
    time.sleep(3.0)
    filler.unlink()
    return target.is_settled


FAULTS = {
    fault.name: fault
    for fault in (
        *(Fault(name, _killed(f"ray::ServeReplica:lipsync:{name}"), 30.0) for name in REPLICA_KINDS),
        Fault("proxy", _killed("ray::ProxyActor"), 30.0),
        Fault("controller", _killed("ray::ServeController"), 60.0),
        Fault("node", _node, 60.0),
        Fault("head", _head, 60.0),
        Fault("full disk", _full_disk, 30.0),
    )
}


@contextmanager
def breakable() -> Iterator[Breakable]:
    """Three nodes; ends all that it started."""
    with _redis() as redis, _spool() as (spool, is_small):
        if redis is not None:
            os.environ["RAY_REDIS_ADDRESS"] = redis
        os.environ |= LOOKS
        try:
            config = configuration(
                replicas=REPLICAS,
                port=free_port(),
                args={"generator": {"threads": 1}, "spool": {"folder": str(spool)}},
                stand_in={},
            )
            with running(config, workers=2, within_s=START_WITHIN_S) as app:
                yield Breakable(app, spool, is_small, redis is not None)
        finally:
            for name in ("RAY_REDIS_ADDRESS", *LOOKS):
                os.environ.pop(name, None)


@contextmanager
def _redis() -> Iterator[str | None]:
    """A Redis of our own for the head's state, None where the program is missing."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="lipsync-redis-") as folder:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=10)


@contextmanager
def _spool() -> Iterator[tuple[Path, bool]]:
    """A folder for uploads, on a disk of its own of a few megabytes where mounting is allowed."""
    with tempfile.TemporaryDirectory(prefix="lipsync-spool-") as folder:
        options = ["-t", "tmpfs", "-o", f"size={SPOOL_BYTES}", "tmpfs", folder]
        is_small = shutil.which("mount") is not None and subprocess.run(
            ["mount", *options], capture_output=True, check=False
        ).returncode == 0  # fmt: skip
        try:
            yield Path(folder), is_small
        finally:
            if is_small:
                subprocess.run(["umount", "--lazy", folder], check=True)

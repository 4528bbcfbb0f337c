"""A cluster that may be broken: the application on three nodes of this machine, one of them in a network namespace,
behind a link that may be slow; its head's state in Redis. Ends all that it started, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import psutil

from benchmarks.serving_cluster import ALONE_ON_WORKER, WORKER, Running, configuration, free_port, running
from cluster.slow_link import CannotLink, SlowLink

REPLICAS = {"Preprocessor": 2, "Renderer": 2, "Generator": 2}
ALONE = ("Admission", "Ingress")
REPLICA_KINDS = (*REPLICAS, *ALONE)
"""Kinds of replica; an Ingress takes its requests with it, and the client's own retry has to succeed."""
SPOOL_BYTES = 8_000_000
STORE_BYTES = 150 * 1024 * 1024
"""Of each node's object store, as Ray's own clusters on one machine have it."""
START_WITHIN_S = 480.0
LOOKS = {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2", "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1"}
"""As the Makefile and the manifests have it."""
NODE_WITHIN_S, END_WITHIN_S = 120.0, 30.0


@dataclass(slots=True)
class Breakable:
    """The running application and what it stands on."""

    app: Running
    spool: Path
    spool_is_small: bool
    has_redis: bool
    link: SlowLink | str
    """To the node in a namespace, or why there is none."""

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


@contextmanager
def breakable() -> Iterator[Breakable]:
    """Three nodes; ends all that it started."""
    with _redis() as redis, _spool() as (spool, is_small), _link() as link:
        if redis is not None:
            os.environ["RAY_REDIS_ADDRESS"] = redis
        os.environ |= LOOKS
        try:
            config = configuration(
                replicas=REPLICAS,
                port=free_port(),
                args={"generator": {"threads": 1}, "spool": {"folder": str(spool)}},
                stand_in={},
                # one on each worker node: so one lives behind the link
                deployments={"Renderer": {"ray_actor_options": {"num_cpus": 0.01, "resources": ALONE_ON_WORKER}}},
            )
            if isinstance(link, str):
                nodes = running(config, workers=2, within_s=START_WITHIN_S)
            else:
                beside = partial(_node_behind, link)
                nodes = running(config, workers=1, within_s=START_WITHIN_S, beside=beside)
            with nodes as app:
                yield Breakable(app, spool, is_small, redis is not None, link)
        finally:
            for name in ("RAY_REDIS_ADDRESS", *LOOKS):
                os.environ.pop(name, None)


@contextmanager
def _link() -> Iterator[SlowLink | str]:
    """A link for a node to live behind, or why there can be none."""
    from ray.util import get_node_ip_address

    link: SlowLink | str
    with ExitStack() as ending:
        try:
            link = ending.enter_context(SlowLink())
        except CannotLink as error:
            link = str(error)
        else:
            if ip_address(get_node_ip_address()).is_loopback:
                link = "the head has a loopback address alone, which is another's own in the namespace"
        yield link


@contextmanager
def _node_behind(link: SlowLink, address: str) -> Iterator[None]:
    """A worker node in the link's namespace. Raises RuntimeError where it does not start."""
    command = [
        *("setpriv", "--pdeathsig", "KILL"),  # however we end; Ray's own processes go with this one in the same way
        *link.command([sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]),
        *(f"--address={address}", f"--node-ip-address={link.far}", f"--object-store-memory={STORE_BYTES}"),
        "--include-log-monitor=false",  # one for a machine's nodes, and the head has it
        *(f"--num-cpus={WORKER['num_cpus']}", f"--resources={json.dumps(WORKER['resources'])}"),
    ]
    environment = os.environ | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}  # nothing is left there to be moved
    with tempfile.TemporaryFile("w+") as said:
        # Ctrl-C is not for it, hence a group of its own; not a session, as Linux shares the cores out among sessions,
        # and replicas would start four times slower there than beside
        node = psutil.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said, process_group=0
        )
        try:
            until_s = time.monotonic() + NODE_WITHIN_S
            while not _is_up(link.far):
                if node.poll() is not None or time.monotonic() > until_s:
                    said.seek(0)
                    raise RuntimeError(f"the node behind the link did not start: {said.read()[-2000:]}")
                time.sleep(0.2)
            yield
        finally:
            _end(node)


def _is_up(address: str) -> bool:
    """Whether a node of the cluster that this process has joined lives at an address."""
    import ray

    return any(one["Alive"] and one["NodeManagerAddress"] == address for one in ray.nodes())


def _end(node: psutil.Popen) -> None:
    """A node's processes, all of them."""
    processes = [node]
    with suppress(psutil.NoSuchProcess):  # it has ended, and taken its own with it
        processes += node.children(recursive=True)
        node.terminate()
    _, stubborn = psutil.wait_procs(processes, timeout=END_WITHIN_S)
    for process in stubborn:
        process.kill()
    psutil.wait_procs(stubborn, timeout=END_WITHIN_S)


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
        # a group of its own: Ctrl-C must not end it before the cluster has ended, which needs it for that
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, process_group=0)
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

"""The ways to break each part of a cluster of ours. Only processes that this one started are ever ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil

from benchmarks.serving_cluster import WORKER, at_work
from cluster.breakable import REPLICA_KINDS, SPOOL_BYTES, Breakable

HEADLESS_S = 10.0
DELAY_S, DELAYED_S = 0.2, 10.0
"""On the network, either way, and for how long."""


class CannotBreak(Exception):
    """This machine does not allow an experiment; says why."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to break it. ``strike`` breaks and returns what tells whether that has been replaced; ``bound_s`` is how
    long it may take until it has. ``takes_requests``: requests that it meets need the client's next attempt."""

    name: str
    strike: Callable[[Breakable], Callable[[], bool]]
    bound_s: float
    takes_requests: bool = False


def _killed(title: str) -> Callable[[Breakable], Callable[[], bool]]:
    def strike(target: Breakable) -> Callable[[], bool]:
        before = target.processes(title)
        if not before:
            raise RuntimeError(f"no process {title} of ours runs")
        known = {process.pid for process in before}
        (before[0] if len(before) == 1 else at_work(before)).kill()
        return lambda: any(process.pid not in known for process in target.processes(title)) and target.is_settled()

    return strike


def _proxy(target: Breakable) -> Callable[[], bool]:
    """What holds the callers' connections: the HAProxy program, or Ray Serve's own proxy where that is none."""
    programs = [found for found in psutil.Process().children(recursive=True) if _is_haproxy(found)]
    if not programs:
        return _killed("ray::ProxyActor")(target)
    known = {program.pid for program in programs}
    for program in programs:  # after a reload an old one goes on until its connections are closed
        program.kill()

    def is_replaced() -> bool:
        others = (one for one in psutil.Process().children(recursive=True) if one.pid not in known)
        return any(map(_is_haproxy, others)) and target.is_settled()

    return is_replaced


def _proxy_manager(target: Breakable) -> Callable[[], bool]:
    """The actor that starts HAProxy and tells it of replicas; the program goes with it."""
    if not target.processes("ray::HAProxyManager"):
        raise CannotBreak("Ray Serve's own proxy is in use, which has no manager")
    return _killed("ray::HAProxyManager")(target)


def _is_haproxy(process: psutil.Process) -> bool:
    try:
        return bool(process.name() == "haproxy" and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _node(target: Breakable) -> Callable[[], bool]:
    """A worker node goes with all its processes, and the operator adds another."""
    cluster = target.app.cluster
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    cluster.add_node(**WORKER)
    return target.is_settled


def _head(target: Breakable) -> Callable[[], bool]:
    """The head's server (GCS) and the Serve controller die at once, and for ten seconds nothing takes their place. What
    the server knew comes out of Redis."""
    if not target.has_redis:
        raise CannotBreak(
            "redis-server is not installed (apt-get install redis-server): the head would forget everything"
        )
    head = target.app.cluster.head_node
    head.kill_gcs_server()
    has_controller = _killed("ray::ServeController")(target)
    time.sleep(HEADLESS_S)
    head.start_gcs_server()
    return lambda: _knows_its_nodes(target) and has_controller()


def _knows_its_nodes(target: Breakable) -> bool:
    """Whether the head's server answers, and has every node: no other process could say that."""
    import ray

    try:
        alive = sum(bool(one["Alive"]) for one in ray.nodes())
    except Exception:  # it does not answer yet, whatever Ray says of it
        return False
    return alive == len(target.app.cluster.list_all_nodes()) + (not isinstance(target.link, str))


def _full_disk(target: Breakable) -> Callable[[], bool]:
    """The spool's disk is full for three seconds."""
    if not target.spool_is_small:
        raise CannotBreak("mounting a small tmpfs is not allowed here")
    filler = target.spool / "filler"
    with suppress(OSError), filler.open("wb") as file:
        for _ in range(0, 2 * SPOOL_BYTES, 65_536):  # an end, should this be another disk after all
            file.write(bytes(65_536))
            file.flush()
    time.sleep(3.0)
    filler.unlink()
    return target.is_settled


def _network_delay(target: Breakable) -> Callable[[], bool]:
    """Every packet to or from one node, on which a Renderer lives, is late for ten seconds."""
    link = target.link
    if isinstance(link, str):
        raise CannotBreak(f"a link to a network namespace is not possible here: {link}")
    if not any(link.has(replica.pid) for replica in target.processes("ray::ServeReplica:lipsync:Renderer")):
        raise RuntimeError("no Renderer lives behind the link")
    link.delay_s = DELAY_S
    try:
        time.sleep(DELAYED_S)
    finally:
        link.delay_s = 0.0
    return target.is_settled


FAULTS = {
    fault.name: fault
    for fault in (
        *(
            Fault(name, _killed(f"ray::ServeReplica:lipsync:{name}"), 30.0, takes_requests=name == "Ingress")
            for name in REPLICA_KINDS
        ),
        Fault("proxy", _proxy, 30.0, takes_requests=True),
        Fault("proxy manager", _proxy_manager, 30.0, takes_requests=True),
        Fault("controller", _killed("ray::ServeController"), 60.0),
        Fault("node", _node, 60.0),
        Fault("head", _head, 60.0),
        Fault("full disk", _full_disk, 30.0, takes_requests=True),
        Fault("network delay", _network_delay, 30.0),
    )
}

"""The shipped autoscaling policy on the modelled cluster: a burst, and what the number of Generators does.

The policy is ``serve/autoscaling.py`` itself, loaded by its path. Ray's part around it is restated here: replicas
report every second, a report's largest value of the look-back time counts, and a decision holds for its delay before
it is carried out (``delayed``, which a test compares with Ray's own).
"""

from __future__ import annotations

import importlib.util
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from cluster.costs import ROOT, Assumptions, Costs
from cluster.model import Cluster, Size, arrivals, mean_frames
from cluster.replicas import Generator
from lipsync.metrics import BatchMeter, NoMeters

CONFIG = ROOT / "cluster" / "serve_config.yaml"
POLICY = ROOT / "serve" / "autoscaling.py"
REPORTS_EVERY_S = 1.0
DECIDES_EVERY_S = 0.2
CORES_ARE_PLENTY = 200


def shipped(name: str, config: Path = CONFIG) -> dict[str, Any]:
    """One deployment's section of the shipped configuration."""
    (application,) = yaml.safe_load(config.read_text())["applications"]
    return next(one for one in application["deployments"] if one["name"] == name)


def shipped_admission(config: Path = CONFIG) -> dict[str, Any]:
    """How much may be under way, as shipped."""
    (application,) = yaml.safe_load(config.read_text())["applications"]
    found: dict[str, Any] = application["args"]["admission"]
    return found


def load_policy(path: Path, kwargs: dict[str, Any]) -> Any:
    """The policy's class, made with its arguments."""
    spec = importlib.util.spec_from_file_location("shipped_autoscaling", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FramesBacklogPolicy(**kwargs)


@dataclass(slots=True)
class Pending:
    """A wish for more (1) or fewer (−1) replicas, and since when it has been held."""

    direction: int = 0
    since_s: float = 0.0


def delayed(desired: int, target: int, pending: Pending, *, now_s: float, up_s: float, down_s: float) -> int:
    """The number of replicas from now on, by Ray's rule: a wish is granted once it was held for its delay."""
    direction = (desired > target) - (desired < target)
    if direction != pending.direction:
        pending.direction, pending.since_s = direction, now_s
    if direction == 0 or now_s - pending.since_s + 1e-6 < (up_s if direction > 0 else down_s):
        return target
    pending.direction = 0
    return max(1, desired) if direction < 0 else desired


@dataclass(slots=True, eq=False)
class Metered:
    """A Generator and what it has reported lately."""

    generator: Generator
    meter: BatchMeter
    reports: deque[tuple[float, dict[str, float]]] = field(default_factory=deque)
    """When, and what: as ``serve.generator`` has it."""


class Autoscaler:
    """Starts and stops the Generators of a cluster as the shipped configuration says."""

    def __init__(self, cluster: Cluster, config: dict[str, Any]) -> None:
        self.cluster, self._config = cluster, config["autoscaling_config"]
        self._policy = load_policy(POLICY, self._config["policy"]["policy_kwargs"])
        self._state: dict[str, Any] = {}
        self._pending = Pending()
        self.target = self._config["min_replicas"]
        self.decisions: list[tuple[float, int]] = []
        for first in list(cluster.generators.replicas):
            cluster.generators.remove(first)
        self._metered: list[Metered] = []
        self._start()
        cluster.world.later(REPORTS_EVERY_S, self._report)
        cluster.world.later(DECIDES_EVERY_S, self._decide)

    @property
    def running(self) -> int:
        return len(self._metered)

    @property
    def queued_frames(self) -> int:
        return sum(self._queued(one.generator) for one in self._metered)

    def _queued(self, generator: Generator) -> int:
        counts = generator.batcher.counts
        return counts.queued_frames + counts.held_frames

    def _start(self) -> None:
        if len(self._metered) >= self.target:
            return  # wanted once, no longer
        meter = BatchMeter(NoMeters(), buckets=self.cluster.assumed.buckets, clock=self.cluster.world.clock)
        made = Metered(Generator(self.cluster.world, self.cluster.assumed, meter.on_batch), meter)
        self._metered.append(made)
        self.cluster.generators.add(made.generator)

    def _report(self) -> None:
        now_s = self.cluster.world.now_s
        for one in self._metered:
            said = {
                "queued_frames": float(self._queued(one.generator)),
                "frames_per_s": one.meter.frames_per_s,
                "busy_ratio": one.meter.busy_ratio,
            }
            one.reports.append((now_s, said))
            while one.reports[0][0] < now_s - self._config["look_back_period_s"]:
                one.reports.popleft()
        self.cluster.world.later(REPORTS_EVERY_S, self._report)

    def _decide(self) -> None:
        largest = {
            name: {
                number: max(said[name] for _, said in one.reports)
                for number, one in enumerate(self._metered)
                if one.reports
            }
            for name in ("queued_frames", "frames_per_s", "busy_ratio")
        }
        context = SimpleNamespace(target_num_replicas=self.target, aggregated_metrics=largest, policy_state=self._state)
        desired, self._state = self._policy(context)
        config, now_s = self._config, self.cluster.world.now_s
        granted = delayed(
            desired, self.target, self._pending,
            now_s=now_s, up_s=config["upscale_delay_s"], down_s=config["downscale_delay_s"],
        )  # fmt: skip
        granted = min(max(granted, config["min_replicas"]), config["max_replicas"])
        if granted != self.target:
            self.decisions.append((now_s, granted))
            self._carry_out(granted)
        self.cluster.world.later(DECIDES_EVERY_S, self._decide)

    def _carry_out(self, target: int) -> None:
        for _ in range(target - max(self.target, 0)):
            self.cluster.world.later(self.cluster.assumed.start_s, self._start)
        self.target = target
        for one in self._metered[target:]:
            self.cluster.generators.remove(one.generator)  # what it has taken on it finishes
        del self._metered[target:]


def burst(
    costs: Costs,
    assumed: Assumptions,
    *,
    config: dict[str, Any],
    burst_of: float,
    calm_s: float,
    burst_s: float,
    until_s: float,
) -> dict[str, Any]:
    """Half a Generator's worth of requests, ``burst_of`` Generators' worth for ``burst_s``, then half again."""
    plenty = Size(gpus=1, renderers=CORES_ARE_PLENTY, preprocessors=CORES_ARE_PLENTY, ingresses=CORES_ARE_PLENTY)
    cluster = Cluster(plenty, costs, assumed)
    scaler = Autoscaler(cluster, config)
    one_s = assumed.gpu_frames_per_s / mean_frames(assumed)  # requests/s that fill one Generator

    def rate_per_s(now_s: float) -> float:
        return one_s * (burst_of if calm_s <= now_s < calm_s + burst_s else 0.5)

    arrivals(cluster, rate_per_s=rate_per_s, until_s=until_s)
    trace = []
    for second in range(int(until_s)):
        cluster.world.run(until_s=float(second))
        trace.append((second, scaler.running, scaler.target, scaler.queued_frames))
    numbers = [config["autoscaling_config"]["min_replicas"], *(target for _, target in scaler.decisions)]
    steps = [(b > a) - (b < a) for a, b in pairwise(numbers)]
    first_up_s = next((at_s for at_s, target in scaler.decisions if at_s >= calm_s), None)
    return {
        "gpu_frames_per_s": assumed.gpu_frames_per_s,
        "burst_of": burst_of,
        "burst_began_s": calm_s,
        "burst_ended_s": calm_s + burst_s,
        "first_decision_after_s": None if first_up_s is None else round(first_up_s - calm_s, 1),
        "most_replicas": max(numbers),
        "changes_of_direction": sum(a != b for a, b in pairwise(steps)),
        "most_queued_frames": max(row[3] for row in trace),
        "seconds": [row[0] for row in trace[::2]],
        "running": [row[1] for row in trace[::2]],
        "target": [row[2] for row in trace[::2]],
        "queued_frames": [row[3] for row in trace[::2]],
    }

"""How many Generators: simulated minute by minute under Ray's delays. Up with a burst, down by steps, calm in between."""

import json
import math
from collections import deque
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.autoscaling import MUCH_FRAMES, PAUSE_S, WATCHED, behind_backlog, judged
from lipsync.batcher import BatchReport
from lipsync.metrics import BatchMeter, NoMeters
from serve.autoscaling import FramesBacklogPolicy

ROOT = Path(__file__).resolve().parents[1]
SPEED = 1000.0
"""Frames that a replica draws in a second."""
UP_S, DOWN_S, LOOK_BACK_S, MOST = 2, 120, 11, 8


class Cluster:
    """Replicas that draw what comes in, second by second, and a controller that asks the policy as Ray does.

    A decision holds for its delay before it is carried out, metrics are the largest of the last ``LOOK_BACK_S`` seconds,
    and a new replica draws ``start_s`` after it was asked for.
    """

    def __init__(self, *, drain_s: float = 2.0, start_s: int = 20, replicas: int = 1):
        self.policy, self.start_s = FramesBacklogPolicy(drain_s), start_s
        self.target, self.queued, self.now_s = replicas, 0.0, 0
        self.ready_at = [0] * replicas
        self.state: dict[str, float] = {}
        self.queue_seen: deque[float] = deque(maxlen=LOOK_BACK_S)
        self.busy_seen: deque[float] = deque(maxlen=10)
        self.since_s = 0
        self.wish = 0
        self.targets: list[int] = []

    def run(self, seconds: int, frames_per_s: float) -> "Cluster":
        for _ in range(seconds):
            self.now_s += 1
            ready = sum(at <= self.now_s for at in self.ready_at)
            self.queued += frames_per_s
            drawn = min(self.queued, ready * SPEED)
            self.queued -= drawn
            self.queue_seen.append(self.queued)
            self.busy_seen.append(drawn / SPEED)
            self._decide(ready)
            self.targets.append(self.target)
        return self

    def _decide(self, ready: int) -> None:
        queued, busy = max(self.queue_seen), sum(self.busy_seen) / len(self.busy_seen)
        metrics = {
            "queued_frames": {str(n): queued / ready for n in range(ready)},
            "busy_ratio": {str(n): busy / ready for n in range(ready)},
            "frames_per_s": {str(n): SPEED if busy else 0.0 for n in range(ready)},
        }
        context = SimpleNamespace(target_num_replicas=self.target, aggregated_metrics=metrics, policy_state=self.state)
        asked, self.state = self.policy(context)
        asked = min(MOST, max(1, asked))
        direction = (asked > self.target) - (asked < self.target)
        if direction != self.wish:
            self.wish, self.since_s = direction, self.now_s
        if direction and self.now_s - self.since_s >= (UP_S if direction > 0 else DOWN_S):
            self.ready_at = sorted(self.ready_at)[:asked] + [self.now_s + self.start_s] * max(0, asked - self.target)
            self.target, self.wish = asked, 0

    @property
    def turns(self) -> int:
        """How often the direction changed."""
        steps = [b - a for a, b in pairwise(self.targets) if a != b]
        return sum(a * b < 0 for a, b in pairwise(steps))


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9, 1.1, 1.5, 1.9, 2.3, 2.75, 3.1, 4.5, 6.6])
def test_a_constant_load_keeps_its_replicas(load):
    cluster = Cluster().run(600, load * SPEED)
    settled = len(cluster.targets)
    cluster.run(3600, load * SPEED)
    later = cluster.targets[settled + 600 :]
    assert len(set(later)) == 1, f"between {min(later)} and {max(later)}"
    assert math.ceil(load) <= later[0] <= math.ceil(load / 0.8) + 1
    assert cluster.queued <= SPEED


def test_a_burst_is_followed_within_five_seconds():
    cluster = Cluster().run(60, 0.3 * SPEED)
    assert cluster.target == 1
    cluster.run(5, 5 * SPEED)
    assert cluster.target >= 4
    cluster.run(300, 5 * SPEED)
    assert cluster.queued <= SPEED, "the backlog of the start is gone"


def test_after_a_burst_replicas_go_one_by_one_and_the_direction_changes_once():
    cluster = Cluster().run(60, 0.2 * SPEED).run(60, 5 * SPEED).run(3000, 0.2 * SPEED)
    assert max(cluster.targets) >= 5 and cluster.target == 1
    peak = cluster.targets.index(max(cluster.targets))
    down = cluster.targets[peak:]
    assert all(a - b in (0, 1) for a, b in pairwise(down))
    assert cluster.turns == 1


def test_an_idle_cluster_comes_down_to_one_and_never_to_none():
    cluster = Cluster(replicas=6).run(60, 5 * SPEED).run(3000, 0)
    assert cluster.target == 1 and min(cluster.targets) == 1


def ask(current: int, metrics: dict | None, state: dict | None = None, **more):
    return FramesBacklogPolicy(**more)(
        SimpleNamespace(target_num_replicas=current, aggregated_metrics=metrics, policy_state=state)
    )


def test_without_any_measurement_nothing_changes():
    for metrics in (None, {}, {"queued_frames": {"a": 5000}}, {"queued_frames": {"a": 5000}, "frames_per_s": {"a": 0}}):
        assert ask(3, metrics) == (3, {})


def test_a_speed_once_measured_is_remembered_while_nothing_is_drawn():
    _, state = ask(1, {"queued_frames": {"a": 0}, "frames_per_s": {"a": 100}})
    assert ask(1, {"queued_frames": {"a": 1000}, "frames_per_s": {"a": 0}}, state)[0] == 5


def test_a_few_frames_ask_for_no_more_devices_however_slow_those_are_with_so_few():
    meter = BatchMeter(NoMeters(), buckets=(512,))
    meter.on_batch(BatchReport(frames=8, room=512, requests=1, waited_s=(), drawing_s=4.0, retried=0, failed=0))
    said = {"queued_frames": 42.0, "frames_per_s": meter.frames_per_s, "busy_ratio": meter.busy_ratio}
    assert ask(1, {name: {"a": value} for name, value in said.items()})[0] == 1


def test_the_backlog_is_drained_in_the_time_that_was_set():
    metrics = {"queued_frames": {"a": 4000, "b": 4000}, "frames_per_s": {"a": 900, "b": 1100}}
    assert ask(2, metrics)[0] == 4
    assert ask(2, metrics, drain_s=1.0)[0] == 8


def test_a_speed_near_nothing_does_not_ask_for_the_moon():
    asked, _ = ask(1, {"queued_frames": {"a": 100}, "frames_per_s": {"a": 1e-9}})
    assert asked == 50


# ---------------------------------------------------------------- the trace of two bursts


def sampled(*rows: tuple[float, int, int]) -> list[dict]:
    """Of (seconds, wanted, running); all deployments alike."""
    return [
        {"at_s": at_s, "waiting_frames": 0} | {name: [wanted, ready] for name in WATCHED}
        for at_s, wanted, ready in rows
    ]


def test_how_far_the_wish_is_behind_the_backlog():
    samples = sampled((0, 1, 1), (10, 1, 1), (12, 1, 1), (15, 2, 1), (40, 1, 1))
    for sample, waiting in zip(samples, (5000, MUCH_FRAMES, None, MUCH_FRAMES + 1, 0), strict=True):
        sample["waiting_frames"] = waiting
    assert behind_backlog(samples, [(5.0, 30.0)]) == [0.0]
    samples[1]["waiting_frames"] = MUCH_FRAMES + 1
    assert behind_backlog(samples, [(5.0, 30.0), (35.0, 50.0)]) == [5.0, None]


def test_a_trace_is_judged_by_when_more_is_wanted_by_turns_and_by_how_long_starting_takes():
    calm = sampled((0, 1, 1), (10, 1, 1), (12, 3, 1), (20, 3, 3), (60, 2, 2), (70, 1, 1), (110, 1, 1))
    found = judged(calm, [(9.0, 30.0)])
    assert found["decided_after_s"]["Renderer"] == [3.0]
    assert found["changes_of_direction"]["Renderer"] == [1]
    assert found["start_up_s"]["Renderer"] == [8.0]
    restless = sampled((0, 1, 1), (10, 2, 1), (11, 1, 1), (12, 2, 2), (20, 1, 1))
    assert judged(restless, [(0.0, 30.0)])["changes_of_direction"]["Generator"] == [3]
    assert judged(sampled((0, 1, 1), (9, 1, 1)), [(0.0, 30.0)])["decided_after_s"]["Ingress"] == [None]


def test_the_committed_trace_scales_within_five_seconds_cpu_stages_first_and_does_not_oscillate():
    trace = json.loads((ROOT / "docs/benchmarks/autoscaling.json").read_text())
    assert trace["failed"] == 0 and len(trace["bursts_s"]) == 2
    assert trace["bursts_s"][0][0] > PAUSE_S, "the first one comes to a calm cluster"
    found = judged(trace["samples"], [tuple(burst) for burst in trace["bursts_s"]])
    assert {key: trace[key] for key in found} == found
    assert all(count <= 1 for counts in found["changes_of_direction"].values() for count in counts)
    page, told = (ROOT / "docs/operations.md").read_text(), found["decided_after_s"]
    first_s = [min(told[name][burst] for name in WATCHED if told[name][burst] is not None) for burst in (0, 1)]
    assert max(first_s) <= 5
    assert first_s == told["Preprocessor"] == told["Renderer"], "CPU stages"
    assert f"came {first_s[0]:.1f} and {first_s[1]:.1f} s after" in page
    assert all(cpu <= gpu for cpu, gpu in zip(told["Renderer"], told["Generator"], strict=True)), "CPU stages first"
    first, second = found["behind_backlog_s"]
    assert 0 < min(first, second) <= max(first, second) <= 5
    said = f"{told['Generator'][0]:.1f} and {told['Generator'][1]:.1f} s after a burst's start, "
    assert said + f"{first:.1f} and {second:.1f} s after more frames waited" in page
    modelled_s = json.loads((ROOT / "docs/benchmarks/scaling.json").read_text())["burst"]["first_decision_after_s"]
    assert modelled_s <= 5 and f"wants more Generators {modelled_s:.1f} s after" in page
    for name in ("Preprocessor", "Renderer", "Generator"):
        took_s = found["start_up_s"][name]
        assert f"{name}s {min(took_s):.1f} to {max(took_s):.1f}" in page

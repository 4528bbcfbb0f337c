"""The model of a cluster: that it does what it says, against sums that can be done by hand and against Ray's own rule."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from benchmarks.simulated import World
from cluster import simulate
from cluster.autoscaling_model import REPORTS_EVERY_S, Pending, burst, delayed, shipped
from cluster.costs import ROOT, Assumptions, Costs, drawn_frames_per_s
from cluster.experiments import Demand, capacity_rps, limits, observe, segments
from cluster.model import CALLS_AT_THE_START, Cluster, Size, mean_frames
from cluster.replicas import Pool, Worker
from cluster.scaling_page import page

COSTS = Costs(
    still_frame_ms=6.0, look_ms=70.0, video_frame_ms=37.0, video_decode_ms=10.0, video_detect_ms=23.0
)  # fmt: skip
ASSUMED = Assumptions()
RESULT = ROOT / "docs" / "benchmarks" / "scaling.json"


def idle(**more: int) -> Cluster:
    return Cluster(Size(**{"gpus": 1, "renderers": 8, "preprocessors": 2, "ingresses": 1} | more), COSTS, ASSUMED)


def test_one_request_alone_takes_what_its_parts_take() -> None:
    cluster = idle()
    still = cluster.come(8, is_video=False)
    cluster.world.run()
    call_s, pass_s = 1 / ASSUMED.calls_per_s, ASSUMED.pass_s + 16 / ASSUMED.gpu_frames_per_s
    by_hand = (CALLS_AT_THE_START + 1) * call_s + 0.070 + pass_s + 8 * 0.006
    assert still.ended_s == still.first_s == pytest.approx(by_hand)

    moving = (cluster := idle()).come(8, is_video=True)
    cluster.world.run()
    by_hand = (CALLS_AT_THE_START + 1) * call_s + 8 * (0.023 + 0.037) + pass_s
    assert moving.ended_s == pytest.approx(by_hand)


def test_every_frame_comes_out_once_and_a_window_bounds_what_is_under_way() -> None:
    cluster, rng, most = idle(gpus=2, renderers=30), random.Random(1), 0
    requests = [cluster.come(rng.randint(1, 1500), is_video=rng.random() < 0.5) for _ in range(40)]
    while cluster.under_way:
        cluster.world.run(until_s=cluster.world.now_s + 0.1)
        most = max(most, *(request.under_way for request in requests))
    assert most == 8
    assert {id(one) for one in cluster.done} == {id(one) for one in requests}
    assert cluster.drawn_frames == cluster.delivered_frames == sum(request.frames for request in requests)
    assert all(one.came_s < one.first_s <= one.ended_s for one in requests)
    assert all(one.sent == one.delivered == segments(one.frames) for one in requests)
    assert all(worker.under_way == 0 for worker in cluster.renderers.replicas)


def test_a_pool_bounds_each_replica_and_those_who_wait_go_in_order() -> None:
    world = World()
    pool = Pool([Worker(world), Worker(world)], most=2, rng=random.Random(0))
    taken: list[tuple[int, Worker]] = []
    for number in range(7):
        pool.call(lambda worker, number=number: taken.append((number, worker)))
    assert [number for number, _ in taken] == [0, 1, 2, 3]
    assert all(one.under_way == 2 for one in pool.replicas)
    pool.give_back(taken[0][1])
    assert [number for number, _ in taken] == [0, 1, 2, 3, 4]
    pool.remove(gone := taken[1][1])
    pool.add(Worker(world))
    assert [number for number, _ in taken] == [0, 1, 2, 3, 4, 5, 6]
    assert gone not in [worker for _, worker in taken[5:]]


def test_a_cluster_below_its_capacity_makes_what_is_asked_and_is_as_busy_as_the_load_says() -> None:
    seen = observe(COSTS, ASSUMED, gpus=3, load=0.6, warm_s=20, for_s=150)
    demand = Demand.of(COSTS, ASSUMED)
    assert demand.frames == pytest.approx(mean_frames(ASSUMED), rel=0.02)
    assert seen["requests_per_s"] == pytest.approx(0.6 * capacity_rps(demand, ASSUMED, gpus=3), abs=0.06)
    assert seen["cpu_busy"] == pytest.approx(0.6, abs=0.06)
    assert seen["frames_per_s"] == pytest.approx(seen["requests_per_s"] * demand.frames, rel=0.12)


def test_more_load_waits_longer_and_a_larger_cluster_waits_less() -> None:
    calm, busy = (observe(COSTS, ASSUMED, gpus=1, load=load, warm_s=20, for_s=200) for load in (0.4, 0.9))
    large = observe(COSTS, ASSUMED, gpus=8, load=0.9, warm_s=15, for_s=25)
    assert calm["latency_s"]["p50"] < busy["latency_s"]["p50"]
    assert large["first_s"]["p50"] < busy["first_s"]["p50"]


def test_few_ingresses_are_the_limit_that_their_calls_are() -> None:
    seen = observe(COSTS, ASSUMED, gpus=10, load=0.8, warm_s=20, for_s=20, ingresses=1)
    demand = Demand.of(COSTS, ASSUMED)
    assert seen["frames_per_s"] < 1.2 * ASSUMED.calls_per_s / demand.calls * demand.frames
    assert seen["under_way"] > 200


def test_what_is_first_to_be_full_follows_from_what_each_gpu_takes() -> None:
    rows = limits(COSTS, ASSUMED, under_way_per_gpu=8.0)
    assert [row["gpus"] for row in rows] == sorted(row["gpus"] for row in rows)
    admission = next(row for row in rows if "Admission" in row["what"])
    rate = capacity_rps(Demand.of(COSTS, ASSUMED), ASSUMED, gpus=1)
    assert admission["gpus"] == pytest.approx(ASSUMED.answers_per_s / (3 * rate), rel=0.01)


# ---------------------------------------------------------------- autoscaling


@pytest.mark.filterwarnings("ignore")  # Ray's own, when it is imported
def test_the_delay_rule_is_ray_s_own() -> None:
    from ray.serve.autoscaling_policy import _apply_delay_logic

    rng, config = (
        random.Random(5),
        SimpleNamespace(upscale_delay_s=2.0, downscale_delay_s=5.0, downscale_to_zero_delay_s=None),
    )
    ours = theirs = 4
    pending, state, changes = Pending(), {}, 0
    wanted, now_s = 4, 0.0
    for _ in range(5000):
        now_s += rng.choice([0.1, 0.2, 0.7])
        wanted = rng.randint(1, 9) if rng.random() < 0.1 else wanted
        theirs, state = _apply_delay_logic(wanted, theirs, config, state, _now=now_s)
        before, ours = ours, delayed(wanted, ours, pending, now_s=now_s, up_s=2.0, down_s=5.0)
        assert ours == theirs
        changes += ours != before
    assert changes > 100


def test_a_burst_is_met_within_seconds_and_without_swinging() -> None:
    slow = replace(ASSUMED, gpu_frames_per_s=1000.0)
    seen = burst(COSTS, slow, config=shipped("Generator"), burst_of=4, calm_s=40, burst_s=100, until_s=420)
    assert 0 < seen["first_decision_after_s"] < 5
    assert seen["most_replicas"] >= 4
    assert seen["changes_of_direction"] == 1, "up, and down again"
    assert seen["queued_frames"][-1] < 2000 < seen["most_queued_frames"]


def test_without_a_policy_that_scales_the_backlog_stays() -> None:
    slow, config = replace(ASSUMED, gpu_frames_per_s=1000.0), shipped("Generator")
    config["autoscaling_config"] |= {"max_replicas": 1}
    seen = burst(COSTS, slow, config=config, burst_of=4, calm_s=40, burst_s=100, until_s=420)
    assert seen["most_replicas"] == 1
    assert seen["queued_frames"][-1] > 20_000


# ---------------------------------------------------------------- the page


def test_costs_are_read_off_a_result_of_lipsync_bench(tmp_path: Path) -> None:
    def case(face: str, source_frames: int, state: str, **stage_cpu_s: float) -> dict[str, Any]:
        about = {"face": face, "source_frames": source_frames, "state": state, "frames": 500}
        return about | {"stage_cpu_s": {"decode": 0.0, "crop": 0.5} | stage_cpu_s}

    found = {
        "device": "cuda:0",
        "rows": [{"frames_per_s": 30_000.0}, {"frames_per_s": 50_000.0}, {"not_measured": "no time"}],
        "end_to_end": {
            "cases": [
                case("still, 720p", 1, "cold", detect=0.04),
                case("still, 720p", 1, "warm", **{"paste and encode": 1.5}),
                case("video, 720p", 250, "cold", detect=2.5),
                case("video, 720p", 250, "warm", decode=2.0, **{"paste and encode": 10.0}),
            ]
        },
    }
    path = tmp_path / "ladder_cuda.json"
    path.write_text(json.dumps(found))
    assert Costs.read(path) == Costs(
        still_frame_ms=4.0, look_ms=40.0, video_frame_ms=25.0, video_decode_ms=4.0, video_detect_ms=10.0
    )
    assert drawn_frames_per_s(path) == 50_000
    path.write_text(json.dumps(found | {"device": "cpu"}))
    assert drawn_frames_per_s(path) is None, "a CPU says nothing of a GPU"


def test_the_page_is_of_the_committed_results_and_of_costs_like_those_measured_last() -> None:
    result = json.loads(RESULT.read_text())
    assert (ROOT / "docs" / "scaling.md").read_text() == page(result), "run make simulate"
    said = {name: one["value"] for name, one in result["assumptions"].items()}
    assert said == json.loads(json.dumps(asdict(ASSUMED))), "run make simulate"
    now = Demand.of(Costs.read(), ASSUMED).cpu_ms_per_frame
    assert result["demand"]["cpu_ms_per_frame"] == pytest.approx(now, rel=0.25), "costs have changed: run make simulate"


@pytest.mark.serial
def test_a_reduced_run_writes_page_results_and_chart(tmp_path: Path) -> None:
    assert simulate.main(["--quick", "--into", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "benchmarks" / "scaling.json").read_text())
    assert (tmp_path / "scaling.md").read_text() == page(result)
    assert {one["gpus"] for one in result["latency"]} == {1, 4}
    with Image.open(tmp_path / "images" / "scaling.png") as chart:
        assert chart.width > 900


def test_replicas_report_as_often_as_is_shipped() -> None:
    assert shipped("Generator")["autoscaling_config"]["metrics_interval_s"] == REPORTS_EVERY_S

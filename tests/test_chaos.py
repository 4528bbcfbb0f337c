"""The breaking of clusters: that its account is right, against a scripted server, and one fault of each kind in earnest."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from scripted_server import Scripted, Step, mp4, problem

from cluster import chaos
from cluster.breakable import REPLICA_KINDS, Breakable
from cluster.breaking import FAULTS, CannotBreak, Fault
from cluster.traffic import Failure

ROOT = Path(__file__).resolve().parents[1]
RUNBOOK = (ROOT / "docs/operations.md").read_text()
SLACK = 2.0
"""The machine that runs the tests may be busy with others; the committed log has none."""


def scripted(server: Scripted, *, done_again: Callable[[], Counter[str]] = Counter) -> Breakable:
    app = SimpleNamespace(url=server.url, done_again=done_again)
    return Breakable(app, Path("/nonexistent"), False, False, "no link")  # type: ignore[arg-type]


def fault(name: str, *, replaced_after_s: float, bound_s: float = 5.0, takes_requests: bool = False) -> Fault:
    def strike(_: Breakable):
        began = time.monotonic()
        return lambda: time.monotonic() - began >= replaced_after_s

    return Fault(name, strike, bound_s, takes_requests)


def slowly(step: Step) -> Step:
    async def slow(writer) -> bool:
        await chaos.asyncio.sleep(0.05)
        return await step(writer)

    return slow


def test_recovery_counts_until_it_is_replaced_and_a_later_request_is_answered() -> None:
    faults = [fault("quick", replaced_after_s=0.5), fault("late", replaced_after_s=1.5, bound_s=1.0)]
    with Scripted([slowly(mp4(b"right")) for _ in range(2000)]) as server:
        result = chaos.break_all(scripted(server), faults, mix="short")
    assert [one["fault"] for one in result["log"]] == ["quick", "late"]
    assert 0.5 <= result["log"][0]["replaced_s"] < 1.5 <= result["log"][1]["replaced_s"] < 3
    assert result["faults"]["quick"]["in_time"] == 1
    assert result["faults"]["late"]["in_time"] == 0
    assert result["answered_right"] == result["requests"] > 20
    assert (result["answered_wrong"], result["refused"], result["hung"]) == (0, {}, 0)
    assert not chaos.held(result), "one was late"
    assert chaos.held(result | {"log": result["log"][:1]})


def test_the_pieces_that_were_done_again_stand_with_the_fault_under_which_they_broke_off() -> None:
    counts = iter([{"detect": 1}, {"detect": 1, "render": 2}, {"detect": 1, "render": 2}, {"detect": 1, "render": 2}])
    with Scripted([slowly(mp4(b"right")) for _ in range(2000)]) as server:
        target = scripted(server, done_again=lambda: Counter(next(counts)))
        faults = [fault("at work", replaced_after_s=0), fault("idle", replaced_after_s=0)]
        result = chaos.break_all(target, faults, mix="short")
    assert [one["pieces_done_again"] for one in result["log"]] == [{"render": 2}, {}]
    assert {name: found["in_mid_work"] for name, found in result["faults"].items()} == {"at work": 1, "idle": 0}
    assert result["pieces_done_again"] == {"render": 2}


@pytest.mark.parametrize(("takes_requests", "cause"), [(True, "taker"), (False, None)])
def test_an_attempt_that_failed_is_set_against_what_was_broken(takes_requests: bool, cause: str | None) -> None:
    right = [slowly(mp4(b"right")) for _ in range(2000)]
    steps = [*right[:40], problem(503, "overloaded"), *right]
    with Scripted(steps) as server:
        result = chaos.break_all(
            scripted(server), [fault("taker", replaced_after_s=2, takes_requests=takes_requests)], mix="short"
        )
    assert [[failure["cause"] for failure in one["failures"]] for one in result["helped"]] == [[cause]]
    assert (result["needed_more_attempts"], result["without_cause"]) == (1, 0 if takes_requests else 1)
    assert result["answered_right"] == result["requests"]
    assert chaos.held(result) == takes_requests


def test_what_failed_before_a_fault_or_after_it_was_got_over_has_no_cause() -> None:
    log = [{"fault": "Ingress", "takes_requests": True, "at_s": 10.0, "answered_again_s": 4.0, "replaced_s": 6.0}]
    failed_s = [(9.9,), (10.0,), (16.0,), (16.1,), (12.0, 20.0)]
    outcomes = [
        chaos.Outcome("short", 1.0, 1.0, 60.0, failures=tuple(Failure(at_s, "service_error", "") for at_s in times))
        for times in failed_s
    ]
    causes = [[failure["cause"] for failure in one["failures"]] for one in chaos._helped(outcomes, log)]
    assert causes == [[None], ["Ingress"], ["Ingress"], [None], ["Ingress", None]]


def test_an_answer_of_other_bytes_and_a_refusal_are_told_apart_from_right_ones() -> None:
    right = [slowly(mp4(b"right")) for _ in range(2000)]
    steps = [*right[:40], mp4(b"wrong"), problem(422, "no_face"), *right]
    with Scripted(steps) as server:
        result = chaos.break_all(scripted(server), [fault("quick", replaced_after_s=2)], mix="short")
    assert result["answered_wrong"] == 1
    assert result["refused"] == {"no_face": 1}
    assert result["answered_right"] == result["requests"] - 2


def test_what_a_machine_does_not_allow_is_said_and_the_rest_goes_on() -> None:
    def refuse(_: Breakable):
        raise CannotBreak("not here")

    faults = [Fault("impossible", refuse, 1.0), fault("quick", replaced_after_s=0)]
    with Scripted([slowly(mp4(b"right")) for _ in range(2000)]) as server:
        result = chaos.break_all(scripted(server), faults, mix="short")
    assert result["skipped"] == {"impossible": "not here"}
    assert list(result["faults"]) == ["quick"]


def test_nothing_is_broken_where_calm_answers_already_differ() -> None:
    right = [slowly(mp4(b"right")) for _ in range(2000)]
    with Scripted([mp4(b"one"), mp4(b"other"), *right]) as server, pytest.raises(RuntimeError, match="differ"):
        chaos.break_all(scripted(server), [fault("quick", replaced_after_s=0)], mix="short")


def test_replicas_are_killed_in_every_round_and_all_else_in_every_fourth() -> None:
    times = Counter(one.name for one in chaos.in_rounds(list(FAULTS.values()), 20))
    assert times == {name: 20 if name in REPLICA_KINDS else 5 for name in FAULTS}
    assert [one.name for one in chaos.in_rounds(list(FAULTS.values()), 1)] == list(FAULTS)


def test_nothing_more_is_broken_when_its_time_is_up() -> None:
    with Scripted([slowly(mp4(b"right")) for _ in range(2000)]) as server:
        ends_s = time.monotonic() + 1.5
        result = chaos.break_all(
            scripted(server), [fault("quick", replaced_after_s=1)] * 9, mix="short", until_s=ends_s
        )
    assert 1 <= len(result["log"]) <= 3


def test_in_the_committed_log_everything_was_broken_as_often_as_promised_and_nobody_was_let_down() -> None:
    log = json.loads((ROOT / "docs" / "benchmarks" / "chaos.json").read_text())
    assert log["requests"] == log["answered_right"] >= 200
    assert (log["answered_wrong"], log["refused"], log["hung"], log["skipped"]) == (0, {}, 0, {})
    assert chaos.held(log)
    failures = [failure for one in log["helped"] for failure in one["failures"]]
    assert {failure["cause"] for failure in failures} == {n for n, fault in FAULTS.items() if fault.takes_requests}
    assert {failure["slug"] for failure in failures if failure["cause"] == "full disk"} == {"overloaded"}
    assert set(log["by_kind"]) == {"short", "short-stream", "video"}
    promised = Counter(one.name for one in chaos.in_rounds(list(FAULTS.values()), chaos.ROUNDS))
    assert Counter(one["fault"] for one in log["log"]) == promised
    assert min(promised[name] for name in REPLICA_KINDS) >= 20 and min(promised.values()) >= 5
    for name in ("Preprocessor", "Renderer", "Generator"):
        assert log["faults"][name]["in_mid_work"] >= 0.75 * promised[name], f"most {name}s died idle"
        hit = [one for one in log["log"] if one["fault"] == name and chaos.WORK[name] & set(one["pieces_done_again"])]
        assert len(hit) == log["faults"][name]["in_mid_work"]
    assert log["faults"]["node"]["in_mid_work"] >= 3
    for one in log["log"]:
        slowest_s = max(one["replaced_s"], one["answered_again_s"])
        assert slowest_s <= (60 if one["fault"] in ("node", "head", "controller") else 30), one
    worst_s = {name: math.ceil(found["replaced_s"]["max"]) for name, found in log["faults"].items()}
    replicas_s = max(worst_s[name] for name in REPLICA_KINDS)
    told = f"{log['requests']} requests, all answered right, none hung; replicas replaced within {replicas_s} s"
    told += f", nodes within {worst_s['node']} s. {len(log['helped'])} needed the client's next attempt"
    assert told in RUNBOOK
    died = [log["faults"][name]["in_mid_work"] for name in ("Preprocessor", "Renderer", "Generator")]
    assert f"{died[0]} of 20 Preprocessors, {died[1]} Renderers and {died[2]} Generators died under" in RUNBOOK


# ---------------------------------------------------------------- in earnest


@pytest.mark.serial
@pytest.mark.timeout(900)
def test_one_fault_of_each_kind_under_load_and_every_answer_is_right(tmp_path: Path) -> None:
    """A process of its own: the cluster's environment has to be there before Ray is imported."""
    command = [
        sys.executable,
        "-m",
        "cluster.chaos",
        "--rounds",
        "1",
        "--callers",
        "2",
        "--json",
        str(tmp_path / "log.json"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (tmp_path / "log.json").exists(), done.stderr[-4000:]
    result = json.loads((tmp_path / "log.json").read_text())
    assert result["requests"] == result["answered_right"] > len(FAULTS), result
    assert (result["hung"], result["without_cause"]) == (0, 0), result
    assert set(result["faults"]) | set(result["skipped"]) == set(FAULTS)
    allowed = {"full disk", "network delay"} | ({"head"} if shutil.which("redis-server") is None else set())
    assert not set(result["skipped"]) - allowed, "only these want much of the machine"
    if "network delay" in result["faults"]:
        assert result["crossed_link"]["bytes"] > 100_000 * result["requests"], "inputs, not Ray's own talk alone"
        assert result["crossed_link"]["dropped"] == 0
    for one in result["log"]:
        recovery_s = (one["replaced_s"], one["answered_again_s"])
        assert None not in recovery_s and max(recovery_s) <= SLACK * one["bound_s"], one
    assert done.returncode == 0 or not all(one["is_in_time"] for one in result["log"])

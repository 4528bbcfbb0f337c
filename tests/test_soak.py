"""What tells a build that leaks from one that does not. The runs themselves take half an hour: ``make soak``."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cluster import soak
from cluster.soak import BOUNDS, EVERY_S, Sample, Watch, entries, judge, kind_of, sample

ROOT = Path(__file__).resolve().parents[1]
STEADY = Sample(at_s=0.0, memory_mb=2000.0, shared_mb=50.0, files=900, threads=700, temporary=25)


def run(*, count: int = 180, **growth: float) -> list[Sample]:
    """Samples that go up and down, the caches of the first few minutes, and what grows from start to end."""
    rng, samples = random.Random(1), []
    for number in range(count):
        share = number / (count - 1)
        warm = min(1.0, share / 0.2)
        values = {
            "memory_mb": STEADY.memory_mb * (0.7 + 0.3 * warm) + rng.uniform(-80, 80),
            "shared_mb": STEADY.shared_mb * warm + rng.uniform(-10, 10),
            "files": STEADY.files + rng.randint(-40, 40),
            "threads": STEADY.threads + rng.randint(-20, 20),
            "temporary": STEADY.temporary + rng.randint(-20, 20),
        }
        grown = {name: values[name] + growth.get(name, 0.0) * share for name in values}
        samples.append(replace(STEADY, at_s=EVERY_S * (number + 1), **grown))  # type: ignore[arg-type]
    return samples


def test_what_goes_up_and_down_and_has_warmed_up_is_no_leak() -> None:
    assert judge(run())["leaks"] == []


@pytest.mark.parametrize("name", BOUNDS)
def test_what_grows_steadily_is_found_out_and_named(name: str) -> None:
    assert judge(run(**{name: 2 * BOUNDS[name]}))["leaks"] == [name]


def test_memory_and_shared_memory_count_together() -> None:
    half = 0.8 * BOUNDS["memory_mb"]
    assert judge(run(memory_mb=half))["leaks"] == []
    assert judge(run(memory_mb=half, shared_mb=half))["leaks"] == ["memory_mb"]


def test_shared_memory_that_goes_back_does_not_hide_what_grows_elsewhere() -> None:
    assert judge(run(memory_mb=400.0, shared_mb=-300.0))["leaks"] == ["memory_mb"]


def test_a_run_too_short_to_tell_says_so() -> None:
    with pytest.raises(ValueError, match="longer"):
        judge(run(count=5))


def test_a_sample_sees_what_a_child_holds(tmp_path: Path) -> None:
    code = "data = bytearray(b'x') * 60_000_000; files = [open('/dev/null') for _ in range(50)]; print('ready', flush=True); input()"
    before = sample(0.0, tmp_path)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline()
        (tmp_path / "left behind").touch()
        after = sample(0.0, tmp_path)
        assert child.stdin is not None
        child.communicate(b"\n")
    assert after.memory_mb - before.memory_mb > 60
    assert after.files - before.files >= 50
    assert after.threads > before.threads
    assert after.temporary == before.temporary + 1


def test_folders_that_come_and_go_are_counted_without_a_fault(tmp_path: Path) -> None:
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            (tmp_path / "request" / "parts").mkdir(parents=True)
            (tmp_path / "request" / "parts").rmdir()
            (tmp_path / "request").rmdir()

    (tmp_path / "stays").touch()
    churning = threading.Thread(target=churn)
    churning.start()
    try:
        assert {entries(tmp_path) for _ in range(3000)} <= {1, 2, 3}
    finally:
        over.set()
        churning.join()


def test_a_watch_that_failed_says_so_at_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(soak, "EVERY_S", 0.01)
    failing = threading.Event()

    def failed(*_: object) -> Sample:
        failing.set()
        raise OSError("no more files")

    monkeypatch.setattr(soak, "sample", failed)
    with pytest.raises(OSError, match="no more files"), Watch(tmp_path):
        assert failing.wait(5)


def test_a_process_is_named_by_its_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    process = psutil.Process()
    monkeypatch.setattr(process, "cmdline", lambda: ["ray::ServeReplica:lipsync:Renderer.render"])
    assert kind_of(process) == "Renderer"
    monkeypatch.setattr(process, "cmdline", lambda: ["/usr/bin/raylet", "--x"])
    assert kind_of(process) == process.name()


def test_the_committed_run_of_half_an_hour_grew_by_nothing_and_the_leaking_build_was_found_out() -> None:
    runs = json.loads((ROOT / "docs/benchmarks/soak.json").read_text())["runs"]
    for run_ in runs:
        found = judge([Sample(**one) for one in run_["samples"]])
        assert {"growth": run_["growth"], "leaks": run_["leaks"], "bounds": run_["bounds"]} == found | {
            "bounds": BOUNDS
        }
        assert run_["requests"] == run_["answered"] and not run_["refused"]
        assert run_["samples"][-1]["at_s"] > 0.9 * 60 * run_["minutes"], "looked at until the end"
    leaking, sound = runs
    assert leaking["leaks_on_purpose"] and set(leaking["leaks"]) == set(BOUNDS)
    assert leaking["growth"]["shared_mb"] > 50
    assert not sound["leaks_on_purpose"] and sound["leaks"] == []
    assert sound["minutes"] >= 30 and sound["callers"] == 20 and sound["requests"] > 500
    assert set(sound["by_kind"]) == {"short", "short-video", "short-stream"}
    grown_mb = sound["growth"]["memory_mb"] + max(0.0, sound["growth"]["shared_mb"])
    page = (ROOT / "docs/operations.md").read_text()
    assert f"{sound['requests']:,} requests, all answered; memory grew by {grown_mb:.0f} MB of 100" in page

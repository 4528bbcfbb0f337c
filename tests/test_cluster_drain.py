"""Emptying a node before it is stopped: waits for replicas alone, and not for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DRAIN = Path(__file__).resolve().parents[1] / "cluster" / "drain.py"
sys.path.insert(0, str(DRAIN.parent))

import drain  # type: ignore[import-not-found]  # noqa: E402


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def wait(within_s: float, gone_after_s: float) -> tuple[bool, float]:
    clock = Clock()
    replica = b"ray::ServeReplica:lipsync:Renderer"

    def running() -> list[bytes]:
        return [b"raylet", b"python\0drain.py", *([replica] if clock.now_s < gone_after_s else [])]

    return drain.wait(within_s, running=running, sleep=clock.sleep, clock=clock), clock.now_s


def test_it_ends_at_once_where_no_replica_runs() -> None:
    assert wait(900, gone_after_s=0) == (True, 0.0)


def test_it_waits_until_the_last_replica_is_gone() -> None:
    finished, took_s = wait(900, gone_after_s=33)
    assert finished
    assert 33 <= took_s <= 35


def test_it_gives_up_where_a_replica_never_goes() -> None:
    finished, took_s = wait(60, gone_after_s=float("inf"))
    assert not finished
    assert 60 <= took_s <= 62


def test_it_sees_this_containers_processes() -> None:
    assert any(Path(sys.executable).name.encode() in line for line in drain.processes())


def test_where_ray_is_not_told_the_pod_is_not_held_up(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path)}  # no ray to be found
    command = [sys.executable, str(DRAIN), "--within-s", "900"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "Ray was not told" in done.stderr

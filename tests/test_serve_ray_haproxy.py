"""The tests on a real cluster once more, with Ray Serve's other proxy and transport: as the docs recommend to run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.serving import MODE

pytestmark = [pytest.mark.serial, pytest.mark.timeout(900)]
# else a thousand lines of log are held back, and a failure tells nothing
LOGGED = {"RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1"}


def test_all_of_it_holds_behind_haproxy_and_with_the_throughput_optimised_transport() -> None:
    run("tests/test_serve_ray.py", "tests/test_serve_ray_streams.py")


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
def test_every_panel_and_rule_has_data_behind_haproxy() -> None:
    """There, and not behind Ray's own proxy as well: HAProxy's counts of requests are made by other code."""
    run("tests/test_cluster_observed.py")


def run(*files: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", *files]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        command, cwd=root, env=os.environ | MODE | LOGGED, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert " skipped" not in done.stdout.splitlines()[-1], "nothing is left out in this mode"

"""A newcomer's two commands: ``make serve`` in one terminal, the pages' ``curl`` lines in another."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import av
import httpx
import psutil
import pytest

from benchmarks.serving_media import ASSETS, cut_wav, scaled_jpeg

ROOT = Path(__file__).resolve().parents[1]
URL = "http://127.0.0.1:8000"
README = (ROOT / "README.md").read_text()
PAGES = README + (ROOT / "docs/serving.md").read_text()
CURLS = list(dict.fromkeys(line for line in PAGES.splitlines() if line.startswith("curl ")))
FRAMES = 13
STARTS_WITHIN_S, ENDS_WITHIN_S = 180.0, 120.0
pytestmark = [
    pytest.mark.serial,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]


@pytest.fixture(scope="module")
def service() -> Iterator[subprocess.Popen[str]]:
    """``make serve``, ready. Ctrl-C has to end it and all that it started."""
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", 8000)) != 0, "port 8000 is taken, and `make serve` wants it"
    assert "\nmake serve\n" in README
    # a folder of its own, so that Ray finds no other cluster; a short name, since sockets lie in it
    with tempfile.TemporaryDirectory(prefix="ls-") as folder, Path(folder, "log").open("w+") as log:
        alone = os.environ | {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"}
        made = subprocess.Popen(
            ["make", "serve"], cwd=ROOT, env=alone, stdout=log, stderr=log, text=True, start_new_session=True
        )
        try:
            wait_until_ready(made, log.name)
            started = psutil.Process(made.pid).children(recursive=True)
            yield made
            os.killpg(made.pid, signal.SIGINT)
            made.wait(ENDS_WITHIN_S)
            _, alive = psutil.wait_procs(started, timeout=ENDS_WITHIN_S)
            assert not alive, f"still there after Ctrl-C: {alive}"
        finally:
            if made.poll() is None:
                for process in (*psutil.Process(made.pid).children(recursive=True), made):
                    process.kill()


def wait_until_ready(made: subprocess.Popen[str], log: str) -> None:
    end_s = time.monotonic() + STARTS_WITHIN_S
    while made.poll() is None and time.monotonic() < end_s:
        try:
            if httpx.get(URL + "/readyz", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass  # not yet
        time.sleep(0.5)
    pytest.fail(f"`make serve` did not get ready:\n{Path(log).read_text()[-4000:]}")


@pytest.mark.parametrize("line", CURLS)
def test_a_command_of_the_pages_works(service: subprocess.Popen[str], line: str, tmp_path: Path) -> None:
    (tmp_path / "lipsync/assets").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "lipsync/assets"):  # a caller's, and a clone, with less to draw
        (folder / "face.jpg").write_bytes(scaled_jpeg(ASSETS / "face.jpg", width=640))
        (folder / "face.mp4").write_bytes((ASSETS / "clip.mp4").read_bytes())
        (folder / "voice.wav").write_bytes(cut_wav(ASSETS / "voice.wav", seconds=FRAMES / 25))
    command = shlex.split(line)
    done = subprocess.run([*command, "--fail", "--silent"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    made = tmp_path / command[command.index("--output") + 1] if "--output" in command else None
    assert (made.read_bytes() if made else done.stdout) != b""
    if made and made.suffix == ".mp4":
        with av.open(made) as video:
            assert sum(1 for _ in video.decode(video=0)) == FRAMES
        with av.open(made) as video:
            assert sum(frame.samples for frame in video.decode(audio=0)) / video.streams.audio[0].rate > 0.5

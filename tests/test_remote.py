"""``lipsync remote`` against a real HTTP server: the file, the words, the exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from scripted_server import Scripted, answer, hang, mp4, problem


@pytest.fixture
def server():
    with Scripted() as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "face.png").write_bytes(b"a face")
    (tmp_path / "voice.wav").write_bytes(b"a voice")
    return tmp_path


def command(server: Scripted, *more: str) -> list[str]:
    return [sys.executable, "-m", "lipsync", "remote", "face.png", "voice.wav", "--server", server.url, *more]


def remote(folder, server, *more, **environment):
    return subprocess.run(
        command(server, *more), cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_result_is_written_and_said(folder, server):
    server.steps = [mp4(b"the video")]
    done = remote(folder, server, "-o", "out.mp4", "--crf", "20", LIPSYNC_API_KEY="k-1")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "out.mp4: 75 frames, 2.50 s at 29.97 fps\n"
    assert (folder / "out.mp4").read_bytes() == b"the video"
    [request] = server.requests
    assert request.parts == {"options": b'{"crf":20}', "audio": b"a voice", "face": b"a face"}
    assert request.headers["authorization"] == "Bearer k-1"


def test_json_for_machines(folder, server):
    server.steps = [mp4(b"the video")]
    done = remote(folder, server, "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert said["output"] == "result.mp4" and said["fps"] == "30000/1001" and said["timings_ms"]["total"] == 99.25
    assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize(
    ("step", "more", "code", "said"),
    [
        (problem(422, "no_face", "Nobody is there."), [], 3, "error (no_face): Nobody is there.\n"),
        (problem(401, "unauthorized", "Which key?"), [], 7, "error (unauthorized): Which key?\n"),
        (answer(404), [], 7, "error (service_error): The server answered 404.\n"),
        (hang, ["--timeout-s", "0.5"], 7, "error (deadline_exceeded): "),
        (hang, ["--api-key-env", "NO_SUCH_NAME"], 2, "error (invalid_option): The environment has no NO_SUCH_NAME."),
    ],
    ids=["input", "key", "service", "deadline", "no such variable"],
)
def test_a_refusal_is_one_plain_sentence_and_an_exit_code(folder, server, step, more, code, said):
    server.steps = [step]
    done = remote(folder, server, *more)
    assert done.returncode == code
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1
    assert left_in(folder) == ["face.png", "voice.wav"]


def test_stopping_it_leaves_nothing_and_ends_the_work(folder, server):
    server.steps = [hang]
    running = subprocess.Popen(command(server), cwd=folder, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 30
    while not server.requests and time.monotonic() < until:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=20)
    assert running.returncode == 130 and "interrupted" in said
    assert server.gone.wait(2)
    assert left_in(folder) == ["face.png", "voice.wav"]

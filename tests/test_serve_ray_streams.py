"""Readers of streams that are slow or leave, behind HAProxy; Ray's own proxy takes in a whole response.

Run by test_serve_ray_haproxy.py.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from benchmarks.serving_cluster import Running, configuration, free_port, running
from benchmarks.serving_media import ASSETS, cut_wav, noise_clip

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Ray's own, in this process
    pytest.mark.timeout(300),
    pytest.mark.serial,
    pytest.mark.skipif(os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1", reason="wants RAY_SERVE_ENABLE_HA_PROXY=1"),
]
NOISE = noise_clip(640, 352, frames=16)
NOISY = {"box": "[0, 96, 0, 96]", "crf": "1", "preset": "ultrafast"}
"""A few hundred kilobytes a frame, so that no buffer on the way holds much of the stream."""
VOICE = cut_wav(ASSETS / "voice.wav", seconds=32)
FILES = {"face": NOISE, "audio": VOICE}
SEGMENTS = 100
ENOUGH = SEGMENTS // 2


KEY, OTHER_KEY = "a-key-of-many-letters", "another-key-of-many-letters"
ALLOWED = {"authorization": f"Bearer {KEY}"}
REQUESTS_PER_KEY = 3
NAMES = ("Ingress", "Preprocessor", "Renderer", "Generator", "Admission")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Segments of eight frames, two under way for each request, on a device that costs nothing. Two replicas take
    requests in, and want a key. No process of it may die under any of the tests."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{KEY}\n{OTHER_KEY}\n")
    args = {
        "tuning": {"window": 2, "segment_frames": [8]},
        "auth": {"mode": "keys", "keys_file": str(keys)},
        "admission": {"requests_per_key": REQUESTS_PER_KEY},
    }
    device = {"batch_s": 0.001, "rescues": True}
    config = configuration(replicas={"Ingress": 2}, port=free_port(), args=args, stand_in=device)
    with running(config) as application:
        before = {name: [p.pid for p in application.replicas(name)] for name in NAMES}
        yield application
        assert {name: [p.pid for p in application.replicas(name)] for name in NAMES} == before


def rendered(app: Running) -> int:
    return sum(replica["segments"] for replica in app.stats("Renderer"))


def wait_for_a_standstill(app: Running) -> int:
    """Segments rendered, once no more are for three seconds."""
    for _ in range(20):
        before = rendered(app)
        time.sleep(3)
        if rendered(app) == before:
            return before
    raise AssertionError("work went on for a minute")


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=120, trust_env=False, headers=ALLOWED) as made:
        yield made


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer another-key-than-there-is", f"Basic {KEY}", f"Bearer {KEY}x"])
def test_a_wrong_key_is_refused(app: Running, given: str) -> None:
    before = rendered(app)
    answer = httpx.post(
        app.url + "/v1/lipsync", files=FILES, headers={"authorization": given}, timeout=60, trust_env=False
    )
    assert (answer.status_code, answer.json()["error"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert rendered(app) == before


@pytest.mark.parametrize("frames", [16, 800], ids=["many keyframes", "one keyframe, so that one call renders it all"])
def test_a_slow_reader_slows_itself_alone(app: Running, client: httpx.Client, frames: int) -> None:
    face = noise_clip(640, 352, frames=frames, keyframe_every=1000)
    url, before = app.url + "/v1/lipsync?stream=true", rendered(app)
    with client.stream("POST", url, files={"face": face, "audio": VOICE}, data=NOISY) as answer:
        body = answer.iter_raw(1 << 16)
        next(body)
        made = wait_for_a_standstill(app) - before
        assert made < ENOUGH, f"{made} of {SEGMENTS}: the reader was not waited for"
        assert not any(replica["under_way"] for replica in app.stats("Renderer")), "a Renderer waits for the reader"
        short = {"face": NOISE, "audio": cut_wav(ASSETS / "voice.wav", seconds=0.5)}
        assert httpx.post(url, files=short, data=NOISY, headers=ALLOWED, timeout=60, trust_env=False).status_code == 200
        rest = b"".join(body)
    assert b'"status": "complete"' in rest[-1000:] or b'"status":"complete"' in rest[-1000:]


def test_a_reader_that_leaves_stops_its_work(app: Running, client: httpx.Client) -> None:
    before = rendered(app)
    with client.stream("POST", app.url + "/v1/lipsync?stream=true", files=FILES, data=NOISY) as answer:
        next(answer.iter_raw(1 << 16))
    gone_s = time.time()
    while any(replica["under_way"] for replica in app.stats("Renderer")):
        assert time.time() - gone_s < 15, "work goes on"
        time.sleep(0.1)
    took_s = max(replica["left_s"] for replica in app.stats("Renderer")) - gone_s
    assert took_s < 2, f"work went on for {took_s:.1f} s"
    assert rendered(app) - before < ENOUGH


def test_a_keys_bound_holds_over_the_replicas_that_take_requests_in(app: Running, client: httpx.Client) -> None:
    url, short = app.url + "/v1/lipsync", {"face": NOISE, "audio": cut_wav(ASSETS / "voice.wav", seconds=0.5)}

    def asked(key: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(url, files=short, data=NOISY, headers=headers, timeout=60, trust_env=False)

    with ExitStack() as held:
        bodies: list[Iterator[bytes]] = []
        for _ in range(REQUESTS_PER_KEY):
            answer = held.enter_context(client.stream("POST", url + "?stream=true", files=FILES, data=NOISY))
            bodies.append(answer.iter_raw(1 << 16))  # one that is let go of closes its answer
            next(bodies[-1])
        with ThreadPoolExecutor(8) as pool:  # at once, so that both replicas are asked
            refused = list(pool.map(lambda _: asked(KEY), range(8)))
        assert asked(OTHER_KEY).status_code == 200
    assert [(answer.status_code, answer.json()["error"]) for answer in refused] == [(429, "overloaded")] * 8
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    ids = {answer.headers["x-request-id"] for answer in refused}
    told = {line["replica"] for line in app.logged("Ingress") if any(one in line["message"] for one in ids)}
    assert len(told) == 2, "one of them was never asked"


def test_what_a_device_was_rescued_from_is_exported(app: Running, client: httpx.Client) -> None:
    def found() -> list[str]:
        text = client.get(app.url + "/metrics").raise_for_status().text
        return re.findall(r"^ray_lipsync_(?:oom|nonfinite)_total\{.*\} 1\.0$", text, re.MULTILINE)

    end_s = time.monotonic() + 40
    while len(found()) < 2:
        assert time.monotonic() < end_s, "never exported"
        time.sleep(0.5)

"""The application on a real Ray cluster: three nodes on this machine, GPUs as far as Ray is told, CPUs in truth.

Run again with RAY_SERVE_ENABLE_HA_PROXY=1 and RAY_SERVE_THROUGHPUT_OPTIMIZED=1 by test_serve_ray_haproxy.py.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from benchmarks.marked import marked
from benchmarks.serving_cluster import Running, at_work, configuration, free_port, running
from benchmarks.serving_media import ASSETS, cut_wav, noise_png, padded_wav, scaled_jpeg
from lipsync.client import Client, Retries, Transfer
from lipsync.errors import InputCrashedWorker, LipsyncError, NoFace
from lipsync.metrics import METRICS
from lipsync.options import Options
from lipsync.service import LipsyncService
from serve.settings import Settings
from tests import corpus

REPLICAS = {"Preprocessor": 4, "Renderer": 4, "Generator": 4}
WINDOW, SEGMENT_BYTES = 2, 7_000_000
"""Segments of a request under way at once, few so that what stays in the store is seen, and what one has there."""
LARGEST_FACE = 8_000_000
CROP_BYTES = 96 * 96 * 3
PAUSE_S = 0.3
"""Between a caller's requests while something changes: replicas that start want the two cores as well."""
DAMAGED = 40
KILLS = int(os.environ.get("LIPSYNC_KILLS", "6"))
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Ray's own, in this process
    pytest.mark.timeout(300),
    pytest.mark.serial,
]

FACE = scaled_jpeg(ASSETS / "face.jpg", width=640)
VOICE = cut_wav(ASSETS / "voice.wav", seconds=2.0)
POISON = scaled_jpeg(ASSETS / "face_two.jpg", width=640)
MORE_THAN_A_CALL = 5 << 20
"""A call by value carries four megabytes at most in the throughput-optimised transport."""
DEPLOYMENTS = {
    "Generator": {"rolling_update_percentage": 0.5},
    "Renderer": {"ray_actor_options": {"num_cpus": 0.01, "resources": {"on_worker": 0.01}}},  # where the GPUs are
}
STAND_IN = {"num_gpus": 1, "poison": hashlib.sha256(POISON).hexdigest()}


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spool")


@pytest.fixture(scope="module")
def app(spool: Path) -> Iterator[Running]:
    config = configuration(
        replicas=REPLICAS,
        port=free_port(),
        deployments=DEPLOYMENTS,
        args={
            "generator": {"threads": 1},
            "admission": {"requests": 16, "frames": 100_000},
            "spool": {"folder": str(spool)},
            "tuning": {"window": WINDOW},
            "limits": {"image_bytes": LARGEST_FACE, "video_bytes": LARGEST_FACE},
        },
        stand_in=STAND_IN,
    )
    with running(config, workers=2, num_gpus=3) as application:
        yield application


@pytest.fixture(scope="module")
def one_process() -> Iterator[LipsyncService]:
    # as the Generators here: on a CPU the last bit depends on how many threads share the arithmetic
    torch.set_num_threads(1)
    with LipsyncService() as service:
        yield service


@pytest.fixture(scope="module")
def expected(one_process: LipsyncService, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return made_here(one_process, FACE, VOICE, tmp_path_factory.mktemp("expected"))


def made_here(service: LipsyncService, face: bytes, voice: bytes, folder: Path, **options: object) -> bytes:
    service.process(face, voice, folder / "out.mp4", options=Options(**options))  # type: ignore[arg-type]
    return (folder / "out.mp4").read_bytes()


def post(app: Running, face: bytes, voice: bytes, path: str = "/v1/lipsync", **fields: str) -> httpx.Response:
    files = {"face": face, "audio": voice}
    return httpx.post(app.url + path, files=files, data=fields, timeout=120, trust_env=False)


def wait_until(holds: Callable[[], bool], *, within_s: float) -> float:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < within_s, f"not within {within_s} s"
        time.sleep(0.05)
    return time.monotonic() - began


# ---------------------------------------------------------------- answers


def test_the_file_is_byte_for_byte_that_of_one_process(app: Running, expected: bytes) -> None:
    answer = post(app, FACE, VOICE)
    assert answer.status_code == 200, answer.text
    assert answer.content == expected
    assert answer.headers["x-lipsync-frames"] == "50"
    assert answer.headers["x-lipsync-fps"] == "25/1"
    assert answer.headers.get_list("x-request-id", split_commas=True).count(answer.headers["x-request-id"]) == 1
    assert "generate;dur=" in answer.headers["server-timing"]


def test_a_video_with_options_is_byte_for_byte_that_of_one_process(
    app: Running, one_process: LipsyncService, tmp_path: Path
) -> None:
    clip = (ASSETS / "clip.mp4").read_bytes()
    here = made_here(one_process, clip, VOICE, tmp_path, sync_mode="bounce", crf=23, resize_factor=2)
    answer = post(app, clip, VOICE, sync_mode="bounce", crf="23", resize_factor="2")
    assert answer.status_code == 200, answer.text
    assert answer.content == here


def test_the_same_comes_through_the_client_the_stream_and_the_handle(
    app: Running, one_process: LipsyncService, expected: bytes
) -> None:
    from serve.handle import connect

    streamed = b"".join(one_process.stream(FACE, VOICE))
    with Client(app.url) as client:
        assert client.lipsync(FACE, VOICE).data == expected
        assert b"".join(client.stream(FACE, VOICE)) == streamed
        boxes = client.faces(FACE)
    handle = connect()
    assert handle.lipsync(FACE, VOICE) == expected
    assert b"".join(handle.stream(FACE, VOICE)) == streamed
    assert '"boxes":[[' in handle.faces(FACE).replace(" ", "")
    assert boxes


def test_inputs_over_four_megabytes_go_through_the_handle(
    app: Running, one_process: LipsyncService, expected: bytes
) -> None:
    from serve.handle import connect

    face, voice = FACE + bytes(MORE_THAN_A_CALL), padded_wav(VOICE, MORE_THAN_A_CALL)
    handle = connect()
    assert handle.lipsync(face, voice) == expected
    assert b"".join(handle.stream(face, voice)) == b"".join(one_process.stream(FACE, VOICE))
    assert handle.faces(face) == handle.faces(FACE)


def test_errors_keep_their_type_on_every_way_in(app: Running) -> None:
    from serve.handle import connect

    noise = noise_png(320, 240)
    answer = post(app, noise, VOICE)
    assert (answer.status_code, answer.json()["error"]) == (422, "no_face")
    assert "/" not in answer.json()["detail"] and "Traceback" not in answer.text
    with Client(app.url) as client, pytest.raises(NoFace):
        client.lipsync(noise, VOICE)
    with pytest.raises(NoFace) as caught:
        connect().lipsync(noise, VOICE)
    assert type(caught.value) is NoFace


def test_first_bytes_come_after_the_first_short_segment(app: Running) -> None:
    arrived = []
    began = time.monotonic()
    with httpx.stream(
        "POST",
        app.url + "/v1/lipsync?stream=true",
        files={"face": FACE, "audio": cut_wav(ASSETS / "voice.wav", seconds=40)},
        timeout=120,
        trust_env=False,
    ) as answer:
        arrived = [time.monotonic() - began for _ in answer.iter_raw()]
    assert arrived[0] < 0.5 * arrived[-1], "the stream came all at once"


def test_the_address_that_serve_binds_is_known_and_anybody_may_come_in_by_that_one_alone(app: Running) -> None:
    from serve.doors import bound_host, refuse_open_doors

    assert bound_host() == app.config["http_options"]["host"] == "127.0.0.1"
    refuse_open_doors(Settings.model_validate({"auth": {"mode": "off"}}))


# ---------------------------------------------------------------- placement


def test_each_generator_sees_the_gpu_that_it_was_given_and_no_other(app: Running) -> None:
    generators = app.stats("Generator")
    assert len(generators) == REPLICAS["Generator"]
    for replica in generators:
        assert replica["visible_gpus"] == ",".join(replica["ray_gpus"]) and len(replica["ray_gpus"]) == 1
    taken = {(replica["node"], replica["visible_gpus"]) for replica in generators}
    assert len(taken) == len(generators), "two replicas share a GPU"
    assert len({node for node, _ in taken}) == 2


def test_requests_spread_over_the_replicas(app: Running, expected: bytes) -> None:
    frames = [replica["frames"] for replica in app.stats("Generator")]
    segments = [replica["segments"] for replica in app.stats("Renderer")]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(app, FACE, VOICE), range(16)))
    assert all(answer.content == expected for answer in answers)
    assert all(now["frames"] > then for now, then in zip(app.stats("Generator"), frames, strict=True))
    assert all(now["segments"] > then for now, then in zip(app.stats("Renderer"), segments, strict=True))


def test_a_renderer_asks_a_generator_of_its_own_node(app: Running, expected: bytes) -> None:
    rendered, drawn = by_node(app.stats("Renderer")), by_node(app.stats("Generator"))
    for _ in range(8):
        assert post(app, FACE, VOICE).content == expected
    rendered, drawn = by_node(app.stats("Renderer")) - rendered, by_node(app.stats("Generator")) - drawn
    assert rendered.total() == drawn.total() == 8 * 50
    assert rendered == drawn


def by_node(replicas: list[dict[str, Any]]) -> Counter[str]:
    """Frames so far."""
    frames = Counter[str]()
    for replica in replicas:
        frames[replica["node"]] += replica["frames"]
    return frames


def test_the_store_holds_the_inputs_once_and_what_is_under_way(app: Running) -> None:
    clip, voice = (ASSETS / "clip.mp4").read_bytes(), cut_wav(ASSETS / "voice.wav", seconds=16)
    before, highest, over = stored(app), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            highest[0] = max(highest[0], stored(app))

    files = {"face": clip, "audio": voice}
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        answer = httpx.post(
            app.url + "/v1/lipsync", files=files, headers={"x-request-id": "stored-once"}, timeout=240, trust_env=False
        )
        over.set()
        watching.result()
    assert answer.status_code == 200
    frames = int(answer.headers["x-lipsync-frames"])
    assert highest[0] - before > len(clip), "the store was not seen at work"
    nodes = len(app.cluster.list_all_nodes())
    # a node that reads an object of another's keeps a copy of its own
    allowed = nodes * (len(clip) + len(voice)) + WINDOW * SEGMENT_BYTES
    assert highest[0] - before <= allowed
    assert frames * 2 * CROP_BYTES > allowed, "all crops and patches of the request would have been allowed to stay"
    wait_until(lambda: stored(app) <= before + 1_000_000, within_s=30)
    said = (line["message"] for line in app.logged("Ingress") if "stored-once" in line["message"])
    assert [json.loads(message)["puts"] for message in said] == [1]


def stored(app: Running) -> int:
    """Bytes in all nodes' object stores."""
    from ray._private.internal_api import node_stats

    raylets = app.cluster.list_all_nodes()
    return sum(
        node_stats(node.node_ip_address, node.node_manager_port).store_stats.object_store_bytes_used for node in raylets
    )


# ---------------------------------------------------------------- callers who go, and bad ones


def test_a_caller_that_goes_away_stops_its_work_down_to_the_batcher(app: Running, spool: Path) -> None:
    def waiting() -> bool:
        return any(r["waiting_frames"] or r["is_drawing"] for r in app.stats("Generator")) or any(
            r["under_way"] for r in app.stats("Renderer")
        )

    endless = cut_wav(ASSETS / "voice.wav", seconds=120)
    before = sum(r["frames"] for r in app.stats("Generator"))
    orders = {"x-request-disconnect-disabled": "?1", "x-request-timeout-seconds": "0"}  # Ray would obey anybody's
    asked = httpx.Request("POST", app.url + "/v1/lipsync", files={"face": FACE, "audio": endless}, headers=orders)
    caller = http.client.HTTPConnection(asked.url.host, asked.url.port)
    caller.request("POST", asked.url.raw_path.decode(), body=asked.read(), headers=dict(asked.headers))
    wait_until(lambda: sum(r["frames"] for r in app.stats("Generator")) > before, within_s=60)
    caller.close()
    gone_s = time.time()
    wait_until(lambda: not waiting(), within_s=15)
    # by the replicas' own account: asking eight of them takes a busy machine a second
    drawn_s = [batch[-1] for r in app.stats("Generator") for batch in r["batches"]]
    took_s = max(*drawn_s, *(r["left_s"] for r in app.stats("Renderer"))) - gone_s
    assert took_s < 2, f"work went on for {took_s:.1f} s"
    assert sum(r["frames"] for r in app.stats("Generator")) - before < 3000 / 2, "there was work left to stop"
    wait_until(lambda: not list(spool.iterdir()), within_s=5)


def test_a_request_is_known_by_the_id_that_it_came_with(app: Running) -> None:
    for sent in ("mine-1", "x" * 129, "a b", "<script>"):
        answer = httpx.post(app.url + "/v1/lipsync", headers={"x-request-id": sent}, timeout=60, trust_env=False)
        assert answer.status_code == 400
        known = answer.json()["request_id"]
        assert answer.headers.get_list("x-request-id") == [known]
        assert (known == sent) == (sent == "mine-1") and re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", known)
        wait_until(lambda known=known: known in app.log("Ingress"), within_s=5)  # type: ignore[misc]
        assert sent == known or sent not in app.log("Ingress")


@contextmanager
def no_process_dies(app: Running) -> Iterator[None]:
    names = ("Ingress", "Preprocessor", "Renderer", "Generator", "Admission")
    before = {name: sorted(p.pid for p in app.replicas(name)) for name in names}
    yield
    assert {name: sorted(p.pid for p in app.replicas(name)) for name in names} == before


def test_bad_requests_are_answered_in_words_and_no_process_dies(app: Running) -> None:
    bodies = [
        {"content": b"x" * 1000, "headers": {"content-type": "multipart/form-data; boundary=x"}},
        {"content": b"", "headers": {"content-type": "text/plain"}},
        {"files": {"face": FACE}},
        {"files": {"face": b"", "audio": VOICE}},
        {"files": {"face": FACE[:5000], "audio": VOICE}},
        {"files": {"face": FACE, "audio": VOICE[:30]}},
        {"files": {"face": VOICE, "audio": FACE}},
        {"files": {"face": FACE, "audio": VOICE}, "data": {"crf": "1000"}},
        {"files": {"face": FACE, "audio": VOICE}, "data": {"nonsense": "1"}},
        {"files": {"face": FACE, "audio": VOICE}, "data": {"options": "{"}},
        {"files": {"face": FACE + bytes(LARGEST_FACE), "audio": VOICE}},
    ]
    with no_process_dies(app):
        for body in bodies:
            answer = httpx.post(app.url + "/v1/lipsync", timeout=60, trust_env=False, **body)
            assert 400 <= answer.status_code < 500, (body.keys(), answer.status_code, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["error"]
        assert answer.json()["error"] == "input_too_large", "the last of them"


def test_strange_media_is_answered_or_refused_and_no_process_dies(app: Running) -> None:
    voice, port, secret = cut_wav(ASSETS / "voice.wav", seconds=0.4), 9, "/nonexistent/secret.mov"
    pairs = [(name, make(), voice) for name, make in corpus.faces(port, secret).items()]
    pairs += [(name, FACE, make()) for name, make in corpus.voices(port, secret).items()]
    pairs += [(name, make(), voice) for name, make in corpus.scripts(port, secret).items()]
    damaged = [(f"damaged {role}", role, data) for role, data in corpus.mutants(DAMAGED)]
    pairs += [(name, data, voice) if role == "face" else (name, FACE, data) for name, role, data in damaged]
    with no_process_dies(app), ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda pair: (pair[0], post(app, pair[1], pair[2], preset="ultrafast")), pairs))
    assert [(name, answer.text) for name, answer in answers if answer.status_code >= 500] == []
    refused = [answer for _, answer in answers if answer.status_code != 200]
    assert 50 < len(refused) < len(answers) - DAMAGED / 10
    assert all(answer.headers["content-type"] == "application/problem+json" for answer in refused)


# ---------------------------------------------------------------- load that is too much, and change under load


def test_too_much_is_refused_at_once_and_politely(app: Running, expected: bytes) -> None:
    def timed(_: int) -> tuple[httpx.Response, float]:
        began = time.monotonic()
        return post(app, FACE, VOICE), time.monotonic() - began

    time.sleep(1)  # an answer does not wait for the leaving; a place that stays taken would be seen
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(timed, range(40)))
    codes = [answer.status_code for answer, _ in answers]
    assert set(codes) == {200, 503}, codes
    slowest_s = max(took_s for answer, took_s in answers if answer.status_code == 200)
    for answer, took_s in answers:
        if answer.status_code == 503:
            assert took_s < slowest_s / 2, "who is refused does not wait; 40 at once are more than two cores can greet"
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"] == "overloaded"
        else:
            assert answer.content == expected
    assert codes.count(200) >= 16


@dataclass
class Traffic:
    """Requests that go on, and what became of them."""

    right: int = 0
    helped: int = 0
    """Attempts of clients that another followed."""
    wrong: list[str] = field(default_factory=list)


@contextmanager
def traffic(app: Running, expected: bytes, *, callers: int = 3, retries: Retries | None = None) -> Iterator[Traffic]:
    seen, stop, numbers = Traffic(), threading.Event(), count()

    def note(transfer: Transfer) -> None:
        seen.helped += transfer.failed is not None

    def call() -> None:
        with Client(app.url, retries=retries or Retries(attempts=1), timeout_s=120) as client:
            while not stop.is_set():
                try:
                    # other bytes of the same picture each time: no cache spares a Preprocessor its work
                    if client.lipsync(marked(FACE, next(numbers)), VOICE, progress=note).data == expected:
                        seen.right += 1
                    else:
                        seen.wrong.append("other bytes")
                except LipsyncError as error:
                    seen.wrong.append(f"{error.slug}: {error.detail}")
                stop.wait(PAUSE_S)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        if seen.wrong:
            print(*app.complaints("Ingress")[-20:], sep="\n")


def wait_for_answers(seen: Traffic, more: int) -> None:
    before = seen.right
    wait_until(lambda: seen.right >= before + more or bool(seen.wrong), within_s=120)


def kill_one(app: Running, name: str) -> None:
    """One at a time: the last one killed has been replaced. The one that is at work."""
    wait_until(lambda: len(app.replicas(name)) >= REPLICAS.get(name, 1), within_s=60)
    os.kill(at_work(app.replicas(name)).pid, signal.SIGKILL)


def test_settings_and_replicas_change_under_traffic_without_an_error(app: Running, expected: bytes) -> None:
    port = app.config["http_options"]["port"]
    pids = sorted(p.pid for p in app.replicas("Generator"))
    lingering = DEPLOYMENTS | {"Generator": {"user_config": {"linger_s": 0.02, "turn_frames": 64}}}
    args = app.config["applications"][0]["args"]
    with traffic(app, expected) as seen:
        tuned = configuration(
            replicas=REPLICAS,
            port=port,
            args=app.config["applications"][0]["args"],
            stand_in=STAND_IN,
            deployments=lingering,
        )
        app.deploy(tuned)
        assert sorted(p.pid for p in app.replicas("Generator")) == pids, "batching settings need no restart"
        once = configuration(
            replicas=dict.fromkeys(REPLICAS, 1),
            port=port,
            args=args | {"deadline_s": 500},
            stand_in=STAND_IN,
            deployments=DEPLOYMENTS,
        )
        replaced = [*REPLICAS, "Ingress"]
        before = {p.pid for name in replaced for p in app.replicas(name)}
        app.deploy(once)
        wait_until(lambda: all(len(app.replicas(name)) == 1 for name in REPLICAS), within_s=60)
        assert not before & {p.pid for name in replaced for p in app.replicas(name)}, (
            "a change of args replaces them all"
        )
        assert post(app, FACE, VOICE).content == expected, "one replica of each gives what four of each give"
        # as it was, but for the deadline: the replicas that are there may stay
        app.deploy(
            configuration(
                replicas=REPLICAS,
                port=port,
                args=args | {"deadline_s": 500},
                stand_in=STAND_IN,
                deployments=DEPLOYMENTS,
            )
        )
    assert seen.wrong == []
    assert seen.right >= 20


# ---------------------------------------------------------------- deaths


def test_replicas_may_die_under_requests_and_nobody_notices(app: Running, expected: bytes) -> None:
    before = app.done_again()
    with traffic(app, expected) as seen:
        for number in range(KILLS):
            kill_one(app, ("Generator", "Renderer", "Preprocessor")[number % 3])
            wait_for_answers(seen, 1)
        for _ in range(KILLS):  # a Preprocessor's call is short: the one that was at work may be done when it is killed
            if prepared_again(app, before):
                break
            kill_one(app, "Preprocessor")
            wait_for_answers(seen, 1)
    assert seen.wrong == []
    assert (app.done_again() - before)["render"] >= KILLS / 3, "Generators and Renderers died idle"
    assert prepared_again(app, before), "Preprocessors died idle"


def prepared_again(app: Running, before: Counter[str]) -> int:
    """Calls of Preprocessors that another one did once more since then."""
    again = app.done_again() - before
    return sum(again[method] for method in ("open", "measure", "voice", "detect"))


def test_an_input_that_kills_its_workers_is_refused_and_its_neighbours_are_served(
    app: Running, expected: bytes
) -> None:
    with (
        traffic(app, expected, callers=1) as seen,
        Client(app.url, retries=Retries(attempts=1), timeout_s=120) as client,
    ):
        with pytest.raises(InputCrashedWorker):
            client.lipsync(POISON, VOICE)
        began = time.monotonic()
        with pytest.raises(InputCrashedWorker):
            client.lipsync(POISON, VOICE)
        assert time.monotonic() - began < 5
    assert seen.wrong == []


def test_every_documented_metric_of_what_happened_is_exported(app: Running) -> None:
    """Callers have left, and pieces were done again, by now."""

    def missing() -> list[str]:
        text = httpx.get(app.url + "/metrics", timeout=30, trust_env=False).text
        never = ("lipsync_oom_total", "lipsync_nonfinite_total")  # see test_serve_ray_streams.py
        return [m.name for m in METRICS if m.name not in never and f"ray_{m.name}" not in text]

    try:
        wait_until(lambda: not missing(), within_s=40)
    except AssertionError:
        pytest.fail(f"never exported: {missing()}")


def test_an_ingress_may_die_and_the_clients_own_retry_succeeds(app: Running, expected: bytes) -> None:
    with traffic(app, expected, retries=Retries()) as seen:
        wait_for_answers(seen, 1)
        kill_one(app, "Ingress")
        wait_for_answers(seen, 3)
    assert seen.wrong == []
    assert seen.helped, "it had no request under way"


def test_a_worker_node_may_die_under_requests_and_nobody_notices(app: Running, expected: bytes) -> None:
    with traffic(app, expected) as seen:
        wait_for_answers(seen, 1)
        app.cluster.remove_node(next(iter(app.cluster.worker_nodes)), allow_graceful=False)
        wait_for_answers(seen, 6)
    assert seen.wrong == []

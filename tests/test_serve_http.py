"""The HTTP interface over real stages in this process: what it answers, how it ends, and that it leaves nothing."""

import asyncio
import errno
import json
import logging
import os
import re
import time
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path

import httpx
import jsonschema
import pytest
from fastapi.openapi.models import OpenAPI
from fastapi.routing import APIRoute
from ray.serve._private.http_util import _apply_middlewares

from lipsync.detection import detector_from_files
from lipsync.ending import EndingReader
from lipsync.errors import DeadlineExceeded, EngineError, LipsyncError, NoFace
from lipsync.faces.given import tracks_from_json
from lipsync.local import LocalStages
from lipsync.media.source import Blob
from lipsync.metrics import CANCELLED, METRICS, REJECTED, REQUESTS_RUNNING, REQUESTS_WAITING
from lipsync.options import Limits, Options
from lipsync.output import read_bytes, stream_bytes
from lipsync.packaged import demo_face
from lipsync.pipeline import Job, synchronise
from lipsync.plan import Tuning
from serve.auth import Keys
from serve.form import options_of
from serve.http import Http
from serve.preprocessor import Preprocessor
from serve.renderer import Renderer
from serve.request_id import middlewares
from serve.requests import Desk
from serve.settings import Settings
from serve.stages import Handles
from tests import corpus
from tests.media_factory import audio_bytes, image_bytes, video_bytes
from tests.serve_fakes import FakeBooks, LocalHandle, Speaking
from tests.test_pipeline import pictures_of

KEY = "a-key-of-many-letters"
OPEN = {"/healthz", "/readyz", "/docs", "/openapi.json"}
TUNING = Tuning(segment_frames=(4, 8), window=3)
BASE = Settings.model_validate(
    {
        "auth": {"mode": "off"},
        "admission": {"requests": 6, "frames": 2000, "lease_s": 60},
        "tuning": {"segment_frames": [4, 8], "window": 3},
    }
)
FACE = video_bytes(frames=12, size=(160, 120))
STILL = image_bytes(format="png", size=(160, 120))
VOICE = audio_bytes(seconds=0.8)
LONG_VOICE = audio_bytes(seconds=30)
MODEL = {
    "id": "wav2lip", "checkpoint": "a stand-in", "device": "none", "precision": "fp32", "batch_size": 8, "buckets": [4, 8], "compiled": False,
    "parameters": 1, "start_up_s": 0.1,
}  # fmt: skip
BOX = {"box": "10 110 30 130", "preset": "ultrafast"}


@pytest.fixture(scope="module")
def speaking():
    return Speaking()


@pytest.fixture(scope="module")
def replicas(speaking):
    preprocessor, renderer = Preprocessor(BASE), Renderer(BASE, LocalHandle(speaking))
    yield Handles(LocalHandle(preprocessor), LocalHandle(renderer))
    preprocessor._stages.close()
    renderer._stages.close()


class Seen:
    """Meters that remember."""

    def __init__(self):
        self.added: dict[tuple[str, str], float] = {}
        self.values: dict[str, float] = {}

    def add(self, metric, amount=1.0, *, label=""):
        self.added[metric.name, label] = self.added.get((metric.name, label), 0) + amount

    def set(self, metric, value):
        self.values[metric.name] = value

    def observe(self, metric, value, *, label=""):
        self.added[metric.name, label] = self.added.get((metric.name, label), 0) + 1


class Served:
    """One application: the desk, its books, its spool, and a client."""

    def __init__(self, settings: Settings, replicas: Handles, root, models, is_whole):
        self.books, self.meters = FakeBooks(settings.admission), Seen()
        self.desk = Desk(settings, replicas, self.books, self.meters)
        self.api = Http(settings, self.desk, Keys(settings.auth), models=models, is_whole=is_whole).api()
        self.root = root
        self.behind(self.api)

    def behind(self, app) -> None:
        """Have the client talk to this ASGI application."""
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1", timeout=60)

    async def post(
        self, path="/v1/lipsync", *, face: bytes | None = FACE, audio: bytes | None = VOICE, **more
    ) -> httpx.Response:
        files = {name: ("../../x", data) for name, data in (("face", face), ("audio", audio)) if data is not None}
        return await self.client.post(path, files=files, **more)

    async def rest(self) -> None:
        """Wait until everything is let go, at most two seconds, and hold that it was."""
        began_s = time.monotonic()
        while self._is_busy() and time.monotonic() - began_s < 2:
            await asyncio.sleep(0.01)
        assert list(self.root.iterdir()) == [], "nothing is left in the spool"
        assert self.desk._spool.byte_count == 0
        assert self.books.real._books.requests == 0 and self.desk.gate._held == {}
        assert self.meters.values.get(REQUESTS_RUNNING.name, 0) == self.meters.values.get(REQUESTS_WAITING.name, 0) == 0

    def _is_busy(self) -> bool:
        return bool(
            self.desk._closing or self.books.real._books.requests or self.meters.values.get(REQUESTS_RUNNING.name)
        )


@pytest.fixture
def serve(replicas, speaking, tmp_path, monkeypatch):
    monkeypatch.setattr("serve.stages._FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("serve.stages._LONGEST_PAUSE_S", 0.01)
    speaking.reset()

    async def models():
        return [MODEL]

    async def always():
        return True

    @asynccontextmanager
    async def serving(models=models, is_whole=always, **changed):
        root = tmp_path / "spool"
        settings = Settings.model_validate(BASE.model_dump() | {"spool": {"folder": str(root)}} | changed)
        served = Served(settings, replicas, root, models, is_whole)
        async with served.client:
            yield served
        await served.rest()
        if served.desk.gate._renewing is not None:
            served.desk.gate._renewing.cancel()

    return serving


@pytest.fixture(scope="module")
def alone(speaking):
    """The same stages in one process, without anything of the application."""
    stages = LocalStages(
        speaking,
        create_detector=lambda name: detector_from_files(None, None, "cpu", 16, name),
        workers=2,
        cache_entries=0,
    )
    yield stages
    stages.close()


def job(face=FACE, voice=VOICE, **options) -> Job:
    return Job(Blob.of(face, limit_bytes=10**8), Blob.of(voice, limit_bytes=10**8), Options(**options), Limits())


def problem(response: httpx.Response, status: int, slug: str) -> dict:
    body = response.json()
    assert (response.status_code, body["error"]) == (status, slug), body
    assert response.headers["content-type"] == "application/problem+json"
    assert set(body) == {"type", "title", "status", "detail", "error", "request_id"} and body["status"] == status
    assert ("retry-after" in response.headers) == (status in (429, 503))
    assert_says_nothing_of_ours(response.text)
    return body


def assert_says_nothing_of_ours(text: str) -> None:
    for hint in ("Traceback", ".py", "/tmp", "spool-", "127.0.0.1", "0x", "site-packages"):
        assert hint not in text, text


def ended(data: bytes) -> tuple[bytes, object]:
    """A stream's media, and what its last box says: what the result came to, or the error."""
    reader = EndingReader()
    media = reader.feed(data)
    try:
        return media, reader.finish()
    except LipsyncError as error:
        return media, error


# ---------------------------------------------------------------- the same bytes as in one process


@pytest.mark.parametrize("face", [FACE, STILL], ids=["video", "still"])
async def test_a_whole_result_is_byte_for_byte_that_of_one_process(serve, alone, face):
    async with serve() as served:
        response = await served.post(face=face, data=BOX | {"fps": "29.97"})
    wanted = await read_bytes(
        synchronise(job(face, box=(10, 110, 30, 130), preset="ultrafast", fps="29.97"), alone, tuning=TUNING)
    )
    assert response.status_code == 200, response.text
    assert response.content == wanted
    assert len(pictures_of(response.content)) == 24


async def test_a_streamed_result_is_too_and_says_that_it_is_whole(serve, alone):
    async with serve() as served:
        response = await served.post(
            "/v1/lipsync?stream=true", data={"options": json.dumps({"box": [10, 110, 30, 130], "preset": "ultrafast"})}
        )
    wanted = [
        piece
        async for piece in stream_bytes(
            synchronise(job(box=(10, 110, 30, 130), preset="ultrafast"), alone, tuning=TUNING)
        )
    ]
    media, ending = ended(response.content)
    assert media == b"".join(wanted)
    assert (ending.frames, ending.fps) == (20, Fraction(25))
    assert {"open", "voice", "detect", "generate", "encode", "first", "total"} <= set(ending.timings_ms)


async def test_the_headers_say_what_the_result_came_to(serve):
    async with serve() as served:
        response = await served.post(data=BOX)
        assert response.headers["content-type"] == "video/mp4"
        assert int(response.headers["content-length"]) == len(response.content)
        assert (response.headers["x-lipsync-frames"], response.headers["x-lipsync-fps"]) == ("20", "25/1")
        timing = dict(re.findall(r"(\w+);dur=([0-9.]+)", response.headers["server-timing"]))
        assert {"open", "voice", "detect", "decode", "generate", "encode", "first", "total"} <= set(timing)
        assert 0 < float(timing["first"]) <= float(timing["total"])
        assert {name for name, _ in served.meters.added} <= {metric.name for metric in METRICS}
        assert served.meters.added["lipsync_request_seconds", ""] == 1


async def test_one_line_of_the_log_tells_of_each_request(serve, caplog):
    with caplog.at_level(logging.INFO, "ray.serve"):
        async with serve() as served:
            await served.post(data=BOX, headers={"X-Request-Id": "made"})
            await served.post(headers={"X-Request-Id": "refused"})
            await served.post("/v1/faces", face=demo_face(), audio=None, headers={"X-Request-Id": "looked"})
    lines = [json.loads(record.message) for record in caplog.records if '"event": "request"' in record.message]
    made, refused, looked = lines
    assert [line["request_id"] for line in lines] == ["made", "refused", "looked"]
    assert (made["frames"], made["puts"], looked["frames"], looked["puts"]) == (20, 1, 1, 1)
    assert {"first_ms", "total_ms", "encode_ms"} <= set(made)
    assert refused["error"] == "no_face" and {"open_ms", "detect_ms", "total_ms"} <= set(looked)
    assert "first_ms" not in looked, "there is no fragment"


async def test_a_search_for_faces_says_what_it_came_to_and_is_measured_like_any_request(serve, caplog):
    async with serve() as served:
        with caplog.at_level(logging.INFO, "ray.serve"):
            found = await served.post("/v1/faces", face=demo_face(), audio=None)
        boxes, added = found.json()["boxes"], served.meters.added
        counts = [found.headers[f"x-lipsync-{name}"] for name in ("frames", "faces", "fps")]
        assert counts == [str(len(boxes)), str(sum(box is not None for box in boxes)), "25/1"]
        timing = dict(re.findall(r"(\w+);dur=([0-9.]+)", found.headers["server-timing"]))
        assert set(timing) == {"open", "detect", "total"}
        (line,) = [json.loads(record.message) for record in caplog.records if '"event"' in record.message]
        assert {name: f"{line[name + '_ms']:.1f}" for name in timing} == timing, "one report, told twice"
        assert added["lipsync_request_seconds", ""] == added["lipsync_stage_seconds", "detect"] == 1
        assert ("lipsync_time_to_first_fragment_seconds", "") not in added


async def test_a_search_for_faces_is_seen_while_it_runs_and_counted_where_its_caller_goes(serve, monkeypatch):
    async def endless(*_, **__):
        await asyncio.sleep(60)

    monkeypatch.setattr("lipsync.pipeline.find_track", endless)
    async with serve() as served:
        task = asyncio.create_task(served.post("/v1/faces", audio=None))
        while not served.meters.values.get(REQUESTS_RUNNING.name):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await served.rest()
        assert served.meters.added == {(CANCELLED.name, ""): 1}


async def test_found_faces_are_taken_back_as_boxes_and_give_the_same_video(serve):
    face = demo_face()
    async with serve() as served:
        found = await served.post("/v1/faces", face=face, audio=None)
        assert found.headers["content-type"] == "application/json"
        short, data = audio_bytes(seconds=0.3), {"preset": "ultrafast"}
        document = found.json()
        sizes = {"boxes": json.dumps(document["boxes"]), "boxes_size": f"{document['width']} {document['height']}"}
        answers = [
            await served.post(face=face, audio=short, data=data | more) for more in ({}, {"boxes": found.text}, sizes)
        ]
    assert [answer.status_code for answer in answers] == [200] * 3, answers[1].text
    assert answers[0].content == answers[1].content == answers[2].content


# ---------------------------------------------------------------- what goes wrong is said


async def test_no_face_says_how_many_frames_were_looked_at(serve):
    async with serve() as served:
        assert "frame" in problem(await served.post(), 422, "no_face")["detail"]
        problem(await served.post("/v1/lipsync?stream=true"), 422, "no_face")
        problem(await served.post("/v1/faces", audio=None), 422, "no_face")
        assert served.meters.added[REJECTED.name, "no_face"] == 3


@pytest.mark.parametrize(
    ("given", "status", "slug"),
    [
        ({"audio": None}, 400, "malformed_request"), ({"face": None}, 400, "malformed_request"), ({"data": {"cfr": "20"}}, 400, "malformed_request"),
        ({"data": {"options": '{"cfr": 20}'}}, 400, "invalid_option"), ({"data": {"crf": "99"}}, 400, "invalid_option"),
        ({"face": b"<!doctype html><html>"}, 415, "media_unsupported"), ({"face": b""}, 422, "media_unreadable"), ({"audio": STILL}, 422, "no_audio_stream"),
        ({"face": VOICE}, 422, "no_video_stream"), ({"data": {"detector": "s3fd"}}, 400, "detector_unavailable"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
async def test_a_wrong_request_gets_a_typed_answer(serve, given, status, slug):
    async with serve() as served:
        problem(await served.post(**given), status, slug)


async def test_a_body_that_is_no_form_and_a_query_that_is_no_truth_are_the_callers_fault(serve):
    async with serve() as served:
        problem(await served.client.post("/v1/lipsync", json={"face": 1}), 400, "malformed_request")
        problem(await served.client.post("/v1/faces"), 400, "malformed_request")
        wrong = problem(await served.post("/v1/lipsync?stream=perhaps"), 400, "malformed_request")
        assert "stream" in wrong["detail"]


async def test_too_many_bytes_are_refused_before_they_are_read(serve):
    async with serve(limits={"video_bytes": 50_000, "image_bytes": 1, "audio_bytes": 1}) as served:
        declared = {"content-type": "multipart/form-data; boundary=x", "content-length": "999999999"}

        async def body():
            raise AssertionError("read, though its length was declared")
            yield b""

        problem(await served.client.post("/v1/lipsync", content=body(), headers=declared), 413, "input_too_large")
        problem(await served.post(face=FACE + bytes(60_000)), 413, "input_too_large")
        for strange in ("²", "9" * 5000, "-1", "1e9", ""):
            scope_headers = [
                (b"content-type", declared["content-type"].encode()),
                (b"content-length", strange.encode("latin-1")),
            ]
            assert (await raw(served.api, headers=scope_headers))[0] == 400


async def test_limits_are_told_with_the_limits_own_slug(serve):
    async with serve(limits={"duration_s": 0.5}) as served:
        problem(await served.post(data=BOX), 422, "limit_exceeded")


async def test_unknown_paths_and_methods_are_problems_too(serve):
    async with serve() as served:
        missing = problem(await served.client.get("/v2/lipsync", headers={"X-Request-Id": "abc"}), 404, "not_found")
        assert missing["request_id"] == "abc"
        response = await served.client.get("/v1/lipsync")
        problem(response, 405, "method_not_allowed")
        assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("sent", "kept"), [("my-id.1:2_3", True), ("x" * 129, False), ("a b", False), ("<script>", False), ("", False)]
)
async def test_a_request_keeps_its_id_where_that_is_harmless(serve, sent, kept):
    async with serve() as served:
        body = problem(await served.post(audio=None, headers={"X-Request-Id": sent}), 400, "malformed_request")
        assert (body["request_id"] == sent) == kept
        assert re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", body["request_id"])


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ([b"my-id.1:2_3"], True), ([], False), ([b""], False), ([b"x" * 129], False), ([b"a b"], False), ([b"\xff\xfe"], False),
        ([b"mine", b"<other>"], True), ([b"<script>", b"mine"], False),
    ],
    ids=repr,
)  # fmt: skip
async def test_header_body_and_log_know_a_request_by_one_id_behind_rays_own_layer(serve, caplog, sent, kept):
    async with serve() as served:
        served.behind(_apply_middlewares(served.api, middlewares()))
        with caplog.at_level(logging.INFO, "ray.serve"):
            answer = await served.post(audio=None, headers=[(b"X-Request-Id", value) for value in sent])
        known = problem(answer, 400, "malformed_request")["request_id"]
        assert answer.headers.get_list("x-request-id") == [known]
        assert (sent[:1] == [known.encode()]) == kept and re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", known)
        (line,) = [json.loads(record.message) for record in caplog.records if '"event"' in record.message]
        assert line["request_id"] == known


async def test_an_error_that_nobody_foresaw_is_in_the_log_alone(serve, caplog):
    async def broken():
        raise RuntimeError("/srv/secret at 10.0.0.7")

    async with serve(models=broken) as served:
        body = problem(await served.client.get("/v1/models"), 500, "error")
        assert "secret" not in json.dumps(body) and body["request_id"] in body["detail"]
    assert "/srv/secret" in caplog.text


async def test_a_result_that_is_too_large_ends_with_words(serve):
    async with serve(result_bytes=3000) as served:
        problem(await served.post(data=BOX), 422, "result_too_large")
        response = await served.post("/v1/lipsync?stream=true", data=BOX)
        told = response.json()["error"] if response.status_code != 200 else ended(response.content)[1].slug
        assert told == "result_too_large"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_disk_that_fills_under_the_result_is_overload_and_no_caller_who_went(serve, monkeypatch, number):
    opened, real = [], Path.open

    def full(path, *args, **named):
        if path.name == "fragments.mp4":
            opened.append(path)
            if len(opened) == 2:
                raise OSError(number, os.strerror(number))
        return real(path, *args, **named)

    monkeypatch.setattr(Path, "open", full)
    async with serve() as served:
        answer = await served.post(audio=LONG_VOICE, data=BOX)
        assert "room" in problem(answer, 503, "overloaded")["detail"]
        await served.rest()
        assert served.meters.added[REJECTED.name, "overloaded_spool"] == 1
        assert (CANCELLED.name, "") not in served.meters.added
        assert ("lipsync_request_seconds", "") not in served.meters.added


async def test_a_request_that_takes_too_long_ends_with_words(serve, speaking):
    speaking.call_s = 5
    async with serve(deadline_s=0.4) as served:
        problem(await served.post(data=BOX), 504, "deadline_exceeded")


async def test_an_upload_that_takes_too_long_ends_too(serve):
    async def slowly():
        yield b"--x\r\n"
        await asyncio.sleep(30)

    async with serve(deadline_s=0.2) as served:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        began_s = time.monotonic()
        problem(await served.client.post("/v1/lipsync", content=slowly(), headers=headers), 504, "deadline_exceeded")
        assert time.monotonic() - began_s < 2


@pytest.mark.parametrize(
    ("fault", "slug"),
    [(EngineError("boom"), "worker_lost"), (NoFace("none"), "no_face"), (RuntimeError("/srv/secret"), "error")],
    ids=lambda value: type(value).__name__,
)
async def test_a_failure_after_the_first_bytes_is_said_by_the_last_box(serve, speaking, fault, slug):
    async with serve() as served:
        speaking.fault, speaking.fault_after = fault, 12
        response = await served.post(
            "/v1/lipsync?stream=true", audio=LONG_VOICE, data=BOX, headers={"X-Request-Id": "my-id"}
        )
        assert response.status_code == 200
        media, error = ended(response.content)
        assert media.startswith(b"\x00\x00\x00") and b"ftyp" in media[:12]
        assert error.slug == slug
        assert b"secret" not in response.content and b'"request_id":"my-id"' in response.content[-300:]
        assert served.meters.added[REJECTED.name, slug] == 1
        speaking.reset()
        speaking.fault = fault
        whole = await served.post(data=BOX)
        assert whole.json()["error"] == slug, "before the first bytes it is an ordinary answer"


async def test_the_deadline_ends_a_stream_with_words(serve, speaking):
    speaking.call_s = 0.1
    async with serve(deadline_s=1.0) as served:
        response = await served.post("/v1/lipsync?stream=true", audio=LONG_VOICE, data=BOX)
        assert isinstance(ended(response.content)[1], DeadlineExceeded)


# ---------------------------------------------------------------- admission and keys


async def test_what_is_too_much_is_refused_at_once_with_a_time_to_come_back(serve, speaking):
    speaking.call_s = 0.3
    async with serve(admission={"requests": 1, "retry_after_s": 3}) as served:
        running = asyncio.create_task(served.post(data=BOX))
        await asyncio.sleep(0.15)
        began_s = time.monotonic()
        refused = await served.post(data=BOX)
        assert time.monotonic() - began_s < 0.1
        problem(refused, 503, "overloaded")
        assert refused.headers["retry-after"] == "3"
        counted = dict(served.meters.added)
        assert "under way" in problem(await served.client.get("/readyz"), 503, "overloaded")["detail"]
        assert served.meters.added == counted, "who asks was refused nothing"
        assert (await running).status_code == 200
        await served.rest()
        assert (await served.client.get("/readyz")).text == "ready\n"
        assert served.meters.added[REJECTED.name, "overloaded_requests"] >= 1


async def test_it_is_not_ready_while_some_kind_of_worker_does_not_run(serve):
    async def no():
        return False

    async with serve(is_whole=no) as served:
        assert "not running" in problem(await served.client.get("/readyz"), 503, "overloaded")["detail"]
        assert (await served.client.get("/healthz")).text == "ok\n"


async def test_frames_are_admitted_by_what_the_headers_tell(serve, speaking):
    speaking.call_s = 0.3
    async with serve(admission={"requests": 5, "frames": 30}) as served:
        running = asyncio.create_task(served.post(data=BOX))
        await asyncio.sleep(0.2)
        problem(await served.post(audio=LONG_VOICE, data=BOX), 503, "overloaded")
        assert (await running).status_code == 200
        await served.rest()
        speaking.call_s = 0
        assert (await served.post(audio=audio_bytes(seconds=2), data=BOX)).status_code == 200, (
            "alone, any length is taken"
        )


async def test_every_route_but_four_wants_a_key(serve, monkeypatch):
    monkeypatch.setenv("LIPSYNC_API_KEYS", KEY)
    async with serve(auth={"mode": "keys"}) as served:
        seen, described = set(), served.api.openapi()
        assert (
            described["components"]["securitySchemes"]["apiKey"].items() >= {"type": "http", "scheme": "bearer"}.items()
        )
        for path, (operation,) in ((path, item.values()) for path, item in described["paths"].items()):
            assert operation.get("security", []) == ([] if path in OPEN else [{"apiKey": []}]), path
            assert ("401" in operation["responses"]) == (path not in OPEN)
        for route in served.api.routes:
            for method in route.methods - {"HEAD"}:
                response = await served.client.request(method, route.path)
                if route.path in OPEN:
                    assert response.status_code == 200, route.path
                else:
                    problem(response, 401, "unauthorized")
                    assert response.headers["www-authenticate"] == "Bearer"
                seen.add(route.path)
        assert seen == OPEN | {"/v1/lipsync", "/v1/faces", "/v1/models", "/v1/limits", "/metrics"}
        assert served.books.calls.count("enter") == 0, "nobody without a key is let into the books"
        known = {"Authorization": f"Bearer {KEY}"}
        assert (await served.client.get("/v1/models", headers=known)).json() == {"models": [MODEL]}
        assert (await served.post(data=BOX, headers=known)).status_code == 200


async def test_a_key_has_its_own_bound(serve, monkeypatch, speaking):
    monkeypatch.setenv("LIPSYNC_API_KEYS", f"{KEY},{KEY}-2")
    speaking.call_s = 0.3
    async with serve(auth={"mode": "keys"}, admission={"requests_per_key": 1}) as served:
        mine, other = ({"Authorization": f"Bearer {KEY}{more}"} for more in ("", "-2"))
        running = asyncio.create_task(served.post(data=BOX, headers=mine))
        await asyncio.sleep(0.15)
        problem(await served.post(data=BOX, headers=mine), 429, "overloaded")
        assert (await served.post(data=BOX, headers=other)).status_code == 200
        assert (await running).status_code == 200


async def test_limits_say_what_may_come_in(serve):
    async with serve() as served:
        limits = (await served.client.get("/v1/limits")).json()
        assert limits["inputs"]["duration_s"] == 600 and limits["under_way"]["requests"] == 6
        assert limits["deadline_s"] == BASE.deadline_s and limits["result_bytes"] == BASE.result_bytes
        assert (await served.client.get("/healthz")).text == "ok\n"


# ---------------------------------------------------------------- callers who go away


async def raw(api, *, headers=(), body=b"", path="/v1/lipsync", spec="2.3", take=None, gone_after: int | None = None):
    """One request by ASGI itself: a caller who takes ``gone_after`` messages and is not there for more."""
    gone, messages, sent = asyncio.Event(), [], False

    async def receive():
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if gone_after is not None and len(messages) >= gone_after:
            gone.set()
            if spec >= "2.4":
                raise OSError("the caller has gone")
            await asyncio.sleep(60)
        messages.append(message)
        if take is not None:
            await take(message)

    path, _, query = path.partition("?")
    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": spec}, "http_version": "1.1", "method": "POST", "scheme": "http",
             "path": path, "raw_path": path.encode(), "query_string": query.encode(), "headers": list(headers), "client": ("127.0.0.1", 1),
             "server": ("127.0.0.1", 80)}  # fmt: skip
    await api(scope, receive, send)
    return messages[0]["status"] if messages else None, messages


def request_of(audio: bytes) -> dict:
    request = httpx.Request("POST", "http://x", files={"face": FACE, "audio": audio}, data=BOX)
    return {"headers": [(b"content-type", request.headers["content-type"].encode())], "body": request.read()}


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
@pytest.mark.parametrize("gone_after", [0, 1, 2])
@pytest.mark.parametrize("path", ["/v1/lipsync", "/v1/lipsync?stream=true"])
async def test_a_caller_who_goes_away_leaves_nothing_behind(serve, speaking, path, gone_after, spec):
    async with serve() as served:
        speaking.call_s = 0.02 if "stream" in path else 0.0
        audio = LONG_VOICE if "stream" in path else VOICE
        try:
            await raw(served.api, path=path, gone_after=gone_after, spec=spec, **request_of(audio))
        except Exception as error:
            assert spec == "2.4", error  # the server is told so by an error, which it raised itself
        await served.rest()  # the folder, the lease and the pipeline, within two seconds
        frames = speaking.frames
        await asyncio.sleep(0.1)
        assert speaking.frames == frames, "nothing is drawn for it any more"
        assert frames < 750
        if "stream" in path:
            assert served.meters.added[CANCELLED.name, ""] == 1


async def test_a_request_that_is_cancelled_while_it_works_leaves_nothing_behind(serve, speaking):
    speaking.call_s = 0.05
    async with serve() as served:
        task = asyncio.create_task(served.post(audio=LONG_VOICE, data=BOX))
        while not speaking.frames:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await served.rest()
        assert speaking.frames < 750


async def test_a_caller_who_breaks_off_the_upload_leaves_nothing_and_no_alarm(serve, caplog):
    async with serve() as served:
        messages = iter([{"type": "http.request", "body": b"--x\r\n", "more_body": True}, {"type": "http.disconnect"}])
        answers = []

        async def receive():
            return next(messages)

        async def send(message):
            answers.append(message)

        headers = [(b"content-type", b"multipart/form-data; boundary=x")]
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/v1/lipsync", "raw_path": b"/v1/lipsync",
                 "query_string": b"", "headers": headers, "scheme": "http"}  # fmt: skip
        await served.api(scope, receive, send)
        assert answers[0]["status"] == 400
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_slow_reader_is_waited_for_and_little_is_made_ahead_of_it(serve, speaking):
    ahead = []

    async def take(message):
        if message["type"] == "http.response.body" and len(ahead) < 3:
            await asyncio.sleep(0.4)
            ahead.append(speaking.frames)

    async with serve() as served:
        _, messages = await raw(
            served.api, path="/v1/lipsync?stream=true", take=take, **request_of(audio_bytes(seconds=6))
        )
        assert ended(b"".join(message.get("body", b"") for message in messages))[1].frames == 150
    window, longest = TUNING.window, TUNING.segment_frames[-1]
    for taken, frames in enumerate(ahead, start=1):
        assert frames <= (taken + 2 * window + 3) * longest, "bounded by the window, not by the voice"
    assert ahead[-1] < 150


# ---------------------------------------------------------------- the description


async def test_the_description_is_an_openapi_document(serve):
    async with serve() as served:
        document = (await served.client.get("/openapi.json")).json()
        assert document["openapi"].startswith("3.1")
        OpenAPI.model_validate(document)
        schemas = list(schemas_in(document))
        assert len(schemas) > 20
        for schema in schemas:
            jsonschema.Draft202012Validator.check_schema(schema)
        described = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
        routes = {
            (route.path, method)
            for route in served.api.routes
            if isinstance(route, APIRoute)
            for method in route.methods
        }
        assert described == routes
        for item in document["paths"].values():
            for operation in item.values():
                assert operation["description"] and "200" in operation["responses"]
        assert "swagger" in (await served.client.get("/docs")).text


def described(document: dict, method: str, path: str, response: httpx.Response) -> dict:
    """What the description has of an answer: its media type's part. The answer's headers are described too."""
    answer = document["paths"][path][method]["responses"][str(response.status_code)]
    ours = {name for name in response.headers if name.startswith(("x-", "server-", "retry-", "www-"))}
    assert ours <= {name.lower() for name in answer["headers"]}
    media_type = response.headers["content-type"].partition(";")[0]
    assert list(answer["content"]) == [media_type]
    return answer["content"][media_type]


async def test_every_answer_is_as_it_is_described(serve, monkeypatch):
    async def gathered():
        return "ray_lipsync_requests_running 0.0\n"

    monkeypatch.setattr("serve.http.gather", gathered)
    face, given = demo_face(), {"preset": "ultrafast"}
    async with serve(limits={"video_bytes": 500_000, "image_bytes": 500_000}) as served:
        document, post, get = served.api.openapi(), served.post, served.client.get
        answers = [
            ("/v1/lipsync", 200, await post(data=BOX)), ("/v1/lipsync", 200, await post("/v1/lipsync?stream=true", data=BOX)),
            ("/v1/lipsync", 400, await post(audio=None)), ("/v1/lipsync", 413, await post(face=FACE + bytes(600_000))),
            ("/v1/lipsync", 415, await post(face=b"<!doctype html>")), ("/v1/lipsync", 422, await post()),
            ("/v1/faces", 200, await post("/v1/faces", face=face, audio=None)), ("/v1/faces", 400, await post("/v1/faces", data=given)),
            ("/v1/faces", 422, await post("/v1/faces", audio=None)),
            ("/v1/models", 200, await get("/v1/models")), ("/v1/limits", 200, await get("/v1/limits")), ("/healthz", 200, await get("/healthz")),
            ("/readyz", 200, await get("/readyz")), ("/metrics", 200, await get("/metrics")),
        ]  # fmt: skip
        for path, status, response in answers:
            assert response.status_code == status, response.text
            part = described(document, "post" if path in ("/v1/lipsync", "/v1/faces") else "get", path, response)
            if "json" in response.headers["content-type"]:
                jsonschema.validate(response.json(), part["schema"])
                wrong = response.json() | {"more": 1}
                assert not jsonschema.Draft202012Validator(part["schema"]).is_valid(wrong), "no schema that takes all"
        assert {path for path, _, _ in answers} == set(document["paths"])
        examples = [await get("/v1/limits"), await get("/healthz"), await get("/readyz")]
        for path, shown in zip(("/v1/limits", "/healthz", "/readyz"), examples, strict=True):
            example = described(document, "get", path, shown)["example"]
            assert example == (shown.json() if path == "/v1/limits" else shown.text)


async def test_every_example_is_one_of_what_it_stands_beside(serve, monkeypatch):
    monkeypatch.setenv("LIPSYNC_API_KEYS", KEY)
    async with serve(auth={"mode": "keys"}) as served:
        document = served.api.openapi()
    bodies, answers = 0, 0
    for item in document["paths"].values():
        for operation in item.values():
            form = operation.get("requestBody", {}).get("content", {}).get("multipart/form-data", {})
            for example in form.get("examples", {}).values():
                jsonschema.validate(example["value"], form["schema"])
                options_of({name: value if isinstance(value, str) else json.dumps(value)
                            for name, value in example["value"].items() if name not in ("face", "audio")})  # fmt: skip
                bodies += 1
            for answer in operation["responses"].values():
                for part in answer["content"].values():
                    if "example" in part:
                        jsonschema.validate(part["example"], part["schema"])
                        answers += 1
                    else:
                        assert part["schema"].get("format") == "binary"
    assert bodies == 6 and answers > 25
    faces = document["paths"]["/v1/faces"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    assert tracks_from_json(json.dumps(faces)).boxes[1] is None


def schemas_in(value):
    if isinstance(value, dict):
        if isinstance(value.get("schema"), dict):
            yield value["schema"]
        for inner in value.values():
            yield from schemas_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from schemas_in(inner)


# ---------------------------------------------------------------- bad inputs

FACES, VOICES = sorted(corpus.faces(0, "/x")), sorted(corpus.voices(0, "/x"))


async def test_every_bad_input_gets_a_typed_answer_or_a_video(serve):
    failures, statuses = [], {}

    async def one(served, name, **given):
        response = await served.post(**given)
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
        if response.status_code == 200:
            if not pictures_of(response.content):
                failures.append((name, "no picture"))
        elif not 400 <= response.status_code < 500:
            failures.append((name, response.status_code, response.text))
        else:
            problem(response, response.status_code, response.json()["error"])

    async with serve() as served:
        for name in FACES:
            await one(
                served,
                name,
                face=corpus.faces(0, "/x")[name](),
                audio=audio_bytes(seconds=0.2),
                data={"preset": "ultrafast", "detect_every": "250"},
            )
        for name in VOICES:
            await one(served, name, audio=corpus.voices(0, "/x")[name](), data=BOX)
        await served.rest()
    assert failures == []
    assert set(statuses) >= {200, 415, 422}, statuses
    assert sum(statuses.values()) == len(FACES) + len(VOICES) >= 60


# ---------------------------------------------------------------- many at once


@pytest.mark.parametrize(("requests", "window"), [(0, 8), (1, 8), (4, 8), (8, 4), (13, 2), (500, 2)])
async def test_the_more_requests_the_fewer_segments_each_has_under_way(serve, requests, window):
    async with serve(segments=32, tuning={"window": 8}) as served:
        served.desk.gate._held = {str(number): None for number in range(requests)}
        assert served.desk._tuning().window == window
        served.desk.gate._held = {}


async def test_a_window_that_is_set_smaller_stays_so(serve):
    async with serve(segments=32, tuning={"window": 1}) as served:
        assert served.desk._tuning().window == 1

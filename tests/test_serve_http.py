"""The HTTP interface: what a request is answered with, and what goes wrong is said."""

import asyncio
import errno
import json
import logging
import os
import re
import time
from fractions import Fraction
from pathlib import Path

import pytest
from ray.serve._private.http_util import (
    _apply_middlewares,
    parse_disconnect_disabled_header,
    parse_request_timeout_header,
)

from lipsync.errors import DeadlineExceeded, EngineError, NoFace
from lipsync.metrics import CANCELLED, METRICS, REJECTED, REQUESTS_RUNNING
from lipsync.output import read_bytes, stream_bytes
from lipsync.packaged import demo_face
from lipsync.pipeline import synchronise
from serve.before_ray import middlewares
from tests import corpus
from tests.http_fixtures import (
    BOX,
    FACE,
    LONG_VOICE,
    STILL,
    TUNING,
    VOICE,
    alone,
    ended,
    job,
    problem,
    raw,
    replicas,
    serve,
    speaking,
)
from tests.media_factory import audio_bytes
from tests.test_pipeline import pictures_of

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


async def test_a_caller_gives_ray_no_orders():
    passed = []

    async def app(scope, receive, send):
        passed.append(dict(scope["headers"]))

    orders = [parse_disconnect_disabled_header, lambda headers: parse_request_timeout_header(headers, 900.0) is None]
    headers = [(b"x-request-disconnect-disabled", b"?1"), (b"x-request-timeout-seconds", b"0"), (b"accept", b"*/*")]
    assert all(order(dict(headers)) for order in orders), "Ray would obey"
    await _apply_middlewares(app, middlewares())({"type": "http", "headers": headers}, None, None)
    (left,) = passed
    assert not any(order(left) for order in orders)
    assert left[b"accept"] == b"*/*"


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


async def test_an_upload_that_stands_still_does_not_keep_its_place(serve):
    async def with_pauses(pause_s):
        yield b"--x\r\n"
        for name in ("crf", "preset", "fps", "pads", "crf"):
            await asyncio.sleep(pause_s)
            yield f'Content-Disposition: form-data; name="{name}"\r\n\r\n2\r\n--x\r\n'.encode()

    headers = {"content-type": "multipart/form-data; boundary=x"}
    async with serve(upload_stall_s=0.5) as served:
        still = await served.client.post("/v1/lipsync", content=with_pauses(30), headers=headers)
        assert "0.5 s" in problem(still, 400, "malformed_request")["detail"]
        slow = await served.client.post("/v1/lipsync", content=with_pauses(0.12), headers=headers)
        assert "twice" in problem(slow, 400, "malformed_request")["detail"], "slow is not still"


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

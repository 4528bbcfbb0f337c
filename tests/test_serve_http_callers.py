"""The HTTP interface: who is let in, how many at once, and callers who go away."""

import asyncio
import logging
import time
from types import SimpleNamespace

import pytest

from lipsync.metrics import CANCELLED, REJECTED
from tests.http_fixtures import (
    BASE,
    BOX,
    KEY,
    LONG_VOICE,
    MODEL,
    OPEN,
    TUNING,
    VOICE,
    alone,
    ended,
    problem,
    raw,
    replicas,
    request_of,
    serve,
    speaking,
)
from tests.media_factory import audio_bytes

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


async def test_it_is_not_ready_while_files_would_find_no_room(serve, tmp_path, monkeypatch):
    async with serve(spool={"bytes": 2_000_000, "folder": str(tmp_path / "spool")}) as served:
        assert (await served.client.get("/readyz")).text == "ready\n"
        served.desk._spool.take(1_500_000)
        assert "refused" in problem(await served.client.get("/readyz"), 503, "overloaded")["detail"]
        served.desk._spool.give_back(1_500_000)
        assert (await served.client.get("/readyz")).text == "ready\n"
        monkeypatch.setattr("serve.spool.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        assert "refused" in problem(await served.client.get("/readyz"), 503, "overloaded")["detail"]


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
        await asyncio.sleep(0.1)  # a call is told to stop, as Ray tells it, and nobody waits for that
        frames = speaking.frames
        await asyncio.sleep(0.2)
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

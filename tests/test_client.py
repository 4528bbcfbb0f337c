"""Both clients against a real HTTP server that misbehaves as told: answers, streams, retries, resumption, errors."""

from __future__ import annotations

import asyncio
import io
import json
import resource
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
from scripted_server import Scripted, answer, cut_mp4, document, drop, hang, mp4, problem, stream

from lipsync.client import AsyncClient, Client, Result, Retries, Transfer
from lipsync.ending import complete, failed
from lipsync.errors import (
    DeadlineExceeded,
    FaceMissing,
    InputError,
    InputTooLarge,
    InvalidOption,
    LimitExceeded,
    LipsyncError,
    NoFace,
    OutputError,
    Overloaded,
    ServiceError,
    StreamBroken,
    Unauthorized,
    UnreadableMedia,
    WorkerLost,
    all_errors,
)
from lipsync.options import Options

ROOT = Path(__file__).resolve().parents[1]
QUICK = Retries(attempts=4, first_pause_s=0.01, longest_pause_s=0.02)
FACE, VOICE = b"\x89PNG a face \r\n--boundary", bytes(range(256)) * 200
MEDIA = [b"\0\0\0\x0cftypisom", b"\0\0\x01\x08moof" + bytes(256), b"\0\0\x01\x08mdat" + bytes(range(256))]
END = complete(frames=75, fps=Fraction(25), timings_ms={"total": 99.5})
FAST_LANE = {"face": FACE, "audio": VOICE}


class Blocking:
    """The calls of ``Client``."""

    def __init__(self, url: str, **settings):
        self._make = lambda: Client(url, **{"retries": QUICK} | settings)

    def call(self, name, *args, **kwargs):
        with self._make() as client:
            return getattr(client, name)(*args, **kwargs)

    def stream(self, *args, pieces=None, **kwargs):
        pieces = [] if pieces is None else pieces
        with self._make() as client, client.stream(*args, **kwargs) as source:
            assert source.result is None
            pieces.extend(source)
            return pieces, source.result


class Awaiting:
    """The same calls of ``AsyncClient``, each in an event loop of its own."""

    def __init__(self, url: str, **settings):
        self._make = lambda: AsyncClient(url, **{"retries": QUICK} | settings)

    def call(self, name, *args, **kwargs):
        async def run():
            async with self._make() as client:
                return await getattr(client, name)(*args, **kwargs)

        return asyncio.run(run())

    def stream(self, *args, pieces=None, **kwargs):
        pieces = [] if pieces is None else pieces

        async def run():
            async with self._make() as client, client.stream(*args, **kwargs) as source:
                assert source.result is None
                async for piece in source:
                    pieces.append(piece)
                return pieces, source.result

        return asyncio.run(run())


@pytest.fixture(params=[Blocking, Awaiting], ids=["Client", "AsyncClient"])
def kind(request):
    return request.param


@pytest.fixture
def server():
    with Scripted() as server:
        yield server


def test_a_result_in_memory_with_what_the_headers_say(kind, server):
    server.steps = [mp4(b"the video")]
    result = kind(server.url).call("lipsync", FACE, VOICE, request_id="mine")
    assert result == Result(
        "theirs", 75, Fraction(30000, 1001), {"open": 1.5, "decode": 20.0, "total": 99.25}, faces=70, data=b"the video"
    )
    [request] = server.requests
    assert (request.method, request.target) == ("POST", "/v1/lipsync")
    assert request.parts == {"face": FACE, "audio": VOICE}
    assert request.headers["x-request-id"] == "mine"
    assert "authorization" not in request.headers


def test_only_options_that_differ_are_sent_as_one_json_part(kind, server):
    server.steps = [mp4(b"x")]
    options = Options(crf=20, fps="29.97", pads=(0, 20, 0, 0), boxes=((1, 2, 30, 40), None), boxes_size=(64, 64))
    kind(server.url, api_key="k-1").call("lipsync", FACE, VOICE, options=options)
    [request] = server.requests
    sent = request.parts["options"]
    assert json.loads(sent) == {
        "crf": 20, "fps": "30000/1001", "pads": [0, 20, 0, 0], "boxes": [[1, 2, 30, 40], None], "boxes_size": [64, 64],
    }  # fmt: skip
    assert Options.from_json(sent) == options
    assert request.headers["authorization"] == "Bearer k-1"


@pytest.mark.parametrize("how", ["path", "text path", "bytes", "file object", "pipe"])
def test_an_input_is_a_path_or_bytes_or_a_file_object_from_where_it_stands(kind, server, how, tmp_path):
    path = tmp_path / "voice ü.bin"
    path.write_bytes(VOICE)
    with path.open("rb") as file:
        file.seek(100)
        voice = {
            "path": path, "text path": str(path), "bytes": VOICE, "file object": file, "pipe": _Unseekable(VOICE),
        }[how]  # fmt: skip
        server.steps = [problem(503, "overloaded"), mp4(b"x")]
        kind(server.url).call("lipsync", FACE, voice)
    sent = [request.parts["audio"] for request in server.requests]
    assert sent == [VOICE[100:] if how == "file object" else VOICE] * 2
    assert b"voice" not in server.requests[0].body  # nor any other part of the path


class _Unseekable(io.RawIOBase):
    def __init__(self, data):
        self._data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self._data.readinto(buffer)


def test_an_input_that_is_not_there_is_said_before_anything_is_sent(kind, server, tmp_path):
    with pytest.raises(UnreadableMedia, match=r"gone\.wav"):
        kind(server.url).call("lipsync", FACE, tmp_path / "gone.wav")
    with pytest.raises(UnreadableMedia, match="empty"):
        kind(server.url).call("lipsync", b"", VOICE)
    assert server.requests == []


def test_an_input_that_changes_between_attempts_is_refused(kind, server, tmp_path):
    path = tmp_path / "voice.bin"
    path.write_bytes(VOICE)

    async def change(writer):
        path.write_bytes(VOICE + b"more")
        return await problem(503, "overloaded")(writer)

    server.steps = [change, mp4(b"x")]
    with pytest.raises(UnreadableMedia, match="changed"):
        kind(server.url).call("lipsync", FACE, path)


def test_a_result_as_a_file_appears_whole_and_nothing_else_is_left(kind, server, tmp_path):
    server.steps = [cut_mp4(b"other bytes", length=1000), mp4(b"the video")]
    target = tmp_path / "out.mp4"
    target.write_bytes(b"an older one")
    result = kind(server.url).call("lipsync", FACE, VOICE, output_path=target)
    assert result.path == target and result.data == b"" and result.frames == 75
    assert target.read_bytes() == b"the video"
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_a_failure_leaves_the_older_file_and_nothing_else(kind, server, tmp_path):
    server.steps = [cut_mp4(b"half", length=1000)] * 4
    target = tmp_path / "out.mp4"
    target.write_bytes(b"an older one")
    with pytest.raises(StreamBroken, match="after 4 bytes"):
        kind(server.url).call("lipsync", FACE, VOICE, output_path=target)
    assert target.read_bytes() == b"an older one"
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_a_place_that_cannot_be_written_is_said_before_anything_is_sent(kind, server, tmp_path):
    for place in (tmp_path, tmp_path / "no folder" / "out.mp4"):
        with pytest.raises(OutputError, match=r"no folder|is a folder"):
            kind(server.url).call("lipsync", FACE, VOICE, output_path=place)
    assert server.requests == []


def test_a_full_disk_is_said_once_and_leaves_nothing(kind, server, tmp_path):
    server.steps = [mp4(bytes(1 << 20))] * 4
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OutputError, match="Cannot write"):
            kind(server.url).call("lipsync", FACE, VOICE, output_path=tmp_path / "out.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 1


def test_faces_come_back_as_boxes_that_are_options(kind, server):
    boxes = {"version": 1, "width": 64, "height": 48, "fps": "25", "frames": 2, "boxes": [[1, 2, 30, 40], None]}
    server.steps = [document(boxes), document(boxes | {"frames": 3})]
    given = kind(server.url).call("faces", FACE, options=Options(detect_every=1))
    Options(boxes=given.boxes, boxes_size=(given.width, given.height))
    assert given.boxes == ((1, 2, 30, 40), None)
    assert server.requests[0].parts == {"options": b'{"detect_every":1}', "face": FACE}
    with pytest.raises(ServiceError, match="boxes"):
        kind(server.url).call("faces", FACE)


def test_documents_and_readiness(kind, server):
    server.steps = [document({"checkpoint": "a"}), drop, document({"duration_s": 600}), answer(200), answer(503)]
    caller = kind(server.url)
    assert caller.call("models") == {"checkpoint": "a"}
    assert caller.call("limits") == {"duration_s": 600}
    assert [caller.call("is_ready"), caller.call("is_ready")] == [True, False]
    assert [request.target for request in server.requests] == [
        "/v1/models",
        "/v1/limits",
        "/v1/limits",
        "/readyz",
        "/readyz",
    ]
    assert kind("http://127.0.0.1:9").call("is_ready") is False


def test_a_server_below_a_path_is_found(kind, server):
    server.steps = [mp4(b"x"), stream(*MEDIA, END)]
    kind(server.url + "/prefix/").call("lipsync", FACE, VOICE)
    kind(server.url + "/prefix").stream(FACE, VOICE)
    assert [r.target for r in server.requests] == ["/prefix/v1/lipsync", "/prefix/v1/lipsync?stream=true"]


# streams


def test_a_stream_is_handed_on_as_it_comes_and_tells_its_result_at_the_end(kind, server):
    server.steps = [stream(*MEDIA, END, pause_s=0.05)]
    pieces, result = kind(server.url).stream(FACE, VOICE)
    assert len(pieces) >= 3
    assert b"".join(pieces) == b"".join(MEDIA)
    assert result == Result("theirs", 75, Fraction(25), {"total": 99.5})
    assert server.requests[0].target == "/v1/lipsync?stream=true"


@pytest.mark.parametrize("delivered", range(1, 4))
@pytest.mark.parametrize("cut", [True, False], ids=["dropped", "closed without an ending"])
def test_a_broken_stream_is_resumed_without_a_byte_twice_or_missing(kind, server, delivered, cut):
    server.steps = [stream(*MEDIA[:delivered], cut=cut), stream(*MEDIA, END)]
    pieces, result = kind(server.url).stream(FACE, VOICE)
    assert b"".join(pieces) == b"".join(MEDIA)
    assert result is not None
    assert len(server.requests) == 2
    assert len({request.headers["x-request-id"] for request in server.requests}) == 1
    assert all(request.parts == FAST_LANE for request in server.requests)


def test_a_stream_may_break_again_and_again_within_its_attempts(kind, server):
    whole = b"".join(MEDIA)
    server.steps = [
        stream(whole[:400], cut=True), stream(whole[:100], cut=True), problem(503, "overloaded"), stream(whole + END),
    ]  # fmt: skip
    pieces, _ = kind(server.url).stream(FACE, VOICE)
    assert b"".join(pieces) == whole
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "second", [[MEDIA[0], bytes(MEDIA[1][:-1]) + b"\1", MEDIA[2], END], [MEDIA[0], END]], ids=["other bytes", "shorter"]
)
def test_a_second_answer_with_other_bytes_is_never_joined_to_the_first(kind, server, second):
    server.steps = [stream(*MEDIA[:2], cut=True), stream(*second), stream(*MEDIA, END)]
    pieces: list[bytes] = []
    with pytest.raises(StreamBroken, match="cannot be resumed"):
        kind(server.url).stream(FACE, VOICE, pieces=pieces)
    assert b"".join(pieces) == b"".join(MEDIA[:2])
    assert len(server.requests) == 2


def test_a_stream_that_says_why_it_failed_raises_that_at_once(kind, server):
    server.steps = [
        stream(*MEDIA[:2], failed(FaceMissing("Frame 7 has no face."), request_id="r1")),
        stream(*MEDIA, END),
    ]
    with pytest.raises(FaceMissing, match="Frame 7"):
        kind(server.url).stream(FACE, VOICE)
    assert len(server.requests) == 1


def test_a_stream_that_failed_for_a_dead_worker_is_resumed(kind, server):
    server.steps = [stream(*MEDIA[:2], failed(WorkerLost("Three died."), request_id="r1")), stream(*MEDIA, END)]
    pieces, _ = kind(server.url).stream(FACE, VOICE)
    assert b"".join(pieces) == b"".join(MEDIA)


# retries

HAPROXY = answer(500, b"Internal Server Error", **{"Content-Type": "text/plain"})
"""What Ray has HAProxy say in place of 502, 503 and 504, where no Ingress is there to answer."""
PASSING = {
    "dropped": drop,
    "haproxy": HAPROXY,
    "overloaded": problem(429, "overloaded"),
    "unavailable": problem(503, "overloaded"),
    "worker lost": problem(500, "worker_lost"),
    "closed": problem(503, "closed"),
    "proxy 500": answer(500, b"<html>oops</html>", **{"Content-Type": "text/html"}),
    "proxy 502": answer(502, b"<html>Bad Gateway</html>", **{"Content-Type": "text/html"}),
    "proxy 503": answer(503),
    "proxy 504": answer(504, b"upstream timed out"),
    "cut": cut_mp4(b"half", length=1000),
}


@pytest.mark.parametrize("step", PASSING.values(), ids=PASSING)
def test_what_may_pass_is_sent_again_with_the_same_id(kind, server, step):
    server.steps = [step, step, step, mp4(b"the video")]
    assert kind(server.url).call("lipsync", FACE, VOICE).data == b"the video"
    assert len(server.requests) == 4
    assert len({request.headers["x-request-id"] for request in server.requests}) == 1
    assert all(request.parts == FAST_LANE for request in server.requests)


@pytest.mark.parametrize("step", PASSING.values(), ids=PASSING)
def test_attempts_are_bounded(kind, server, step):
    server.steps = [step] * 10
    with pytest.raises(ServiceError if step is not PASSING["closed"] else LipsyncError) as caught:
        kind(server.url, retries=Retries(attempts=3, first_pause_s=0.01)).call("lipsync", FACE, VOICE)
    assert len(server.requests) == 3
    assert any("attempt 3 of 3" in note for note in caught.value.__notes__)


LASTING = {
    "no face": (problem(422, "no_face"), NoFace),
    "too large": (problem(413, "limit_exceeded"), LimitExceeded),
    "unauthorized": (problem(401, "unauthorized"), Unauthorized),
    "deadline": (problem(504, "deadline_exceeded"), DeadlineExceeded),
    "crashed workers": (problem(503, "input_crashed_worker"), InputError),
    "our 500": (problem(500, "service_error"), ServiceError),
    "ray 408": (answer(408, b"Request r1 timed out after 900s."), DeadlineExceeded),
    "proxy 401": (answer(401, b"who are you?"), Unauthorized),
    "proxy 413": (answer(413, b"<html>too large</html>"), InputTooLarge),
    "proxy 404": (answer(404, b"not here"), ServiceError),
    "redirect": (answer(308, Location="https://elsewhere/"), ServiceError),
    "no headers": (answer(200, b"mp4", **{"Content-Type": "video/mp4"}), ServiceError),
}


@pytest.mark.parametrize(("step", "error"), LASTING.values(), ids=LASTING)
def test_what_will_not_pass_is_raised_at_once(kind, server, step, error):
    server.steps = [step] * 3
    with pytest.raises(error) as caught:
        kind(server.url).call("lipsync", FACE, VOICE)
    assert type(caught.value) is error or error is InputError
    assert len(server.requests) == 1


def test_haproxys_own_answer_is_a_service_error_that_asks_for_no_wait(kind, server):
    server.steps = [HAPROXY] * 2
    with pytest.raises(ServiceError, match="500: Internal Server Error") as caught:
        kind(server.url, retries=Retries(attempts=2, first_pause_s=0.01)).call("lipsync", FACE, VOICE)
    assert type(caught.value) is ServiceError and caught.value.slug == "service_error"
    assert len(server.requests) == 2
    assert not any("asks to wait" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.slug)
def test_every_slug_is_raised_as_its_class_with_its_detail(server, error):
    server.steps = [problem(500, error.slug)]
    with pytest.raises(LipsyncError) as caught:
        Blocking(server.url, retries=Retries(attempts=1)).call("lipsync", FACE, VOICE)
    assert type(caught.value) is error
    assert caught.value.detail == "what is wrong, and what to do."


def test_an_unknown_slug_is_a_service_error_with_the_text(kind, server):
    server.steps = [problem(418, "teapot", "Short and stout.")]
    with pytest.raises(ServiceError, match=r"Short and stout\. \(teapot\)"):
        kind(server.url).call("lipsync", FACE, VOICE)


@pytest.mark.parametrize("type", ["urn:lipsync:error:no_face", "https://example.org/errors#no_face"])
def test_the_type_of_a_problem_says_the_slug_too(server, type):
    body = json.dumps({"type": type, "detail": "Nobody."}).encode()
    server.steps = [answer(422, body, **{"Content-Type": "application/problem+json; charset=utf-8"})]
    with pytest.raises(NoFace, match="Nobody"):
        Blocking(server.url).call("lipsync", FACE, VOICE)


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"[" * 60_000, b"x" * 1_000_000], ids=["half", "list", "deep", "endless"]
)
def test_a_problem_that_is_none_is_judged_by_its_status(server, body):
    server.steps = [answer(400, body, **{"Content-Type": "application/problem+json"})]
    with pytest.raises(ServiceError, match="400"):
        Blocking(server.url).call("lipsync", FACE, VOICE)


def test_a_refusal_that_never_ends_is_not_read_to_its_end(kind, server):
    server.steps = [stream(b"no " * 50_000, status=400, hang=True)]
    started = time.monotonic()
    with pytest.raises(ServiceError, match="400: no no no"):
        kind(server.url, timeout_s=20).call("lipsync", FACE, VOICE)
    assert time.monotonic() - started < 10
    assert server.gone.wait(2)


def test_what_is_no_mp4_is_not_taken_for_one(kind, server):
    server.steps = [answer(200, b"<html>", **{"Content-Type": "text/html; charset=utf-8"})]
    with pytest.raises(ServiceError, match="text/html in place of video/mp4"):
        kind(server.url).stream(FACE, VOICE)


def test_retry_after_is_waited_out(kind, server):
    server.steps = [problem(503, "overloaded", **{"Retry-After": "1"}), mp4(b"x")]
    started = time.monotonic()
    kind(server.url).call("lipsync", FACE, VOICE)
    assert 1.0 <= time.monotonic() - started < 10


@pytest.mark.parametrize("value", ["3600", "Fri, 31 Dec 2100 23:59:59 GMT"])
def test_a_retry_after_beyond_the_cap_is_not_waited_for(kind, server, value):
    server.steps = [problem(503, "overloaded", **{"Retry-After": value}), mp4(b"x")]
    with pytest.raises(Overloaded) as caught:
        kind(server.url, timeout_s=None).call("lipsync", FACE, VOICE)
    assert any("asks to wait" in note for note in caught.value.__notes__)
    assert len(server.requests) == 1


def test_a_retry_that_would_come_after_the_deadline_is_not_waited_for(kind, server):
    server.steps = [problem(503, "overloaded", **{"Retry-After": "30"}), mp4(b"x")]
    started = time.monotonic()
    with pytest.raises(Overloaded):
        kind(server.url, timeout_s=10).call("lipsync", FACE, VOICE)
    assert time.monotonic() - started < 8


@pytest.mark.parametrize("value", ["soon", "-5", "", "Fri, 31 Dec 1999 23:59:59 GMT"])
def test_a_retry_after_that_says_nothing_is_ignored(server, value):
    server.steps = [problem(503, "overloaded", **{"Retry-After": value}), mp4(b"x")]
    assert Blocking(server.url).call("lipsync", FACE, VOICE).data == b"x"


def test_pauses_are_random_and_their_bound_doubles_up_to_the_longest():
    retries = Retries(first_pause_s=1, longest_pause_s=5)
    for attempt, bound_s in ((1, 1), (2, 2), (3, 4), (4, 5), (10_000, 5)):
        drawn = [retries.pause_s(attempt) for _ in range(300)]
        assert 0.5 * bound_s <= min(drawn) < 0.55 * bound_s and 0.95 * bound_s < max(drawn) <= bound_s
    assert 30.5 <= retries.pause_s(1, retry_after_s=30) <= 31


def test_as_they_stand_they_outlast_what_was_measured_of_a_proxy_and_an_ingress():
    faults = json.loads((ROOT / "docs/benchmarks/chaos.json").read_text())["faults"]
    longest_s = max(faults[kind]["replaced_s"]["max"] for kind in ("Ingress", "proxy", "proxy manager"))
    retries = Retries()
    assert sum(min(retries.pause_s(attempt) for _ in range(100)) for attempt in range(1, retries.attempts)) > longest_s


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"first_pause_s": -1}, {"longest_retry_after_s": float("nan")}], ids=str
)
def test_wrong_retries_are_refused(wrong):
    with pytest.raises(InvalidOption, match=next(iter(wrong))):
        Retries(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"url": "localhost:8000"}, {"url": "ftp://host"}, {"url": "http://"}, {"url": "http://host:port"}, {"api_key": ""},
     {"api_key": "a\r\nb"}, {"api_key": "schlüssel"}, {"timeout_s": 0}, {"timeout_s": float("nan")}],
    ids=str,
)  # fmt: skip
def test_wrong_settings_are_refused_at_once(wrong):
    for client in (Client, AsyncClient):
        with pytest.raises(InvalidOption):
            client(**wrong)


def test_a_server_that_cannot_be_reached_is_a_service_error(kind):
    with pytest.raises(ServiceError, match="No answer"):
        kind("http://127.0.0.1:9").call("lipsync", FACE, VOICE)


# deadline, cancellation, progress


@pytest.mark.parametrize("step", [hang, stream(*MEDIA[:2], hang=True)], ids=["no answer", "silent stream"])
def test_a_silent_server_is_left_at_the_deadline(kind, server, step):
    server.steps = [step]
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"timeout_s=0\.7"):
        kind(server.url, timeout_s=0.7).stream(FACE, VOICE)
    assert 0.7 <= time.monotonic() - started < 5
    assert server.gone.wait(2)


def test_a_trickling_server_is_left_at_the_deadline(kind, server):
    server.steps = [stream(MEDIA[0], *[b"\0\0\0\x08free"] * 300, pause_s=0.05)]
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        kind(server.url, timeout_s=0.7).stream(FACE, VOICE)
    assert time.monotonic() - started < 5
    assert server.gone.wait(2)


def test_closing_a_stream_closes_its_connection(server):
    server.steps = [stream(*MEDIA, hang=True)]
    with Client(server.url) as client:
        with client.stream(FACE, VOICE) as pieces:
            next(pieces)
            assert not server.gone.is_set()
        assert server.gone.wait(2)
    assert len(server.requests) == 1


ENDLESS = stream(b"<html>", hang=True, media_type="text/html")


def test_an_answer_that_is_given_up_is_closed_while_the_client_stays_open(server):
    server.steps = [ENDLESS]
    with Client(server.url) as client:
        with pytest.raises(ServiceError, match="text/html"):
            client.lipsync(FACE, VOICE)
        assert server.gone.wait(2)


async def test_an_answer_that_is_given_up_is_closed_while_the_async_client_stays_open(server):
    server.steps = [ENDLESS]
    async with AsyncClient(server.url) as client:
        with pytest.raises(ServiceError, match="text/html"):
            await client.lipsync(FACE, VOICE)
        assert await asyncio.to_thread(server.gone.wait, 2)


@pytest.mark.parametrize("step", [hang, stream(*MEDIA, hang=True)], ids=["no answer yet", "within the stream"])
def test_cancelling_a_call_closes_its_connection(server, step, tmp_path):
    server.steps = [step]

    async def run():
        async with AsyncClient(server.url) as client:
            call = asyncio.create_task(client.lipsync(FACE, VOICE, output_path=tmp_path / "out.mp4"))
            await asyncio.sleep(0.5)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            return await asyncio.to_thread(server.gone.wait, 2)

    assert asyncio.run(run())
    assert list(tmp_path.iterdir()) == []


def test_a_consumer_that_breaks_off_closes_the_connection(server):
    server.steps = [stream(*MEDIA, hang=True)]

    async def run():
        async with AsyncClient(server.url) as client:
            async with client.stream(FACE, VOICE) as pieces:
                async for _ in pieces:
                    break
            return await asyncio.to_thread(server.gone.wait, 2)  # the client is still open

    assert asyncio.run(run())


def test_progress_tells_what_was_sent_and_received_in_each_attempt(kind, server):
    server.steps = [drop, mp4(b"the video")]
    seen: list[Transfer] = []
    kind(server.url).call("lipsync", FACE, VOICE, progress=seen.append)
    size = len(server.requests[0].body)
    assert {step.total_bytes for step in seen} == {size}
    for attempt in (1, 2):
        sent = [step.sent_bytes for step in seen if step.attempt == attempt]
        assert len(sent) > 3 and sent == sorted(sent) and sent[-1] == size
    assert seen[-1] == Transfer(size, size, 9, 2)


def test_an_error_of_the_progress_callback_is_the_callers_own(kind, server):
    server.steps = [mp4(b"x")] * 4

    def progress(step):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        kind(server.url).call("lipsync", FACE, VOICE, progress=progress)


def test_an_upload_is_read_piece_by_piece(server, tmp_path):
    """A 64 MB file is sent while the process grows by far less."""
    path = tmp_path / "face.bin"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    server.steps = [mp4(b"x")]
    code = f"""
import resource, sys
from lipsync.client import Client
with Client({server.url!r}) as client:
    client.limits if client.is_ready() else None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    client.lipsync({str(path)!r}, b"voice")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    server.steps.insert(0, answer(503))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(server.requests[-1].parts["face"]) == 64 << 20
    assert int(done.stdout) < 16 << 10  # KiB


def test_threads_may_share_a_client(server):
    server.steps = [mp4(b"x")] * 8
    with Client(server.url, retries=QUICK) as client:
        results: list[Result] = []
        threads = [threading.Thread(target=lambda: results.append(client.lipsync(FACE, VOICE))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [result.data for result in results] == [b"x"] * 8
    assert len({request.headers["x-request-id"] for request in server.requests}) == 8


def test_the_client_is_quick_to_import():
    code = "import sys, lipsync.client; print({'torch', 'librosa', 'av', 'cv2', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

"""The HTTP interface over real stages in this process, for the tests that import it: fixtures too."""

import asyncio
import time
from contextlib import asynccontextmanager

import httpx
import pytest

from lipsync.detection import detector_from_files
from lipsync.ending import EndingReader
from lipsync.errors import LipsyncError
from lipsync.local import LocalStages
from lipsync.media.source import Blob
from lipsync.metrics import REQUESTS_RUNNING, REQUESTS_WAITING
from lipsync.options import Limits, Options
from lipsync.pipeline import Job
from lipsync.plan import Tuning
from serve.auth import Keys
from serve.http import Http
from serve.preprocessor import Preprocessor
from serve.renderer import Renderer
from serve.requests import Desk
from serve.settings import Settings
from serve.stages import Handles
from tests.media_factory import audio_bytes, image_bytes, video_bytes
from tests.serve_fakes import FakeBooks, LocalHandle, Speaking

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

"""The Ingress by both its doors, HTTP and Python, over real stages in this process: one way for every result, booked in
the spool as it is written and read beside the event loop."""

import asyncio
import errno
import io
import os
import threading
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import httpx
import pytest
from ray.exceptions import ActorDiedError

from lipsync import output
from lipsync.errors import InputTooLarge, Overloaded, UnsupportedMedia
from lipsync.media.source import Blob
from lipsync.metrics import REJECTED
from lipsync.options import Limits, Options
from serve import handle as handle_module
from serve.handle import AppHandle
from serve.ingress import Ingress
from serve.preprocessor import Preprocessor
from serve.renderer import Renderer
from serve.settings import Settings
from serve.spool import SpoolFolder
from tests.media_factory import audio_bytes, video_bytes
from tests.serve_fakes import FakeBooks, LocalHandle, Speaking

SETTINGS = Settings.model_validate({"auth": {"mode": "off"}, "tuning": {"segment_frames": [4, 8], "window": 3}})
FACE = video_bytes(frames=12, size=(160, 120))
VOICE, LONG_VOICE = audio_bytes(seconds=0.8), audio_bytes(seconds=30)
BOX = Options(box=(10, 110, 30, 130), preset="ultrafast")
FIELDS = {"box": "10 110 30 130", "preset": "ultrafast"}


class Counted:
    """Meters that remember what was added."""

    added: ClassVar[Counter[tuple[str, str]]] = Counter()

    def add(self, metric, amount=1.0, *, label=""):
        self.added[metric.name, label] += amount

    def set(self, metric, value):
        pass

    def observe(self, metric, value, *, label=""):
        pass


class Both:
    """One Ingress, its spool, and a caller at each door."""

    def __init__(self, settings: Settings, ingress: Ingress):
        self.ingress, self.root = ingress, Path(settings.spool.folder)
        self.spool = ingress._desk._spool
        self.handle = AppHandle(LocalHandle(ingress))
        transport = httpx.ASGITransport(ingress.__serve_build_asgi_app__())
        self.client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60)

    @property
    def lying_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())

    async def by_http(self, voice: bytes) -> bytes:
        """Raises Overloaded."""
        answer = await self.client.post("/v1/lipsync", files={"face": FACE, "audio": voice}, data=FIELDS)
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            raise Overloaded(answer.json()["detail"])
        assert answer.status_code == 200, answer.text
        return answer.content

    async def by_handle(self, voice: bytes) -> bytes:
        return await self.handle.lipsync_async(FACE, voice, BOX)

    async def rest(self) -> None:
        began_s = time.monotonic()
        while list(self.root.iterdir()) and time.monotonic() - began_s < 2:
            await asyncio.sleep(0.01)
        assert list(self.root.iterdir()) == [] and self.spool.byte_count == 0


@pytest.fixture(scope="module")
def speaking():
    return Speaking()


@pytest.fixture(scope="module")
def workers(speaking):
    preprocessor, renderer = Preprocessor(SETTINGS), Renderer(SETTINGS, LocalHandle(speaking))
    yield LocalHandle(preprocessor), LocalHandle(renderer)
    preprocessor._stages.close()
    renderer._stages.close()


@pytest.fixture
def serve(workers, speaking, tmp_path, monkeypatch):
    monkeypatch.setattr("serve.ingress.RayMeters", Counted)
    Counted.added.clear()
    speaking.reset()

    @asynccontextmanager
    async def serving(*, spool_bytes: int = 10**9, limits: Limits | None = None):
        spool = {"folder": str(tmp_path / "spool"), "bytes": spool_bytes}
        settings = Settings.model_validate(SETTINGS.model_dump() | {"spool": spool, "limits": limits or Limits()})
        both = Both(settings, Ingress(settings, *workers, None, FakeBooks(settings.admission)))
        async with both.client:
            yield both
        await both.rest()
        gate = both.ingress._desk.gate
        if gate._renewing is not None:
            gate._renewing.cancel()

    return serving


DOORS = pytest.mark.parametrize("door", ["by_http", "by_handle"])


async def test_who_stops_waiting_for_a_file_stops_its_work(serve, speaking):
    speaking.call_s = 0.2
    async with serve() as both:
        asked = asyncio.create_task(both.handle.lipsync_async(FACE, LONG_VOICE, BOX))
        while not speaking.frames:
            await asyncio.sleep(0.01)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await both.rest()  # its files are gone
        drawn = speaking.frames
        await asyncio.sleep(0.5)
        assert speaking.frames <= drawn + 16, "what was at the device at that moment, no more"


class Describing:
    """A Generator's handle, of which nothing is asked but what it is."""

    def __init__(self, answer):
        self.describe = SimpleNamespace(remote=answer)


async def never():
    await asyncio.sleep(60)


async def gone():
    raise ActorDiedError()


@pytest.mark.parametrize("answer", [never, gone])
async def test_where_no_generator_answers_there_is_no_waiting_for_what_it_is(serve, monkeypatch, answer):
    monkeypatch.setattr("serve.ingress._DESCRIBES_WITHIN_S", 0.1)
    async with serve() as both:
        both.ingress._generator = Describing(answer)
        answered = await both.client.get("/v1/models")
        assert (answered.status_code, answered.json()["error"]) == (503, "worker_lost")


async def test_both_doors_give_the_same_bytes(serve):
    async with serve() as both:
        assert await both.by_handle(VOICE) == await both.by_http(VOICE)
        pieces = [piece async for piece in both.handle.stream_async(FACE, VOICE, BOX)]
        assert len(pieces) > 1 and b"ftyp" in pieces[0][:12]


@DOORS
async def test_what_is_refused_is_counted_whichever_door_it_came_by(serve, door):
    async with serve(spool_bytes=10) as both:
        with pytest.raises(Overloaded):
            await getattr(both, door)(VOICE)
        assert Counted.added[REJECTED.name, "overloaded_spool"] == 1


async def test_errors_of_streams_and_of_looking_for_faces_are_counted_too(serve):
    async with serve() as both:
        with pytest.raises(UnsupportedMedia):
            await both.ingress.faces(b"no picture")
        with pytest.raises(UnsupportedMedia):
            async for _ in both.ingress.stream(b"no picture", VOICE):
                pass
        assert sum(count for (name, _), count in Counted.added.items() if name == REJECTED.name) == 2


@DOORS
async def test_what_lies_in_the_spool_is_booked_before_it_is_written(serve, door, monkeypatch):
    seen = []
    real_remux, real_book = output.write_progressive, SpoolFolder.book

    async with serve() as both:

        def look() -> None:
            seen.append((both.lying_bytes, both.spool.byte_count))

        def remux(source, target):
            real_remux(source, target)
            look()

        def book(folder, count):
            look()
            real_book(folder, count)
            if count < 0:
                look()

        monkeypatch.setattr(output, "write_progressive", remux)
        monkeypatch.setattr(SpoolFolder, "book", book)
        result = await getattr(both, door)(VOICE)
    assert len(seen) > 4
    assert all(lying <= booked for lying, booked in seen), seen
    lying, booked = seen[-1]
    assert booked == lying == len(FACE) + len(VOICE) + len(result), "in the end it is what it is"


@DOORS
async def test_a_result_that_finds_the_spool_full_is_refused_while_it_is_made(serve, speaking, door):
    async with serve(spool_bytes=len(FACE) + len(LONG_VOICE) + 30_000) as both:
        with pytest.raises(Overloaded, match="room"):
            await getattr(both, door)(LONG_VOICE)
        assert 0 < speaking.frames < 750 / 2, "not after all of it was made"
        await both.rest()
        assert await getattr(both, door)(VOICE)


@DOORS
async def test_a_disk_that_is_full_is_told_as_a_full_spool(serve, door, monkeypatch):
    def remux(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(output, "write_progressive", remux)
    async with serve() as both:
        with pytest.raises(Overloaded, match="room"):
            await getattr(both, door)(VOICE)


@DOORS
async def test_a_result_is_read_beside_the_event_loop(serve, door, monkeypatch):
    readers, real_open = [], Path.open

    class Watched:
        def __init__(self, file):
            self._file = file

        def read(self, *count):
            readers.append(threading.current_thread())
            return self._file.read(*count)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

    def opened(path, mode="r", *args, **named):
        file = real_open(path, mode, *args, **named)
        return Watched(file) if (path.name, mode) == ("result.mp4", "rb") else file

    monkeypatch.setattr(Path, "open", opened)
    async with serve() as both:
        await getattr(both, door)(VOICE)
    assert readers and threading.main_thread() not in readers


async def test_a_large_input_lets_others_have_their_turn(serve):
    turns = 0

    async def count():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with serve() as both, AsyncExitStack() as stack:
        entered = await both.ingress._desk.enter(stack, request_id="x", key="")
        counting = asyncio.create_task(count())
        blob = await both.ingress._spooled(entered, "face", bytes(20 << 20))
        counting.cancel()
    assert blob.byte_count == 20 << 20 and turns >= 19


async def test_the_application_alone_says_what_is_too_large(serve, tmp_path, monkeypatch):
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(Limits().video_bytes + 1)
    monkeypatch.setattr(Blob, "open", lambda blob: io.BytesIO(b"content"))  # its 200 MB are not the point
    assert handle_module._read(large) == b"content", "an application may take more than usual"
    monkeypatch.undo()
    monkeypatch.setattr("serve.ingress.RayMeters", Counted)
    Counted.added.clear()
    small = Limits(video_bytes=len(FACE) - 1, image_bytes=1, audio_bytes=1)
    async with serve(limits=small) as both:
        with pytest.raises(InputTooLarge):
            await both.by_handle(VOICE)
    async with serve(limits=Limits(video_bytes=1, image_bytes=1, audio_bytes=len(FACE) + len(VOICE))) as both:
        with pytest.raises(InputTooLarge):
            await both.by_handle(bytes(len(FACE) + len(VOICE) + 1))


async def test_what_a_dead_process_left_goes_also_where_nobody_calls(serve):
    async with serve() as both:
        left = both.root / "request-of-the-dead"
        left.mkdir()
        (left / "face").write_bytes(b"x")
        both.ingress.check_health()
        assert not left.exists()

"""The bad-input corpus: a typed error or a valid mp4, in time, with no socket, no file left behind, no memory kept."""

import asyncio
import gc
import socket
import sys
import tempfile
import threading
import time

import psutil
import pytest

from lipsync.errors import InputError, LipsyncError, UnsupportedMedia
from lipsync.faces.detector import create_detector
from lipsync.local import LocalStages
from lipsync.media.source import Blob
from lipsync.options import Limits, Options
from lipsync.output import read_bytes
from lipsync.pipeline import Job, synchronise
from tests import corpus
from tests.fakes import Copying
from tests.media_factory import audio_bytes, video_bytes
from tests.test_pipeline import pictures_of

LIMITS = Limits(duration_s=600)
LONGEST_S = 30
CASES_AT_LEAST = 60


class Canary:
    """Listens on a port of its own; a connection is a failure."""

    def __init__(self):
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.visits = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.visits += 1
            connection.close()

    def close(self):
        self._server.close()


@pytest.fixture(scope="module")
def local():
    stages = LocalStages(
        Copying(), create_detector=lambda name: create_detector("centerface"), workers=2, cache_entries=0
    )
    yield stages
    stages.close()


@pytest.fixture(scope="module")
def canary():
    bird = Canary()
    yield bird
    bird.close()


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    path = tmp_path_factory.mktemp("secret") / "secret.mp4"
    path.write_bytes(video_bytes(frames=5, size=(160, 120)))
    return str(path)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def outcome(local, face: bytes, voice: bytes, **options) -> str | bytes:
    """The mp4, or the slug of the typed error; anything else is a failure."""
    started = time.perf_counter()
    try:
        job = Job(
            Blob.of(face, limit_bytes=10**9),
            Blob.of(voice, limit_bytes=10**9),
            Options(preset="ultrafast", **options),
            LIMITS,
        )
        return asyncio.run(read_bytes(synchronise(job, local)))
    except LipsyncError as error:
        assert isinstance(error, InputError), f"not the caller's fault? {error!r}"
        assert error.detail.strip().endswith((".", "?", ")")), "a sentence for people"
        return error.slug
    finally:
        assert time.perf_counter() - started < LONGEST_S


GOOD_VOICE = audio_bytes(seconds=0.4)
GOOD_FACE = video_bytes(frames=6, size=(160, 120))
FACE_NAMES = sorted(corpus.faces(0, "/x"))
VOICE_NAMES = sorted(corpus.voices(0, "/x"))


def assert_clean(found: str | bytes, canary: Canary, temporary) -> None:
    if isinstance(found, bytes):
        assert len(pictures_of(found)) > 0
    assert canary.visits == 0
    assert list(temporary.iterdir()) == []


def test_the_corpus_is_as_large_as_promised():
    assert len(FACE_NAMES) + len(VOICE_NAMES) >= CASES_AT_LEAST


@pytest.mark.parametrize("name", FACE_NAMES)
def test_a_strange_face_input_is_answered_or_refused(name, local, canary, secret, temporary):
    face = corpus.faces(canary.port, secret)[name]()
    # a box in the middle of the picture would not fit every size: faces are looked for, and mostly not found
    found = outcome(local, face, GOOD_VOICE)
    assert_clean(found, canary, temporary)
    if "playlist" in name or "concat" in name or name.endswith(("sdp", "manifest")):
        assert found == UnsupportedMedia.slug, "refused for what it is, before any demuxer sees it"


@pytest.mark.parametrize("name", VOICE_NAMES)
def test_a_strange_voice_is_answered_or_refused(name, local, canary, secret, temporary):
    voice = corpus.voices(canary.port, secret)[name]()
    assert_clean(outcome(local, GOOD_FACE, voice, box=(10, 110, 30, 130)), canary, temporary)


WANTED = {
    "wav at 1 kHz": "limit_exceeded",
    "wav at 384 kHz": "limit_exceeded",
    "eleven minutes": "limit_exceeded",
    "wav with NaN": "audio_not_finite",
    "wav with infinity": "audio_not_finite",
    "wav of no samples": "no_audio_stream",
    "video without sound": "no_audio_stream",
    "voice that is a picture": "no_audio_stream",
    "wav cut": "media_truncated",
}


@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_voice_is_refused_for_the_right_reason(name, local, temporary):
    assert outcome(local, GOOD_FACE, corpus.voices(0, "/x")[name](), box=(10, 110, 30, 130)) == WANTED[name]


@pytest.mark.parametrize(
    "name", ["silence", "wav at 8 kHz", "wav at 192 kHz", "wav of 8 channels", "wav of 0.1 s", "wav of one sample"]
)
def test_an_unusual_voice_speaks(name, local, temporary):
    found = outcome(local, GOOD_FACE, corpus.voices(0, "/x")[name](), box=(10, 110, 30, 130))
    assert isinstance(found, bytes), found


WANTED_FACES = {
    "nothing at all": "media_unreadable",
    "html": "media_unsupported",
    "svg": "media_unsupported",
    "sound alone": "no_video_stream",
    "mp4 cut in half, index in front": "media_truncated",
    "png of 40000 by 40000": "limit_exceeded",
    "png of 1 by 1": "limit_exceeded",
    "video of 16 by 16": "limit_exceeded",
    "video of 8192 by 4352": "limit_exceeded",
    "video that claims 1000 frames a second": "limit_exceeded",
    "video of odd size": "no_face",
    "video turned by its tag": "no_face",
    "gif animation": "no_face",
    "webp animation": "no_face",
    "png with alpha": "no_face",
    "png of 16 bits": "no_face",
    "jpeg in CMYK": "no_face",
    "hdr video": "no_face",
}


@pytest.mark.parametrize("name", sorted(WANTED_FACES))
def test_a_face_input_is_refused_for_the_right_reason(name, local, temporary):
    assert outcome(local, corpus.faces(0, "/x")[name](), GOOD_VOICE) == WANTED_FACES[name]


def test_no_address_is_connected_to_from_python_either(local, canary, secret, temporary):
    connections = []
    active = True

    def audit(event, args):
        if active and event == "socket.connect":
            connections.append(args)

    sys.addaudithook(audit)
    for make in corpus.playlists(canary.port, secret).values():
        outcome(local, make(), make())
    active = False
    assert connections == [] and canary.visits == 0


@pytest.mark.serial
def test_memory_does_not_grow_over_the_corpus(local, canary, secret, temporary):
    def sweep() -> float:
        for make in corpus.faces(canary.port, secret).values():
            outcome(local, make(), GOOD_VOICE)
        gc.collect()
        return psutil.Process().memory_info().rss / 1e6

    before = sweep()
    after = sweep()
    assert after - before < 50, f"{after - before:.0f} MB more after the second pass"


@pytest.mark.timeout(300)
def test_three_hundred_damaged_containers_are_answered_or_refused(local, temporary):
    outcomes: dict[str, int] = {}
    for _, data in corpus.mutants(300):
        found = outcome(local, data, GOOD_VOICE)
        outcomes[found if isinstance(found, str) else "mp4"] = (
            outcomes.get(found if isinstance(found, str) else "mp4", 0) + 1
        )
    assert sum(outcomes.values()) == 300
    assert list(temporary.iterdir()) == []

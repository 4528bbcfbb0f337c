"""The bad-input corpus: a typed error or a valid mp4, in time, with no socket, no file left behind, no memory kept."""

import asyncio
import gc
import io
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import av
import psutil
import pytest

from lipsync.allocator import return_large_blocks
from lipsync.core import Source
from lipsync.errors import InputError, LipsyncError, UnsupportedMedia
from lipsync.faces.detector import create_detector
from lipsync.local import LocalStages
from lipsync.media.source import Blob
from lipsync.options import Limits, Options
from lipsync.output import read_bytes
from lipsync.packaged import demo_face
from lipsync.pipeline import Job, synchronise
from tests import corpus
from tests.fakes import Copying
from tests.media_factory import audio_bytes, image_bytes, secret_movie, video_bytes
from tests.test_pipeline import pictures_of

LIMITS = Limits(duration_s=600)
LONGEST_S = 30
CASES_AT_LEAST = 60
MUTANTS = 300
MOST_GROWTH_MB = 50


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


class SocketWatch:
    """The internet sockets, TCP and UDP, that this process opens inside ``with``, whoever opens them.

    The system is asked fifty times a second, and once more at the end: a demuxer that listens, or waits for an
    answer, holds its socket for much longer.
    """

    def __enter__(self):
        self._process = psutil.Process()
        self._before = self._open()
        self.seen = set()
        self._over = threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)
        self._looking.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self._looking.join()
        self.seen |= self._open() - self._before

    def _look(self):
        while not self._over.wait(0.02):
            self.seen |= self._open() - self._before

    def _open(self):
        return {(found.fd, found.type, found.laddr) for found in self._process.net_connections(kind="inet")}


def made_stages() -> LocalStages:
    return LocalStages(
        Copying(), create_detector=lambda name: create_detector("centerface"), workers=2, cache_entries=0
    )


@pytest.fixture(scope="module")
def local():
    stages = made_stages()
    yield stages
    stages.close()


@pytest.fixture(scope="module")
def canary():
    bird = Canary()
    yield bird
    bird.close()


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    path = tmp_path_factory.mktemp("secret") / "secret.mov"
    path.write_bytes(secret_movie())
    return str(path)


@pytest.fixture
def answer(local, canary, tmp_path, monkeypatch) -> Callable[..., str | bytes]:
    """What a face and a voice come to, the mp4 or the slug of the typed error, after holding it to the whole rule."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def run(face: Source, voice: Source, **options) -> str | bytes:
        with SocketWatch() as watch:
            found = outcome(local, face, voice, **options)
        assert_clean(found, canary, watch, tmp_path)
        return found

    return run


def outcome(local: LocalStages, face: Source, voice: Source, **options) -> str | bytes:
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


def assert_clean(found: str | bytes, canary: Canary, watch: SocketWatch, temporary: Path) -> None:
    if isinstance(found, bytes):
        assert len(pictures_of(found)) > 0
    assert canary.visits == 0
    assert watch.seen == set()
    assert list(temporary.iterdir()) == []


GOOD_VOICE = audio_bytes(seconds=0.4)
GOOD_FACE = video_bytes(frames=6, size=corpus.SIZE)
BOX = (10, 110, 30, 130)
FACE_NAMES = sorted(corpus.faces(0, "/x"))
VOICE_NAMES = sorted(corpus.voices(0, "/x"))


def test_the_corpus_is_as_large_as_promised():
    assert len(FACE_NAMES) + len(VOICE_NAMES) >= CASES_AT_LEAST


@pytest.mark.parametrize("name", FACE_NAMES)
def test_a_strange_face_input_is_answered_or_refused(name, answer, canary, secret):
    # a box in the middle of the picture would not fit every size: faces are looked for, and mostly not found
    answer(corpus.faces(canary.port, secret)[name](), GOOD_VOICE)


@pytest.mark.parametrize("name", VOICE_NAMES)
def test_a_strange_voice_is_answered_or_refused(name, answer, canary, secret):
    answer(GOOD_FACE, corpus.voices(canary.port, secret)[name](), box=BOX)


@pytest.mark.parametrize("name", sorted(corpus.scripts(0, "/x")))
def test_a_script_is_refused_for_what_it_is_before_any_demuxer_sees_it(name, answer, canary, secret):
    script = corpus.scripts(canary.port, secret)[name]()
    assert answer(script, GOOD_VOICE) == UnsupportedMedia.slug
    assert answer(GOOD_FACE, script, box=BOX) == UnsupportedMedia.slug


WANTED = {
    "voice: movie whose samples lie in another file": "no_audio_stream",
    "wav at 1 kHz": "limit_exceeded",
    "wav at 384 kHz": "limit_exceeded",
    "eleven minutes": "limit_exceeded",
    "wav with NaN": "audio_not_finite",
    "wav with infinity": "audio_not_finite",
    "wav of no samples": "no_audio_stream",
    "video without sound": "no_audio_stream",
    "voice that is a picture": "no_audio_stream",
    **{f"{kind} cut": "media_truncated" for kind in ("wav", "ogg", "aac", "ac3", "wavpack", "tta", "au")},
}


@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_voice_is_refused_for_the_right_reason(name, answer, canary, secret):
    assert answer(GOOD_FACE, corpus.voices(canary.port, secret)[name](), box=BOX) == WANTED[name]


@pytest.mark.parametrize(
    "name",
    [
        "silence",
        "wav in adpcm",
        "wav at 8 kHz",
        "wav at 192 kHz",
        "wav of 8 channels",
        "wav of 0.1 s",
        "wav of one sample",
    ],
)
def test_an_unusual_voice_speaks(name, answer):
    found = answer(GOOD_FACE, corpus.voices(0, "/x")[name](), box=BOX)
    assert isinstance(found, bytes), found


WANTED_FACES = {
    "face: movie whose samples lie in another file": "media_truncated",
    "nothing at all": "media_unreadable",
    "html": "media_unsupported",
    "svg": "media_unsupported",
    "sound alone": "no_video_stream",
    "mp4 cut in half, index in front": "media_truncated",
    "ts cut": "media_truncated",
    "webm recorded live, cut": "media_truncated",
    "mpeg program stream": "no_face",
    "wmv": "no_face",
    "png of 40000 by 40000": "limit_exceeded",
    "png of 1 by 1": "limit_exceeded",
    "video of 16 by 16": "limit_exceeded",
    "video of 8192 by 4352": "limit_exceeded",
    "video that claims 1000 frames a second": "limit_exceeded",
    "mp4 of 90,000 frames": "limit_exceeded",
    "mkv of 90,000 frames that tells no duration": "limit_exceeded",
    "mkv of 90,000 frames that claims ten seconds": "limit_exceeded",
    "video of odd size": "no_face",
    "video turned by its tag": "no_face",
    "gif animation": "no_face",
    "webp animation": "no_face",
    "png with alpha": "no_face",
    "png of 16 bits": "no_face",
    "jpeg in CMYK": "no_face",
    "heic": "no_face",
    "heic turned by its tag": "no_face",
    "avif": "no_face",
    "avif cut": "media_truncated",
    "heic cut": "media_truncated",
    "hdr video": "no_face",
}


@pytest.mark.parametrize("name", sorted(WANTED_FACES))
def test_a_face_input_is_refused_for_the_right_reason(name, answer, canary, secret):
    assert answer(corpus.faces(canary.port, secret)[name](), GOOD_VOICE) == WANTED_FACES[name]


@pytest.mark.parametrize("case", corpus.wrong_names(0, "/x"), ids=str)
def test_a_file_whose_name_lies_is_what_its_content_is(case, answer, canary, secret, tmp_path_factory):
    content = next(found for found in corpus.wrong_names(canary.port, secret) if str(found) == str(case)).make()
    path = tmp_path_factory.mktemp("named") / case.file_name
    path.write_bytes(content)
    if case.role == "face":
        named, nameless = answer(path, GOOD_VOICE, box=BOX), answer(content, GOOD_VOICE, box=BOX)
    else:
        named, nameless = answer(GOOD_FACE, path, box=BOX), answer(GOOD_FACE, content, box=BOX)
    assert named == nameless
    assert (named if isinstance(named, str) else "mp4") == case.wanted


def test_no_address_is_connected_to_from_python_either(answer, canary, secret):
    connections = []
    active = True

    def audit(event, args):
        if active and event == "socket.connect":
            connections.append(args)

    sys.addaudithook(audit)
    for make in corpus.playlists(canary.port, secret).values():
        answer(make(), make())
    active = False
    assert connections == []


def test_the_watch_sees_what_a_careless_demuxer_opens(canary):
    sdp = corpus.scripts(canary.port, "/x")["sdp"]()
    careless = {"protocol_whitelist": "file,rtp,udp"}
    with SocketWatch() as watch:
        av.open(io.BytesIO(sdp), format="sdp", options=careless, timeout=1.0).close()
    assert socket.SOCK_DGRAM in {kind for _, kind, _ in watch.seen}


def resident_mb() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


@pytest.mark.serial
def test_memory_does_not_grow_over_the_corpus(canary, secret, tmp_path):
    for name, make in corpus.faces(canary.port, secret).items():
        (tmp_path / f"face {name}").write_bytes(make())
    for name, make in corpus.voices(canary.port, secret).items():
        (tmp_path / f"voice {name}").write_bytes(make())
    # in a process of its own, as the makers of these files leave more behind than their readers
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        growth = pool.submit(growth_over_mb, sorted(tmp_path.iterdir())).result()
    assert growth < MOST_GROWTH_MB, f"{growth:.0f} MB more after the corpus"


def growth_over_mb(paths: list[Path]) -> float:
    """Resident megabytes that all the files together leave behind, after what one good case of each kind has left."""
    return_large_blocks()  # as the command line and the replicas do
    local = made_stages()
    warm_up(partial(outcome, local))
    before = resident_mb()
    for path in paths:
        role = path.name.split()[0]
        outcome(local, path, GOOD_VOICE) if role == "face" else outcome(local, GOOD_FACE, path, box=BOX)
    growth = resident_mb() - before
    local.close()
    return growth


def warm_up(answer: Callable[..., str | bytes]) -> None:
    """A picture with a face, one without, and a video: the detector keeps memory for each size it has worked at."""
    assert isinstance(answer(demo_face(), GOOD_VOICE), bytes)
    assert isinstance(answer(GOOD_FACE, GOOD_VOICE, box=BOX), bytes)
    assert [answer(face, GOOD_VOICE) for face in (GOOD_FACE, image_bytes(size=(320, 240)))] == ["no_face", "no_face"]


@pytest.mark.serial
@pytest.mark.timeout(300)
def test_three_hundred_damaged_containers_are_answered_or_refused(answer):
    warm_up(answer)
    mutants = list(corpus.mutants(MUTANTS))  # before the memory is read: their encoders leave more behind than decoders
    before = resident_mb()
    outcomes: Counter[tuple[str, str]] = Counter()
    for number, (role, data) in enumerate(mutants):
        # with a box a face is rendered, without one it is looked for
        found = (
            answer(data, GOOD_VOICE, box=BOX if number % 3 else None)
            if role == "face"
            else answer(GOOD_FACE, data, box=BOX)
        )
        outcomes[role, found if isinstance(found, str) else "mp4"] += 1
    growth = resident_mb() - before
    assert outcomes.total() == MUTANTS
    assert min(outcomes["face", "mp4"], outcomes["voice", "mp4"], outcomes["face", "no_face"]) > 10, outcomes
    assert growth < MOST_GROWTH_MB, f"{growth:.0f} MB more after the mutants"

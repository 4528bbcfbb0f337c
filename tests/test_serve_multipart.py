"""A multipart body as it arrives: the same form however it was cut, bounds while reading, nothing left in the spool."""

import asyncio
import errno
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lipsync.errors import (
    InputTooLarge,
    LipsyncError,
    MalformedRequest,
    OutputError,
    Overloaded,
    UnreadableMedia,
    UnsupportedMedia,
)
from lipsync.options import Limits
from serve import multipart
from serve.multipart import TEXT_BYTES, Form, most_bytes, receive
from serve.settings import SpoolSettings
from serve.spool import Spool, room_on_disk

BOUNDARY = "----edge"
LIMITS = Limits(image_bytes=200_000, audio_bytes=300_000)
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40
WAV = b"RIFF\x00\x00\x00\x00WAVEfmt " + bytes(3000)
FILES = {"face": 1_000_000, "audio": 1_000_000}
TEXTS = {"crf", "options", "label"}


def part(name: str, data: bytes, *, more: str = "", headers: str = "") -> bytes:
    return (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n{headers}\r\n'.encode()
        + data
        + b"\r\n"
    )


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


GOOD = body(
    part("face", PNG, more='; filename="a.png"', headers="Content-Type: image/png\r\n"),
    part("crf", b"20"),
    part("audio", WAV, more='; filename="a.wav"'),
    part("options", '{"label": true, "ä": 1}'.encode()),
)


class Chunks:
    """A body in pieces that counts what was taken of it."""

    def __init__(self, pieces):
        self._pieces = iter(pieces)
        self.taken = 0

    def __aiter__(self):
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            self.taken += len(piece)
            return piece
        raise StopAsyncIteration


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.fixture
def spool(tmp_path):
    return Spool(SpoolSettings(folder=str(tmp_path / "spool"), bytes=10_000_000))


def received(spool, chunks, *, kind: str | None = TYPE, files=FILES) -> tuple[Form, dict[str, bytes]]:
    with spool.folder() as folder:
        form = asyncio.run(receive(chunks, kind, folder, files=files, texts=TEXTS, limits=LIMITS))
        return form, {name: blob.head(10**7) for name, blob in form.files.items()}


def refused(spool, data: bytes, kind: str | None = TYPE, *, files=FILES, size: int = 1000) -> LipsyncError:
    """The typed error; and nothing is left."""
    with pytest.raises(LipsyncError) as caught:
        received(spool, Chunks(cut(data, size)), kind=kind, files=files)
    assert_empty(spool)
    return caught.value


def assert_empty(spool) -> None:
    assert spool.byte_count == 0
    assert list(spool._root.iterdir()) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(GOOD)), max_size=30))
def test_any_cutting_of_the_body_gives_the_same_form(spool, cuts):
    edges = [0, *sorted(cuts), len(GOOD)]
    form, contents = received(spool, Chunks(GOOD[a:b] for a, b in pairwise(edges)))
    assert form.texts == {"crf": "20", "options": '{"label": true, "ä": 1}'}
    assert contents == {"face": PNG, "audio": WAV}
    assert form.files["face"].content_hash == hashlib.sha256(PNG).hexdigest()
    assert_empty(spool)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_body_byte_by_byte_is_read_too(spool, size):
    _, contents = received(spool, Chunks(cut(GOOD, size)))
    assert contents == {"face": PNG, "audio": WAV}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=5000), size=st.integers(1, 600))
def test_content_full_of_boundary_like_bytes_comes_through_whole(spool, data, size):
    tricky = PNG + b"\r\n--" + data.replace(b"----edge", b"") + f"\r\n--{BOUNDARY[:-1]}\r\n-\r\n--\r".encode()
    _, contents = received(spool, Chunks(cut(body(part("face", tricky)), size)))
    assert contents["face"] == tricky


def test_a_file_above_its_cap_is_refused_after_cap_and_one_chunk(spool):
    chunks = Chunks(cut(body(part("face", PNG + bytes(900_000))), 4096))
    with pytest.raises(InputTooLarge, match="50,000"):
        received(spool, chunks, files={"face": 50_000})
    assert chunks.taken <= 50_000 + 4096 + 200
    assert_empty(spool)


@pytest.mark.parametrize(
    ("begins", "most"),
    [
        (PNG, LIMITS.image_bytes),
        (b"GIF89a" + bytes(5000), LIMITS.image_bytes),
        (b"RIFF\xff\xff\xff\x00WAVEfmt " + bytes(5000), LIMITS.audio_bytes),
        (b"fLaC" + bytes(5000), LIMITS.audio_bytes),
        (b"\x00\x00\x00\x18ftypisom" + bytes(5000), 800_000),
    ],
    ids=["a still", "an animation", "wav", "flac", "mp4"],
)
def test_a_file_may_have_the_bytes_of_what_it_begins_as(spool, begins, most):
    chunks = Chunks(cut(body(part("face", begins + bytes(900_000))), 4096))
    with pytest.raises(InputTooLarge, match=f"{most:,}"):
        received(spool, chunks, files={"face": 800_000})
    assert most < chunks.taken <= most + 4096 + 200
    assert_empty(spool)


def test_texts_are_bounded_all_together(spool):
    pieces = cut(body(part("options", b"x" * (TEXT_BYTES - 10)), part("crf", b"1" * 100_000)), 65_536)
    chunks = Chunks(pieces)
    with pytest.raises(InputTooLarge, match="options"):
        received(spool, chunks)
    assert chunks.taken <= TEXT_BYTES + 65_536 + 200


@pytest.mark.parametrize("where", ["before the first part", "after the last"])
def test_what_the_parser_skips_is_bounded_too(spool, where):
    def endless():
        yield b"\r\n" if where == "before the first part" else body(part("face", PNG))
        while True:
            yield b"x\r\n" * 20_000 if where == "after the last" else b"\r\n" * 30_000

    chunks = Chunks(endless())
    with pytest.raises((InputTooLarge, MalformedRequest)):
        received(spool, chunks)
    assert chunks.taken <= most_bytes(FILES) + 60_000


@pytest.mark.parametrize(
    "data",
    [
        part("crf", b"1") * 65,
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="face"\r\nX: {"y" * 20_000}\r\n\r\n'.encode(),
        f"--{BOUNDARY}\r\n".encode() + b"A: b\r\n" * 100 + b"\r\n",
        f"--{BOUNDARY}\r\n{'N' * 9000}: 1\r\n\r\n".encode(),
    ],
    ids=["parts", "a long header", "many headers", "a long header name"],
)
def test_parts_and_headers_are_bounded(spool, data):
    assert isinstance(refused(spool, data), MalformedRequest)


def test_more_parts_than_are_taken_are_refused_by_number(spool, monkeypatch):
    monkeypatch.setattr(multipart, "_PARTS", 2)
    assert "more than 2 parts" in refused(spool, GOOD).detail


@pytest.mark.parametrize(
    "kind",
    [None, "", "multipart/form-data", "multipart/mixed; boundary=----edge", "application/json", "multipart/form-data; boundary=",
     "multipart/form-data; boundary=" + "x" * 3000, "multipart/form-data; boundary*=utf-8''edge", "multipart/form-data; boundary=other"],
    ids=lambda kind: repr(kind)[:45],
)  # fmt: skip
def test_a_body_of_another_type_or_boundary_is_refused(spool, kind):
    assert isinstance(refused(spool, GOOD, kind), MalformedRequest)


@pytest.mark.parametrize("kept", [0, 1, 30, 200, len(GOOD) // 2, len(GOOD) - 8, len(GOOD) - 5])
def test_a_body_that_ends_early_is_refused(spool, kept):
    assert isinstance(refused(spool, GOOD[:kept]), MalformedRequest)


def test_names_that_are_there_twice_unknown_or_missing_are_refused_by_name(spool):
    assert "'face' is there twice" in refused(spool, body(part("face", PNG), part("face", PNG))).detail
    assert "'crf' is there twice" in refused(spool, body(part("crf", b"1"), part("crf", b"2"))).detail
    unknown = refused(spool, body(part("audoi", WAV, more='; filename="a.wav"')))
    assert isinstance(unknown, MalformedRequest) and "'audoi'" in unknown.detail and "face and audio" in unknown.detail
    nameless = f"--{BOUNDARY}\r\nContent-Disposition: form-data\r\n\r\nx\r\n--{BOUNDARY}--\r\n".encode()
    assert "no name" in refused(spool, nameless).detail
    assert "no name" in refused(spool, f"--{BOUNDARY}\r\n\r\nx\r\n--{BOUNDARY}--\r\n".encode()).detail


def test_a_misnamed_file_is_refused_before_it_is_read(spool):
    chunks = Chunks(cut(body(part("audoi", bytes(900_000))), 4096))
    with pytest.raises(MalformedRequest, match="audoi"):
        received(spool, chunks)
    assert chunks.taken <= 4096


@pytest.mark.parametrize(
    "filename", ["../../etc/passwd", "/etc/passwd", "a\0b", "\u202egnp.exe", "x" * 3800, "..", "", "C:\\x", "face\\\"; name=\"crf"],
    ids=lambda name: ascii(name[:20]),
)  # fmt: skip
def test_a_file_name_never_touches_the_file_system(spool, filename):
    with spool.folder() as folder:
        chunks = Chunks(cut(body(part("face", PNG, more=f'; filename="{filename}"')), 500))
        form = asyncio.run(receive(chunks, TYPE, folder, files=FILES, texts=TEXTS, limits=LIMITS))
        assert set(form.files) == {"face"} and not form.texts
        assert [path.name for path in folder.place.iterdir()] == ["face"]
        assert [path.name for path in spool._root.iterdir()] == [folder.place.name]
    assert_empty(spool)


@pytest.mark.parametrize("name", ["../face", "face\0", "face/../audio", ".", "\u202eecaf", "Face", " face"])
def test_a_part_name_never_becomes_a_path(spool, name):
    assert isinstance(refused(spool, body(part(name, PNG))), MalformedRequest)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.one_of(
        st.binary(max_size=80),
        st.text(st.sampled_from("form-data;name*=0'\"\\ \tutf8%é%FF[]()<>@,:/?="), max_size=60).map(str.encode),
    )
)
def test_any_disposition_is_read_or_refused_and_never_crashes(spool, value):
    data = (
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; ".encode()
        + value
        + b"\r\n\r\nx\r\n"
        + f"--{BOUNDARY}--\r\n".encode()
    )
    try:
        received(spool, Chunks([data]))
    except LipsyncError as error:
        assert isinstance(error, MalformedRequest | UnsupportedMedia | UnreadableMedia)
    assert_empty(spool)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.text(
        st.one_of(st.sampled_from("boundary*=0'\"\\; \t%é[]()<>,:/?"), st.characters(max_codepoint=255)), max_size=60
    )
)
def test_any_content_type_is_read_or_refused_and_never_crashes(spool, value):
    with suppress(MalformedRequest):
        received(spool, Chunks([GOOD]), kind="multipart/form-data; " + value)
    assert_empty(spool)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(GOOD) - 1), noise=st.binary(min_size=1, max_size=6), size=st.integers(1, 3000))
def test_a_damaged_body_is_read_or_refused_and_never_crashes(spool, at, noise, size):
    damaged = GOOD[:at] + noise + GOOD[at + len(noise) :]
    with suppress(LipsyncError):
        received(spool, Chunks(cut(damaged, size)))
    assert_empty(spool)


def test_text_that_is_not_utf8_is_refused_by_name(spool):
    assert "'crf' is not UTF-8" in refused(spool, body(part("crf", b"\xff\xfe"))).detail


def test_an_empty_file_is_refused_for_what_it_is(spool):
    assert isinstance(refused(spool, body(part("face", b""))), UnreadableMedia)


def test_what_is_no_media_is_refused_after_its_first_4_kb(spool):
    chunks = Chunks(cut(body(part("face", b"<!DOCTYPE html><html>" + b" " * 900_000)), 1024))
    with pytest.raises(UnsupportedMedia, match="HTML"):
        received(spool, chunks)
    assert chunks.taken <= 4096 + 2 * 1024 + 200


def test_a_short_file_that_is_no_media_is_refused_at_its_end(spool):
    assert isinstance(refused(spool, body(part("face", b"#EXTM3U\nhttp://127.0.0.1/x"))), UnsupportedMedia)


def test_a_full_spool_refuses_and_gives_back(tmp_path):
    small = Spool(SpoolSettings(folder=str(tmp_path / "small"), bytes=len(PNG) + 100))
    with small.folder() as folder:
        form = asyncio.run(
            receive(Chunks([body(part("face", PNG))]), TYPE, folder, files=FILES, texts=TEXTS, limits=LIMITS)
        )
        assert form.files["face"].byte_count == small.byte_count == len(PNG)
        with small.folder() as other, pytest.raises(Overloaded) as caught:
            asyncio.run(
                receive(
                    Chunks(cut(body(part("face", PNG)), 64)),
                    TYPE,
                    other,
                    files=FILES,
                    texts=TEXTS,
                    limits=LIMITS,
                )
            )
        assert caught.value.reason == "spool"
        assert small.byte_count == len(PNG), "the refused one has given back what it had"
    assert_empty(small)


def test_a_full_disk_is_told_as_a_full_spool(spool):
    class FullDisk:
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        close = write_on_close = lambda self: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full"))

    with spool.folder() as folder:
        file = folder.file("face", limit_bytes=100)
        file._file.close()
        file._file = FullDisk()
        for work in (lambda: file.write(b"x"), file.close, file.blob):
            with pytest.raises(Overloaded) as caught:
                work()
            assert caught.value.reason == "spool" and str(spool._root) not in caught.value.detail
    assert_empty(spool)


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError, RuntimeError, GeneratorExit])
def test_a_folder_goes_however_its_request_ends(spool, error):
    with pytest.raises(error), spool.folder() as folder:
        with closing(folder.file("face", limit_bytes=10)) as file:
            file.write(b"12345")
        (folder.place / "deeper").mkdir()
        (folder.place / "deeper" / "file").write_bytes(b"x")
        raise error
    assert_empty(spool)


def test_a_caller_who_stops_sending_is_cancelled_and_leaves_nothing(spool):
    async def never():
        yield GOOD[:5000]
        await asyncio.sleep(60)

    async def in_time():
        with spool.folder() as folder:
            async with asyncio.timeout(0.1):
                await receive(never(), TYPE, folder, files=FILES, texts=TEXTS, limits=LIMITS)

    with pytest.raises(TimeoutError):
        asyncio.run(in_time())
    assert_empty(spool)


HOLDER = """
import sys
from serve.settings import SpoolSettings
from serve.spool import Spool
with Spool(SpoolSettings(folder=sys.argv[1])).folder() as folder:
    (folder.place / "face").write_bytes(b"x")
    print(folder.place.name, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_at_once_and_what_a_living_one_has_is_not(tmp_path):
    root = tmp_path / "spool"
    spool = Spool(SpoolSettings(folder=str(root), ttl_s=100))
    command = [sys.executable, "-c", HOLDER, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        theirs = other.stdout.readline().strip()
        with spool.folder() as ours:
            os.utime(root / theirs, (time.time() - 101,) * 2)  # however long it takes
            spool.sweep()
            assert {path.name for path in root.iterdir()} == {theirs, ours.place.name}
            other.kill()
            other.wait()
            spool.sweep()
            assert [path.name for path in root.iterdir()] == [ours.place.name]


def test_where_the_file_system_knows_no_locks_the_sweep_goes_by_age(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("serve.spool.fcntl.flock", no_locks)
    root = tmp_path / "spool"
    spool = Spool(SpoolSettings(folder=str(root), ttl_s=100))
    for name, age_s in (("request-old", 101), ("request-young", 50), ("another-old", 500)):
        (root / name).mkdir()
        (root / name / "face").write_bytes(b"x")
        os.utime(root / name, (time.time() - age_s,) * 2)
    with spool.folder() as folder:
        assert {path.name for path in root.iterdir()} == {"request-young", "another-old", folder.place.name}


def test_the_spool_is_for_its_owner_alone(spool, monkeypatch, tmp_path):
    assert spool._root.stat().st_mode & 0o777 == 0o700
    with spool.folder() as folder:
        assert folder.place.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"lipsync-spool-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="spool"):
        Spool(SpoolSettings())
    (tmp_path / f"lipsync-spool-{os.getuid()}").unlink()
    assert Path(Spool(SpoolSettings())._root).parent == tmp_path


def test_a_result_that_finds_the_disk_full_is_told_so_too_and_another_fault_is_not():
    def write(code: int) -> None:
        with room_on_disk():
            try:
                raise OSError(code, os.strerror(code))
            except OSError as error:  # as lipsync.output does
                raise OutputError("Cannot write it.") from error

    with pytest.raises(Overloaded) as full:
        write(errno.ENOSPC)
    assert full.value.reason == "spool"
    with pytest.raises(OutputError):
        write(errno.EACCES)

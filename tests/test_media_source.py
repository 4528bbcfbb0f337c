"""A blob is one input: regular files only, within its limit, the same for all who open it."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from pathlib import Path

import pytest

from lipsync.core import Source
from lipsync.errors import LimitExceeded, UnreadableMedia
from lipsync.media.source import Blob

DATA = bytes(range(256)) * 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "../odd name.mp4.txt"
    file.write_bytes(DATA)
    return file


@pytest.fixture(params=["path", "text path", "bytes", "bytearray", "file object"])
def source(request: pytest.FixtureRequest, path: Path) -> Source:
    kinds: dict[str, Source] = {
        "path": path,
        "text path": str(path),
        "bytes": DATA,
        "bytearray": bytearray(DATA),  # type: ignore[dict-item]
        "file object": io.BytesIO(DATA),
    }
    return kinds[request.param]


def test_every_kind_of_source_gives_the_same_bytes_again_and_again(source: Source) -> None:
    blob = Blob.of(source, limit_bytes=len(DATA))
    assert blob.byte_count == len(DATA)
    assert blob.head(3) == DATA[:3]
    assert blob.content_hash == hashlib.sha256(DATA).hexdigest()
    with blob.open() as first, blob.open() as second:
        first.seek(-10, os.SEEK_END)
        assert first.read() == DATA[-10:]
        assert second.read() == DATA
        second.seek(5)
        second.seek(5, os.SEEK_CUR)
        assert (second.tell(), second.read(2)) == (10, DATA[10:12])


def test_memory_of_somebody_else_is_read_where_it_lies_and_pickles_by_its_bytes() -> None:
    memory = bytearray(DATA)
    blob = Blob.over(memoryview(memory), content_hash="known")
    assert (blob.byte_count, blob.content_hash, blob.head(3)) == (len(DATA), "known", DATA[:3])
    memory[0] = 77
    with blob.open() as reader:
        assert reader.read(2) == bytes([77, 1])
        reader.seek(-2, os.SEEK_END)
        assert reader.read() == DATA[-2:]
        with pytest.raises(ValueError, match="cannot seek"):
            reader.seek(-1)
    copy = pickle.loads(pickle.dumps(blob))
    assert (copy.head(1), copy.content_hash) == (bytes([77]), "known")


def test_a_blob_pickles(source: Source) -> None:
    copy = pickle.loads(pickle.dumps(Blob.of(source, limit_bytes=len(DATA))))
    with copy.open() as reader:
        assert reader.read() == DATA


def test_a_file_blob_pickles_by_its_path_alone(path: Path) -> None:
    assert len(pickle.dumps(Blob.of(path, limit_bytes=len(DATA)))) < 1000


def test_a_limit_refuses_files_bytes_and_endless_streams(source: Source) -> None:
    with pytest.raises(LimitExceeded, match=r"at most|more than"):
        Blob.of(source, limit_bytes=len(DATA) - 1)

    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            assert size <= 1 << 20
            return bytes(size)

    with pytest.raises(LimitExceeded, match="more than"):
        Blob.of(Endless(), limit_bytes=5_000_000)  # type: ignore[arg-type]


def test_nothing_but_regular_files_is_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, Path("/dev/zero")):
        with pytest.raises(UnreadableMedia, match="not a regular file"):
            Blob.of(path, limit_bytes=100)


@pytest.mark.parametrize(
    "source, said",
    [
        ("/no/such/file", "No such file"),
        ("http://127.0.0.1/a.mp4", "URL"),
        ("a\0b", "NUL"),
        ("", "empty"),
        ("x" * 5000, "too long"),
        (b"", "empty"),
        (io.BytesIO(), "empty"),
        (io.StringIO("text"), "binary"),
        (42, "int"),
        (b"folder/file", None),
    ],
)
def test_sources_that_are_none_say_why(source: Source, said: str | None) -> None:
    if said is None:  # bytes are content, never a path
        assert Blob.of(source, limit_bytes=100).byte_count == 11
        return
    with pytest.raises(UnreadableMedia, match=said):
        Blob.of(source, limit_bytes=100)


def test_a_file_that_changes_is_not_read_as_the_same_input(path: Path) -> None:
    blob = Blob.of(path, limit_bytes=10**6)
    path.write_bytes(DATA[:-1])
    with pytest.raises(UnreadableMedia, match="changed"):
        blob.open()
    path.unlink()
    with pytest.raises(UnreadableMedia, match="No such file"):
        blob.open()


def test_readers_let_go_of_their_descriptors(path: Path) -> None:
    blob = Blob.of(path, limit_bytes=10**6)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        blob.open().read(1)
    assert len(os.listdir("/proc/self/fd")) == before

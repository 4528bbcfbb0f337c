"""An input that can be opened many times, from several threads, and sent to another process."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from typing import Any, BinaryIO, cast

from lipsync.core import Source
from lipsync.errors import InputTooLarge, UnreadableMedia

_BLOCK = 1 << 20


class Blob:
    """The bytes of one input: a regular file of the caller's own, or memory. Pickles by path, or by its bytes.

    A ``memoryview`` given to ``over`` is read where it lies (shared memory, a mapped file) and never copied.

    A path is looked at once, in ``of``; a file that has another size, date or inode when it is opened again
    raises UnreadableMedia, so that all parts of one request see the same input.
    """

    __slots__ = ("_data", "_hash", "_path", "_seen", "byte_count")

    def __init__(
        self, *, data: bytes | memoryview | None, path: str | None, seen: tuple[int, ...] | None, byte_count: int
    ) -> None:
        self._data = data
        self._path = path
        self._seen = seen
        self._hash: str | None = None
        self.byte_count = byte_count

    @classmethod
    def of(cls, source: Source | Blob, *, limit_bytes: int) -> Blob:
        """A path, the bytes, or a binary file object read from where it stands to its end.

        Raises UnreadableMedia where there is nothing to read, InputTooLarge above ``limit_bytes``.
        """
        if isinstance(source, Blob):
            blob = source
        elif isinstance(source, bytes | bytearray | memoryview):
            data = bytes(source)
            blob = cls(data=data, path=None, seen=None, byte_count=len(data))
        elif isinstance(source, str | os.PathLike):
            blob = cls._of_path(os.path.abspath(_as_path(source)))
        else:
            data = _read_all(source, limit_bytes)
            blob = cls(data=data, path=None, seen=None, byte_count=len(data))
        if blob.byte_count == 0:
            raise UnreadableMedia("The input is empty: 0 bytes. Send the file's content.")
        if blob.byte_count > limit_bytes:
            raise InputTooLarge(
                f"The input has {blob.byte_count:,} bytes; at most {limit_bytes:,} are allowed. Send a smaller file."
            )
        return blob

    @classmethod
    def over(cls, memory: memoryview, *, content_hash: str) -> Blob:
        """Bytes of somebody else's, whose SHA-256 is known; the caller keeps them unchanged."""
        return cls(data=memory, path=None, seen=None, byte_count=memory.nbytes).with_hash(content_hash)

    def with_hash(self, content_hash: str) -> Blob:
        """The same, whose SHA-256 the caller has computed already."""
        self._hash = content_hash
        return self

    @classmethod
    def _of_path(cls, path: str) -> Blob:
        descriptor, seen = _open_regular(path)
        os.close(descriptor)
        return cls(data=None, path=path, seen=seen, byte_count=seen[0])

    def open(self) -> BinaryIO:
        """A fresh reader at 0 that can seek; memory is shared, not copied."""
        if isinstance(self._data, memoryview):
            return cast(BinaryIO, io.BufferedReader(_Memory(self._data), 1 << 16))
        if self._data is not None:
            return io.BytesIO(self._data)
        assert self._path is not None
        descriptor, seen = _open_regular(self._path)
        if seen != self._seen:
            os.close(descriptor)
            raise UnreadableMedia(f"{self._path} changed while it was being used. Give a file that stays as it is.")
        return cast(BinaryIO, io.BufferedReader(_Descriptor(descriptor, seen[0]), 1 << 16))

    def head(self, n: int) -> bytes:
        """The first ``n`` bytes, or all where there are fewer."""
        with self.open() as reader:
            return reader.read(n)

    @property
    def content_hash(self) -> str:
        """SHA-256 of the content, hexadecimal; read once."""
        if self._hash is None:
            digest = hashlib.sha256()
            with self.open() as reader:
                while block := reader.read(_BLOCK):
                    digest.update(block)
            self._hash = digest.hexdigest()
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        data = bytes(self._data) if isinstance(self._data, memoryview) else self._data
        return _restore, (data, self._path, self._seen, self.byte_count, self._hash)

    def __repr__(self) -> str:
        return f"Blob({self._path or 'memory'}, {self.byte_count:,} bytes)"


def _restore(
    data: bytes | None, path: str | None, seen: tuple[int, ...] | None, byte_count: int, content_hash: str | None
) -> Blob:
    blob = Blob(data=data, path=path, seen=seen, byte_count=byte_count)
    blob._hash = content_hash
    return blob


class _Memory(io.RawIOBase):
    """Memory read by position, without a copy of the whole."""

    def __init__(self, memory: memoryview) -> None:
        super().__init__()
        self._memory = memory.cast("B")
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._memory[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = _position(offset, whence, at=self._at, size=len(self._memory))
        return self._at

    def tell(self) -> int:
        return self._at


def _position(offset: int, whence: int, *, at: int, size: int) -> int:
    start = {os.SEEK_SET: 0, os.SEEK_CUR: at, os.SEEK_END: size}[whence]
    if start + offset < 0:
        raise ValueError(f"cannot seek to {start + offset}")
    return start + offset


class _Descriptor(io.RawIOBase):
    """A file descriptor read by position. Closed when let go of, also by a demuxer that never closes its file."""

    def __init__(self, descriptor: int, size: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = os.preadv(self._descriptor, [buffer], self._at)
        self._at += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = _position(offset, whence, at=self._at, size=self._size)
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def _as_path(source: str | os.PathLike[str]) -> str:
    path = os.fspath(source)
    if not isinstance(path, str):
        raise UnreadableMedia(f"A path must be text, not {type(path).__name__}.")
    if "\0" in path or not path:
        raise UnreadableMedia("The path is empty or holds a NUL character. Give the path of a file.")
    if "://" in path and not os.path.exists(path):
        raise UnreadableMedia(f"{path[:200]!r} looks like a URL: only files and bytes are read. Download it first.")
    return path


def _open_regular(path: str) -> tuple[int, tuple[int, ...]]:
    """A descriptor of a regular file, and what identifies its state. Never blocks on a pipe, never reads a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreadableMedia(f"Cannot open {path[:200]!r}: {reason}. Check the path and its permissions.") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UnreadableMedia(f"{path!r} is not a regular file. Give a file, not a folder, pipe or device.")
    return descriptor, (status.st_size, status.st_mtime_ns, status.st_ino)


def _read_all(reader: BinaryIO, limit_bytes: int) -> bytes:
    if not hasattr(reader, "read"):
        raise UnreadableMedia(f"A source is a path, bytes, or a binary file object, not {type(reader).__name__}.")
    blocks, count = [], 0
    while count <= limit_bytes:
        try:
            block = reader.read(min(_BLOCK, limit_bytes + 1 - count))
        except (OSError, ValueError) as error:
            raise UnreadableMedia(f"The file object cannot be read: {error}. Open it for reading.") from error
        if not isinstance(block, bytes | bytearray):
            raise UnreadableMedia("The file object gives text or nothing. Open it in binary mode, and blocking.")
        if not block:
            break
        blocks.append(block)
        count += len(block)
    if count > limit_bytes:
        raise InputTooLarge(f"The input has more than {limit_bytes:,} bytes, the most allowed. Send a smaller file.")
    return b"".join(blocks)

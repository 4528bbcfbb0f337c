"""The spool: where uploads and results lie while their request runs, bounded in bytes and in age."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lipsync.errors import InputTooLarge, Overloaded
from lipsync.media.source import Blob

from .settings import SpoolSettings

_PREFIX = "request-"
_BLOCK = 1 << 18
_LEAST_BYTES = 1 << 20
"""What a request may be expected to want at least."""


class Spool:
    """One for each process. A request gets a folder of its own, which goes when the request does.

    A folder is locked while its request runs. What a process that died left behind is therefore free, and removed by
    the next one that looks; where the file system knows no locks, once it is ``ttl_s`` old.
    Raises ValueError where the system's temporary folder holds one by the same name of another user's.
    """

    def __init__(self, settings: SpoolSettings) -> None:
        self._settings = settings
        self._root = Path(settings.folder or Path(tempfile.gettempdir()) / f"lipsync-spool-{os.getuid()}")
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if settings.folder is None and (self._root.is_symlink() or self._root.stat().st_uid != os.getuid()):
            raise ValueError(f"{self._root} belongs to somebody else. Set spool.folder to a folder of this user's.")
        self._lock = threading.Lock()
        self.byte_count = 0

    @contextmanager
    def folder(self) -> Iterator[SpoolFolder]:
        """A request's place. Removed with all that is in it. Raises Overloaded where the disk is full."""
        self.sweep()
        with ExitStack() as held:
            with room_on_disk(), _lock(self._root):  # so that nobody finds the folder before it is locked
                place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._root))
                held.enter_context(_lock(place))
            folder = SpoolFolder(self, place)
            try:
                yield folder
            finally:
                self.give_back(folder.byte_count)
                shutil.rmtree(place, ignore_errors=True)

    @property
    def has_room(self) -> bool:
        """Whether a small request would find room, by the books and on the disk."""
        is_booked_out = self.byte_count + min(_LEAST_BYTES, self._settings.bytes) > self._settings.bytes
        return not is_booked_out and shutil.disk_usage(self._root).free >= _LEAST_BYTES

    def take(self, count: int) -> None:
        """Book ``count`` bytes more. Raises Overloaded where the spool is full."""
        with self._lock:
            if self.byte_count + count > self._settings.bytes:
                raise _full()
            self.byte_count += count

    def give_back(self, count: int) -> None:
        with self._lock:
            self.byte_count -= count

    def sweep(self) -> None:
        """Remove the folders of processes that are gone."""
        oldest_s = time.time() - self._settings.ttl_s
        with _lock(self._root):
            places = list(self._root.glob(_PREFIX + "*"))
        for place in places:
            try:
                is_held = _is_held(place)
                if is_held is False or (is_held is None and place.stat().st_mtime < oldest_s):
                    shutil.rmtree(place, ignore_errors=True)
            except FileNotFoundError:
                continue  # another process was quicker


class SpoolFolder:
    """One request's files. Names are made here: nothing a caller sends becomes part of a path."""

    def __init__(self, spool: Spool, place: Path) -> None:
        self._spool = spool
        self.place = place
        self.byte_count = 0

    def book(self, count: int) -> None:
        """``count`` bytes more, or fewer where negative. Raises Overloaded."""
        self._spool.take(count)
        self.byte_count += count

    def file(self, name: str, *, limit_bytes: int) -> SpoolFile:
        return SpoolFile(self, self.place / name, limit_bytes=limit_bytes)


class SpoolFile:
    """A file that is being received: counted and hashed as it grows."""

    def __init__(self, folder: SpoolFolder, path: Path, *, limit_bytes: int) -> None:
        self._folder, self._path, self.limit_bytes = folder, path, limit_bytes
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.byte_count = 0

    def write(self, data: bytes) -> None:
        """Raises InputTooLarge above the file's limit, Overloaded where the spool or its disk is full."""
        self.byte_count += len(data)
        if self.byte_count > self.limit_bytes:
            raise InputTooLarge(
                f"The file has more than {self.limit_bytes:,} bytes, the most allowed. Send a smaller one."
            )
        self._folder.book(len(data))
        with room_on_disk():
            self._file.write(data)
        self._digest.update(data)

    def close(self) -> None:
        """Raises Overloaded where the disk is full."""
        with room_on_disk():
            self._file.close()

    def blob(self) -> Blob:
        """What was received. Raises UnreadableMedia where that is nothing."""
        self.close()
        return Blob.of(self._path, limit_bytes=self.limit_bytes).with_hash(self._digest.hexdigest())


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Held until left, or until the process ends in whatever way. Not held where the file system knows no locks."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _is_held(folder: Path) -> bool | None:
    """Whether a process holds its lock; None where the file system knows no locks. Raises FileNotFoundError."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(opened)


async def blocks(path: Path) -> AsyncIterator[bytes]:
    """A file's content piece by piece, read beside the event loop: a slow disk holds up nobody else."""
    with path.open("rb") as file:
        while data := await asyncio.to_thread(file.read, _BLOCK):
            yield data


def _full() -> Overloaded:
    full = Overloaded("The service's room for files is full. Try again in a moment.")
    full.reason = "spool"
    return full


@contextmanager
def room_on_disk() -> Iterator[None]:
    """Raises Overloaded where what is written inside finds the disk full."""
    try:
        yield
    except OSError as error:
        said = error.__cause__ if isinstance(error.__cause__, OSError) else error  # an OutputError has it as its cause
        if said.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _full() from error

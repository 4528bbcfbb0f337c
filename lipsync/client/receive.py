"""What becomes of an answer's bytes: kept in memory, written to a file, or handed on as a stream that can resume."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from lipsync.client.refusal import Refused
from lipsync.ending import Complete, EndingReader
from lipsync.errors import OutputError, ResultTooLarge, StreamBroken

LARGEST_IN_MEMORY_BYTES = 1 << 31
LARGEST_JSON_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Result:
    """A whole answer. ``faces`` counts the source frames with a face; a stream does not tell it.

    ``data`` is the mp4, empty where it went to ``path`` or out of a stream; ``timings_ms`` has milliseconds by stage.
    """

    request_id: str
    frames: int
    fps: Fraction
    timings_ms: Mapping[str, float]
    faces: int | None = None
    path: Path | None = None
    data: bytes = field(default=b"", repr=False)


class Receiver(Protocol):
    """Takes the bytes of a successful answer; ``begin`` is called for each attempt's."""

    media_type: str

    def begin(self) -> None: ...
    def feed(self, data: bytes) -> bytes: ...
    def finish(self) -> None: ...


class InMemory:
    """A whole answer in memory, begun anew with each attempt. Raises ResultTooLarge."""

    def __init__(self, media_type: str, *, limit_bytes: int) -> None:
        self.media_type = media_type
        self.path: Path | None = None
        self._limit_bytes = limit_bytes
        self._data = bytearray()

    def begin(self) -> None:
        self._data.clear()

    def feed(self, data: bytes) -> bytes:
        if len(self._data) + len(data) > self._limit_bytes:
            raise ResultTooLarge(
                f"The answer has more than {self._limit_bytes:,} bytes, too much for memory. Give an output_path."
            )
        self._data += data
        return b""

    def finish(self) -> None:
        pass

    def keep(self) -> bytes:
        return bytes(self._data)

    def __enter__(self) -> InMemory:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class InFile:
    """A whole answer as a file, or no file: written beside its place, begun anew with each attempt, moved by ``keep``.

    Raises OutputError where the place cannot be written.
    """

    media_type = "video/mp4"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        if self.path.is_dir():
            raise OutputError(f"{self.path} is a folder. Give the name of a file to write.")
        self._part = self.path.with_name(f".lipsync-{secrets.token_hex(8)}.part")
        with self._writing():
            self._file = self._part.open("xb")

    def begin(self) -> None:
        with self._writing():
            self._file.seek(0)
            self._file.truncate()

    def feed(self, data: bytes) -> bytes:
        with self._writing():
            self._file.write(data)
        return b""

    def finish(self) -> None:
        with self._writing():
            self._file.flush()

    def keep(self) -> bytes:
        with self._writing():
            self._file.close()
            os.replace(self._part, self.path)
        return b""

    def __enter__(self) -> InFile:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # unless kept, nothing is lost by it
            self._file.close()
        self._part.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"Cannot write {self.path}: {reason}. Choose a writable place with room.") from error


class Resumed:
    """A stream over several attempts: what was handed on before is dropped, once it has proved to be the same bytes."""

    media_type = "video/mp4"

    def __init__(self) -> None:
        self.complete: Complete | None = None
        self._delivered = hashlib.sha256()
        self._delivered_bytes = 0
        self._reader = EndingReader()
        self._again = hashlib.sha256()
        self._to_skip = 0

    def begin(self) -> None:
        self._reader = EndingReader()
        self._again = hashlib.sha256()
        self._to_skip = self._delivered_bytes

    def feed(self, data: bytes) -> bytes:
        media = self._reader.feed(data)
        if self._to_skip:
            skipped, media = media[: self._to_skip], media[self._to_skip :]
            self._again.update(skipped)
            self._to_skip -= len(skipped)
            if not self._to_skip and self._again.digest() != self._delivered.digest():
                raise _differs()
        self._delivered.update(media)
        self._delivered_bytes += len(media)
        return media

    def finish(self) -> None:
        complete = self._reader.finish()
        if self._to_skip:
            raise _differs()
        self.complete = complete


def _differs() -> Refused:
    return Refused(
        StreamBroken(
            "The stream broke, and the server's second answer to the same request begins otherwise: it cannot be "
            "resumed. Drop what was received and call again."
        )
    )

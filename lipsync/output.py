"""Fragments to what a caller wants: a progressive mp4 file, its bytes, or a stream of bytes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from pathlib import Path

from lipsync.core import Fragment
from lipsync.errors import OutputError
from lipsync.flow import call
from lipsync.media.mp4 import FragmentJoiner, write_progressive


def _take_any(count: int) -> None:
    pass


async def stream_bytes(fragments: AsyncGenerator[Fragment, None]) -> AsyncGenerator[bytes, None]:
    """A fragmented mp4 as it is made: the first bytes come with the first segment. Closing it closes ``fragments``."""
    joiner = FragmentJoiner()
    async with aclosing(fragments):
        async for fragment in fragments:
            yield joiner.feed(fragment.data)


async def write_file(
    fragments: AsyncGenerator[Fragment, None],
    output_path: str | os.PathLike[str],
    *,
    book: Callable[[int], None] = _take_any,
) -> None:
    """A progressive mp4 with its index at the front, at ``output_path``, whole or not at all; closes ``fragments``.

    Fragments are gathered in a temporary folder beside the output, which is removed in any case. ``book`` is told how
    many more bytes will lie there before they are written, fewer where negative, and refuses by raising.
    Raises OutputError where the place cannot be written; ``fragments`` are told so, and not just closed: whoever counts
    them sees a failure, and no consumer that went away.
    """
    async with aclosing(fragments):
        try:
            await _write(fragments, Path(output_path), book)
        except Exception as error:
            with suppress(Exception):
                await fragments.athrow(error)
            raise


async def _write(fragments: AsyncGenerator[Fragment, None], target: Path, book: Callable[[int], None]) -> None:
    if target.is_dir():
        raise OutputError(f"{target} is a folder. Give the name of a file to write.")
    with _writing(target):
        folder = tempfile.TemporaryDirectory(prefix=".lipsync-", dir=target.parent)
    booked = 0
    with folder as place:
        spool, joiner = Path(place) / "fragments.mp4", FragmentJoiner()
        async for fragment in fragments:
            data = joiner.feed(fragment.data)
            # twice: remuxed, it lies there once more, and who has no room for that hears so before the work is done
            book(2 * len(data))
            booked += 2 * len(data)
            with _writing(target), spool.open("ab") as file:
                file.write(data)
        # a thread beside the event loop: remuxing a long result takes a second
        with _writing(target), ThreadPoolExecutor(1, thread_name_prefix="lipsync-output") as thread:
            await call(thread, partial(write_progressive, spool, target))
    book(target.stat().st_size - booked)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """What the system says of the place becomes an OutputError; what the pipeline says is left alone."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"Cannot write {target}: {error.strerror or error}. Choose a writable place with room."
        ) from error


async def read_bytes(fragments: AsyncGenerator[Fragment, None]) -> bytes:
    """The bytes of a progressive mp4."""
    with tempfile.TemporaryDirectory(prefix="lipsync-") as folder:
        target = Path(folder) / "result.mp4"
        await write_file(fragments, target)
        return target.read_bytes()

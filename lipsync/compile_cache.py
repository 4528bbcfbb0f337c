"""The folder where torch keeps what it compiled and tuned for the next start, bounded in bytes and in age."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lipsync.errors import InvalidOption
from lipsync.weights import cache_dir

log = logging.getLogger(__name__)
MOST_BYTES = 3_000_000_000
"""Several times what one generator's kernels take, and less than any volume that the manifests give the folder."""
TTL_S = 30 * 86_400.0


def usual_compile_cache() -> Path | None:
    """In the user's cache folder; None, which leaves the choice to torch, where nothing can be written there."""
    folder = cache_dir().parent / "compiled"
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return folder if os.access(there, os.W_OK) else None


def keep_compiled(folder: str | os.PathLike[str], *, most_bytes: int = MOST_BYTES, ttl_s: float = TTL_S) -> None:
    """What torch compiles and tunes goes into this folder from now on, in the whole process, and is found there; what
    lies there already is trimmed first.

    Raises InvalidOption where it cannot be written.
    """
    path = Path(folder).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidOption(f"compile_cache {path} cannot be written: {error.strerror or error}.") from error
    trim(path, most_bytes=most_bytes, ttl_s=ttl_s)
    # torch has no other door to these than the environment, and reads it whenever it compiles
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(path)
    os.environ["TRITON_CACHE_DIR"] = str(path / "triton")


@dataclass(frozen=True, slots=True)
class _Group:
    """The files that lie in one folder, its own folders' excepted."""

    folder: Path
    files: tuple[Path, ...]
    byte_count: int
    used_s: float


def trim(root: Path, *, most_bytes: int, ttl_s: float) -> None:
    """Remove what was not used for ``ttl_s``, then the longest unused until ``most_bytes`` are left.

    Files that lie in one folder go together: a kernel is several, and half of one is worse than none. Symbolic links
    are neither followed nor removed. Other processes may do the same meanwhile.
    """
    groups = sorted(_groups(root), key=lambda group: group.used_s)
    left, oldest_s = sum(group.byte_count for group in groups), time.time() - ttl_s
    for group in groups:
        if left <= most_bytes and group.used_s >= oldest_s:
            break
        if _remove(group, root):
            left -= group.byte_count


def _groups(root: Path) -> Iterator[_Group]:
    for place, _, names in os.walk(root, onerror=_note):
        files, byte_count, used_s = [], 0, 0.0
        for path in (Path(place) / name for name in names):
            try:
                seen = path.lstat()
            except FileNotFoundError:
                continue  # another process was quicker
            if path.is_symlink():
                continue
            files.append(path)
            byte_count += seen.st_size
            # the time of reading is written once a day at most, or never: then what counts is when it was compiled
            used_s = max(used_s, seen.st_mtime, seen.st_atime)
        if files:
            yield _Group(Path(place), tuple(files), byte_count, used_s)


def _remove(group: _Group, root: Path) -> bool:
    """Whether it is gone."""
    try:
        for path in group.files:
            path.unlink(missing_ok=True)
        if group.folder != root and not any(group.folder.iterdir()):
            group.folder.rmdir()
    except OSError as error:
        _note(error)
        return isinstance(error, FileNotFoundError)
    return True


def _note(error: OSError) -> None:
    """What cannot be removed stays: a cache that is too large stops no engine."""
    if not isinstance(error, FileNotFoundError):  # then another process was quicker
        log.warning(f"compile_cache: {error.filename} stays: {error.strerror}")

"""What is kept beyond the work it was made for: bounded in bytes and in age, each kind named in docs/serving.md."""

from __future__ import annotations

import logging
import math
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lipsync import compose
from lipsync.cache import LruCache
from lipsync.compile_cache import keep_compiled, trim
from lipsync.core import Detection, Index, MediaInfo
from lipsync.faces.chunk import ChunkDetections
from lipsync.kept import KeptDetections, KeptStills
from lipsync.media.geometry import Geometry
from lipsync.media.source import Blob
from lipsync.options import Limits
from lipsync.render import FaceInput

ROOT = Path(__file__).resolve().parents[1]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


# ---------------------------------------------------------------- in memory


def test_a_cache_is_bounded_in_bytes_and_throws_out_the_longest_unused() -> None:
    cache: LruCache[str] = LruCache(10, capacity_bytes=100)
    for name, size in (("a", 40), ("b", 40)):
        cache.put(name, name, byte_count=size)
    assert cache.get("a") == "a"
    cache.put("c", "c", byte_count=30)
    assert (cache.get("a"), cache.get("b"), cache.get("c"), cache.byte_count) == ("a", None, "c", 70)
    cache.put("a", "another", byte_count=10)
    assert (cache.get("a"), cache.byte_count) == ("another", 40)
    cache.put("d", "d", byte_count=101)
    assert (cache.get("d"), len(cache), cache.byte_count) == (None, 2, 40), (
        "what fits in no case is not kept, and costs no other its place"
    )
    cache.put("c", "c", byte_count=101)
    cache.put("a", "a", byte_count=101)
    assert (cache.get("a"), len(cache), cache.byte_count) == (None, 0, 0), "nor does an old value stay in its place"


def test_a_cache_forgets_what_nobody_asked_for_and_its_bytes() -> None:
    clock = Clock()
    cache: LruCache[str] = LruCache(10, capacity_bytes=100, ttl_s=60, clock=clock)
    cache.put("a", "a", byte_count=40)
    cache.put("b", "b", byte_count=40)
    clock.now_s = 50
    assert cache.get("a") == "a"
    clock.now_s = 61
    cache.expire()
    assert (len(cache), cache.byte_count, cache.get("a")) == (1, 40, "a")


def still(number: int, width: int, height: int) -> FaceInput:
    blob = Blob.of(b"still %d" % number, limit_bytes=100)
    index = Index(np.zeros(1, np.int64), np.ones(1, np.bool_), 0, Fraction(1))
    info = MediaInfo("image", "PNG", blob.byte_count)
    return FaceInput(blob, info, index, Geometry(), width, height)


def test_decoded_stills_are_bounded_in_bytes_and_in_age() -> None:
    clock = Clock()
    stills = KeptStills(64, most_bytes=2 * 400 * 300 * 3 // 2, ttl_s=60, clock=clock)

    def cell(number: int, width: int = 400, height: int = 300) -> object:
        return stills.with_picture(still(number, width, height), Limits()).still

    first, second, _ = [cell(number) for number in range(3)]
    assert cell(1) is second
    assert cell(0) is not first, "two of that size are room for two"
    assert cell(9, 4000, 3000) is not cell(9, 4000, 3000)
    kept = [cell(0), cell(1)]
    clock.now_s = 61
    stills.expire()
    assert cell(0) is not kept[0] and cell(1) is not kept[1]


def seen(first: int, *, faces: int) -> ChunkDetections:
    face = Detection(0.0, 0.0, 9.0, 9.0, 0.9)
    return ChunkDetections(first, first + 10, {first: [face] * faces, first + 5: [face] * faces}, ())


def test_detections_of_a_face_input_are_kept_and_dropped_together() -> None:
    kept = KeptDetections(2, most_bytes=math.inf)
    chunks = [range(first, first + 10) for first in range(0, 100, 10)]
    for key in ("a", "b", "c"):
        for chunk in chunks:
            kept.put(key, chunk, seen(chunk.start, faces=1))
    assert [[kept.get(key, chunk) is not None for chunk in chunks] for key in ("a", "b", "c")] == [
        [False] * 10, [True] * 10, [True] * 10,
    ]  # fmt: skip


def test_detections_are_bounded_in_bytes() -> None:
    kept = KeptDetections(64, most_bytes=5_000)
    kept.put("a", range(10), seen(0, faces=1))
    kept.put("b", range(10), seen(0, faces=1))
    assert kept.get("a", range(10)) and kept.get("b", range(10))
    kept.put("b", range(10, 20), seen(10, faces=1))
    assert kept.get("a", range(10)) is None and kept.get("b", range(10))
    kept.put("c", range(10), seen(0, faces=100))
    assert kept.get("c", range(10)) is None and kept.get("b", range(10)), "what fits in no case drops no other"


def test_no_chunk_is_lost_where_several_threads_look_at_one_input() -> None:
    kept = KeptDetections(2, most_bytes=math.inf)
    chunks = [range(first, first + 10) for first in range(0, 2_000, 10)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda chunk: kept.put("a", chunk, seen(chunk.start, faces=1)), chunks))
    assert all(kept.get("a", chunk) is not None for chunk in chunks)


def test_masks_of_faces_of_every_size_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: LruCache[np.ndarray] = LruCache(256, capacity_bytes=1_000_000)
    monkeypatch.setattr(compose, "_MASKS", masks)
    for side in range(300, 320):
        assert compose.feather_mask(side, side).nbytes == 4 * side * side
    assert 0 < masks.byte_count <= 1_000_000
    assert compose.feather_mask(319, 319) is compose.feather_mask(319, 319)
    assert compose._MASKS._capacity_bytes < math.inf


def test_the_masks_that_ship_are_bounded_in_bytes_and_in_age() -> None:
    assert compose._MASKS._capacity_bytes <= 100_000_000 and compose._MASKS._ttl_s <= 3600


# ---------------------------------------------------------------- what was compiled


def kept(root: Path, name: str, *, size: int = 100, age_s: float = 0.0) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def left(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.is_symlink()}


def test_what_was_compiled_goes_when_nobody_used_it_for_long_and_folders_with_it(tmp_path: Path) -> None:
    kept(tmp_path, "triton/old/kernel", age_s=1001)
    kept(tmp_path, "triton/read/kernel", age_s=5000)
    os.utime(tmp_path / "triton/read/kernel", (time.time() - 10, time.time() - 5000))  # compiled long ago, read lately
    kept(tmp_path, "fx/half/old", age_s=5000)
    kept(tmp_path, "fx/half/young", age_s=10)
    kept(tmp_path, "top", age_s=1001)
    trim(tmp_path, most_bytes=10**9, ttl_s=1000)
    assert left(tmp_path) == {"triton/read/kernel", "fx/half/old", "fx/half/young"}, "what lies together stays together"
    assert not (tmp_path / "triton/old").exists() and tmp_path.is_dir()


def test_what_was_compiled_is_kept_below_a_bound_the_longest_unused_thrown_out(tmp_path: Path) -> None:
    for number in range(10):
        kept(tmp_path, f"triton/{number}/kernel", size=60, age_s=number)
        kept(tmp_path, f"triton/{number}/group", size=40, age_s=number)
    trim(tmp_path, most_bytes=350, ttl_s=1000)
    assert left(tmp_path) == {f"triton/{number}/{name}" for number in range(3) for name in ("kernel", "group")}


def test_links_are_neither_followed_nor_removed_and_nothing_outside_is_touched(tmp_path: Path) -> None:
    outside = kept(tmp_path, "outside/file", age_s=5000)
    root = tmp_path / "cache"
    kept(root, "old/kernel", age_s=5000)
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "old" / "file").symlink_to(outside)
    trim(root, most_bytes=1, ttl_s=1000)
    assert left(root) == {"folder", "old/file"} and outside.is_file()


def test_another_process_may_trim_the_same_folder_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        kept(tmp_path, f"{number}/kernel", age_s=5000)
    real_lstat, real_unlink = Path.lstat, Path.unlink

    def lstat(path: Path) -> os.stat_result:
        if path.parent.name == "0":
            real_unlink(path, missing_ok=True)
        return real_lstat(path)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == "1":
            real_unlink(path)
            path.parent.rmdir()
        real_unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "lstat", lstat)
    monkeypatch.setattr(Path, "unlink", unlink)
    trim(tmp_path, most_bytes=10**9, ttl_s=1000)
    assert left(tmp_path) == set() and caplog.text == ""


def test_what_cannot_be_removed_is_said_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mine, others = kept(tmp_path, "mine/kernel", age_s=2000), kept(tmp_path, "others/kernel", age_s=3000)
    real_unlink = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path == others:
            raise PermissionError(1, "Operation not permitted", str(path))
        real_unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with caplog.at_level(logging.WARNING):
        trim(tmp_path, most_bytes=100, ttl_s=10**6)
    assert others.exists() and not mine.exists()
    assert str(others) in caplog.text


def test_an_engine_that_keeps_what_it_compiles_trims_the_folder_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")
    old, young = kept(tmp_path, "old/kernel", age_s=31 * 86_400), kept(tmp_path, "young/kernel", age_s=86_400)
    keep_compiled(tmp_path)
    assert not old.exists() and young.exists()
    keep_compiled(tmp_path, most_bytes=1)
    assert not young.exists()


# ---------------------------------------------------------------- docs


KEEPING = re.compile(
    r"\blru_cache\b|^@cache$|\bLruCache\b|\bTemporaryDirectory\(|\bmkdtemp\(|\bmkstemp\(", re.MULTILINE
)


def test_every_module_that_keeps_something_is_named_in_the_docs() -> None:
    table = (ROOT / "docs/serving.md").read_text().split("## What is kept", 1)[1].split("\n## ", 1)[0]
    named = {name for row in table.splitlines() if row.startswith("| ") for name in re.findall(r"`([\w/]+\.py)`", row)}
    # a command's own folders end with it; nothing of these is part of a service
    apart = ("lipsync/demo", "lipsync/bench", "lipsync/cli")
    keeping = {
        str(path.relative_to(ROOT))
        for path in [*(ROOT / "lipsync").rglob("*.py"), *(ROOT / "serve").rglob("*.py")]
        if not str(path.relative_to(ROOT)).startswith(apart) and KEEPING.search(path.read_text())
    }
    assert named >= keeping - {"lipsync/cache.py"}, keeping - named
    assert all((ROOT / name).is_file() for name in named)

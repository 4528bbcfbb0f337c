"""Data sets made part by part: kept, gone on with, and the same however many processes make them."""

from __future__ import annotations

import ctypes.util
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lipsync.demo.__main__ import note_time, read_times
from lipsync.demo.corpus import make_corpus
from lipsync.demo.parts import write_parts


def test_missing_parts_are_made_and_those_that_are_there_are_kept(tmp_path: Path):
    kept, made = tmp_path / "a.npz", tmp_path / "b.npz"
    np.savez(kept, x=np.array([7]))
    write_parts({kept: partial(dict, x=np.array([1])), made: partial(dict, x=np.array([2]))}, workers=2)
    assert [int(np.load(path)["x"][0]) for path in (kept, made)] == [7, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_a_part_that_cannot_be_made_is_said_and_leaves_nothing_that_looks_made(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_parts({tmp_path / "a.npz": partial(np.load, tmp_path / "nowhere.npz")}, workers=1)
    assert not list(tmp_path.iterdir())


def test_what_the_synthesiser_said_before_does_not_change_a_part(tmp_path: Path):
    if ctypes.util.find_library("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    make_corpus(tmp_path, seed=1, count=6, part=3)
    second = tmp_path / "speech_1_00003.npz"
    after_the_first = dict(np.load(second))
    second.unlink()
    make_corpus(tmp_path, seed=1, count=6, part=3, workers=2)
    alone = dict(np.load(second))
    assert set(alone) == {"mel", "track", "starts"}
    assert all(np.array_equal(alone[name], after_the_first[name]) for name in alone)


def test_a_step_that_was_left_and_gone_on_with_counts_both_times(tmp_path: Path):
    times = tmp_path / "new" / "times.json"
    assert read_times(times) == {}
    note_time(times, "speech", 1.5)
    note_time(times, "hearing", 2)
    assert note_time(times, "speech", 3) == 4.5
    assert read_times(times) == {"speech": 4.5, "hearing": 2}

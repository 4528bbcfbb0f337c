"""Data sets made part by part: kept, gone on with, and the same however many processes make them."""

from __future__ import annotations

import ctypes.util
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lipsync.demo.__main__ import keep_recipe, note_time, read_times
from lipsync.demo.card import write_card
from lipsync.demo.corpus import held_out_utterances, make_corpus
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


def test_what_is_measured_on_is_the_same_whatever_was_said_before():
    if ctypes.util.find_library("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    first, again = held_out_utterances(), held_out_utterances()
    assert len(first) == 12
    assert all(
        np.array_equal(a.mel, b.mel) and np.array_equal(a.track, b.track) for a, b in zip(first, again, strict=True)
    )


def test_a_folder_goes_on_with_the_recipe_that_it_was_begun_with(tmp_path: Path):
    recipe = tmp_path / "new" / "recipe.json"
    assert keep_recipe(recipe, {"utterances": "8000", "drawing_steps": "5"}) is None
    assert keep_recipe(recipe, {"utterances": "8000", "drawing_steps": "5"}) is None
    refusal = keep_recipe(recipe, {"utterances": "8000", "drawing_steps": "9"})
    assert refusal is not None and "begun with --drawing-steps 5" in refusal and "--utterances" not in refusal


def test_the_card_says_what_was_not_measured_and_is_left_alone_without_its_marks(tmp_path: Path):
    report = json.loads((Path(__file__).parents[1] / "docs" / "benchmarks" / "demo_model.json").read_text())
    report["recorded_speech"], report["made"]["s"] = {}, {"speech": 90.0, "hearing": 630.0}
    (tmp_path / "report.json").write_text(json.dumps(report))
    card = tmp_path / "card.md"
    card.write_text("a card without marks")
    with pytest.raises(ValueError, match="no place for a table"):
        write_card(card, tmp_path / "report.json")
    assert card.read_text() == "a card without marks"
    marks = [f"<!-- {name}: {end} -->" for name in ("made", "measured") for end in ("begin", "end")]
    card.write_text("\n".join(["# Card", *marks, "the end"]))
    write_card(card, tmp_path / "report.json")
    written = card.read_text()
    assert "| speech | 1.5 |" in written and "| frames | not timed |" in written and "| in all | 12 |" in written
    assert "no recording was given" in written and written.endswith("the end")
    write_card(card, tmp_path / "report.json")
    assert card.read_text() == written


def test_a_step_that_was_left_and_gone_on_with_counts_both_times(tmp_path: Path):
    times = tmp_path / "new" / "times.json"
    assert read_times(times) == {}
    note_time(times, "speech", 1.5)
    note_time(times, "hearing", 2)
    assert note_time(times, "speech", 3) == 4.5
    assert read_times(times) == {"speech": 4.5, "hearing": 2}
    note_time(times, "export", 7)
    assert note_time(times, "export", 5) == 5, "it begins anew each time"

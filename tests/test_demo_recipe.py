"""The recipe of the packaged generator, as far as it needs no synthesiser."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lipsync.demo.actions import ACTIONS, SPOKEN
from lipsync.demo.corpus import Corpus, join
from lipsync.demo.hearing import (
    HEARD,
    Course,
    Hearing,
    Training,
    _stretches,
    load_hearing,
    restore_spread,
    roughen,
    with_effort,
)
from lipsync.demo.sentences import HELD_OUT, TUNING, WORDS, draw_sentence
from lipsync.demo.speech import Utterance
from lipsync.demo.voices import FAMILIAR_VARIANTS, HELD_OUT_VARIANTS, TUNING_VARIANTS, VARIANTS, draw_timbre

PUCKER, FUNNEL = ACTIONS.index("mouthPucker"), ACTIONS.index("mouthFunnel")


@pytest.fixture
def said() -> Utterance:
    """Noise and a mouth that moves with its loudness: enough to exercise the arithmetic."""
    rng = np.random.default_rng(3)
    mel = rng.uniform(-4, 4, (80, 240)).astype(np.float32)
    track = np.zeros((240, len(ACTIONS)), np.float32)
    track[:, HEARD] = rng.random((240, len(HEARD)))
    return Utterance(np.zeros(48000, np.float32), mel, track, ())


def _needs_renderer(module: str) -> Any:
    pytest.importorskip("anny", reason="the renderer's package comes with the extra 'demo'")
    return importlib.import_module(module)


def test_no_voice_and_no_sentence_serves_two_purposes():
    assert not set(VARIANTS) & set(TUNING_VARIANTS)
    assert not (set(VARIANTS) | set(TUNING_VARIANTS)) & set(HELD_OUT_VARIANTS)
    assert set(FAMILIAR_VARIANTS) <= set(VARIANTS)
    assert not set(TUNING) & set(HELD_OUT)


def test_sentences_have_words_that_no_list_has():
    rng = np.random.default_rng(1)
    listed = set(WORDS["en"].split())
    words = [word.strip(",.?") for _ in range(100) for word in draw_sentence(rng, "en").split()]
    made_up = [word for word in words if word not in listed]
    assert 0.25 < len(made_up) / len(words) < 0.45
    assert all(word.isalpha() for word in made_up)
    assert len(set(made_up)) > 0.9 * len(made_up)


def test_a_drawn_voice_is_a_voice_file_of_its_own_with_formants_that_can_be_heard():
    rng = np.random.default_rng(1)
    files = [draw_timbre(rng) for _ in range(50)]
    assert len({tuple(lines) for lines in files}) == 50
    for lines in files:
        formants = {int(line.split()[1]): line.split()[2:] for line in lines if line.startswith("formant")}
        assert sorted(formants) == list(range(9))
        assert all(20 < int(place) < 250 for place, _, _ in formants.values())


def test_more_effort_is_louder_and_opens_the_jaw_wider_and_changes_nothing_else():
    generator = torch.Generator().manual_seed(0)
    windows, track = torch.full((400, 80, 16), -4.0), torch.full((400, len(HEARD)), 0.5)
    windows[:, 20:40] = 0.0
    spoken, moved = with_effort(windows, track, generator)
    jaw = SPOKEN.index("jawOpen")
    louder_db = (spoken[:, 30, 8] - windows[:, 30, 8]) / 0.08
    assert 4 < louder_db.std() < 5.5 and louder_db.abs().max() <= 10.001
    assert torch.allclose(moved[:, jaw], 0.5 * 1.35 ** (louder_db / 10), atol=1e-3)
    assert (spoken[:, :20] == -4).all() and (spoken[:, 40:] == -4).all(), "silence has no effort"
    others = [k for k in range(len(HEARD)) if k != jaw]
    assert torch.equal(moved[:, others], track[:, others]) and torch.equal(track, torch.full_like(track, 0.5))
    _, shut = with_effort(windows, torch.zeros_like(track), generator)
    assert not shut.any(), "a shut mouth stays shut however loud"


def test_roughening_leaves_silence_silent_but_for_hiss_and_the_range_kept():
    generator = torch.Generator().manual_seed(1)
    rough = roughen(torch.full((400, 80, 16), -4.0), generator)
    silent = (rough == -4).all(dim=(1, 2))
    assert 0.6 < silent.float().mean() < 0.9
    loud = roughen(torch.randn(64, 80, 16, generator=generator).clamp(-4, 4), generator)
    assert loud.min() >= -4 and loud.max() <= 4.5


def test_another_throat_stretches_the_bands_and_the_middle_one_leaves_them():
    bands = _stretches()
    assert bands.shape == (33, 80) and bands.min() >= 0 and bands.max() <= 79
    torch.testing.assert_close(bands[16], torch.arange(80.0), atol=1e-4, rtol=0)
    assert (bands.diff(dim=1) >= 0).all() and (bands.diff(dim=0) >= 0).all()
    assert bands[32, 40] - 40 == pytest.approx(4.67, abs=0.02), "a quarter of an octave: 2.52 mel, 0.54 to the band"


def test_an_ear_that_moves_too_little_in_one_voice_is_told_so(said: Utterance, tmp_path: Path):
    training = Training(join([said]), Course(batch=8, together=4), tmp_path / "ear.pt")
    wanted = torch.randn(8, len(HEARD), generator=torch.Generator().manual_seed(1))
    timid, off = 0.5 * wanted, wanted + 0.5 * wanted.abs().mean()
    by_place = Training(join([said]), Course(batch=8, together=4, spread=0.0), tmp_path / "ear.pt")
    assert training._loss(timid, wanted) > by_place._loss(timid, wanted)
    torch.testing.assert_close(training._loss(off, wanted), by_place._loss(off, wanted))


def test_what_is_heard_is_widened_to_the_truth_of_the_given_utterances_and_never_narrowed(said: Utterance):
    torch.manual_seed(0)
    hearing = Hearing().eval()
    with torch.no_grad():
        hearing.head.weight.mul_(0.01)
    assert (restore_spread(hearing, [said]) == 2).all(), "an ear that says next to nothing: widened as far as allowed"
    with torch.no_grad():
        hearing.head.weight.mul_(1e6)
    assert (restore_spread(hearing, [said]) == 1).all()


def test_hearing_goes_on_where_it_was_left(said: Utterance, tmp_path: Path):
    corpus, course = join([said, said]), Course(steps=4, batch=4, together=2)
    at_once = Training(corpus, course, tmp_path / "once.pt")
    losses = [at_once.train_step() for _ in range(4)]
    begun = Training(corpus, course, tmp_path / "twice.pt")
    assert [begun.train_step() for _ in range(2)] == pytest.approx(losses[:2], rel=1e-3)
    begun.save()
    resumed = Training(corpus, course, tmp_path / "twice.pt")
    assert resumed.step == 2
    assert [resumed.train_step() for _ in range(2)] == pytest.approx(losses[2:], rel=1e-2)
    torch.testing.assert_close(resumed.mean.head.weight, at_once.mean.head.weight, rtol=1e-2, atol=1e-3)
    resumed.save()
    torch.testing.assert_close(load_hearing(tmp_path / "twice.pt").head.weight, resumed.mean.head.weight)


def test_what_is_kept_of_an_ear_is_the_mean_of_its_weights(said: Utterance, tmp_path: Path):
    training = Training(join([said]), Course(steps=3, batch=4, together=2), tmp_path / "ear.pt")
    seen = []
    for _ in range(3):
        training.train_step()
        seen.append(training.hearing.head.weight.detach().clone())
    torch.testing.assert_close(training.mean.head.weight, torch.stack(seen).mean(0))


def test_a_quarter_of_the_drawn_mouths_pucker_without_a_funnel_or_the_reverse():
    draw_actions = _needs_renderer("lipsync.demo.frames").draw_actions
    track = np.zeros((500, len(ACTIONS)), np.float32)
    both = np.random.default_rng(2).random(500)
    track[:, PUCKER], track[:, FUNNEL] = 0.8 * both, 0.35 * both
    corpus = Corpus(np.zeros((80, 516), np.float32), track, np.arange(500))
    actions = draw_actions(np.random.default_rng(4), corpus, 2000)
    rounded = actions[actions[:, PUCKER] + actions[:, FUNNEL] > 0.1]
    ratio = rounded[:, FUNNEL] / rounded[:, PUCKER].clip(1e-3)
    assert np.mean((ratio < 0.2) | (ratio > 1)) > 0.1
    assert (actions[:, ~np.isin(ACTIONS, SPOKEN)] == 0).all()


def test_a_region_that_is_off_as_a_whole_is_counted_by_pixels_and_again_by_blocks():
    drawing = _needs_renderer("lipsync.demo.drawing")
    picture = torch.zeros(1, 3, 96, 96)
    batch = drawing.Batch(torch.zeros(1), torch.zeros(1, 6, 96, 96), picture, torch.ones(1, 1, 96, 96))
    loss, mouth_error = drawing.drawing_loss(picture + 0.1, batch, top=0)
    assert float(loss) == pytest.approx(0.2)
    assert mouth_error == pytest.approx(25.5)
    checkered = torch.where((torch.arange(96)[:, None] + torch.arange(96)) % 2 == 0, 0.1, -0.1)
    blind_to, _ = drawing.drawing_loss(picture + checkered, batch, top=0)
    assert float(blind_to) == pytest.approx(0.1 + 0.5 * 0.4 * 95 / 96, rel=1e-3), "pixels and edges alone"

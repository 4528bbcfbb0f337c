"""The embedded generator measured: held-out sentences and voices on shipped faces, unknown faces, recorded speech."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import librosa
import numpy as np
import torch
from torch import Tensor

from lipsync.core import F32, I64, U8
from lipsync.demo.actions import ACTIONS
from lipsync.demo.cast import CAST, Role
from lipsync.demo.corpus import Corpus, familiar_utterances, held_out_utterances, join
from lipsync.demo.espeak import Phoneme
from lipsync.demo.frames import View, ViewPainter, portrait_of
from lipsync.demo.framing import draw_box
from lipsync.demo.hearing import Hearing, hear, measure_hearing
from lipsync.demo.layers import draw_rows, encode_actions
from lipsync.demo.measures import correlation, lag
from lipsync.demo.reading import READ
from lipsync.demo.ruler import fit_view
from lipsync.demo.scene import Frame
from lipsync.demo.speech import RATE_HZ, Utterance
from lipsync.demo.strangers import stranger
from lipsync.demo.visemes import LEAD_S, visemes
from lipsync.model.wav2lip import Wav2Lip
from lipsync.voice.mel import mel_spectrogram

FPS = 25
SHUT = 0.12
"""A jaw read as less than this is a shut mouth; 1 is as wide as the model's jaw goes."""
LEAST_AMPLITUDE, MOST_AMPLITUDE = 0.85, 1.15
log = logging.getLogger(__name__)
Row = dict[str, float]


def window_starts(columns: int) -> I64:
    """First mel columns of the frames at 25 frames a second, as the library plans them."""
    count = int(np.ceil((columns - 1) / 80 * FPS))
    return np.floor(80 * np.arange(count) / FPS).astype(np.int64)


def generate(net: Wav2Lip, rest: U8, windows: F32) -> U8:
    """(n, 96, 96, 3) pictures of the resting face (96, 96, 3) saying windows (n, 80, 16), as the library draws."""
    return _draw(rest, windows, lambda mel, faces: net(mel[:, None], faces))


def draw_told(net: Wav2Lip, rest: U8, actions: F32) -> U8:
    """The same for actions (n, actions) instead of sound: what the half that draws makes of a perfect ear."""
    return _draw(rest, actions, lambda told, faces: draw_rows(net, encode_actions(told), faces))


def _draw(rest: U8, rows: F32, draw: Callable[[Tensor, Tensor], Tensor], *, batch: int = 32) -> U8:
    masked = rest.copy()
    masked[48:] = 0
    both = np.concatenate([masked, rest], 2).astype(np.float32) / 255
    faces = torch.from_numpy(both.transpose(2, 0, 1)[None].copy()).contiguous(memory_format=torch.channels_last)
    drawn = []
    with torch.inference_mode():
        for k in range(0, len(rows), batch):
            some = torch.from_numpy(rows[k : k + batch])
            drawn.append(draw(some, faces.expand(len(some), -1, -1, -1)).permute(0, 2, 3, 1).numpy())
    return (np.concatenate(drawn) * 255).astype(np.uint8)


class Sitter:
    """One face that is measured: its painter and the reader that knows it. Another seed is another box around it."""

    def __init__(self, role: Role, index: int, corpus: Corpus, *, seed: int = 99) -> None:
        rng = np.random.default_rng([seed, index])
        portrait = portrait_of(role)
        view = View(index, role.pose, draw_box(rng, portrait, role.pose, Frame(), spread=0.5))
        self.painter = ViewPainter(portrait, view, Frame())
        self.reader = fit_view(self.painter, corpus, rng)


def measure_sequence(net: Wav2Lip, hearing: Hearing, sitter: Sitter, said: Utterance) -> tuple[Row, U8, U8]:
    """Measures of one face saying one sentence; the drawn and the true pictures."""
    corpus = join([said])
    starts = window_starts(said.mel.shape[1])
    windows, true = corpus.windows(starts), corpus.track[starts]
    drawn = generate(net, sitter.painter.rest, windows)
    painted = [sitter.painter.paint(row) for row in true]
    wanted, mouth = np.stack([p for p, _ in painted]), np.stack([m for _, m in painted])
    read, ideal = sitter.reader.read(drawn), sitter.reader.read(wanted)
    told = sitter.reader.read(draw_told(net, sitter.painter.rest, true))
    _, heard = hear(hearing, windows)
    row: Row = {}
    for k, name in enumerate(READ):
        column = ACTIONS.index(name)
        row[name] = correlation(read[:, k], true[:, column])
        row[f"{name}_ear"] = correlation(heard[:, column], true[:, column])
        row[f"{name}_hand"] = correlation(told[:, k], true[:, column])
        row[f"{name}_reader"] = correlation(ideal[:, k], true[:, column])
    row["amplitude"] = float(read[:, 0].std() / ideal[:, 0].std())
    row["amplitude_ear"] = float(heard[:, 0].std() / true[:, 0].std())
    row["lag_frames"] = lag(read[:, 0], true[:, 0])
    row["shut_in_silence"] = _shut_in_silence(read[:, 0], said, starts)
    row["shut_on_pbm"] = _shut_in_the_middle(read[:, 0], said, starts, _is_pbm)
    row["shut_on_pbm_truth"] = _shut_in_the_middle(ideal[:, 0], said, starts, _is_pbm)
    row["shut_on_others"] = _shut_in_the_middle(read[:, 0], said, starts, _is_other_sound)
    error = drawn.astype(np.float32) - wanted
    inside = cv2.dilate(mouth.max(0), np.ones((5, 5), np.uint8)) > 20
    away = ~cv2.dilate(mouth.max(0), np.ones((15, 15), np.uint8)).astype(bool)
    row["mouth_l1"] = float(np.abs(error)[:, inside].mean())
    row["mouth_l1_of_rest"] = float(np.abs(wanted.astype(np.float32) - sitter.painter.rest)[:, inside].mean())
    row["psnr_outside_db"] = _psnr_db(error[:, away])
    row["psnr_outside_db_of_rest"] = _psnr_db((wanted.astype(np.float32) - sitter.painter.rest)[:, away])
    row["sharpness"] = float(_edges(drawn, inside) / _edges(wanted, inside))
    return row, drawn, wanted


def _shut_in_silence(jaw: F32, said: Utterance, starts: I64) -> float:
    """Share of the silent frames with a shut mouth."""
    loud = _sounding(said.phonemes, said.mel.shape[1] / 80)
    silent = [not any(a - 0.15 < t + LEAD_S < b + 0.15 for a, b in loud) for t in starts / 80]
    return float(np.mean(jaw[silent] < SHUT)) if any(silent) else float("nan")


def _is_pbm(viseme: tuple[str, ...]) -> bool:
    return viseme == ("p",)


def _is_other_sound(viseme: tuple[str, ...]) -> bool:
    return viseme not in (("p",), ("silence",))


def _shut_in_the_middle(jaw: F32, said: Utterance, starts: I64, wanted: Callable[[tuple[str, ...]], bool]) -> float:
    """Share of those phonemes whose frame nearest to the middle has a shut mouth."""
    shut = []
    for phoneme, following in pairwise(said.phonemes):
        if wanted(visemes(phoneme.name)):
            middle_s = (phoneme.start_s + following.start_s) / 2 - LEAD_S
            shut.append(bool(jaw[np.abs(starts / 80 - middle_s).argmin()] < SHUT))
    return float(np.mean(shut)) if shut else float("nan")


def _psnr_db(error: F32) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, float((error**2).mean()))))


def _sounding(phonemes: tuple[Phoneme, ...], end_s: float) -> list[tuple[float, float]]:
    ends = [p.start_s for p in phonemes[1:]] + [min(end_s, phonemes[-1].start_s + 0.08)]
    return [(p.start_s, e) for p, e in zip(phonemes, ends, strict=True) if visemes(p.name) != ("silence",)]


def _edges(pictures: U8, inside: Any) -> float:
    return float(np.mean([cv2.Laplacian(p, cv2.CV_32F)[inside].std() for p in pictures]))


def summarise(rows: list[Row]) -> Row:
    """Means over the sequences, and the share of them without a lag."""
    means = {key: round(float(np.nanmean([row[key] for row in rows])), 3) for key in rows[0] if key != "lag_frames"}
    inside = [LEAST_AMPLITUDE <= row["amplitude"] <= MOST_AMPLITUDE for row in rows]
    means["amplitude_inside_share"] = round(float(np.mean(inside)), 3)
    means["amplitude_least"] = round(min(row["amplitude"] for row in rows), 3)
    means["lag_0_share"] = round(float(np.mean([row["lag_frames"] == 0 for row in rows])), 3)
    means["sequences"] = len(rows)
    return means


def measure_recording(net: Wav2Lip, sitter: Sitter, path: Path) -> Row:
    """Mouth opening against loudness on recorded speech, and against the same loudness shuffled."""
    samples, _ = librosa.load(path, sr=RATE_HZ)
    mel = mel_spectrogram(samples.astype(np.float32))
    padded = np.pad(mel, ((0, 0), (0, 16)), constant_values=-4)
    starts = window_starts(mel.shape[1])
    windows = np.ascontiguousarray(padded[:, starts[:, None] + np.arange(16)].transpose(1, 0, 2))
    jaw = sitter.reader.read(generate(net, sitter.painter.rest, windows))[:, 0]
    return against_energy(jaw, samples, starts)


def against_energy(jaw: F32, samples: F32, starts: I64) -> Row:
    """How an opening per frame agrees with the sound's energy, its logarithm, and that shuffled."""
    centres = ((starts / 80 + LEAD_S) * RATE_HZ).astype(int).clip(max=len(samples) - 1)
    energy = np.array([np.sqrt(np.mean(samples[max(0, c - 400) : c + 400] ** 2) + 1e-9) for c in centres], np.float32)
    loudness = np.log10(energy).astype(np.float32)
    shuffled = np.random.default_rng(0).permutation(loudness)
    return {
        "energy_correlation": round(correlation(jaw, energy), 3),
        "loudness_correlation": round(correlation(jaw, loudness), 3),
        "shuffled": round(correlation(jaw, shuffled), 3),
    }


def truth_against_energy(said: list[Utterance]) -> Row:
    """The same of the true mouths of these sentences, means: what a perfect mouth reaches."""
    rows = []
    for one in said:
        starts = window_starts(one.mel.shape[1])
        rows.append(against_energy(join([one]).track[starts, ACTIONS.index("jawOpen")], one.samples, starts))
    return {key: round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0]}


def evaluate(
    net: Wav2Lip,
    hearing: Hearing,
    corpus: Corpus,
    *,
    report: Path,
    sheet: Path,
    recordings: list[Path],
    made: dict[str, Any],
    strangers: int = 12,
) -> dict[str, Any]:
    """Measure everything, write the JSON report and the contact sheet. ``made``: how long making took, where."""
    began = time.monotonic()
    said = held_out_utterances()
    cast = [Sitter(role, k, corpus) for k, role in enumerate(CAST)]
    rows, strips = [], []
    for k, utterance in enumerate(said):
        face = (k + k // len(cast)) % len(cast)  # so that every face meets other voices
        row, drawn, wanted = measure_sequence(net, hearing, cast[face], utterance)
        rows.append(row)
        log.info("%s %s", CAST[face].name, {key: round(value, 2) for key, value in row.items()})
        if k < len(cast):
            strips += _strips(cast[face].painter.rest, drawn, wanted, utterance)
    others = [Sitter(stranger(k), 100 + k, corpus) for k in range(strangers)]
    unknown = [measure_sequence(net, hearing, sitter, said[k])[0] for k, sitter in enumerate(others)]
    result: dict[str, Any] = {
        "what": "12 held-out sentences in 4 held-out voices at 25 frames a second; mouths read from pixels",
        "shipped_faces": summarise(rows),
        "unknown_faces": summarise(unknown) if unknown else None,
        "ear_alone_in_held_out_voices": measure_hearing(hearing, said),
        "ear_alone_in_training_voices": measure_hearing(hearing, familiar_utterances()),
        "recorded_speech": {path.name: measure_recording(net, cast[0], path) for path in recordings},
        "truth_of_the_sentences": truth_against_energy(said),
        "sequences": [
            {key: None if np.isnan(value) else round(value, 3) for key, value in row.items()} for row in rows
        ],
        "made": made,
        "seconds": round(time.monotonic() - began),
    }
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    cv2.imwrite(str(sheet), np.vstack(strips), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return result


def _strips(rest: U8, drawn: U8, wanted: U8, said: Utterance, *, columns: int = 11) -> list[U8]:
    """Truth above, drawn below: the resting face, then frames spread over the sentence with its extremes among them."""
    track = said.track[window_starts(said.mel.shape[1])][: len(drawn)]
    picked = np.linspace(4, len(drawn) - 8, columns).astype(int)
    picked[2] = track[:, ACTIONS.index("jawOpen")].argmax()
    picked[5] = track[:, ACTIONS.index("mouthPucker")].argmax()
    picked[8] = track[:, ACTIONS.index("mouthPress")].argmax()
    picked.sort()
    return [np.hstack([rest, *pictures[picked]]) for pictures in (wanted, drawn)]

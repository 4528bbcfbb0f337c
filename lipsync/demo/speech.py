"""Utterances: synthesised speech as it might be recorded, its mel, and the mouth's track."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr

from lipsync.core import F32
from lipsync.demo.espeak import Phoneme, Speech, Voice, synthesiser
from lipsync.demo.sentences import draw_sentence
from lipsync.demo.visemes import action_track
from lipsync.demo.voices import draw_variant
from lipsync.voice.mel import mel_spectrogram

RATE_HZ = 16000
_LANGUAGES = {
    "en": ("en-us", "en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029"),
    "es": ("es",),
    "de": ("de",),
    "it": ("it",),
    "fr": ("fr",),
}


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """Speech with silence around it: 16 kHz samples, (80, T) mel, and the mouth's track, one row a mel column."""

    samples: F32
    mel: F32
    track: F32  # (T, actions)
    phonemes: tuple[Phoneme, ...]


def utter(speech: Speech, *, before_s: float = 0.3, after_s: float = 0.4, level: float = 0.6) -> Utterance:
    """The speech as it is, between two silences, its peak at ``level``."""
    return _finish(
        speech, np.random.default_rng(0), before_s=before_s, after_s=after_s, level=level, pace=1.0, rough=False
    )


def draw_utterance(rng: np.random.Generator) -> Utterance:
    """A random sentence in a random voice through a random room and microphone."""
    language = str(rng.choice(["en", "en", "en", "en", "es", "de", "it", "fr"]))
    accents = _LANGUAGES[language]
    name = draw_variant(rng, accents[rng.integers(len(accents))], drawn_share=0.5)
    rate, pitch, pitch_range = int(rng.integers(120, 215)), int(rng.integers(20, 85)), int(rng.integers(20, 80))
    speech = synthesiser().say(draw_sentence(rng, language), Voice(name, rate, pitch, pitch_range))
    if speech.duration_s < 0.5:
        raise RuntimeError(f"espeak-ng said nothing as {name!r}.")
    return _finish(
        speech,
        rng,
        before_s=rng.uniform(0.1, 0.5),
        after_s=rng.uniform(0.2, 0.5),
        level=10 ** rng.uniform(-1.1, -0.02),
        pace=rng.uniform(0.88, 1.14),
        rough=True,
    )


def _finish(
    speech: Speech, rng: np.random.Generator, *, before_s: float, after_s: float, level: float, pace: float, rough: bool
) -> Utterance:
    """``pace`` plays the speech that much faster, which also moves pitch and formants: another speaker's throat."""
    samples = soxr.resample(speech.samples, speech.sample_rate_hz * pace, RATE_HZ).astype(np.float32)
    quiet = [np.zeros(round(s * RATE_HZ), np.float32) for s in (before_s, after_s)]
    samples = np.concatenate([quiet[0], samples, quiet[1]])
    phonemes = (Phoneme("_:", 0.0), *(Phoneme(p.name, before_s + p.start_s / pace) for p in speech.phonemes))
    if rough:
        samples = _record(samples, rng)
    samples = (samples * (level / max(1e-3, float(np.abs(samples).max())))).astype(np.float32)
    if rough:
        samples = (samples + rng.normal(0, 1, len(samples)) * 10 ** rng.uniform(-4, -2)).astype(np.float32)
    mel = mel_spectrogram(samples)
    track = action_track(phonemes, mel.shape[1] / 80)
    return Utterance(samples, mel, track[: mel.shape[1]], phonemes)


def _record(samples: F32, rng: np.random.Generator) -> F32:
    """The same through a coloured microphone and, half the time, a small room."""
    spectrum, frequency = np.fft.rfft(samples), np.fft.rfftfreq(len(samples), 1 / RATE_HZ)
    knots = np.log([50, 200, 500, 1200, 3000, 5000, 8050])
    gain_db = np.interp(np.log(frequency + 50), knots, rng.normal(0, 5, len(knots)))
    out = np.asarray(np.fft.irfft(spectrum * 10 ** (gain_db / 20), len(samples)), np.float32)
    if rng.random() < 0.5:
        tail = np.arange(RATE_HZ // 4)
        room = (
            rng.normal(0, 1, len(tail)) * np.exp(-tail / RATE_HZ / rng.uniform(0.03, 0.12)) * rng.uniform(0.005, 0.04)
        )
        room[:80], room[0] = 0, 1
        out = _convolve(out, room.astype(np.float32))
    return out


def _convolve(samples: F32, response: F32) -> F32:
    size = len(samples) + len(response)
    full = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)
    return np.asarray(full[: len(samples)], np.float32)

"""espeak-ng through ctypes: a sentence in, samples and the phonemes' times out."""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lipsync.core import F32

_RETRIEVAL = 1
_PHONEME_EVENTS = 1
_EVENT_PHONEME = 7
_RATE, _PITCH, _RANGE = 1, 3, 4
_UTF8 = 1


class _Identity(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Identity),
    )


@dataclass(frozen=True, slots=True)
class Phoneme:
    """A phoneme's name in espeak-ng's alphabet and where it begins; it lasts until the next begins."""

    name: str
    start_s: float


@dataclass(frozen=True, slots=True)
class Voice:
    """How to speak: an espeak-ng voice with its variant, words a minute, pitch and its range 0..99."""

    name: str = "en-us"
    rate: int = 165
    pitch: int = 50
    pitch_range: int = 50


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """Samples in -1..1 and the phonemes in them."""

    samples: F32  # (n,)
    sample_rate_hz: int
    phonemes: tuple[Phoneme, ...]

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.sample_rate_hz


class Synthesiser:
    """The library's one instance in this process; not for several threads at once."""

    def __init__(self) -> None:
        path = ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1"
        try:
            self._library = ctypes.CDLL(path)
        except OSError as error:
            raise RuntimeError("espeak-ng is not installed; install the system package 'espeak-ng'.") from error
        self.sample_rate_hz: int = self._library.espeak_Initialize(_RETRIEVAL, 0, None, _PHONEME_EVENTS)
        if self.sample_rate_hz <= 0:
            raise RuntimeError("espeak-ng did not start; reinstall 'espeak-ng' and 'espeak-ng-data'.")
        self._chunks: list[F32] = []
        self._phonemes: list[Phoneme] = []
        prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
        self._callback = prototype(self._receive)  # kept: the library holds only a pointer to it
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, count: int, events) -> int:  # type: ignore[no-untyped-def]
        if count > 0:
            self._chunks.append(np.asarray(np.ctypeslib.as_array(samples, (count,)) / 32768, np.float32))
        i = 0
        while events[i].type:
            if events[i].type == _EVENT_PHONEME:
                name = events[i].id.string.decode("utf-8", "replace")
                self._phonemes.append(Phoneme(name, events[i].audio_position / 1000))
            i += 1
        return 0

    def has(self, voice: str) -> bool:
        """Whether espeak-ng can speak as this voice; some variants go with some languages only."""
        return bool(self._library.espeak_SetVoiceByName(voice.encode()) == 0)

    def say(self, text: str, voice: Voice) -> Speech:
        """The sentence spoken. Raises ValueError for a voice that espeak-ng does not have."""
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice.name!r}; see `espeak-ng --voices=variant`.")
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        self._phonemes.clear()
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        samples = np.concatenate([np.zeros(0, np.float32), *self._chunks])
        return Speech(samples, self.sample_rate_hz, tuple(self._phonemes))


@lru_cache(maxsize=1)
def synthesiser() -> Synthesiser:
    """The process's synthesiser, started at the first call."""
    return Synthesiser()

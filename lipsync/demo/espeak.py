"""espeak-ng through ctypes: a sentence in, samples and the phonemes' times out."""

from __future__ import annotations

import ctypes
import ctypes.util
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from lipsync.core import F32

_RETRIEVAL = 1
_PHONEME_EVENTS = 1
_EVENT_WORD, _EVENT_PHONEME = 1, 7
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
class Word:
    """A word as it was written, or several that are said as one, and where it begins."""

    text: str
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
    """Samples in -1..1, the phonemes and the words in them."""

    samples: F32  # (n,)
    sample_rate_hz: int
    phonemes: tuple[Phoneme, ...]
    words: tuple[Word, ...] = ()

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.sample_rate_hz


class Synthesiser:
    """The library's one instance in this process; not for several threads at once.

    It reads its voices from a folder of its own, made of links to the installed data, so that voices can be added.
    """

    def __init__(self) -> None:
        path = ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1"
        try:
            self._library = ctypes.CDLL(path)
        except OSError as error:
            raise RuntimeError("espeak-ng is not installed; install the system package 'espeak-ng'.") from error
        self._start(None)
        self._folder = tempfile.TemporaryDirectory(prefix="lipsync-voices-")  # kept: removed with this object
        self._variants = self._link_data(Path(self._folder.name))
        self._library.espeak_Terminate()
        self.sample_rate_hz = self._start(self._folder.name.encode())
        self._chunks: list[F32] = []
        self._phonemes: list[Phoneme] = []
        self._words: list[tuple[int, float]] = []  # where in the text, and when
        prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
        self._callback = prototype(self._receive)  # kept: the library holds only a pointer to it
        self._library.espeak_SetSynthCallback(self._callback)

    def _start(self, folder: bytes | None) -> int:
        rate_hz: int = self._library.espeak_Initialize(_RETRIEVAL, 0, folder, _PHONEME_EVENTS)
        if rate_hz <= 0:
            raise RuntimeError("espeak-ng did not start; reinstall 'espeak-ng' and 'espeak-ng-data'.")
        return rate_hz

    def _link_data(self, folder: Path) -> Path:
        """The installed data once more under this folder, as links; the folder in it that takes further variants."""
        installed = ctypes.c_char_p()
        self._library.espeak_Info.restype = ctypes.c_char_p
        self._library.espeak_Info(ctypes.byref(installed))
        source, target = Path((installed.value or b"").decode()), folder / "espeak-ng-data"
        for below in (".", "voices", "voices/!v"):
            (target / below).mkdir()
            for path in (source / below).iterdir():
                if path.relative_to(source).as_posix() not in ("voices", "voices/!v"):
                    (target / below / path.name).symlink_to(path)
        return target / "voices" / "!v"

    def define(self, variant: str, lines: list[str]) -> None:
        """Add a variant, or replace an added one; espeak-ng's voice files say what the lines may be."""
        path = self._variants / variant
        if path.is_symlink():
            raise ValueError(f"espeak-ng has a variant {variant!r} of its own; name the new one otherwise.")
        path.write_text("\n".join(["language variant", f"name {variant}", *lines]) + "\n")

    def _receive(self, samples, count: int, events) -> int:  # type: ignore[no-untyped-def]
        if count > 0:
            self._chunks.append(np.asarray(np.ctypeslib.as_array(samples, (count,)) / 32768, np.float32))
        i = 0
        while events[i].type:
            if events[i].type == _EVENT_PHONEME:
                name = events[i].id.string.decode("utf-8", "replace")
                self._phonemes.append(Phoneme(name, events[i].audio_position / 1000))
            elif events[i].type == _EVENT_WORD:
                self._words.append((events[i].text_position - 1, events[i].audio_position / 1000))
            i += 1
        return 0

    def has(self, voice: str) -> bool:
        """Whether espeak-ng can speak as this voice."""
        _, plus, variant = voice.partition("+")
        if plus and not (self._variants / variant).exists():
            return False  # the library would speak as the plain voice, and say nothing of it
        return bool(self._library.espeak_SetVoiceByName(voice.encode()) == 0)

    def say(self, text: str, voice: Voice) -> Speech:
        """The sentence spoken. Raises ValueError for a voice that espeak-ng does not have."""
        if not self.has(voice.name):
            raise ValueError(f"espeak-ng has no voice {voice.name!r}; see `espeak-ng --voices=variant`.")
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        self._phonemes.clear()
        self._words.clear()
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        samples = np.concatenate([np.zeros(0, np.float32), *self._chunks])
        ends = [*(at for at, _ in self._words), len(text)][1:]
        words = tuple(
            Word(text[at:end].strip(" ,.;:!?"), start_s) for (at, start_s), end in zip(self._words, ends, strict=True)
        )
        return Speech(samples, self.sample_rate_hz, tuple(self._phonemes), words)


@lru_cache(maxsize=1)
def synthesiser() -> Synthesiser:
    """The process's synthesiser, started at the first call."""
    return Synthesiser()

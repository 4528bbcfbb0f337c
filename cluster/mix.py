"""What a load is made of: kinds of requests, how often each comes, and the bytes that each sends."""

from __future__ import annotations

import io
import random
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from benchmarks.marked import marked


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request: which face, how much voice, and whether the answer is a stream."""

    name: str
    face: Literal["picture", "clip"]
    voice_s: float
    is_stream: bool = False


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("short", "picture", 2.0),
        Kind("short-stream", "picture", 2.0, is_stream=True),
        Kind("short-video", "clip", 2.0),
        Kind("long", "picture", 40.0),
        Kind("still", "picture", 10.0),
        Kind("video", "clip", 10.0),
        Kind("stream", "picture", 10.0, is_stream=True),
    )
}


class Mix:
    """Kinds by weight, drawn at random. Raises ValueError where a kind is unknown or nothing has a weight."""

    def __init__(self, weights: Mapping[str, float], *, seed: int = 0) -> None:
        if unknown := sorted(set(weights) - set(KINDS)):
            raise ValueError(f"{unknown[0]!r} is no kind of request. There are: {', '.join(KINDS)}.")
        if any(weight < 0 for weight in weights.values()) or not sum(weights.values()) > 0:
            raise ValueError("Weights of a mix are 0 or more, and one of them is more.")
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.kinds = [KINDS[name] for name in self.weights]
        self._random = random.Random(seed)

    @classmethod
    def parse(cls, text: str, *, seed: int = 0) -> Mix:
        """``short=6,video=1``; a kind without a number weighs 1. Raises ValueError."""
        weights: dict[str, float] = {}
        for part in text.split(","):
            name, _, weight = part.strip().partition("=")
            try:
                weights[name] = float(weight or 1)
            except ValueError:
                raise ValueError(f"{weight!r} is no weight. Write a mix like short=6,video=1.") from None
        return cls(weights, seed=seed)

    def draw(self) -> Kind:
        return self._random.choices(self.kinds, list(self.weights.values()))[0]


class Inputs:
    """The faces and the voice that are sent; None stands for the packaged one.

    ``is_fresh`` gives every request a face of its own content, so that nothing that was remembered by content helps;
    it knows how for JPEG and MP4. Raises ValueError for a voice that is no PCM WAV, and for other faces with it.
    """

    def __init__(
        self,
        *,
        picture: Path | None = None,
        clip: Path | None = None,
        voice: Path | None = None,
        is_fresh: bool = False,
    ) -> None:
        self._faces = {"picture": _read(picture, "face.jpg"), "clip": _read(clip, "clip.mp4")}
        self._voice = _read(voice, "voice.wav")
        self.is_fresh = is_fresh
        self._cut = cache(self._cut_voice)
        self._cut(1.0)
        if is_fresh:
            for face in self._faces.values():
                marked(face, 0)

    def face(self, kind: Kind, *, number: int) -> bytes:
        face = self._faces[kind.face]
        return marked(face, number) if self.is_fresh else face

    def voice(self, kind: Kind) -> bytes:
        """The voice's first seconds as WAV, from its start again where it is shorter."""
        return self._cut(kind.voice_s)

    def _cut_voice(self, seconds: float) -> bytes:
        try:
            with wave.open(io.BytesIO(self._voice)) as source:
                parameters, frames = source.getparams(), source.readframes(source.getnframes())
        except (wave.Error, EOFError) as error:
            raise ValueError(
                f"The voice cannot be cut to length: it is no PCM WAV ({error}). Convert it: ffmpeg -i VOICE voice.wav"
            ) from error
        if not frames:
            raise ValueError("The voice holds no sound.")
        wanted = round(seconds * parameters.framerate) * parameters.sampwidth * parameters.nchannels
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as target:
            target.setparams(parameters)
            target.writeframes((frames * (wanted // len(frames) + 1))[:wanted])
        return buffer.getvalue()


def _read(path: Path | None, packaged: str) -> bytes:
    return path.read_bytes() if path is not None else (files("lipsync") / "assets" / packaged).read_bytes()

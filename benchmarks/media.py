"""Inputs for the benchmarks, made from the packaged face and voice: the same bytes every time."""

from __future__ import annotations

import io
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from lipsync.bench import media
from lipsync.faces.detector import Detector, create_detector
from lipsync.weights import find


def assets() -> Path:
    """Real media beside the project, for figures that are marked as such; may not exist."""
    return Path(__file__).resolve().parents[2] / "shared" / "assets"


def detectors() -> list[Detector]:
    """Those whose weights are here, loaded: yunet's were pulled or lie with the real media."""
    yunet = find("yunet") or assets() / "yunet_n_dynamic.onnx"
    found = [create_detector("yunet", weights=Path(yunet))] if Path(yunet).exists() else []
    return [*found, create_detector("centerface")]


def still(width: int, height: int) -> bytes:
    """The packaged face as a JPEG of that size."""
    return media.still(media.resized(media.read_face(None), width, height))


def moving(width: int, height: int, *, frames: int, gop: int, fps: int = 25, noise: float = 3.0) -> bytes:
    """The packaged face before a camera; see ``lipsync.bench.media.moving``."""
    picture = media.resized(media.read_face(None), width, height)
    return media.moving(picture, frames=frames, gop=gop, fps=fps, noise=noise)


def repeated(mp4: bytes, times: int) -> bytes:
    """The same pictures ``times`` over, by copying packets: a long clip in seconds."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        source = av.open(io.BytesIO(mp4), "r")
        stream = output.add_stream_from_template(source.streams.video[0])
        step = Fraction(source.streams.video[0].duration or 0)
        source.close()
        for turn in range(times):
            with av.open(io.BytesIO(mp4), "r") as again:
                for packet in again.demux(video=0):
                    if packet.dts is None or packet.pts is None:
                        continue
                    packet.pts += int(step * turn)
                    packet.dts += int(step * turn)
                    packet.stream = stream
                    output.mux(packet)
    return buffer.getvalue()


def speech_like(seconds: float, sample_rate_hz: int = 16_000) -> np.ndarray:
    """(n,) float32: syllables of a buzz, four a second, with pauses."""
    t = np.arange(round(seconds * sample_rate_hz)) / sample_rate_hz
    buzz = np.sign(np.sin(2 * np.pi * 120 * t)) * 0.2
    syllables = np.clip(np.sin(2 * np.pi * 4 * t), 0, 1) * (np.sin(2 * np.pi * 0.3 * t) > -0.7)
    return np.asarray(buzz * syllables, np.float32)


def wav(samples: np.ndarray, sample_rate_hz: int = 16_000) -> bytes:
    """(n,) float in -1…1 as a 16-bit mono WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate_hz)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return buffer.getvalue()

"""Small inputs for measuring and testing the served application: the packaged face and voice, made smaller."""

from __future__ import annotations

import io
import struct
import wave
from pathlib import Path

import av
import cv2
import numpy as np

ASSETS = Path(__file__).resolve().parents[1] / "lipsync" / "assets"


def scaled_jpeg(path: Path, *, width: int) -> bytes:
    """A picture scaled to ``width``, as a JPEG file."""
    picture = cv2.imread(str(path))
    assert picture is not None, path
    height = round(picture.shape[0] * width / picture.shape[1])
    return cv2.imencode(".jpg", cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA))[1].tobytes()


def noise_png(width: int, height: int) -> bytes:
    """A picture without a face."""
    return cv2.imencode(".png", np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8))[1].tobytes()


def noise_clip(width: int, height: int, *, frames: int, keyframe_every: int = 250) -> bytes:
    """A video that no encoder can make small."""
    rng, buffer = np.random.default_rng(2), io.BytesIO()
    options = {"crf": "10", "preset": "ultrafast", "g": str(keyframe_every)}
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(frames):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (height, width, 3), np.uint8), format="bgr24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def padded_wav(wav: bytes, count: int) -> bytes:
    """The same sound with ``count`` bytes more, in a chunk that readers skip."""
    more = b"JUNK" + struct.pack("<I", count) + bytes(count)
    return b"RIFF" + struct.pack("<I", len(wav) - 8 + len(more)) + b"WAVE" + more + wav[12:]


def cut_wav(path: Path, *, seconds: float) -> bytes:
    """The first seconds of a WAV file, repeated where it is shorter."""
    with wave.open(str(path)) as source:
        parameters, frames = source.getparams(), source.readframes(source.getnframes())
    wanted = int(seconds * parameters.framerate) * parameters.sampwidth * parameters.nchannels
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as target:
        target.setparams(parameters)
        target.writeframes((frames * (wanted // len(frames) + 1))[:wanted])
    return buffer.getvalue()

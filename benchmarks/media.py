"""Inputs for the benchmarks, made from the packaged face and voice: the same bytes every time."""

from __future__ import annotations

import io
import wave
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from lipsync.core import U8
from lipsync.faces.detector import Detector, create_detector
from lipsync.packaged import demo_face
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
    return bytes(cv2.imencode(".jpg", _face(width, height), [cv2.IMWRITE_JPEG_QUALITY, 95])[1])


def moving(width: int, height: int, *, frames: int, gop: int, fps: int = 25, noise: float = 3.0) -> bytes:
    """The packaged face swaying and breathing before a slightly noisy camera, H.264 crf 18.

    ``noise`` is its standard deviation in levels of 255.
    """
    picture = _face(width, height)
    grain = np.random.default_rng(0).normal(0, noise, (8, height, width, 1)).astype(np.float32)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.options = {"preset": "veryfast", "crf": "18", "x264-params": f"scenecut=0:keyint={gop}:min-keyint={gop}"}
        for n in range(frames):
            moved = _move(picture, n, grain[n % 8])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="bgr24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def repeated(mp4: bytes, times: int) -> bytes:
    """The same pictures ``times`` over, by copying packets: a long clip in seconds."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        source = av.open(io.BytesIO(mp4))
        stream = output.add_stream_from_template(source.streams.video[0])
        step = Fraction(source.streams.video[0].duration)
        source.close()
        for turn in range(times):
            with av.open(io.BytesIO(mp4)) as again:
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


def _face(width: int, height: int) -> U8:
    picture = cv2.imdecode(np.frombuffer(demo_face(), np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _move(picture: U8, n: int, noise: np.ndarray) -> U8:
    height, width = picture.shape[:2]
    zoom = 1.04 + 0.03 * np.sin(n / 40)
    x, y = 0.015 * width * np.sin(n / 25), 0.01 * height * np.sin(n / 17)
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), 1.5 * np.sin(n / 31), zoom)
    turn[:, 2] += (x, y)
    moved = cv2.warpAffine(picture, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return np.clip(moved + noise, 0, 255).astype(np.uint8)

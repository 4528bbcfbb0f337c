"""Face inputs and a voice for the end-to-end rows, made from the caller's own files. Needs the media libraries."""

from __future__ import annotations

import io
import os
from pathlib import Path

import av
import cv2
import numpy as np

from lipsync.core import U8
from lipsync.errors import UnreadableMedia
from lipsync.media.probe import probe_voice
from lipsync.media.source import Blob
from lipsync.options import Limits
from lipsync.voice.decode import decode
from lipsync.voice.voice import Waveform

_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 95]


def read_face(face: str | os.PathLike[str] | None) -> U8:
    """The picture in the file, or a video's first frame, BGR; None: the packaged face. Raises UnreadableMedia."""
    from lipsync.packaged import demo_face

    data = demo_face() if face is None else Path(face).read_bytes()
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is not None:
        return np.asarray(picture, np.uint8)
    try:
        with av.open(io.BytesIO(data), "r") as container:
            return np.asarray(next(container.decode(video=0)).to_ndarray(format="bgr24"), np.uint8)
    except (av.FFmpegError, StopIteration, IndexError) as error:
        raise UnreadableMedia(f"{face} is neither an image nor a video that can be read: {error!r}.") from error


def resized(picture: U8, width: int, height: int) -> U8:
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def still(picture: U8) -> bytes:
    """As a JPEG."""
    return bytes(cv2.imencode(".jpg", picture, _QUALITY)[1])


def moving(picture: U8, *, frames: int, gop: int, fps: int = 25, noise: float = 3.0) -> bytes:
    """The picture swaying and breathing before a slightly noisy camera, H.264 crf 18, as an mp4.

    ``noise`` is its standard deviation in levels of 255.
    """
    height, width = picture.shape[:2]
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


def _move(picture: U8, n: int, noise: np.ndarray) -> U8:
    height, width = picture.shape[:2]
    zoom = 1.04 + 0.03 * np.sin(n / 40)
    x, y = 0.015 * width * np.sin(n / 25), 0.01 * height * np.sin(n / 17)
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), 1.5 * np.sin(n / 31), zoom)
    turn[:, 2] += (x, y)
    moved = cv2.warpAffine(picture, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
    made: U8 = np.clip(moved + noise, 0, 255).astype(np.uint8)
    return made


def voice_of(audio: str | os.PathLike[str] | None, *, seconds: float) -> Waveform:
    """The file's sound, one channel, again and again until it is so long; None: the packaged voice."""
    from lipsync.packaged import demo_voice

    limits = Limits()
    blob = Blob.of(demo_voice() if audio is None else audio, limit_bytes=limits.video_bytes)
    blocks = list(decode(blob, probe_voice(blob, limits), limits=limits))
    samples = np.concatenate([block.samples.mean(axis=0) for block in blocks])
    rate = blocks[0].sample_rate_hz
    return Waveform(np.resize(samples, round(seconds * rate)).astype(np.float32), rate)

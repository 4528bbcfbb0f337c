"""The media that the package ships: a still of each member of the cast, one looping clip, two voices."""

from __future__ import annotations

import json
import math
import wave
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np

from lipsync.core import U8
from lipsync.demo.cast import CAST
from lipsync.demo.espeak import Speech, Voice, synthesiser
from lipsync.demo.frames import portrait_of
from lipsync.demo.parts import apart
from lipsync.demo.scene import Frame, Pose, resting, still

CLIP_ROLE = 1
CLIP_FPS = 25
CLIP_FRAMES = 90
_BLINKS = (20, 66)
"""Frames of the clip at which the eyes are shut."""

VOICES = {
    "voice.wav": (
        Voice("en-us+f2", 158, 52),
        "Hello, and welcome! I am a face that a computer drew, and this is a voice that it made. "
        "Watch my lips: blue shoes, a warm moon, five vivid apples.",
    ),
    "voice_two.wav": (
        Voice("en-gb-x-rp+m3", 150, 40),
        "Good evening. Nobody ever said these words before a machine did. "
        "Papa moved the boat above the falls, and we all saw the whole thing through.",
    ),
}


def write_stills(folder: Path) -> None:
    """One JPEG for each role."""
    for role in CAST:
        picture = still(portrait_of(role), role.pose, Frame())
        cv2.imwrite(str(folder / f"{role.name}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 94])


def clip_pose(frame: int) -> Pose:
    """Where the head is in a frame of the clip; the last frame leads to the first."""
    turn = 2 * math.pi * frame / CLIP_FRAMES
    base = CAST[CLIP_ROLE].pose
    return Pose(
        yaw=base.yaw * 0.3 + 0.15 * math.sin(turn) + 0.03 * math.sin(3 * turn + 1),
        pitch=base.pitch + 0.035 * math.sin(2 * turn + 0.6),
        roll=0.025 * math.sin(turn + 1.2),
        shift_x=0.006 * math.sin(turn + 0.4),
        shift_y=0.004 * math.sin(2 * turn),
    )


def blink(frame: int) -> float:
    """How far the lids are shut in a frame of the clip."""
    nearest = min(abs(frame - at) for at in _BLINKS)
    return max(0.12, 1 - 0.42 * nearest) if nearest <= 2 else 0.12


def clip_frames() -> list[U8]:
    """The clip's frames, BGR (720, 1280, 3)."""
    portrait = portrait_of(CAST[CLIP_ROLE])
    return [portrait.draw(resting(blink(n)), clip_pose(n), Frame())[0] for n in range(CLIP_FRAMES)]


def write_clip(path: Path) -> None:
    """The clip as H.264 in mp4, BT.709, without sound."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(CLIP_FPS), options={"crf": "19", "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = Frame().width, Frame().height, "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = 1
        context.color_range = 1
        for picture in clip_frames():
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24").reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_voices(folder: Path) -> None:
    """16-bit mono wav files at the synthesiser's own rate; of the first also when each word begins."""
    for name, (voice, text) in VOICES.items():
        speech = apart(partial(_say, voice, text))
        if name == "voice.wav":
            words = [{"text": word.text, "start_s": word.start_s} for word in speech.words]
            (folder / "voice_words.json").write_text(json.dumps(words, indent=1) + "\n")
        samples = (np.clip(speech.samples, -1, 1) * 32767).astype("<i2")
        with wave.open(str(folder / name), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(speech.sample_rate_hz)
            file.writeframes(samples.tobytes())


def _say(voice: Voice, text: str) -> Speech:
    return synthesiser().say(text, voice)


def write_media(folder: Path) -> None:
    """Everything of the above."""
    folder.mkdir(parents=True, exist_ok=True)
    write_stills(folder)
    write_clip(folder / "clip.mp4")
    write_voices(folder)

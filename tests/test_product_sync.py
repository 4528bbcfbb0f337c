"""The whole product, end to end: a face and a voice in, an mp4 out, decoded again; the mouth must say what is heard.

A sentence in a voice that the generator never heard, a shipped face, every sync mode and every frame rate. The face
comes as a video whose frames carry their numbers, so that a mode that were not obeyed would not pass either.
"""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import wave
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import httpx
import numpy as np
import pytest

from lipsync.batcher import FrameBatcher
from lipsync.demo.reading import Reader
from lipsync.metrics import NoMeters
from lipsync.options import Options
from lipsync.service import LipsyncService
from serve.auth import Keys
from serve.http import Http
from serve.preprocessor import Preprocessor
from serve.renderer import Renderer
from serve.requests import Desk
from serve.settings import Settings
from serve.stages import Handles
from tests.serve_fakes import FakeBooks, LocalHandle

FACE = Path(__file__).parents[1] / "lipsync" / "assets" / "face.jpg"
DATA = Path(__file__).parent / "data"
LEAST_CORRELATION = 0.83
REACH_S, STEP_S = 0.15, 0.0005
PART = (400, 20, 880, 532)
"""What of the face's picture is filmed: x1, y1, x2, y2."""
BIT = 16
"""Side of one bit's square; the frame's number stands in a row of eight at the top left."""
NTSC = Fraction(1000, 1001)


@dataclass(frozen=True)
class Case:
    """A mode, a rate, and how long the face's video is beside a voice of 3.7 seconds."""

    mode: str
    fps: Fraction
    video_s: float

    def __str__(self) -> str:
        return f"{self.mode}-{float(self.fps):.2f}"

    def shown(self, count: int) -> np.ndarray:
        """The number of the video's frame in each frame of the result, by the mode's meaning."""
        size, i = round(self.video_s * self.fps), np.arange(count)
        if self.mode == "loop":
            return i % size
        if self.mode == "bounce":
            return (size - 1) - np.abs((size - 1) - i % (2 * size - 2))
        if self.mode == "remap":
            return i * size // count
        return np.minimum(i, size - 1)


CASES = (
    Case("loop", 24 * NTSC, 1.2),
    Case("bounce", Fraction(24), 1.2),
    Case("cut_off", Fraction(25), 3.0),
    Case("silence", 30 * NTSC, 4.5),
    Case("remap", Fraction(30), 1.5),
    Case("loop", Fraction(50), 1.2),
    Case("silence", 60 * NTSC, 4.0),
    Case("bounce", Fraction(60), 1.2),
    Case("remap", Fraction(25), 2.0),
    Case("cut_off", 30 * NTSC, 2.8),
)


class Spoken:
    """The sentence, the mouth that belongs to it, and a reader of the face's mouth."""

    def __init__(self) -> None:
        self.wav = (DATA / "spoken.wav").read_bytes()
        with wave.open(io.BytesIO(self.wav)) as file:
            self.duration = Fraction(file.getnframes(), file.getframerate())
        with np.load(DATA / "spoken.npz") as held:
            self.reader = Reader(held["middle"].astype(np.float32), held["weight"], held["base"])
            x1, y1, x2, y2 = (int(v) for v in held["box"])
            self.jaw = held["actions"][:, 0].astype(np.float64)
        self.box = (x1 - PART[0], y1 - PART[1], x2 - PART[0], y2 - PART[1])

    def truth(self, times_s: np.ndarray) -> np.ndarray:
        """How far the jaw is open at these times; shut before and after the sentence."""
        return np.interp(times_s, np.arange(len(self.jaw)) / 80, self.jaw, left=0, right=0)

    def read(self, pictures: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
        x1, y1, x2, y2 = box
        return self.reader.read(np.stack([cv2.resize(p[y1:y2, x1:x2], (96, 96)) for p in pictures]))[:, 0]


@dataclass(frozen=True)
class Agreement:
    """How well a mouth follows the truth, and how late it is where it follows best."""

    correlation: float
    late_s: float

    @classmethod
    def of(cls, spoken: Spoken, jaw: np.ndarray, times_s: np.ndarray) -> Agreement:
        delays = np.arange(-REACH_S, REACH_S + STEP_S, STEP_S)
        found = [float(np.corrcoef(jaw, spoken.truth(times_s - late))[0, 1]) for late in delays]
        return cls(float(np.corrcoef(jaw, spoken.truth(times_s))[0, 1]), float(delays[int(np.argmax(found))]))

    def holds(self, fps: Fraction) -> bool:
        return self.correlation >= LEAST_CORRELATION and abs(self.late_s) <= 0.5 / fps


@pytest.fixture(scope="module")
def spoken() -> Spoken:
    return Spoken()


@pytest.fixture(scope="module")
def service() -> LipsyncService:
    return LipsyncService(device="cpu", use_compile=False)


def film(case: Case) -> bytes:
    """The face as a video at the case's rate; each frame shows its own number."""
    x1, y1, x2, y2 = PART
    still = cv2.imread(str(FACE))[y1:y2, x1:x2]
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=case.fps, options={"crf": "12", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = x2 - x1, y2 - y1, "yuv420p"
        for number in range(round(case.video_s * case.fps)):
            picture = still.copy()
            for bit in range(8):
                picture[:BIT, bit * BIT : (bit + 1) * BIT] = 230 if number >> bit & 1 else 20
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    return target.getvalue()


def number_of(picture: np.ndarray) -> int:
    half = BIT // 2
    return sum(1 << bit for bit in range(8) if picture[half, bit * BIT + half].mean() > 128)


def play(data: bytes | Path) -> tuple[np.ndarray, np.ndarray, float]:
    """The pictures, when each is shown, and when the sound begins, in seconds."""
    with av.open(str(data) if isinstance(data, Path) else io.BytesIO(data)) as container:
        heard_from_s = float(next(container.decode(audio=0)).time)
        container.seek(0)
        frames = list(container.decode(video=0))
    return (
        np.stack([frame.to_ndarray(format="bgr24") for frame in frames]),
        np.array([float(frame.pts * frame.time_base) for frame in frames]),
        heard_from_s,
    )


def speak(
    service: LipsyncService, spoken: Spoken, case: Case, *, offset_ms: float = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of the case and the times at which they are shown, counted from where the sound begins."""
    x1, y1, x2, y2 = spoken.box
    options = Options(
        sync_mode=case.mode, box=(y1, y2, x1, x2), detector="none", preset="ultrafast", audio_offset_ms=offset_ms
    )
    pictures, times_s, heard_from_s = play(service.to_bytes(film(case), spoken.wav, options))
    assert abs(heard_from_s) <= 0.001
    return pictures, times_s


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_mouth_keeps_time_in_every_mode_at_every_rate(service: LipsyncService, spoken: Spoken, case: Case):
    pictures, times_s = speak(service, spoken, case)
    wanted_s = {"cut_off": min(case.video_s, spoken.duration), "silence": max(case.video_s, spoken.duration)}
    assert abs(len(pictures) - wanted_s.get(case.mode, spoken.duration) * case.fps) <= 1
    np.testing.assert_allclose(times_s, np.arange(len(pictures)) / float(case.fps), atol=1e-3)
    assert [number_of(picture) for picture in pictures] == list(case.shown(len(pictures)))
    jaw = spoken.read(pictures, spoken.box)
    agreement = Agreement.of(spoken, jaw, times_s)
    assert agreement.holds(case.fps), agreement
    assert jaw[times_s > float(spoken.duration) + 0.05].max(initial=0) < 0.12, "shut where the sound has ended"


@pytest.mark.parametrize("frames", [-1, 1])
@pytest.mark.parametrize("case", [CASES[2], CASES[7]], ids=str)
def test_one_frame_too_early_or_too_late_does_not_pass(
    service: LipsyncService, spoken: Spoken, case: Case, frames: int
):
    """The mouth hears one frame later or earlier than it should: the agreement that is asked above must be broken."""
    pictures, times_s = speak(service, spoken, case, offset_ms=1000 * frames / float(case.fps))
    agreement = Agreement.of(spoken, spoken.read(pictures, spoken.box), times_s)
    assert not agreement.holds(case.fps), agreement


def test_the_command_line_keeps_time_with_a_face_that_it_finds_itself(spoken: Spoken, tmp_path: Path):
    voice, output = tmp_path / "voice.wav", tmp_path / "out.mp4"
    voice.write_bytes(spoken.wav)
    command = [sys.executable, "-m", "lipsync", "run", str(FACE), str(voice), "-o", str(output), "--device", "cpu"]
    subprocess.run(command, check=True, timeout=120)
    pictures, times_s, _ = play(output)
    x1, y1, x2, y2 = spoken.box
    box = (x1 + PART[0], y1 + PART[1], x2 + PART[0], y2 + PART[1])
    agreement = Agreement.of(spoken, spoken.read(pictures, box), times_s)
    assert agreement.holds(Fraction(25)), agreement


@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_the_command_line_keeps_time_in_every_mode(spoken: Spoken, case: Case, tmp_path: Path):
    face, voice, output = tmp_path / "face.mp4", tmp_path / "voice.wav", tmp_path / "out.mp4"
    face.write_bytes(film(case))
    voice.write_bytes(spoken.wav)
    command = [sys.executable, "-m", "lipsync", "run", str(face), str(voice), "-o", str(output), "--device", "cpu"]
    subprocess.run([*command, "--sync-mode", case.mode, "--preset", "ultrafast"], check=True, timeout=120)
    pictures, times_s, _ = play(output)
    assert [number_of(picture) for picture in pictures] == list(case.shown(len(pictures)))
    agreement = Agreement.of(spoken, spoken.read(pictures, spoken.box), times_s)
    assert agreement.holds(case.fps), agreement


@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_the_http_endpoint_keeps_time_in_every_mode(
    service: LipsyncService, spoken: Spoken, case: Case, tmp_path: Path
):
    """The served application's own Preprocessor and Renderer with the service's engine behind a batcher, as a Generator
    has it, and handles that call in this process."""
    settings = Settings.model_validate({"auth": {"mode": "off"}, "spool": {"folder": str(tmp_path)}})
    preprocessor = Preprocessor(settings)
    batcher = FrameBatcher(service.engine)
    renderer = Renderer(settings, LocalHandle(batcher))
    replicas = Handles(LocalHandle(preprocessor), LocalHandle(renderer))

    async def ask() -> httpx.Response:
        desk = Desk(settings, replicas, FakeBooks(settings.admission), NoMeters())
        api = Http(settings, desk, Keys(settings.auth), models=_no_models, is_whole=_always).api()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://127.0.0.1") as client:
            x1, y1, x2, y2 = spoken.box
            fields = {"sync_mode": case.mode, "box": f"{y1} {y2} {x1} {x2}", "detector": "none", "preset": "ultrafast"}
            return await client.post("/v1/lipsync", files={"face": film(case), "audio": spoken.wav}, data=fields)

    try:
        answer = asyncio.run(ask())
    finally:
        preprocessor._stages.close()
        renderer._stages.close()
        batcher.close()
    assert answer.status_code == 200, answer.text
    pictures, times_s, _ = play(answer.content)
    assert [number_of(picture) for picture in pictures] == list(case.shown(len(pictures)))
    agreement = Agreement.of(spoken, spoken.read(pictures, spoken.box), times_s)
    assert agreement.holds(case.fps), agreement


async def _always() -> bool:
    return True


async def _no_models() -> list[dict[str, str]]:
    return []

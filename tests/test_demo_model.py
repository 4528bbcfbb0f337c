"""The packaged generator, faces and voices: they load, they are found, and the mouth says what is heard, when it is heard."""

from __future__ import annotations

import hashlib
import io
import json
import wave
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from lipsync.demo.card import made_table, measured_table
from lipsync.demo.measures import correlation, lag
from lipsync.demo.reading import Reader
from lipsync.engine import Engine
from lipsync.faces.detector import create_detector
from lipsync.service import LipsyncService
from lipsync.voice.mel import mel_spectrogram
from lipsync.weights import default_checkpoint

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "lipsync" / "assets"
DATA = Path(__file__).parent / "data"
FACES = sorted(ASSETS.glob("face*.jpg"))
JAW, FUNNEL, PUCKER = range(3)
FPS = 25


@dataclass
class Spoken:
    """A sentence in a voice that no training utterance has, the mouth that belongs to it, and a reader for face.jpg."""

    wav: bytes
    actions: np.ndarray  # (T, 3) at 80 Hz
    box: tuple[int, int, int, int]
    reader: Reader

    def truth(self, count: int) -> np.ndarray:
        """The mouth at the time of each of the first frames, (count, 3)."""
        return self.actions[np.minimum(80 * np.arange(count) // FPS, len(self.actions) - 1)].astype(np.float32)


@pytest.fixture(scope="module")
def spoken() -> Spoken:
    with np.load(DATA / "spoken.npz") as held:
        reader = Reader(held["middle"].astype(np.float32), held["weight"], held["base"])
        box = tuple(int(v) for v in held["box"])
        return Spoken((DATA / "spoken.wav").read_bytes(), held["actions"], box, reader)


@pytest.fixture(scope="module")
def crop(spoken: Spoken) -> np.ndarray:
    x1, y1, x2, y2 = spoken.box
    return cv2.resize(cv2.imread(str(ASSETS / "face.jpg"))[y1:y2, x1:x2], (96, 96))


@pytest.fixture(scope="module")
def service() -> LipsyncService:
    return LipsyncService(device="cpu", use_compile=False)


def samples_of(wav: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(wav)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
        return samples if file.getframerate() == 16000 else samples[:: file.getframerate() // 16000]


def draw(engine: Engine, crop: np.ndarray, wav: bytes, *, late_frames: int = 0) -> np.ndarray:
    mel = mel_spectrogram(samples_of(wav))
    count = int(mel.shape[1] / 80 * FPS)
    starts = (80 * (np.arange(count) + late_frames) // FPS).astype(np.int32)
    return engine.generate(crop[None], np.zeros(count, np.int32), mel, starts)


@pytest.fixture(scope="module")
def drawn(service: LipsyncService, crop: np.ndarray, spoken: Spoken) -> np.ndarray:
    return draw(service.engine, crop, spoken.wav)


def test_the_package_carries_a_generator_small_enough_and_says_what_everything_is_and_whose():
    assert default_checkpoint() == ASSETS / "generator.safetensors"
    files = [path for path in ASSETS.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12 * 2**20
    readme, notice = (ASSETS / "README.md").read_text(), (ROOT / "NOTICE").read_text()
    for path in files:
        assert path.name == "README.md" or (f"`{path.name}`" in readme and path.name in notice), path


def test_the_mouth_follows_a_sentence_and_a_voice_never_heard_in_training(drawn: np.ndarray, spoken: Spoken):
    read, truth = spoken.reader.read(drawn), spoken.truth(len(drawn))
    assert correlation(read[:, JAW], truth[:, JAW]) >= 0.83
    assert lag(read[:, JAW], truth[:, JAW]) == 0
    assert 0.7 <= read[:, JAW].std() / truth[:, JAW].std() <= 1.3


def test_a_voice_one_frame_late_is_noticed(service: LipsyncService, crop: np.ndarray, spoken: Spoken):
    early = draw(service.engine, crop, spoken.wav, late_frames=1)
    assert lag(spoken.reader.read(early)[:, JAW], spoken.truth(len(early))[:, JAW]) == -1


def test_the_mouth_is_shut_in_silence_and_wide_on_wide_vowels(drawn: np.ndarray, spoken: Spoken):
    jaw, truth = spoken.reader.read(drawn)[:, JAW], spoken.truth(len(drawn))[:, JAW]
    assert jaw[:5].max() < 0.12, "the sentence begins after 0.3 s of silence"
    assert jaw[-6:].max() < 0.12, "and ends with 0.4 s of it"
    assert truth.max() > 0.8 and jaw.max() > 0.8
    assert jaw[truth > 0.6].mean() >= 0.8 * truth[truth > 0.6].mean()


def test_only_the_mouth_moves(drawn: np.ndarray, crop: np.ndarray):
    unmoved = drawn[:, :44].astype(float) - crop[:44]
    assert 10 * np.log10(255**2 / np.mean(unmoved**2)) >= 34


@pytest.mark.parametrize("voice", ["voice.wav", "voice_two.wav"])
def test_the_packaged_voices_open_and_shut_the_mouth(
    service: LipsyncService, crop: np.ndarray, spoken: Spoken, voice: str
):
    with wave.open(str(ASSETS / voice)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 22050)
        assert 8 <= file.getnframes() / file.getframerate() <= 15
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    at = np.arange(0, len(samples) - 1, 22050 / 16000)
    mel = mel_spectrogram(np.interp(at, np.arange(len(samples)), samples).astype(np.float32))
    starts = np.arange(0, mel.shape[1] - 16, 10, dtype=np.int32)  # eight looks a second
    crops = service.engine.generate(crop[None], np.zeros(len(starts), np.int32), mel, starts)
    jaw = spoken.reader.read(crops)[:, JAW]
    assert np.quantile(jaw, 0.95) > 0.45
    assert np.quantile(jaw, 0.10) < 0.10


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return dict(json.loads((ROOT / "docs" / "benchmarks" / "demo_model.json").read_text()))


def test_the_model_card_says_what_the_evaluation_measured(report: dict[str, Any]):
    card = (ROOT / "docs" / "model_card.md").read_text()
    assert measured_table(report) in card and made_table(report) in card
    assert report["made"]["sha256"] == hashlib.sha256((ASSETS / "generator.safetensors").read_bytes()).hexdigest()


def test_the_evaluation_found_what_was_wished_for(report: dict[str, Any]):
    shipped, unknown = report["shipped_faces"], report["unknown_faces"]
    assert shipped["jawOpen"] >= max(0.88, shipped["jawOpen_ear"] - 0.03)
    assert 0.85 <= shipped["amplitude"] <= 1.15
    assert shipped["lag_0_share"] >= 0.95
    assert min(shipped["mouthFunnel"], shipped["mouthPucker"]) >= 0.65
    assert min(shipped["shut_in_silence"], shipped["shut_on_pbm"]) >= 0.9
    assert shipped["psnr_outside_db"] >= 36
    assert unknown["jawOpen"] >= 0.75 and unknown["lag_0_share"] >= 0.9
    for spoken in report["recorded_speech"].values():
        assert spoken["energy_correlation"] >= 0.4 and abs(spoken["shuffled"]) <= 0.15


@pytest.mark.parametrize("path", FACES, ids=lambda path: path.stem)
def test_every_packaged_face_is_found_at_once(path: Path):
    picture = cv2.imread(str(path))
    assert picture.shape == (720, 1280, 3)
    found = create_detector("centerface").detect([cv2.resize(picture, (640, 360), interpolation=cv2.INTER_AREA)])[0]
    assert len(found) == 1
    assert found[0].score >= 0.7
    assert 130 <= found[0].y2 - found[0].y1 <= 200, "half size: 300 to 400 pixels in the picture"


def test_the_packaged_clip_loops_with_a_face_in_every_frame():
    with av.open(str(ASSETS / "clip.mp4")) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    assert len(frames) == 90
    small = [cv2.resize(frame, (640, 360), interpolation=cv2.INTER_AREA) for frame in frames]
    assert all(len(found) == 1 for found in create_detector("centerface").detect(small[::6]))
    step = [np.abs(a.astype(float) - b).mean() for a, b in pairwise(small)]
    assert np.abs(small[-1].astype(float) - small[0]).mean() <= 1.5 * max(step)

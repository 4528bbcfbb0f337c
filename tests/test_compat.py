"""``compat="reference"`` with an exact engine, against an independent writing-down of the reference's arithmetic."""

import cv2
import librosa
import numpy as np
import pytest
import scipy.signal
import torch

from lipsync.core import Detection
from lipsync.local import LocalStages
from lipsync.model.seeded import seeded_generator
from lipsync.options import Options
from lipsync.service import LipsyncService
from tests.engine_cases import NARROW
from tests.media_factory import video_bytes
from tests.test_pipeline import pictures_of

SIZE = (160, 160)


def mel_by_hand(wave: np.ndarray) -> np.ndarray:
    """Section d.2 of the fact table, by librosa and scipy."""
    emphasised = scipy.signal.lfilter([1, -0.97], [1], wave)
    magnitude = np.abs(librosa.stft(y=emphasised, n_fft=800, hop_length=200, win_length=800))
    basis = librosa.filters.mel(sr=16_000, n_fft=800, n_mels=80, fmin=55, fmax=7600)
    decibel = 20 * np.log10(np.maximum(1e-5, basis @ magnitude)) - 20
    return np.clip(8 * ((decibel + 100) / 100) - 4, -4, 4).astype(np.float32)


def chunks_by_hand(mel: np.ndarray, fps: float) -> list[np.ndarray]:
    chunks, i = [], 0
    while True:
        start = int(i * 80.0 / fps)
        if start + 16 > mel.shape[1]:
            chunks.append(mel[:, -16:])
            return chunks
        chunks.append(mel[:, start : start + 16])
        i += 1


def smoothed_by_hand(boxes: np.ndarray) -> np.ndarray:
    boxes = boxes.astype(np.int64)
    for i in range(len(boxes)):
        window = boxes[len(boxes) - 5 :] if i + 5 > len(boxes) else boxes[i : i + 5]
        boxes[i] = np.mean(window, axis=0)
    return boxes


def frames_by_hand(model, sources: list[np.ndarray], boxes: np.ndarray, chunks: list[np.ndarray]) -> list[np.ndarray]:
    """Sections d.5 and d.6: crop, mask, forward in batches of eight, scale back, truncate, resize, overwrite."""
    frames = []
    for first in range(0, len(chunks), 8):
        batch = range(first, min(first + 8, len(chunks)))
        faces, mels = np.zeros((8, 96, 96, 6), np.float32), np.zeros((8, 80, 16, 1), np.float32)
        for at, i in enumerate(batch):
            x1, y1, x2, y2 = boxes[i % len(boxes)]
            crop = cv2.resize(sources[i % len(sources)][y1:y2, x1:x2], (96, 96))
            masked = crop.copy()
            masked[48:] = 0
            faces[at] = np.concatenate((masked, crop), axis=2) / 255.0
            mels[at] = chunks[i][..., None]
        with torch.no_grad():
            drawn = model(
                torch.from_numpy(mels.transpose(0, 3, 1, 2).copy()),
                torch.from_numpy(faces.transpose(0, 3, 1, 2).copy()),
            )
        patches = drawn.numpy().transpose(0, 2, 3, 1) * 255.0
        for at, i in enumerate(batch):
            x1, y1, x2, y2 = boxes[i % len(boxes)]
            frame = sources[i % len(sources)].copy()
            frame[y1:y2, x1:x2] = cv2.resize(patches[at].astype(np.uint8), (x2 - x1, y2 - y1))
            frames.append(frame)
    return frames


@pytest.fixture(scope="module")
def model():
    return seeded_generator(5, widths=NARROW)


@pytest.fixture(scope="module")
def service(model):
    with LipsyncService(model, "cpu", wav2lip_batch_size=8, exact=True, workers=2) as made:
        yield made


def voice(seconds: float) -> np.ndarray:
    draw = np.random.default_rng(1)
    return (draw.normal(0, 0.2, round(seconds * 16_000)) * np.sin(np.arange(round(seconds * 16_000)) / 3000)).astype(
        np.float32
    )


def frames_of(service, face: bytes, wave: np.ndarray, **options) -> list[np.ndarray]:
    frames = []
    options = Options(compat="reference", blend="none", **options)
    service.process(
        face, None, frame_sink=frames.append, audio_waveform=wave, audio_sample_rate=16_000, options=options
    )
    return frames


def assert_same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    assert len(ours) == len(theirs)
    for n, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert np.array_equal(one, other), f"frame {n} differs by up to {np.abs(one.astype(int) - other).max()}"


@pytest.mark.parametrize("seconds", [0.4, 1.0, 2.6], ids=["shorter than the clip", "as long", "looped"])
def test_frames_before_encoding_equal_the_reference_exactly(service, model, seconds):
    face, wave = video_bytes(frames=25, size=SIZE), voice(seconds)
    box = np.array([[20, 30, 140, 150]])
    theirs = frames_by_hand(model, pictures_of(face), box, chunks_by_hand(mel_by_hand(wave), 25.0))
    assert_same(frames_of(service, face, wave, box=(30, 150, 20, 140)), theirs)
    assert np.ptp([frame[90, 80] for frame in theirs], axis=0).max() > 20, "and there is something to compare"


class Moving:
    """A face that wanders to the right, with a second, lower score beside it."""

    name = "moving"

    def __init__(self):
        self.seen = 0

    def detect(self, frames):
        found = []
        for _ in frames:
            x = 10.0 + 3 * self.seen
            found.append([Detection(0.0, 0.0, 159.0, 159.0, 0.7), Detection(x, 20.7, x + 60.5, 100.2, 0.95)])
            self.seen += 1
        return found


@pytest.mark.parametrize("seconds", [0.33, 0.5, 2.0])
def test_detected_boxes_are_padded_smoothed_and_trimmed_as_in_the_reference(service, model, seconds, monkeypatch):
    monkeypatch.setattr(LocalStages, "_detector", lambda self, name: Moving())
    face, wave = video_bytes(frames=25, size=SIZE), voice(seconds)
    chunks = chunks_by_hand(mel_by_hand(wave), 25.0)
    count = min(25, len(chunks))
    raw = np.array([[int(10.0 + 3 * n), 20, int(10.0 + 3 * n + 60.5), min(160, 100 + 10)] for n in range(count)])
    theirs = frames_by_hand(model, pictures_of(face)[:count], smoothed_by_hand(raw), chunks)
    assert_same(frames_of(service, face, wave, nosmooth=False, detect_every=1), theirs)

"""Real faces and real voices through the whole library and back: a clip, a painting, a street; skips without them."""

import io
import json
import wave
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from lipsync.compose import crop_face, paste
from lipsync.core import Detection
from lipsync.detection import find_track
from lipsync.faces.detector import create_detector
from lipsync.faces.overlap import overlap_of
from lipsync.media.decode import FrameReader, Geometry
from lipsync.media.index import build_index
from lipsync.media.picture import Picture
from lipsync.media.probe import probe_face
from lipsync.media.source import Blob
from lipsync.model.seeded import seeded_generator
from lipsync.options import Limits, Options
from lipsync.service import LipsyncService
from lipsync.voice.voice import Waveform
from tests.engine_cases import NARROW
from tests.media_factory import video_bytes

CLIP, PORTRAIT, STREET = "latentsync_demo1_video.mp4", "hallo_ref1.jpg", "facenet_video.mp4"
VOICES = ("latentsync_demo1_audio.wav", "ljspeech_LJ001-0003.wav", "ljspeech_LJ001-0014.wav")
YUNET = "yunet_n_dynamic.onnx"
PADS = (0, 10, 0, 0)
LIMITS = Limits()


@pytest.fixture(scope="module")
def service(assets) -> Iterator[LipsyncService]:
    with LipsyncService(seeded_generator(0, widths=NARROW), "cpu", workers=2, yunet_path=assets / YUNET) as made:
        yield made


@pytest.fixture(scope="module", params=["yunet", "centerface"])
def detector(assets, request):
    return create_detector(request.param, weights=assets / YUNET if request.param == "yunet" else None)


# ---------------------------------------------------------------- what is heard, shown, and where


def voice_of(path: Path, seconds: float) -> Waveform:
    """The beginning of a 16-bit mono WAV file."""
    with wave.open(str(path)) as file:
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(round(seconds * rate)), np.int16)
    return Waveform(samples.astype(np.float32) / 32768, rate)


def pictures(media: Path | bytes, *, resize_factor: int = 1) -> Iterator[Picture]:
    blob = Blob.of(media, limit_bytes=10**9)
    info = probe_face(blob, LIMITS)
    index = build_index(blob, info, LIMITS)
    geometry = Geometry(resize_factor=resize_factor)
    with FrameReader(blob, info, index, geometry=geometry, limits=LIMITS) as reader:
        yield from reader.read(range(len(index)))


def heard_in(mp4: bytes) -> np.ndarray:
    """The sound from time 0 on, as a player plays it."""
    with av.open(io.BytesIO(mp4)) as container:
        frames = list(container.decode(audio=0))
    rate = frames[0].sample_rate
    sound = np.zeros(round(frames[-1].time * rate) + frames[-1].samples, np.float32)
    for frame in frames:
        at = round(frame.time * rate)
        block = frame.to_ndarray()[0][max(0, -at) :]
        sound[max(0, at) : max(0, at) + len(block)] = block
    return sound


def painted(result: Picture, source: Picture) -> Detection:
    """The rectangle that was painted over: the rows and columns of which a good part differs strongly."""
    differs = np.abs(result.y.astype(np.int16) - source.y) > 25
    rows = np.flatnonzero(differs.sum(axis=1) > 0.3 * differs.sum(axis=1).max())
    columns = np.flatnonzero(differs.sum(axis=0) > 0.3 * differs.sum(axis=0).max())
    return Detection(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1), 1.0)


def faces_in(picture: Picture, detector) -> list[Detection]:
    """Every face in one frame on its own, padded as the pipeline pads; no tracking, no interpolation."""
    scale = 640 / max(picture.width, picture.height)
    size = (round(picture.width * scale), round(picture.height * scale))
    small = cv2.resize(picture.bgr(), size, interpolation=cv2.INTER_AREA)
    found = (face.scaled(picture.width / size[0], picture.height / size[1]) for face in detector.detect([small])[0])
    return [Detection(f.x1, f.y1, f.x2, f.y2 + PADS[1], f.score, f.landmarks) for f in found]


def psnr_away_from(box: Detection, result: Picture, source: Picture, *, reach: int = 48) -> float:
    """Of luma, in decibels, without the box and ``reach`` pixels around it, where an encoder's blocks still feel it."""
    away = np.ones(source.y.shape, bool)
    away[
        max(0, int(box.y1) - reach) : int(box.y2) + reach,
        max(0, int(box.x1) - reach) : int(box.x2) + reach,
    ] = False  # fmt: skip
    error = np.square(result.y.astype(np.float32) - source.y)[away].mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


# ---------------------------------------------------------------- the whole way


@pytest.mark.parametrize(
    ("face", "voice", "seconds", "size"),
    [(CLIP, VOICES[0], 1.0, (1080, 1920)), (PORTRAIT, VOICES[1], 1.0, (1432, 1432)), (STREET, VOICES[2], 1.32, (1920, 1080))],
    ids=["clip", "portrait", "street"],
)  # fmt: skip
def test_a_real_face_speaks_in_its_place_and_all_else_stays(service, assets, detector, face, voice, seconds, size):
    said = voice_of(assets / voice, seconds)
    options = Options(detector=detector.name, blend="none", preset="ultrafast")
    mp4 = service.to_bytes(assets / face, said, options)

    info = probe_face(Blob.of(mp4, limit_bytes=10**9), LIMITS)
    count = round(seconds * 25)
    assert (info.video.width, info.video.height) == size
    assert (info.video.fps, info.video.frame_count) == (25, count)

    heard = heard_in(mp4)
    assert abs(len(heard) - len(said.samples)) <= 1024, "as long as the voice, to an AAC frame"
    assert np.corrcoef(heard[: len(said.samples)], said.samples[: len(heard)])[0, 1] > 0.99, "and in its place"

    sources = pictures(assets / face)
    still = next(sources) if face == PORTRAIT else None
    boxes = []
    for n, result in enumerate(pictures(mp4)):
        source = still or next(sources)
        boxes.append(painted(result, source))
        assert psnr_away_from(boxes[-1], result, source) > 42, f"frame {n} changed away from the face"
        if n % 6 == 0:
            overlaps = [overlap_of(boxes[-1], seen) for seen in faces_in(source, detector)]
            assert max(overlaps) >= 0.6, f"frame {n}: the face is elsewhere, overlap {max(overlaps):.2f}"
    assert len(boxes) == count
    steps = [abs(a.x1 + a.x2 - b.x1 - b.x2) / 2 for a, b in pairwise(boxes)]
    assert max(steps) < 0.6 * (boxes[0].x2 - boxes[0].x1), "one person throughout"
    if face == STREET:
        centres = [(box.x1 + box.x2) / 2 for box in boxes]
        assert centres == sorted(centres) and centres[0] < 400 and centres[-1] > 1400, (
            "she who crosses before the others"
        )


def test_someone_far_away_who_was_chosen_is_not_another_after_being_hidden(assets):
    options = Options(detector="yunet", face_choice="index", face_index=2)
    boxes = json.loads(find_track(assets / STREET, options, yunet_path=assets / YUNET))["boxes"]
    assert all(boxes[:25]) and not any(boxes[40:]), "from then on others, in front, hide him"
    assert all(box[2] - box[0] < 60 for box in boxes if box), "nobody nearer takes his place"


@pytest.mark.parametrize("mode", ["loop", "bounce"])
def test_a_voice_longer_than_the_street_goes_on_as_asked(service, assets, mode):
    said = voice_of(assets / VOICES[1], 4.6)  # 115 frames, and the street has 105
    options = Options(sync_mode=mode, resize_factor=4, detector="yunet", blend="none", preset="ultrafast")
    results = list(pictures(service.to_bytes(assets / STREET, said, options)))
    sources = list(pictures(assets / STREET, resize_factor=4))
    assert (len(sources), len(results)) == (105, 115)
    wanted = [n % 105 if mode == "loop" else min(n, 208 - n) for n in range(115)]
    small = [cv2.resize(source.y, None, fx=0.5, fy=0.5).astype(np.float32) for source in sources]
    for n in range(95, 115):
        shown = cv2.resize(results[n].y, None, fx=0.5, fy=0.5)
        assert (
            int(np.argmin([np.median(np.abs(shown - one)) + np.abs(shown - one).mean() for one in small])) == wanted[n]
        )
    again = 3 if mode == "loop" else 101
    later = 108 if mode == "loop" else 107
    assert wanted[later] == again
    one, other = painted(results[again], sources[again]), painted(results[later], sources[again])
    assert overlap_of(one, other) > 0.9, "a source frame's box is the same whenever it is shown"


def test_a_clip_held_sideways_with_a_rotation_tag_gives_the_same_upright_result(service, assets):
    upright = []
    for picture, _ in zip(pictures(assets / CLIP, resize_factor=2), range(15), strict=False):
        upright.append(picture.bgr())
    made = {
        rotation: video_bytes(frames=15, size=(540, 960), rotation=rotation, draw=lambda n, *_: upright[n])
        for rotation in (0, 90, 180, 270)
    }
    said = voice_of(assets / VOICES[0], 0.6)
    options = Options(detector="yunet", blend="none", preset="ultrafast")
    straight = list(pictures(service.to_bytes(made[0], said, options)))
    for rotation in (90, 180, 270):
        info = probe_face(Blob.of(made[rotation], limit_bytes=10**9), LIMITS)
        assert info.video.rotation_deg == rotation
        turned = list(pictures(service.to_bytes(made[rotation], said, options)))
        assert len(turned) == len(straight) == 15
        for a, b, source in zip(turned, straight, pictures(made[0]), strict=True):
            assert (a.width, a.height) == (540, 960)
            one, other = painted(a, source), painted(b, source)
            assert overlap_of(one, other) > 0.9
            assert psnr_away_from(one, a, b) > 33


# ---------------------------------------------------------------- the paste, on real faces


def face_and_box(assets: Path, face: str, detector) -> tuple[Picture, tuple[int, int, int, int], Detection]:
    picture = next(pictures(assets / face))
    found = max(faces_in(picture, detector), key=lambda one: one.area)
    return picture, (round(found.x1), round(found.y1), round(found.x2), round(found.y2)), found


@pytest.mark.parametrize("face", [CLIP, PORTRAIT, STREET])
def test_a_patch_of_another_brightness_leaves_no_edge_when_feathered(assets, detector, face):
    picture, box, _ = face_and_box(assets, face, detector)
    brighter = np.minimum(crop_face(picture, box), 235) + np.uint8(20)
    hard = step_at_border(picture, paste(picture, box, brighter, Options(blend="none")), box)
    soft = step_at_border(picture, paste(picture, box, brighter, Options()), box)
    assert hard > 10, "overwriting draws a rectangle"
    assert soft < 1.5


def step_at_border(source: Picture, result: Picture, box: tuple[int, int, int, int]) -> float:
    """How many levels the change of luma jumps by, going in over the left, right or lower border; the worst of them."""
    change = result.y.astype(np.float32) - source.y
    x1, y1, x2, y2 = box
    middle = (y1 + y2) // 2
    inner = (change[middle:y2, x1 + 1], change[middle:y2, x2 - 2], change[y2 - 2, x1:x2])
    outer = (change[middle:y2, x1 - 1], change[middle:y2, x2], change[y2, x1:x2])
    return max(abs(float((a - b).mean())) for a, b in zip(inner, outer, strict=True))


@pytest.mark.parametrize("face", [CLIP, PORTRAIT])
def test_the_eyes_stay_as_they_are_and_the_mouth_is_all_the_patchs(assets, detector, face):
    picture, box, found = face_and_box(assets, face, detector)
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    soft, hard = (paste(picture, box, noise, Options(blend=blend)) for blend in ("feather", "none"))
    reach = (box[2] - box[0]) // 40
    for x, y in found.landmarks[:2]:
        eye = np.s_[int(y) - reach : int(y) + reach, int(x) - reach : int(x) + reach]
        assert np.abs(soft.y[eye].astype(int) - picture.y[eye]).mean() < 8, "noise of 70 levels all but vanishes there"
    (left, upper), (right, lower) = found.landmarks[3:]
    mouth = np.s_[
        int(min(upper, lower)) - reach : int(max(upper, lower)) + reach, int(left) + reach : int(right) - reach
    ]
    assert (np.abs(soft.y[mouth].astype(int) - hard.y[mouth]) <= 1).all(), "nothing of the old mouth shines through"

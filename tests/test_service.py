"""``LipsyncService``: a drop-in for the one-process service, with the packaged face and voice that never skip."""

import asyncio
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest

from lipsync.core import Detection
from lipsync.detection import find_track
from lipsync.errors import CheckpointNotFound, EngineError, InvalidOption, NoFace, OutputError
from lipsync.faces.chunk import source_chunks
from lipsync.local import LocalStages
from lipsync.model.seeded import seeded_generator
from lipsync.options import Options
from lipsync.packaged import demo_face, demo_voice
from lipsync.plan import Tuning
from lipsync.service import LipsyncService
from tests.engine_cases import NARROW
from tests.media_factory import audio_bytes, image_bytes, video_bytes
from tests.test_pipeline import pictures_of

BOX = (20, 110, 20, 110)


@pytest.fixture(scope="module")
def service():
    with LipsyncService(seeded_generator(0, widths=NARROW), "cpu", workers=2) as made:
        yield made


@pytest.fixture(scope="module")
def short_voice() -> bytes:
    return audio_bytes(seconds=0.6)


def test_the_packaged_face_speaks_with_the_default_detector(service, tmp_path, short_voice):
    target = tmp_path / "out.mp4"
    stats = service.process(demo_face(), short_voice, target)
    assert stats["num_frames"] == stats["num_mel_chunks"] == 15
    assert stats["fps"] == 25.0
    assert set(stats) == {"num_frames", "fps", "load_video_time", "process_audio_time", "num_mel_chunks",
                          "face_detection_time", "inference_time", "total_time"}  # fmt: skip
    assert all(stats[name] > 0 for name in stats)
    pictures = pictures_of(target.read_bytes())
    assert len(pictures) == 15
    assert pictures[0].shape == (720, 1280, 3)
    assert list(tmp_path.iterdir()) == [target], "nothing is left beside the result"
    assert np.abs(pictures[3].astype(int) - pictures[10].astype(int)).max() > 20, "the face moves"


def test_the_packaged_voice_is_heard_whole(service, tmp_path):
    with_face = image_bytes(format="png", size=(128, 128))
    stats = service.process(with_face, demo_voice(), tmp_path / "a.mp4", box=BOX, options=Options(preset="ultrafast"))
    assert 8 * 25 <= stats["num_frames"] <= 15 * 25


def test_frames_reach_a_sink_in_order_and_equal_the_exact_paste(service, short_voice):
    seen = []
    face = video_bytes(frames=15, size=(128, 128))
    stats = service.process(face, short_voice, frame_sink=seen.append, box=BOX, options=Options(blend="none"))
    assert len(seen) == stats["num_frames"] == 15
    assert all(frame.shape == (128, 128, 3) and frame.dtype == np.uint8 for frame in seen)
    sources = pictures_of(face)
    for frame, source in zip(seen, sources, strict=True):
        outside = np.ones((128, 128), bool)
        outside[BOX[0] : BOX[1], BOX[2] : BOX[3]] = False
        assert (frame[outside] == source[outside]).all()
    assert len({frame.tobytes() for frame in seen}) == 15


def test_a_sink_and_a_file_together_get_the_same_number_of_frames(service, tmp_path, short_voice):
    seen = []
    target = tmp_path / "both.mp4"
    face = image_bytes(format="png", size=(128, 128))
    service.process(face, short_voice, target, frame_sink=seen.append, box=BOX)
    assert len(seen) == len(pictures_of(target.read_bytes())) == 15


def test_a_waveform_is_a_voice_too(service, tmp_path):
    waveform = np.random.default_rng(0).normal(0, 0.1, 11_025).astype(np.float32)
    face = image_bytes(format="png", size=(128, 128))
    stats = service.process(face, None, tmp_path / "w.mp4", box=BOX, audio_waveform=waveform, audio_sample_rate=22_050)
    assert stats["num_frames"] == 13


def test_paths_bytes_and_file_objects_give_the_same_pictures(service, tmp_path, short_voice):
    face = image_bytes(format="png", size=(128, 128))
    (tmp_path / "face.mp4").write_bytes(face)  # the name lies: the content decides
    (tmp_path / "voice.txt").write_bytes(short_voice)
    sources = [
        (face, short_voice),
        (tmp_path / "face.mp4", str(tmp_path / "voice.txt")),
        (io.BytesIO(face), io.BytesIO(short_voice)),
    ]
    results = []
    for n, (one, other) in enumerate(sources):
        service.process(one, other, tmp_path / f"{n}.mp4", box=BOX)
        results.append(b"".join(p.tobytes() for p in pictures_of((tmp_path / f"{n}.mp4").read_bytes())))
    assert results[0] == results[1] == results[2]


def test_calls_from_several_threads_do_not_disturb_each_other(service, tmp_path):
    cases = [
        (image_bytes(format="png", size=(128, 128), number=n), audio_bytes(seconds=0.5, hz=200 * (n + 1)))
        for n in range(4)
    ]

    def run(n: int) -> bytes:
        target = tmp_path / f"{n}-{threading.get_ident()}.mp4"
        service.process(*cases[n % 4], target, box=BOX)
        return b"".join(p.tobytes() for p in pictures_of(target.read_bytes()))

    alone = [run(n) for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(8)))
    assert together == alone + alone
    assert len(set(alone)) == 4


def test_the_named_arguments_of_the_reference_are_understood(service, tmp_path, short_voice):
    face = video_bytes(frames=10, size=(256, 192))
    target = tmp_path / "o.mp4"
    service.process(
        face, short_voice, target, resize_factor=2, rotate=True, crop=(0, -1, 0, 90), box=(10, 100, 5, 80), nosmooth=True,
        pads=(0, 0, 0, 0), static=True,
    )  # fmt: skip
    pictures = pictures_of(target.read_bytes())
    assert pictures[0].shape == (128, 90, 3), "half of 256×192, turned, cut to 90 columns"
    outside = [picture[105:, :].astype(int) for picture in pictures]
    assert max(np.abs(rows - outside[0]).max() for rows in outside) <= 12, "static: one source frame throughout"


def test_arguments_may_be_given_by_position_in_the_order_of_the_service_whose_place_this_takes(tmp_path):
    waveform = np.random.default_rng(0).normal(0, 0.1, 9_600).astype(np.float32)
    face, seen = video_bytes(frames=30, size=(256, 192)), []
    with LipsyncService(seeded_generator(0, widths=NARROW), "cpu", 16, 8, "fp16", True, True) as made:
        # static, fps, pads, resize_factor, crop, box, rotate, nosmooth, waveform, its rate, sink
        stats = made.process(
            face, None, None, True, 20.0, (0, 10, 0, 0), 2, (0, -1, 0, 90), (10, 100, 5, 80), True, False,
            waveform, 16_000, seen.append,
        )  # fmt: skip
    assert stats["num_frames"] == len(seen) == 12 and stats["fps"] == 20.0
    assert {frame.shape for frame in seen} == {(128, 90, 3)}
    assert len({frame[105:].tobytes() for frame in seen}) == 1, "static"


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.int32, np.bool_])
def test_a_waveform_that_is_not_of_floats_is_refused(service, dtype):
    waveform = np.ones(16_000, dtype)
    face = image_bytes(format="png", size=(128, 128))
    with pytest.raises(InvalidOption, match=f"holds {waveform.dtype}; give floats"):
        service.process(face, box=BOX, audio_waveform=waveform, audio_sample_rate=16_000, frame_sink=lambda frame: None)


def test_a_waveform_may_be_a_list_or_of_any_float_type(service):
    face = image_bytes(format="png", size=(128, 128))
    for waveform in ([0.0, 0.1] * 4_000, np.zeros(8_000, np.float64), np.zeros((2, 8_000), np.float16)):
        stats = service.process(
            face, box=BOX, audio_waveform=waveform, audio_sample_rate=16_000, frame_sink=lambda frame: None
        )
        assert stats["num_frames"] == 13


def test_the_references_defaults_for_crop_and_box_mean_none(service, tmp_path, short_voice):
    with pytest.raises(NoFace):
        service.process(
            image_bytes(format="png", size=(128, 128)), short_voice, tmp_path / "x.mp4",
            crop=(0, -1, 0, -1), box=(-1, -1, -1, -1),
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_stream_is_the_same_video_as_the_file(service, short_voice):
    face = video_bytes(frames=15, size=(128, 128))
    parts = list(service.stream(face, short_voice, Options(box=BOX)))
    assert len(parts) >= 2
    streamed = pictures_of(b"".join(parts))
    whole = pictures_of(service.to_bytes(face, short_voice, Options(box=BOX)))
    assert len(streamed) == len(whole) == 15
    assert all((a == b).all() for a, b in zip(streamed, whole, strict=True))


def test_a_stream_may_be_left_early(service):
    stream = service.stream(image_bytes(format="png", size=(128, 128)), audio_bytes(seconds=20), Options(box=BOX))
    assert next(stream)[4:8] == b"ftyp"
    stream.close()
    assert service.to_bytes(image_bytes(format="png", size=(128, 128)), audio_bytes(seconds=0.2), Options(box=BOX))


@pytest.fixture
def looked(monkeypatch) -> list[int]:
    """How many frames each call to a detector was shown, from now on."""
    counts: list[int] = []
    original = LocalStages._detector

    class Counting:
        def __init__(self, detector):
            self.name, self._detector = detector.name, detector

        def detect(self, frames):
            counts.append(len(frames))
            return self._detector.detect(frames)

    monkeypatch.setattr(LocalStages, "_detector", lambda stages, name: Counting(original(stages, name)))
    return counts


def test_a_preloaded_face_is_not_looked_for_again(service, short_voice, looked):
    service.preload_static_face(demo_face())
    looked.clear()
    service.process(demo_face(), short_voice, frame_sink=lambda frame: None)
    assert looked == []
    service.process(demo_face(), short_voice, frame_sink=lambda frame: None, static=True)
    assert looked == [], "a picture stands still whether or not that is said"
    service.process(demo_face(), short_voice, frame_sink=lambda frame: None, options=Options(detect_every=1))
    assert looked != [], "other options: another look"


def test_a_preloaded_still_is_not_decoded_again(service, short_voice, monkeypatch, looked):
    given = [(demo_face(), Options()), (image_bytes(format="png", size=(128, 128)), Options(box=BOX))]
    for face, options in given:
        service.preload_static_face(face, options)
    assert len(looked) <= 1, "where the box is given nothing is looked for"
    monkeypatch.setattr("lipsync.media.decode.decode_still", lambda *_: pytest.fail("decoded again"))
    for face, options in given:
        for _ in range(2):
            assert service.process(face, short_voice, frame_sink=lambda frame: None, options=options)


def test_as_many_preloaded_clips_stay_as_the_cache_has_entries(looked):
    tuning = Tuning(shortest_chunk=3, longest_chunk=4)
    clips = [video_bytes(frames=20, size=(96, 96), draw=moving_square(n)) for n in range(3)]
    with LipsyncService(seeded_generator(0, widths=NARROW), "cpu", workers=2, cache_entries=2, tuning=tuning) as made:

        def looks(number: int) -> bool:
            looked.clear()
            made.preload_video_cache(clips[number])
            return looked != []

        assert looks(0) and looks(1)
        assert not looks(0) and not looks(1), "two clips of five chunks each, two entries"
        assert looks(2) and not looks(1) and looks(0), (
            "the one that was not used for longest has gone, with all its chunks"
        )


def moving_square(number: int):
    def draw(n: int, width: int, height: int) -> np.ndarray:
        frame = np.full((height, width, 3), 40 * number, np.uint8)
        frame[n : n + 20, 10:30] = 200
        return frame

    return draw


def test_a_preloaded_video_is_neither_indexed_nor_looked_through_again(service, looked, monkeypatch):
    frames = 90
    assert len(source_chunks(frames, size=Tuning().longest_chunk, shortest=Tuning().shortest_chunk)) >= 3
    face, voice = video_of_the_packaged_face(frames=frames), audio_bytes(seconds=frames / 25)
    service.preload_video_cache(face)
    assert sum(looked) >= frames / 5
    looked.clear()
    with monkeypatch.context() as patch:
        patch.setattr("lipsync.local.build_index", lambda *_: pytest.fail("indexed again"))
        stats = service.process(face, voice, frame_sink=lambda frame: None)
    assert stats["num_frames"] == frames, "all of the clip was shown"
    assert looked == []
    service.process(face, voice, frame_sink=lambda frame: None, options=Options(detect_every=4))
    assert looked != [], "other options: another look"


def test_boxes_out_are_boxes_in(service, short_voice, tmp_path):
    from lipsync.faces.given import tracks_from_json

    track = tracks_from_json(find_track(demo_face()))
    assert len(track.boxes) == 1
    found, given = [], []
    service.process(demo_face(), short_voice, frame_sink=found.append)
    service.process(demo_face(), short_voice, frame_sink=given.append, options=Options(boxes=track.boxes))
    assert all((a == b).all() for a, b in zip(found, given, strict=True))


def test_looking_for_a_face_tells_how_far_it_has_come():
    told = []
    find_track(video_of_the_packaged_face(frames=60), progress=told.append)
    assert {step.stage for step in told} == {"detect"} and {step.total for step in told} == {60}
    assert [step.done for step in told] == sorted(step.done for step in told) and told[-1].done == 60


def video_of_the_packaged_face(frames: int) -> bytes:
    still = cv2.resize(cv2.imdecode(np.frombuffer(demo_face(), np.uint8), cv2.IMREAD_COLOR), (320, 180))
    return video_bytes(frames=frames, size=(320, 180), draw=lambda number, width, height: still)


def test_no_checkpoint_and_none_packaged_says_what_to_do(monkeypatch):
    monkeypatch.setattr("lipsync.service.default_checkpoint", lambda: None)
    with pytest.raises(CheckpointNotFound, match="checkpoint"):
        LipsyncService(None, "cpu")


def test_a_result_that_goes_nowhere_is_refused(service, short_voice):
    with pytest.raises(InvalidOption, match="output_path"):
        service.process(demo_face(), short_voice)


def test_an_output_that_cannot_be_written_is_said_and_leaves_nothing(service, short_voice, tmp_path):
    face = image_bytes(format="png", size=(128, 128))
    with pytest.raises(OutputError):
        service.process(face, short_voice, tmp_path / "no" / "such" / "folder.mp4", box=BOX)
    with pytest.raises(OutputError, match="folder"):
        service.process(face, short_voice, tmp_path, box=BOX)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_result_survives_a_later_failure(service, short_voice, tmp_path):
    target = tmp_path / "result.mp4"
    target.write_bytes(b"earlier")
    with pytest.raises(NoFace):
        service.process(image_bytes(format="png", size=(128, 128)), short_voice, target)
    assert target.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [target]


def test_either_a_voice_file_or_a_waveform_but_not_both(service, short_voice, tmp_path):
    with pytest.raises(InvalidOption, match="audio"):
        service.process(demo_face(), None, tmp_path / "x.mp4")
    with pytest.raises(InvalidOption, match="audio"):
        service.process(
            demo_face(), short_voice, tmp_path / "x.mp4",
            audio_waveform=np.zeros(100, np.float32), audio_sample_rate=16_000,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("on", "asked", "computed"),
    [
        ("cuda", {}, "fp16"),
        ("cuda", {"amp_dtype": "bf16"}, "bf16"),
        ("cuda", {"use_fp16": False}, "fp32"),
        ("cuda", {"exact": True}, "fp32"),
        ("cpu", {}, "fp32"),
        ("cpu", {"amp_dtype": "bf16"}, "bf16"),
        ("cpu", {"amp_dtype": "bf16", "use_fp16": False}, "fp32"),
    ],
    ids=str,
)
def test_the_switches_of_the_original_choose_the_number_format(on, asked, computed, monkeypatch):
    import torch

    from lipsync import service as module
    from lipsync.engine.device import choose_precision

    monkeypatch.setattr(module, "choose_device", lambda _: torch.device(on))
    given = {"amp_dtype": "fp16", "use_fp16": True, "exact": False} | asked
    chosen = choose_precision(module._precision(on, **given), torch.device(on), exact=given["exact"])
    assert chosen == computed


def test_what_was_compiled_is_kept_in_the_users_cache_if_that_can_be_written(tmp_path, monkeypatch):
    from lipsync.compile_cache import usual_compile_cache

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert usual_compile_cache() == tmp_path / "cache" / "lipsync" / "compiled"
    assert list(tmp_path.iterdir()) == [], "nothing is made before it is needed"
    monkeypatch.setattr("os.access", lambda *_: False)  # as root every folder can be written
    assert usual_compile_cache() is None


def test_a_cpu_service_is_ready_without_a_pass_and_a_cuda_one_after_all_of_them(monkeypatch):
    from lipsync.engine import Engine

    warmed = []
    monkeypatch.setattr(Engine, "warm_up", lambda engine: warmed.append(threading.current_thread().name))
    with LipsyncService(seeded_generator(0, widths=NARROW), "cpu", workers=1):
        assert warmed == []
    # no CUDA here: an engine that says it is one, as far as the service asks
    monkeypatch.setattr(Engine, "info", property(lambda engine: replace(engine._info, device="cuda:0")))
    with LipsyncService(seeded_generator(0, widths=NARROW), "cpu", workers=1):
        assert len(warmed) == 1 and warmed[0].startswith("lipsync-device"), "on the thread that draws"


def distinct_frames(service, voice: bytes, **arguments) -> int:
    """How many source frames a video of 15 shows, told above the box."""
    seen = []
    service.process(video_bytes(frames=15, size=(128, 128)), voice, frame_sink=seen.append, **arguments)
    return len({frame[: BOX[0]].tobytes() for frame in seen})


def test_a_named_argument_wins_over_options_also_where_it_is_the_default(service, short_voice):
    asked = Options(static=True, box=BOX)
    assert distinct_frames(service, short_voice, options=asked) == 1
    assert distinct_frames(service, short_voice, options=asked, static=None) == 1, "None leaves it to options"
    assert distinct_frames(service, short_voice, options=asked, static=False) == 15
    assert distinct_frames(service, short_voice, options=Options(box=BOX), static=True) == 1
    with pytest.raises(NoFace):
        distinct_frames(service, short_voice, options=asked, box=(-1, -1, -1, -1))


def test_named_arguments_are_understood_as_numpy_and_text_give_them(service, short_voice):
    seen = []
    face = image_bytes(format="png", size=(128, 128))
    stats = service.process(face, short_voice, frame_sink=seen.append, fps="30000/1001", box=np.array(BOX))
    assert stats["fps"] == pytest.approx(29.97, abs=0.01) and len(seen) == 18


async def test_methods_that_block_also_work_where_an_event_loop_runs(service, short_voice, tmp_path):
    face = image_bytes(format="png", size=(128, 128))
    before = {thread.ident for thread in threading.enumerate()}
    assert service.process(face, short_voice, tmp_path / "a.mp4", box=BOX)["num_frames"] == 15
    whole = pictures_of(service.to_bytes(face, short_voice, Options(box=BOX)))
    streamed = pictures_of(b"".join(service.stream(face, short_voice, Options(box=BOX))))
    assert len(whole) == len(streamed) == 15
    service.preload_static_face(demo_face())
    assert find_track(demo_face())
    with pytest.raises(NoFace):
        service.to_bytes(face, short_voice)
    left = [thread for thread in threading.enumerate() if thread.ident not in before]
    assert [thread.name for thread in left if thread.name.startswith("lipsync-loop")] == []


def test_a_stream_left_early_ends_its_loop_also_where_another_one_runs(service):
    async def leave() -> None:
        stream = service.stream(image_bytes(format="png", size=(128, 128)), audio_bytes(seconds=20), Options(box=BOX))
        assert next(stream)[4:8] == b"ftyp"
        stream.close()

    asyncio.run(leave())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lipsync-loop")]


class CountingBatches:
    """Sees the same face everywhere and keeps how many frames came at once."""

    name = "counting"

    def __init__(self):
        self.batches = []

    def detect(self, frames):
        self.batches.append(len(frames))
        return [[Detection(20.0, 20.0, 100.0, 100.0, 0.9)] for _ in frames]


def test_the_batch_size_of_face_detection_reaches_the_detector(monkeypatch):
    detector = CountingBatches()
    monkeypatch.setattr("lipsync.service.detector_from_files", lambda *_: detector)
    generator, tuning = seeded_generator(0, widths=NARROW), Tuning(shortest_chunk=40)
    with LipsyncService(generator, "cpu", workers=1, face_det_batch_size=32, tuning=tuning) as made:
        face = video_bytes(frames=40, size=(128, 128))
        made.preload_video_cache(face, Options(detect_every=1, face_choice="index"))
    assert detector.batches == [32, 8]
    with pytest.raises(InvalidOption, match="face_det_batch_size"):
        LipsyncService(generator, "cpu", workers=1, face_det_batch_size=0)


def test_a_service_that_cannot_warm_up_leaves_no_thread(monkeypatch):
    from lipsync.engine import Engine

    def fail(engine):
        raise EngineError("no memory for the first pass")

    monkeypatch.setattr(Engine, "info", property(lambda engine: replace(engine._info, device="cuda:0")))
    monkeypatch.setattr(Engine, "warm_up", fail)
    before = set(threading.enumerate())
    with pytest.raises(EngineError, match="first pass"):
        LipsyncService(seeded_generator(0, widths=NARROW), "cpu", workers=1)
    assert set(threading.enumerate()) <= before

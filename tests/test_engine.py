"""The engine on a CPU: its arithmetic against an independent one, its batches, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from lipsync.core import U8
from lipsync.engine import Engine, Techniques
from lipsync.engine.buckets import choose_buckets, next_batch
from lipsync.engine.device import arithmetic, choose_precision
from lipsync.engine.info import PLAIN
from lipsync.errors import DeviceUnavailable, InputError, InvalidOption, NonFiniteAudio
from lipsync.model.seeded import seeded_generator
from lipsync.model.wav2lip import Wav2Lip, Widths
from tests.engine_cases import NARROW, arguments, make


@pytest.fixture(scope="module")
def model() -> Wav2Lip:
    return seeded_generator(4, widths=NARROW)


def windows_by_hand(mel: Any, starts: Any) -> Any:
    made = np.full((len(starts), 1, 80, 16), -4, np.float32)
    for i, start in enumerate(starts):
        for column in range(16):
            if 0 <= start + column < mel.shape[1]:
                made[i, 0, :, column] = mel[:, start + column]
    return made


def draw_by_hand(model: Wav2Lip, crops: U8, crop_index: Any, mel: Any, mel_starts: Any) -> U8:
    """The reference's arithmetic, written down once more with numpy around a plain forward pass."""
    shown = crops[crop_index]
    hidden = shown.copy()
    hidden[:, 48:] = 0
    faces = (np.concatenate((hidden, shown), axis=3) / 255.0).astype(np.float32).transpose(0, 3, 1, 2)
    with torch.no_grad():
        drawn = model(torch.from_numpy(windows_by_hand(mel, mel_starts)), torch.from_numpy(np.ascontiguousarray(faces)))
    made: U8 = (drawn.numpy().transpose(0, 2, 3, 1) * 255.0).astype(np.uint8)
    return made


# Arithmetic.


def test_the_tests_generator_is_not_degenerate(model: Wav2Lip) -> None:
    crops, _, mel, _ = arguments(2, columns=64)
    drawn = make(model).generate(crops, np.array([0, 0, 1]), mel, np.array([0, 30, 0])).astype(np.float64)
    assert drawn[0].std() >= 40
    assert np.abs(drawn[0] - drawn[1]).mean() >= 5, "another mel must change the picture"
    assert np.abs(drawn[0] - drawn[2]).mean() >= 5, "another face must change the picture"


def test_exact_equals_an_independent_computation_bit_for_bit(model: Wav2Lip) -> None:
    given = arguments(8)
    assert np.array_equal(make(model, exact=True).generate(*given), draw_by_hand(model, *given))


def test_exact_equals_an_independent_computation_frame_by_frame(model: Wav2Lip) -> None:
    crops, index, mel, starts = arguments(5)
    drawn = make(model, exact=True, batch_size=1, buckets=[1]).generate(crops, index, mel, starts)
    for i in range(5):
        assert np.array_equal(drawn[i : i + 1], draw_by_hand(model, crops, index[i : i + 1], mel, starts[i : i + 1]))


@pytest.mark.parametrize(
    "techniques",
    [Techniques(folded=False), Techniques(channels_last=False), Techniques(packed=False), Techniques()],
    ids=str,
)
def test_each_technique_alone_is_within_one_level_of_exact(techniques: Techniques, model: Wav2Lip) -> None:
    given = arguments(8)
    exact = make(model, exact=True).generate(*given).astype(int)
    fast = make(model, techniques=techniques).generate(*given).astype(int)
    assert np.abs(exact - fast).max() <= 1 and (exact != fast).mean() <= 0.003


def test_without_any_technique_the_network_is_the_exact_one_on_a_cpu(model: Wav2Lip) -> None:
    given = arguments(8)
    assert np.array_equal(make(model, exact=True).generate(*given), make(model, techniques=PLAIN).generate(*given))


@pytest.mark.parametrize("widths", [NARROW, Widths()], ids=["narrow", "published"])
def test_fast_is_within_one_level_of_exact_on_few_values(widths: Widths) -> None:
    seeded, given = seeded_generator(9, widths=widths), arguments(8)
    exact = make(seeded, exact=True).generate(*given).astype(int)
    fast = make(seeded).generate(*given).astype(int)
    assert exact.std() >= 40
    assert np.abs(exact - fast).max() <= 1
    assert (exact != fast).mean() <= 0.003


def test_dividing_by_255_in_float32_gives_the_references_values() -> None:
    values = np.arange(256, dtype=np.uint8)
    ours = torch.from_numpy(values).float() / torch.tensor(255.0)
    assert np.array_equal(ours.numpy(), (values / 255.0).astype(np.float32))
    assert not np.array_equal((torch.from_numpy(values).float() * (1 / 255)).numpy(), ours.numpy())


class HearingModel(Wav2Lip):
    """Draws the mel window that it hears: channel 0 holds its 80 × 16 values."""

    def forward(self, mel: Tensor, faces: Tensor) -> Tensor:
        drawn = torch.zeros_like(faces[:, :3])
        drawn[:, 0, :80, :16] = (mel[:, 0] + 4) / 8
        return drawn


class SeeingModel(Wav2Lip):
    """Draws the whole crop above and the masked one below, as it sees them in its six channels."""

    def forward(self, mel: Tensor, faces: Tensor) -> Tensor:
        return torch.cat((faces[:, 3:, 48:], faces[:, :3, 48:]), dim=2)


@pytest.mark.parametrize("columns", [0, 5, 15, 16, 120])
def test_each_frame_hears_its_own_window_and_silence_beyond_the_mel(columns: int) -> None:
    crops, _, mel, _ = arguments(1, columns=columns)
    starts = np.array([0, -1, -16, -24, columns - 16, columns - 15, columns, columns + 50, 3, 2**31 - 1, -(2**31)])
    drawn = make(HearingModel(NARROW)).generate(crops, np.zeros(len(starts), np.int32), mel, starts)
    expected = ((windows_by_hand(mel, starts)[:, 0] + np.float32(4)) / np.float32(8) * np.float32(255)).astype(np.uint8)
    assert np.array_equal(drawn[:, :80, :16, 0], expected)


def test_the_lower_half_is_hidden_first_and_the_whole_crop_comes_second() -> None:
    crops, index, mel, starts = arguments(3)
    drawn = make(SeeingModel(NARROW)).generate(crops, index, mel, starts)
    passed = (np.arange(256) / np.float32(255) * np.float32(255)).astype(np.uint8)  # what truncation leaves
    assert np.array_equal(drawn[:, :48], passed[crops[index][:, 48:]])
    assert not drawn[:, 48:].any()


def test_a_still_sends_one_crop(model: Wav2Lip) -> None:
    crops, _, mel, starts = arguments(20, crops=1)
    once = make(model).generate(crops, np.zeros(20, np.int32), mel, starts)
    many = make(model).generate(np.repeat(crops, 20, axis=0), np.arange(20, dtype=np.int32), mel, starts)
    assert np.array_equal(once, many)


# Batches.


class CountingModel(Wav2Lip):
    """Notes the batch sizes it is run at."""

    sizes: ClassVar[list[int]] = []

    def forward(self, mel: Tensor, faces: Tensor) -> Tensor:
        assert len(mel) == len(faces)
        self.sizes.append(len(faces))
        return torch.zeros_like(faces[:, :3])


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [4]), (4, [4]), (5, [10]), (10, [10]), (11, [10, 4]), (27, [10, 10, 10]), (0, [])]
)
def test_batches_are_padded_to_a_bucket(count: int, sizes: list[int]) -> None:
    CountingModel.sizes.clear()
    engine = make(CountingModel(NARROW), batch_size=10, buckets=[4])
    assert engine.generate(*arguments(count, crops=3)).shape == (count, 96, 96, 3)
    assert CountingModel.sizes == sizes
    counts = engine.counts
    assert (counts.frames, counts.batches, counts.padding) == (count, len(sizes), sum(sizes) - count)


def test_warm_up_runs_every_bucket_once() -> None:
    CountingModel.sizes.clear()
    engine = make(CountingModel(NARROW), batch_size=10, buckets=[2, 4])
    assert engine.warm_up() > 0
    assert CountingModel.sizes == [10, 4, 2], "the largest first, whose memory the others can use"
    assert engine.info.buckets == (2, 4, 10)
    assert sorted(engine.warm_up_s) == [2, 4, 10] and all(spent > 0 for spent in engine.warm_up_s.values())
    assert engine.counts.frames == 0


@pytest.mark.parametrize("exact", [False, True])
def test_a_frame_does_not_depend_on_its_neighbours_or_its_place(model: Wav2Lip, exact: bool) -> None:
    crops, index, mel, starts = arguments(8)
    other_crops, other_index, other_mel, _ = arguments(8, seed=1)
    engine = make(model, exact=exact)
    drawn = engine.generate(crops, index, mel, starts)
    order = np.random.default_rng(2).permutation(8)
    assert np.array_equal(engine.generate(crops, index[order], mel, starts[order]), drawn[order])
    mixed = engine.generate(
        np.concatenate((other_crops, crops)),
        np.concatenate((other_index[:5], index[:3] + 8)),
        np.concatenate((other_mel, np.full((80, 32), -4, np.float32), mel), axis=1),
        np.concatenate((np.full(5, 40), np.clip(starts[:3], -16, None) + 152)),
    )
    assert np.array_equal(mixed[5:], engine.generate(crops, index[:3], mel, np.clip(starts[:3], -16, None)))


def test_a_lone_frame_in_a_padded_bucket_equals_itself_in_a_full_one(model: Wav2Lip) -> None:
    crops, index, mel, starts = arguments(8)
    engine = make(model)
    drawn = engine.generate(crops, index, mel, starts)
    for i in (0, 3, 7):
        assert np.array_equal(engine.generate(crops, index[i : i + 1], mel, starts[i : i + 1])[0], drawn[i])


def test_cutting_does_not_show_at_the_default_batch(model: Wav2Lip) -> None:
    crops, index, mel, starts = arguments(41)
    engine = make(model)
    whole = engine.generate(crops, index, mel, starts)
    random = np.random.default_rng(6)
    for _ in range(3):
        cuts = [0, *sorted(random.choice(np.arange(1, 41), 4, replace=False)), 41]
        pieces = [engine.generate(crops, index[a:b], mel, starts[a:b]) for a, b in pairwise(cuts)]
        assert np.array_equal(np.concatenate(pieces), whole)


def test_another_bucket_is_within_one_level(model: Wav2Lip) -> None:
    given = arguments(12)
    one, twelve = make(model, batch_size=1).generate(*given), make(model, batch_size=12).generate(*given)
    assert np.abs(one.astype(int) - twelve).max() <= 1
    assert (one != twelve).mean() <= 0.003


def test_default_buckets_end_at_the_batch_size() -> None:
    assert choose_buckets("cuda", batch_size=None, buckets=None) == (512, (16, 64, 128, 256, 512))
    assert choose_buckets("cuda", batch_size=1024, buckets=None) == (1024, (16, 64, 128, 256, 512, 1024))
    assert choose_buckets("cuda", batch_size=100, buckets=None) == (100, (16, 64, 100))
    assert choose_buckets("cpu", batch_size=None, buckets=None) == (8, (8,))
    assert choose_buckets("cpu", batch_size=None, buckets=[3, 20]) == (20, (3, 20))


@pytest.mark.parametrize(
    ("waiting", "batch"),
    [
        (3, (3, 16)),
        (16, (16, 16)),
        (17, (16, 16)),
        (40, (40, 64)),
        (65, (65, 128)),
        (127, (127, 128)),
        (500, (128, 128)),
    ],
)
def test_a_tail_is_padded_unless_most_of_the_shape_would_be_padding(waiting: int, batch: tuple[int, int]) -> None:
    assert next_batch(waiting, (16, 64, 128), ceiling=128) == batch


def test_a_ceiling_is_a_shape_of_its_own() -> None:
    assert next_batch(20, (16, 64, 128), ceiling=32) == (20, 32)
    assert next_batch(90, (16, 64, 128), ceiling=32) == (32, 32)
    assert next_batch(5, (16, 64, 128), ceiling=2) == (2, 2)
    assert next_batch(1, (16, 64, 128), ceiling=2) == (1, 2)


def test_a_large_batch_size_does_not_make_short_segments_dear() -> None:
    CountingModel.sizes.clear()
    engine = make(CountingModel(NARROW), batch_size=512)
    engine.generate(*arguments(24, crops=1))
    assert CountingModel.sizes == [8, 8, 8]


def test_the_callers_model_and_arrays_stay_as_they_are(model: Wav2Lip) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = arguments(3)
    for array in given:
        array.flags.writeable = False  # as arrays out of shared memory are
    for exact in (False, True):
        assert make(model, exact=exact).generate(*given).flags.writeable
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) and tensor.stride() == before[name].stride(), name


def test_threads_share_an_engine(model: Wav2Lip) -> None:
    engine = make(model)
    work = [arguments(11, seed=seed) for seed in range(4)]
    expected = [engine.generate(*given) for given in work]
    got: list[U8 | None] = [None] * 4

    def run(i: int) -> None:
        got[i] = engine.generate(*work[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))
    assert engine.counts.frames == 2 * 4 * 11


# What is refused.


def test_a_device_that_is_not_there_is_named(model: Wav2Lip) -> None:
    for name in ("cuda:99", "tpu", "mps", "cpu:x"):
        with pytest.raises(DeviceUnavailable, match=name):
            Engine(model, device=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_auto_is_the_cpu_where_there_is_no_cuda(model: Wav2Lip) -> None:
    info = Engine(model).info
    assert (info.device, info.precision, info.batch_size, info.compiled) == ("cpu", "fp32", 8, False)
    assert not Engine(model, compile="auto").info.compiled
    with pytest.raises(DeviceUnavailable, match="Use device=cpu"):
        Engine(model, device="cuda")


def test_precision_is_half_on_cuda_and_full_where_exact() -> None:
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert choose_precision("auto", cuda, exact=False) == "fp16"
    assert choose_precision("auto", cuda, exact=True) == "fp32"
    assert choose_precision("auto", cpu, exact=False) == "fp32"
    assert choose_precision("bf16", cpu, exact=False) == "bf16"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"precision": "int8"}, "precision must be"),
        ({"precision": "fp16", "exact": True}, "exact needs precision fp32"),
        ({"compile": True, "exact": True}, "without compile"),
        ({"batch_size": 0}, "batch_size must be between"),
        ({"batch_size": 8, "buckets": [16]}, "buckets must lie between"),
        ({"buckets": [0, 4]}, "buckets must lie between"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"float32_matmul_precision": "medium"}, "float32_matmul_precision must be"),
        ({"techniques": Techniques(), "exact": True}, "without techniques"),
        ({"memory_fraction": 0.5}, "memory of a CUDA device"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], sentence: str, model: Wav2Lip) -> None:
    with pytest.raises(InvalidOption, match=sentence):
        make(model, **options)


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (0, np.zeros((2, 96, 96, 3), np.float32), r"crops must be uint8 \(C, 96, 96, 3\), not float32"),
        (0, np.zeros((2, 64, 96, 3), np.uint8), r"not uint8 \(2, 64, 96, 3\)"),
        (0, np.zeros((1, 96, 96, 3), np.uint8), "crop_index reaches from 0 to 1, but there are 1 crops"),
        (1, np.array([0, -1]), "crop_index reaches from -1 to 0"),
        (1, np.array([0.0, 1.0]), "crop_index must be whole numbers"),
        (1, np.array([[0, 1]]), "crop_index must be whole numbers"),
        (1, np.array([0]), "must be of one length, not 1 and 2"),
        (2, np.zeros((80, 9)), r"mel must be float32 \(80, T\), not float64"),
        (2, np.zeros((9, 80), np.float32), r"mel must be float32 \(80, T\)"),
        (3, np.array([0.5, 1]), "mel_starts must be whole numbers"),
    ],
)
def test_arguments_that_do_not_fit_are_named(place: int, value: Any, sentence: str, model: Wav2Lip) -> None:
    given = [np.zeros((2, 96, 96, 3), np.uint8), np.array([0, 1]), np.zeros((80, 9), np.float32), np.array([0, 1])]
    given[place] = value
    with pytest.raises(InputError, match=sentence):
        make(model).generate(*given)


def test_a_mel_with_nan_is_the_voices_fault(model: Wav2Lip) -> None:
    crops, index, mel, starts = arguments(2)
    mel[3, 3] = np.nan
    with pytest.raises(NonFiniteAudio):
        make(model).generate(crops, index, mel, starts)


# Surroundings.


def test_arithmetic_switches_hold_inside_and_are_put_back() -> None:
    def switches() -> tuple[Any, ...]:
        cudnn = torch.backends.cudnn
        return (
            torch.get_float32_matmul_precision(),
            cudnn.allow_tf32,
            cudnn.benchmark,
            cudnn.deterministic,
            cudnn.enabled,
        )

    before = switches()
    with arithmetic("high", exact=False):
        assert switches() == ("high", True, True, True, True)
    with arithmetic("highest", exact=False):
        assert switches() == ("highest", False, True, True, True)
    with pytest.raises(KeyError), arithmetic("high", exact=True):
        assert switches() == ("highest", False, False, True, True)
        raise KeyError
    assert switches() == before


def test_the_engine_runs_where_only_torch_and_numpy_are(tmp_path: Any) -> None:
    torch.save(seeded_generator(1, widths=NARROW).state_dict(), tmp_path / "weights.pth")
    program = textwrap.dedent("""
        import sys
        from importlib.abc import MetaPathFinder

        ALLOWED = {"torch", "numpy", "lipsync"}
        BLOCKED = {"av", "librosa", "soxr", "cv2", "PIL", "pillow_heif", "safetensors", "httpx", "typer", "rich",
                   "yaml", "prometheus_client", "ray", "fastapi", "starlette", "pydantic", "onnxruntime", "scipy"}

        class Blocker(MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in BLOCKED:
                    raise ImportError(f"{name} is not installed here")

        sys.meta_path.insert(0, Blocker())
        import numpy as np
        import lipsync.weights
        from lipsync.checkpoints import load_generator
        from lipsync.engine import Engine

        engine = Engine(load_generator(sys.argv[1]), device="cpu", threads=1)
        patches = engine.generate(np.zeros((1, 96, 96, 3), np.uint8), np.zeros(2, np.int32),
                                  np.zeros((80, 40), np.float32), np.array([0, 9], np.int32))
        print(patches.shape, BLOCKED & {name.partition(".")[0] for name in sys.modules})
    """)
    command = [sys.executable, "-W", "error::UserWarning", "-c", program, str(tmp_path / "weights.pth")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 96, 96, 3) set()"

"""The frame batcher over an engine: a frame comes out the same whoever else is in its batch."""

import asyncio

import numpy as np
import pytest

from lipsync.batcher import FrameBatcher
from lipsync.core import Claim
from lipsync.engine import Engine
from lipsync.engine.frames import check_frames, join
from lipsync.errors import EngineError, InputError, NonFiniteAudio, NonFiniteOutput
from lipsync.model.seeded import seeded_generator
from lipsync.model.wav2lip import Wav2Lip
from tests.engine_cases import NARROW, Arguments, arguments, make
from tests.test_engine_faults import FailingModel, OverflowingModel, like


@pytest.fixture(scope="module")
def model() -> Wav2Lip:
    return seeded_generator(4, widths=NARROW)


def together(engine: Engine, calls: list[Arguments]) -> tuple[list, FrameBatcher]:
    """All calls at once through one batcher: their patches or errors, and the batcher, closed."""
    batcher = FrameBatcher(engine)

    async def gather() -> list:
        asked = (batcher.generate(*call, claim=Claim(request=str(n % 5))) for n, call in enumerate(calls))
        return await asyncio.gather(*asked, return_exceptions=True)

    results = asyncio.run(gather())
    batcher.close()
    return results, batcher


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("batch_size", [8, 16])
def test_a_frame_is_the_same_bit_for_bit_whatever_its_neighbours(model, batch_size, exact):
    engine = make(model, exact=exact, batch_size=batch_size, buckets=[batch_size])
    sizes = [1, 40, 3, 8, 17, 5, 25, 2]
    calls = [arguments(size, crops=1 if n % 2 else None, columns=90, seed=n) for n, size in enumerate(sizes)]
    alone = [engine.generate(*call) for call in calls]
    assert len({patches[0].tobytes() for patches in alone}) == len(sizes), "else this test could not tell them apart"
    drawn, batcher = together(engine, calls)
    for n, patches in enumerate(drawn):
        assert np.array_equal(patches, alone[n]), n
    counts = batcher.counts
    assert counts.frames == sum(sizes) and counts.batches <= -(-sum(sizes) // batch_size) + 1
    assert counts.requests_per_batch > 1, "they were mixed"


def test_joined_frames_are_those_of_each_part_and_no_window_hears_a_neighbour(model):
    engine = make(model)
    parts = [arguments(9, columns=columns, seed=columns) for columns in (0, 5, 40, 200)]
    # windows that begin long before the mel, at its very edges, and long after it
    edges = np.array([-(2**31), -17, -16, -1, 0, 3, 2**31 - 1, 20, 200])
    parts = [(crops, index, mel, edges) for crops, index, mel, _ in parts]
    joined = engine.draw(engine.stage([engine.check(*part) for part in parts]))
    assert np.array_equal(joined, np.concatenate([engine.generate(*part) for part in parts]))


def test_a_still_sends_one_crop_per_call_and_a_slice_only_what_it_uses():
    still, moving = arguments(128, crops=1), arguments(128)
    whole = [check_frames(*still), check_frames(*moving)]
    assert len(join(whole).crops) == 1 + len(np.unique(moving[1]))
    some = whole[1].take(slice(3, 10))
    assert len(join([some]).crops) == len(np.unique(moving[1][3:10]))
    near = check_frames(
        still[0], np.zeros(4, int), np.zeros((80, 5000), np.float32), np.array([3000, 3003, 3006, 3010])
    )
    assert join([near]).mel.shape == (80, 16 + 26 + 16)


def test_arrays_from_shared_memory_are_read_only_and_stay_as_they_are(model):
    calls = [arguments(5, seed=n) for n in range(3)]
    before = [[array.copy() for array in call] for call in calls]
    for call in calls:
        for array in call:
            array.flags.writeable = False
    drawn, _ = together(make(model), calls)
    assert all(patches.flags.writeable and patches.base is None for patches in drawn[1:])
    assert all(
        np.array_equal(a, b) for call, old in zip(calls, before, strict=True) for a, b in zip(call, old, strict=True)
    )


def test_what_is_wrong_with_a_call_is_said_before_it_waits(model):
    crops, index, mel, starts = arguments(4)
    silent = mel.copy()
    silent[3, 3] = np.nan
    calls = [(crops, index, mel, starts), (crops, index, silent, starts), (crops[:, :64], index, mel, starts)]
    drawn, batcher = together(make(model), calls)
    assert len(drawn[0]) == 4
    assert isinstance(drawn[1], NonFiniteAudio) and isinstance(drawn[2], InputError)
    assert batcher.counts.calls == 1


def test_frames_that_overflow_fail_their_own_call_only(model, monkeypatch):
    import torch

    monkeypatch.setattr(OverflowingModel, "broken", (torch.float32,))
    calls = [arguments(5, seed=n) for n in range(8)]
    for n, (crops, index, _, _) in enumerate(calls):
        crops[:, 0, 0, 0] = 0
        crops[index[2], 0, 0, 0] = 255 if n == 6 else 0
    engine = make(like(OverflowingModel, model), batch_size=20, buckets=[20])
    drawn, batcher = together(engine, calls)
    assert isinstance(drawn[6], NonFiniteOutput)
    expected = make(model, batch_size=20, buckets=[20])
    for n in {*range(8)} - {6}:
        assert np.array_equal(drawn[n], expected.generate(*calls[n])), n
    assert engine.healthy and batcher.counts.failed == 1 and batcher.counts.retried >= 2


def test_a_poisoned_device_fails_every_caller_and_the_health_check():
    FailingModel.calls.clear()
    engine = make(FailingModel(NARROW))
    drawn, batcher = together(engine, [arguments(9, seed=n) for n in range(5)])
    assert all(isinstance(error, EngineError) and "illegal memory access" in error.detail for error in drawn)
    assert FailingModel.calls == [8], "and the device is left alone"
    assert not batcher.healthy

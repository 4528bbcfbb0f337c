"""The CUDA runner on a CPU: every line of it runs, and every stream waits for what it needs."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from lipsync.engine import Engine, Techniques
from lipsync.engine.cuda import Copied
from lipsync.errors import EngineError
from lipsync.model.seeded import seeded_generator
from lipsync.model.wav2lip import Wav2Lip
from tests.engine_cases import NARROW, arguments, make
from tests.rehearsed_cuda import Event, RehearsedCuda, Stream, rehearse

SHAPES = {"batch_size": 6, "buckets": [2, 6]}


@pytest.fixture(scope="module")
def model() -> Wav2Lip:
    return seeded_generator(9, widths=NARROW)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> RehearsedCuda:
    return rehearse(monkeypatch)


def like_cuda(model: Wav2Lip, **techniques: Any) -> Engine:
    return make(model, techniques=Techniques(packed=False, **techniques), **SHAPES)


@pytest.fixture(scope="module")
def expected(model: Wav2Lip) -> Any:
    """What the CPU's own runner draws, asked before the stand-in is in place."""
    engine = make(model, techniques=Techniques(packed=False), **SHAPES)
    return {seed: engine.generate(*arguments(38, seed=seed)) for seed in range(3)}


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "layers"])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_many_batches_are_drawn_as_the_cpu_draws_them_and_no_stream_runs_ahead(
    graphs: bool, in_flight: int, expected: Any, cuda: RehearsedCuda, model: Wav2Lip
) -> None:
    with cuda:
        engine = like_cuda(model, graphs=graphs, in_flight=in_flight)
        for seed, drawn in expected.items():
            assert np.array_equal(engine.generate(*arguments(38, seed=seed)), drawn)
        cuda.forget_freed()
    assert cuda.launches == (3 * 7 if graphs else 0)


def test_a_batch_that_was_staged_beside_another_is_drawn_the_same(
    expected: Any, cuda: RehearsedCuda, model: Wav2Lip
) -> None:
    with cuda:
        engine = like_cuda(model)
        given = [engine.check(*arguments(38, seed=seed)) for seed in expected]
        parts = [one.take(slice(0, 6)) for one in given]
        staged = [engine.stage([one]) for one in parts]  # all under way before the first is drawn
        for drawn, one in zip(expected.values(), staged, strict=True):
            assert np.array_equal(engine.draw(one), drawn[:6])
        both = engine.stage([given[0].take(slice(0, 4)), given[1].take(slice(4, 6))])
        drawn = engine.draw(both)
        del staged, both, parts
        cuda.forget_freed()
    assert np.array_equal(drawn, np.concatenate([expected[0][:4], expected[1][4:6]]))


def test_a_graph_too_large_to_record_halves_the_batch_and_loses_no_frame(
    expected: Any, cuda: RehearsedCuda, model: Wav2Lip
) -> None:
    cuda.fits = 3
    with cuda:
        engine = like_cuda(model)
        drawn = engine.generate(*arguments(38))
    assert engine.batch_size == 3 and engine.counts.out_of_memory == 1 and engine.healthy
    assert np.abs(drawn.astype(int) - expected[0]).max() <= 1, "other buckets, so not bit for bit"


def test_a_graph_keeps_the_weights_that_it_was_recorded_with(cuda: RehearsedCuda, model: Wav2Lip) -> None:
    with cuda:
        engine = like_cuda(model)
        engine.warm_up()
        run = weakref.ref(engine._batches._network.plain("fp32"))
        engine._batches._network._steps.clear()  # as when a later bucket cannot be compiled, and the compiled one goes
        gc.collect()
        assert run() is not None
        runs = engine._batches._runs
        engine._batches._runner.release(runs)
        gc.collect()
        assert not runs and run() is None


def test_a_smaller_bucket_that_does_not_fit_beside_the_larger_is_padded_to_it(
    expected: Any, cuda: RehearsedCuda, model: Wav2Lip
) -> None:
    with cuda:
        engine = like_cuda(model)
        given = arguments(38)
        engine.generate(*(one if k in (0, 2) else one[:6] for k, one in enumerate(given)))
        cuda.fits = 1
        drawn = engine.generate(*given)
    assert np.array_equal(drawn[:36], expected[0][:36])
    assert engine.batch_size == 6 and engine.counts.out_of_memory == 1 and "padded" in engine.notes[0]


def test_what_streams_read_is_kept_where_nobody_collects_and_let_go_once_it_has_arrived(
    cuda: RehearsedCuda, model: Wav2Lip
) -> None:
    with cuda:
        engine = like_cuda(model, graphs=False)
        runner: Any = engine._batches._runner
        for _ in range(4):
            engine.generate(*arguments(38))
        assert len(runner._under_way) <= runner.in_flight + 1
        assert not any(batch._read_from for batch in runner._under_way), "what was collected keeps no crops"
        engine._batches._begin(engine.check(*arguments(6)), 6, "fp32")  # and its answer is dropped
        gc.collect()
        cuda.forget_freed()


# The stand-in bites: what each line of the runner is there for.


@pytest.mark.parametrize(
    ("where", "left_out", "said"),
    [
        (Stream, "wait_event", "may still be busy with"),
        (Event, "synchronize", "is freed while|the host reads"),
        (Stream, "wait_stream", "may still be busy with"),
    ],
)
def test_leaving_out_a_wait_is_found(
    where: type, left_out: str, said: str, cuda: RehearsedCuda, model: Wav2Lip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, left_out, lambda *_: None)
    with cuda, pytest.raises(EngineError, match=said):
        like_cuda(model, graphs=False).generate(*arguments(38))


def test_giving_memory_away_too_early_is_found(
    cuda: RehearsedCuda, model: Wav2Lip, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Copied.__init__
    monkeypatch.setattr(Copied, "__init__", lambda self, *given: keep(self, *given[:-1], ()))
    with cuda, pytest.raises(EngineError, match="is freed while"):
        like_cuda(model, graphs=False).generate(*arguments(38))


def test_a_graph_that_is_not_launched_answers_with_garbage(cuda: RehearsedCuda, model: Wav2Lip) -> None:
    with cuda:
        engine = like_cuda(model)
        cuda.replay = lambda graph: None  # type: ignore[method-assign]
        assert (engine.generate(*arguments(6)) == 77).all()

"""The engine on a CUDA device: the CPU's pictures at every precision, graphs, overlap, memory, and a poisoned context."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lipsync.core import U8
from lipsync.engine import Engine, Techniques
from lipsync.model.seeded import seeded_generator
from lipsync.model.wav2lip import Wav2Lip
from tests.engine_cases import arguments, make

pytestmark = [pytest.mark.needs_cuda, pytest.mark.timeout(600)]

HALF_PRECISION_DB = 40.0
"""Seeded weights amplify rounding more than trained ones do: fp16 on a CPU is at 44.9 dB with them."""
BRAIN_FLOAT_DB = 24.0
"""The same for bf16, which is at 27.5 dB on a CPU."""


@pytest.fixture(scope="module")
def cuda() -> str:
    if not torch.cuda.is_available():
        if os.environ.get("FAIL_WITHOUT_CUDA") == "1":
            pytest.fail("there is no CUDA device, and FAIL_WITHOUT_CUDA=1")
        pytest.skip("no CUDA device")
    return "cuda"


@pytest.fixture(scope="module")
def model(cuda: str) -> Wav2Lip:
    return seeded_generator(9)


@pytest.fixture
def exact(cuda: str, model: Wav2Lip) -> Iterator[Any]:
    """What the plain network draws on the device."""
    engine = Engine(model, device=cuda, exact=True)
    yield lambda given: engine.generate(*given)


def psnr(a: U8, b: U8) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, ((a.astype(int) - b) ** 2).mean())))


def test_cuda_draws_what_the_cpu_draws(exact: Any, model: Wav2Lip) -> None:
    given = arguments(40)
    expected = make(model, exact=True).generate(*given)
    assert expected.std() >= 40
    drawn = exact(given)
    assert np.abs(expected.astype(int) - drawn).max() <= 1 and (expected != drawn).mean() <= 0.02


@pytest.mark.parametrize(("precision", "least_db"), [("fp16", HALF_PRECISION_DB), ("bf16", BRAIN_FLOAT_DB)])
def test_half_precision_is_near_the_plain_network(
    precision: Any, least_db: float, cuda: str, exact: Any, model: Wav2Lip
) -> None:
    given = arguments(40)
    assert psnr(Engine(model, device=cuda, precision=precision).generate(*given), exact(given)) >= least_db


def test_full_precision_without_tf32_is_within_one_level(cuda: str, exact: Any, model: Wav2Lip) -> None:
    given = arguments(40)
    drawn = Engine(model, device=cuda, precision="fp32", float32_matmul_precision="highest").generate(*given)
    assert np.abs(drawn.astype(int) - exact(given)).max() <= 1


@pytest.mark.parametrize("techniques", [Techniques(), Techniques(graphs=False), Techniques(in_flight=1)], ids=str)
def test_a_cuda_frame_does_not_depend_on_its_neighbours(techniques: Techniques, cuda: str, model: Wav2Lip) -> None:
    crops, index, mel, starts = arguments(64)
    engine = Engine(model, device=cuda, techniques=techniques, buckets=[64], batch_size=64)
    drawn = engine.generate(crops, index, mel, starts)
    order = np.random.default_rng(2).permutation(64)
    assert np.array_equal(engine.generate(crops, index[order], mel, starts[order]), drawn[order])
    assert np.array_equal(engine.generate(crops, index[:9], mel, starts[:9]), drawn[:9]), "padded with others"


def test_a_recorded_graph_draws_what_the_layers_draw_however_often_it_is_launched(cuda: str, model: Wav2Lip) -> None:
    engines = [
        Engine(model, device=cuda, batch_size=64, buckets=[16, 64], techniques=Techniques(graphs=graphs))
        for graphs in (True, False)
    ]
    for seed in range(4):
        given = arguments(100, seed=seed)
        graph, layers = (engine.generate(*given) for engine in engines)
        assert np.abs(graph.astype(int) - layers).max() <= 3
        assert np.array_equal(engines[0].generate(*given), graph)


def test_many_batches_under_way_keep_their_order_and_their_frames(cuda: str, model: Wav2Lip) -> None:
    crops, index, mel, starts = arguments(2000)
    engine = Engine(model, device=cuda, batch_size=64, buckets=[64])
    whole = engine.generate(crops, index, mel, starts)
    pieces = [engine.generate(crops, index[at : at + 64], mel, starts[at : at + 64]) for at in range(0, 2000, 64)]
    assert np.array_equal(whole, np.concatenate(pieces))


def test_threads_that_stage_and_draw_at_once_get_their_own_frames(cuda: str, model: Wav2Lip) -> None:
    engine = Engine(model, device=cuda, batch_size=64, buckets=[64])
    work = [arguments(150, seed=seed) for seed in range(6)]
    expected = [engine.generate(*given) for given in work]
    got: list[U8 | None] = [None] * len(work)

    def run(n: int) -> None:
        for _ in range(5):
            got[n] = engine.draw(engine.stage([engine.check(*work[n])]))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))


def test_compiled_on_cuda_draws_the_same_faces(cuda: str, exact: Any, model: Wav2Lip, tmp_path: Path) -> None:
    given = arguments(40)
    compiled = Engine(model, device=cuda, compile="auto", compile_cache=tmp_path, batch_size=64, buckets=[64])
    assert compiled.info.compiled and compiled.warm_up() > 0
    assert compiled.notes == (), "it was compiled indeed"
    assert psnr(compiled.generate(*given), exact(given)) >= HALF_PRECISION_DB
    assert any(path.is_file() for path in tmp_path.rglob("*"))


def test_out_of_memory_for_real_halves_the_batch_and_loses_no_frame(cuda: str, model: Wav2Lip) -> None:
    given = arguments(3000, crops=16)
    small = Engine(model, device=cuda, batch_size=64, buckets=[64]).generate(*given)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    ballast = torch.empty(max(0, free - 2 * 2**30), dtype=torch.uint8, device=cuda)
    try:
        engine = Engine(model, device=cuda, batch_size=2048, buckets=[64, 256, 512, 1024])
        drawn = engine.generate(*given)
    finally:
        del ballast
        torch.cuda.empty_cache()
    assert engine.counts.out_of_memory >= 1 and engine.batch_size < 2048 and engine.healthy
    assert psnr(drawn, small) >= HALF_PRECISION_DB


def run_alone(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: for what cannot be undone in this one."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(__file__).resolve().parents[1],
        env=os.environ | environment,
    )


def test_a_share_of_the_memory_is_not_exceeded(cuda: str) -> None:
    done = run_alone("""
        import numpy as np, torch
        from lipsync.engine import Engine
        from lipsync.model.seeded import seeded_generator
        from tests.engine_cases import arguments

        total = torch.cuda.get_device_properties(0).total_memory
        share = 3 * 2**30 / total
        engine = Engine(seeded_generator(9), device="cuda", memory_fraction=share, batch_size=4096)
        drawn = engine.generate(*arguments(5000, crops=8))
        assert len(drawn) == 5000 and drawn.std() > 40
        assert torch.cuda.max_memory_reserved() <= share * total
        print(engine.batch_size, engine.counts.out_of_memory)
    """)
    assert done.returncode == 0, done.stderr
    size, halved = map(int, done.stdout.split())
    assert size < 4096 and halved >= 1


def test_a_poisoned_context_makes_the_health_check_fail(cuda: str) -> None:
    done = run_alone("""
        import numpy as np, torch
        from lipsync.engine import Engine
        from lipsync.errors import EngineError
        from lipsync.model.seeded import seeded_generator
        from tests.engine_cases import arguments

        engine = Engine(seeded_generator(9), device="cuda", batch_size=16, buckets=[16])
        engine.generate(*arguments(16))
        assert engine.healthy
        table = torch.zeros(4, device="cuda")
        table[torch.tensor([10**6], device="cuda")]  # an index beyond the end asserts on the device, for good
        for _ in range(2):
            try:
                engine.generate(*arguments(16))
            except EngineError as error:
                print(error.detail)
        print("healthy" if engine.healthy else "poisoned")
    """)
    lines = done.stdout.splitlines()
    assert lines[-1:] == ["poisoned"], done.stdout + done.stderr
    assert len(lines) == 3 and "Start a new process" in lines[0] and "failed before" in lines[1]


def test_the_second_start_finds_what_the_first_compiled(cuda: str, tmp_path: Path) -> None:
    program = """
        import os
        from lipsync.engine import Engine
        from lipsync.model.seeded import seeded_generator

        kept = os.environ["KEPT"]
        engine = Engine(
            seeded_generator(9), device="cuda", compile=True, compile_cache=kept, batch_size=128, buckets=[128]
        )
        print(engine.warm_up(), *engine.notes)
    """
    first, second = (run_alone(program, KEPT=str(tmp_path)) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert float(second.stdout) < float(first.stdout) / 2, "and notes would be more than a number"

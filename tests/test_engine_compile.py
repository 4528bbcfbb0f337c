"""Compiling the network: the same pictures, kept in a folder for the next start, and done without where it fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lipsync.bench.row import compiled_graphs
from lipsync.errors import InvalidOption
from lipsync.model.seeded import seeded_generator
from lipsync.model.wav2lip import Wav2Lip
from tests.engine_cases import NARROW, arguments, make

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++"),
    pytest.mark.filterwarnings("ignore"),  # torch's compiler warns of its own parts
    pytest.mark.timeout(300),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "torch"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class ShallowModel(Wav2Lip):
    """The first block and what it hears: the whole network takes a CPU's compiler a minute."""

    def forward(self, mel: Tensor, faces: Tensor) -> Tensor:
        return torch.sigmoid(self.face_encoder_blocks[0](faces)[:, :3] + mel.mean(dim=(1, 2, 3), keepdim=True))


@pytest.fixture(scope="module")
def model() -> Wav2Lip:
    made = ShallowModel(NARROW).eval()
    made.load_state_dict(seeded_generator(4, widths=NARROW).state_dict())
    return made


def test_compiled_draws_the_same_pictures_and_is_kept_in_the_folder_that_was_named(
    model: Wav2Lip, tmp_path: Path
) -> None:
    given = arguments(8)
    exact = make(model, exact=True).generate(*given).astype(int)
    torch._dynamo.utils.counters.clear()
    engine = make(model, compile=True, compile_cache=tmp_path / "kept")
    compiled = engine.generate(*given)
    assert compiled_graphs() == {"compiled_now": 1, "compiled_before": 0}
    assert engine.info.compiled and engine.notes == ()
    assert exact.std() >= 10
    assert np.abs(exact - compiled).max() <= 1 and (exact != compiled).mean() <= 0.003
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "kept")
    written = "".join(path.read_text() for path in (tmp_path / "kept").rglob("*.py"))
    assert "mkldnn._convolution_pointwise" in written, "weights were frozen, or torch would not call that"
    order = np.random.default_rng(2).permutation(8)
    crops, index, mel, starts = given
    assert np.array_equal(engine.generate(crops, index[order], mel, starts[order]), compiled[order])


def test_where_torch_cannot_compile_the_network_runs_layer_by_layer_and_says_so(
    model: Wav2Lip, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch._inductor.config as settings

    monkeypatch.setattr(settings.cpp, "cxx", ("/no/such/compiler",))
    given = arguments(20)
    engine = make(model, compile=True)
    drawn = engine.generate(*given)
    assert np.array_equal(drawn, make(model).generate(*given))
    assert engine.healthy and engine.counts.out_of_memory == 0
    assert not engine.info.compiled
    assert len(engine.notes) == 1 and "runs uncompiled" in engine.notes[0]
    assert engine.notes[0] in caplog.text


def test_a_folder_that_cannot_be_made_is_refused(model: Wav2Lip, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidOption, match="compile_cache"):
        make(model, compile=True, compile_cache=tmp_path / "file" / "below")

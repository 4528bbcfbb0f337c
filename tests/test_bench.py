"""The ladder: it runs where little is installed, counts right, says what it left out, and refuses a wrong engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lipsync.bench.chart import draw_chart
from lipsync.bench.checks import check
from lipsync.bench.cost import cost_per_frame
from lipsync.bench.ladder import Ladder, Settings
from lipsync.bench.row import Order, compare
from lipsync.bench.rows import CPU_ROWS, CUDA_ORDER, CUDA_ROWS, FIRST_START, SECOND_START
from lipsync.bench.still import measure_still
from lipsync.bench.table import HEAD, ladder_cells, text, with_shares
from lipsync.errors import EngineError, InvalidOption
from lipsync.model.seeded import seeded_generator
from lipsync.model.wav2lip import Wav2Lip
from tests.engine_cases import NARROW

ROOT = Path(__file__).resolve().parents[1]
BARE = textwrap.dedent("""
    import sys
    from importlib.abc import MetaPathFinder

    class Blocker(MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {"av", "librosa", "soxr", "PIL", "pillow_heif", "safetensors", "httpx", "typer",
                                          "rich", "yaml", "prometheus_client", "ray", "fastapi", "pydantic", "scipy"}:
                raise ImportError(f"{name} is not installed here", name=name)

    sys.meta_path.insert(0, Blocker())
""")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bench") / "narrow.pth"
    torch.save(seeded_generator(4, widths=NARROW).state_dict(), path)
    return str(path)


@pytest.mark.timeout(400)
def test_the_ladder_runs_where_only_torch_numpy_and_opencv_are(narrow: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BARE)  # in every process that is started
    command = [sys.executable, "-m", "lipsync.bench", narrow, "--device", "cpu", "--frames", "8", "--minutes", "6"]
    done = subprocess.run(
        [*command, "--only", "cpu 4", "--output", str(tmp_path / "found")],
        capture_output=True,
        text=True,
        check=False,
        timeout=390,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "CXX": "/no/such/compiler"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found" / "ladder_cpu.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) == {row.name for row in CPU_ROWS}
    assert rows["cpu 1: plain, fp32"]["not_measured"] == "not asked for"
    usual, brain = rows["cpu 4: + packing (the default)"], rows["cpu 4, bf16"]
    assert usual["frames_per_s"] > 0 and usual["start_s"] > 0 and usual["process_peak_mb"] > 0
    assert usual["largest_difference"] <= 1 < brain["largest_difference"]
    assert usual["reference_sd"] >= 20, "a grey reference would prove nothing"
    assert rows["cpu 4, through the frame batcher"]["psnr_db"] >= 40
    assert all(one["holds"] for one in found["checks"].values())
    assert found["still_face"]["gain_percent"].keys() == {"all_still", "half_still"}
    assert found["end_to_end"] == {"not_measured": "not asked for"}
    assert found["machine"]["torch"] == torch.__version__
    picture = cv2.imdecode(np.fromfile(tmp_path / "found" / "ladder_cpu.png", np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[1] == 1100 and picture.std() > 10
    for row in CPU_ROWS:
        assert row.name in done.stdout


def test_without_the_media_libraries_the_end_to_end_rows_say_so(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BARE)
    done = subprocess.run(
        [sys.executable, "-m", "lipsync.bench.child", "stages"],
        input="{}",
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert json.loads(done.stdout) == {"not_measured": "av is not installed"}


@pytest.mark.timeout(300)
def test_end_to_end_the_stages_and_their_processor_time_are_told_apart(
    narrow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lipsync.bench import stages
    from lipsync.render import Renderer

    monkeypatch.setattr(stages, "SIZE", (640, 360))
    monkeypatch.setattr(stages, "CLIP_FRAMES", 30)
    before = Renderer.__dict__["_finish"]
    found = stages.measure_stages(
        device="cpu", checkpoint=narrow, face=None, audio=None, seconds=1.0, cache=str(tmp_path / "compiled")
    )
    assert Renderer.__dict__["_finish"] is before, "what was watched is as it was"
    cases = {(case["face"], case["state"]): case for case in found["cases"]}
    assert len(cases) == 4
    for case in cases.values():
        assert case["frames"] == 25 and case["first_fragment_s"] <= case["total_s"]
        assert case["real_time_factor"] == pytest.approx(case["total_s"], abs=2e-3)
        assert {"open", "voice", "decode", "crop", "generate", "paste and encode", "other"} <= set(case["stage_cpu_s"])
        assert sum(case["stage_cpu_s"].values()) == pytest.approx(case["cpu_s"], abs=0.01)
        assert case["engine_batches"] >= 4
    video = "video, 720p"
    assert cases[video, "cold"]["stage_cpu_s"]["detect"] > 0
    assert "detect" not in cases[video, "warm"]["stage_cpu_s"], "boxes are known"


def test_a_frame_costs_what_the_layer_table_says() -> None:
    with torch.device("meta"):
        model = Wav2Lip()
    assert cost_per_frame(model)["gflop"] == pytest.approx(2 * 3.967, abs=0.001)


def test_a_wrong_or_degenerate_engine_is_not_measured(tmp_path: Path) -> None:
    model = seeded_generator(4, widths=NARROW)
    for weights in model.parameters():
        weights.zero_()
    torch.save(model.state_dict(), tmp_path / "grey.pth")
    found = check(device="cpu", checkpoint=str(tmp_path / "grey.pth"), is_trained=False)
    assert not found["holds"] and not found["found"]["not degenerate"]["holds"]
    with pytest.raises(EngineError, match="not correct"):
        Ladder(Settings(device="cpu", checkpoint=str(tmp_path / "grey.pth"), minutes=5), tell=lambda _: None).run()


def test_what_does_not_fit_into_the_time_is_left_out_and_said() -> None:
    told: list[str] = []
    ladder = Ladder(Settings(device="cpu", minutes=0.1), tell=told.append)
    assert ladder._part("machine", {}) == {"not_measured": "the 0.1 minutes were over"}
    ladder = Ladder(Settings(device="cpu", minutes=1), tell=told.append)
    found = ladder._part("row", {"row": {"name": "one that fails"}})
    assert found["not_measured"].startswith("it failed: KeyError")
    assert told == [
        "machine: not measured: the 0.1 minutes were over",
        f"one that fails: not measured: {found['not_measured']}",
    ]


def test_an_earlier_result_is_completed_and_another_machines_is_not(
    narrow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts are stood in for: what is shown is which of them are asked for again."""
    asked: list[str] = []

    def part(_: Ladder, name: str, given: dict[str, object]) -> dict[str, object]:
        asked.append(given["row"]["name"] if name == "row" else name)  # type: ignore[index]
        answers = {
            "checks": {"holds": True, "found": {}},
            "machine": {"machine": {"processor": "P", "torch": "T"}, "ceilings": {"matmul_fp32_tflops": 1.0, "matmul_bf16_tflops": 1.0, "copy_gb_s": 1.0}, "cost_per_frame": {"gflop": 1.0, "million_values": 1.0}},
        }  # fmt: skip
        slow = asked[-1] in ("cpu 4, bf16", "stages") and "second" not in asked
        return answers.get(name, {"not_measured": "no time"} if slow else {"frames_per_s": float(len(asked))})

    monkeypatch.setattr(Ladder, "_part", part)
    settings = Settings(device="cpu", checkpoint=narrow)
    first = Ladder(settings, tell=lambda _: None).run()
    asked[:] = ["second"]
    second = Ladder(settings, tell=lambda _: None, kept=json.loads(json.dumps(first))).run()
    assert asked == ["second", "checks", "machine", "fp32, exact", "cpu 4, bf16", "stages"]
    before, after = ({row["name"]: row for row in one["rows"]} for one in (first, second))
    assert list(before) == list(after) == [row.name for row in CPU_ROWS]
    assert "not_measured" in before["cpu 4, bf16"] and after["cpu 4, bf16"]["frames_per_s"] > 0
    assert all(before[name] == after[name] for name in before if name != "cpu 4, bf16")
    with pytest.raises(InvalidOption, match="another machine"):
        Ladder(settings, tell=lambda _: None, kept=first | {"machine": {"processor": "Q", "torch": "T"}}).run()
    with pytest.raises(InvalidOption, match="generator"):
        Ladder(settings, tell=lambda _: None, kept=first | {"generator": "another"}).run()


def test_every_row_is_named_once_and_every_row_that_is_made_is_run() -> None:
    names = [row.name for row in CUDA_ROWS + CPU_ROWS]
    assert len(set(names)) == len(names)
    assert sorted(CUDA_ORDER) == sorted(row.name for row in CUDA_ROWS if row.not_made is None)
    order = Order(row=CUDA_ROWS[3], device="cuda", checkpoint="x", frames=8, compared=8, runs=1, cache="c", reference="r", started_s=0.0)  # fmt: skip
    assert Order.from_json(json.loads(json.dumps(asdict(order)))) == order


@pytest.mark.parametrize("known", [[], [FIRST_START]], ids=["new", "resumed"])
def test_a_second_start_is_measured_only_after_a_first_of_the_same_run(
    known: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run(part: str, given: str, *, timeout_s: float) -> str:
        ran.append(json.loads(given)["row"]["name"])
        if ran[-1] == FIRST_START:
            raise subprocess.TimeoutExpired(part, timeout_s)
        return "{}"

    monkeypatch.setattr("lipsync.bench.ladder.choose_device", lambda _: torch.device("cuda:0"))
    monkeypatch.setattr("lipsync.bench.ladder._run", run)
    ladder = Ladder(Settings(checkpoint="x"), tell=lambda _: None, kept={"rows": [{"name": name} for name in known]})
    rows = {row["name"]: row for row in ladder._rows(tmp_path)}
    assert FIRST_START in ran and SECOND_START not in ran
    assert "no first start" in rows[SECOND_START]["not_measured"]


def test_shares_and_the_speed_over_the_first_row_are_what_division_gives() -> None:
    rows = [{"name": name, "precision": "fp32", "matmul": "high", "frames_per_s": rate, "mean_s": 1, "sd_s": 0, "start_s": 1,
             "process_peak_mb": 9, "psnr_db": 50.0, "largest_difference": worst}
            for name, rate, worst in (("a", 10.0, 0), ("b", 25.0, 1))]  # fmt: skip
    result = with_shares({
        "rows": [*rows, {"name": "c", "not_measured": "no time"}],
        "cost_per_frame": {"gflop": 8.0, "million_values": 10.0},
        "ceilings": {"matmul_tf32_tflops": 1.0, "copy_gb_s": 10.0},
        "machine": {"processor": "P", "cores": 2, "torch": "T", "date": "D", "chip": {"name": "C"}},
        "device": "cuda:0", "generator": "G",
        "still_face": {"not_measured": "no time"}, "end_to_end": {"not_measured": "no time"},
    })  # fmt: skip
    first, second, third = ladder_cells(result["rows"])
    assert dict(zip(HEAD, second, strict=True))["times the first"] == "2.5"
    assert second[-2:] == ("20.0 %", "10.0 %")
    assert first[HEAD.index("PSNR, dB")] == "equal" and second[HEAD.index("PSNR, dB")] == "50.0"
    assert third[1] == "not measured: no time"
    compiled = next(ladder_cells([result["rows"][0] | {"compiled_now": 5, "compiled_before": 0}]))
    assert compiled[HEAD.index("start, s")] == "1 (5 compiled, 0 found)" and first[HEAD.index("start, s")] == "1"
    assert "c" in text(result) and draw_chart(result).shape[2] == 3


def test_quality_is_measured_in_levels_and_decibels() -> None:
    black = np.zeros((2, 96, 96, 3), np.uint8)
    other = black.copy()
    other[0, 0, 0, 0] = 255
    found = compare(other, black)
    assert found["largest_difference"] == 255 and found["share_different"] == pytest.approx(1 / black.size, abs=1e-5)
    assert found["psnr_db"] == pytest.approx(10 * np.log10(black.size), abs=0.05)


def test_reusing_a_stills_features_draws_the_same_pictures() -> None:
    from lipsync.bench.still import _with_reuse

    model = seeded_generator(4, widths=NARROW)
    faces, mel = torch.rand(6, 6, 96, 96), torch.rand(6, 1, 80, 16) * 8 - 4
    faces[:4] = faces[:1]
    with torch.inference_mode():
        assert torch.allclose(_with_reuse(model, mel, faces, still=4), model(mel, faces), atol=1e-4)
    found = measure_still(model, "cpu")
    assert found["worth_it"] == (found["gain_percent"]["half_still"] >= 5)

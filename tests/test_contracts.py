"""Promises that hold the whole together: layers, errors, options, docs."""

import ast
import json
import pickle
import re
import subprocess
import sys
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import pytest

from lipsync.errors import InvalidOption, LipsyncError, ServiceError, all_errors, named
from lipsync.options import Limits, Options, parse_fps

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {"ray", "fastapi", "starlette", "uvicorn", "pydantic", "serve", "cluster"}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_the_library_imports_neither_ray_nor_a_web_framework():
    files = list((ROOT / "lipsync").rglob("*.py"))
    assert len(files) > 30
    assert {str(path): hit for path in files if (hit := imports_of(path) & FORBIDDEN)} == {}


def test_nothing_imports_the_cluster_and_the_library_never_imports_its_training_code():
    for path in [*(ROOT / "lipsync").rglob("*.py"), *(ROOT / "serve").rglob("*.py")]:
        assert "cluster" not in imports_of(path), path
        if "demo" not in path.relative_to(ROOT).parts[1:2]:
            text = path.read_text()
            assert "lipsync.demo" not in text and not re.search(r"from (lipsync|\.+) import .*\bdemo\b", text), path


def test_importing_the_library_is_quick_to_say_and_does_no_work():
    code = "import sys, lipsync, lipsync.core, lipsync.errors, lipsync.options; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.slug)
def test_every_error_survives_pickling_and_says_its_detail(error):
    again = pickle.loads(pickle.dumps(error("what is wrong, and what to do.")))
    assert type(again) is error
    assert str(again) == again.detail == "what is wrong, and what to do."


def test_every_error_has_a_slug_of_its_own_and_stands_in_the_tree_that_is_drawn():
    slugs = [error.slug for error in all_errors()]
    assert len(set(slugs)) == len(slugs)
    drawn = sys.modules["lipsync.errors"].__doc__ or ""
    for error in all_errors():
        assert error.__name__ in drawn and error.slug in drawn, error


def test_the_docs_that_are_made_from_the_code_are_up_to_date():
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "up to date", "run make fix"


@pytest.mark.parametrize(
    "given",
    [
        {"sync_mode": "backwards"}, {"fps": "fast"}, {"fps": 0}, {"fps": -25}, {"fps": 1000}, {"fps": True}, {"crf": 52},
        {"crf": "18"}, {"crf": 18.5}, {"crf": True}, {"static": 1}, {"pads": (1, 2, 3)}, {"pads": "0 0 0 0"},
        {"box": (10, 5, 0, 9)}, {"box": (0, 5, -1, 9)}, {"box": (0, 5, 0, 9), "boxes": ((0, 0, 5, 5),)},
        {"face_choice": "point"}, {"detector": "none"}, {"crop": (0, -2, 0, 0)}, {"resize": (10, 100)},
        {"audio_offset_ms": float("nan")}, {"audio_offset_ms": 1e9}, {"detect_every": 0}, {"boxes": ((1, 2, 3),)},
        {"resize_factor": 0}, {"encoder_threads": 0}, {"face_point": (1, 2)}, {"blend": None}, {"fps": "1/0"}, {"fps": "1e999999999"}, {"fps": "1e400"}, {"fps": 10**400}, {"fps": "9" * 5000},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_option_is_refused_by_name(given):
    with pytest.raises(InvalidOption) as caught:
        Options(**given)
    assert any(name in caught.value.detail for name in given)


def test_lists_from_json_become_tuples_and_numbers_keep_their_kind():
    options = Options(pads=[1, 2, 3, 4], boxes=[[1, 2, 30, 40], None], crf=20.0, audio_offset_ms=40)
    assert options.pads == (1, 2, 3, 4)
    assert options.boxes == ((1, 2, 30, 40), None)
    assert options.crf == 20 and type(options.crf) is int
    assert type(options.audio_offset_ms) is float
    assert pickle.loads(pickle.dumps(options)) == options


@pytest.mark.parametrize(
    "options",
    [Options(), Options(crf=20, fps="29.97", label=True, audio_offset_ms=-0.5), Options(box=(0, 10, 0, 10), crop=(0, -1, 0, -1)),
     Options(boxes=((1, 2, 30, 40), None), boxes_size=(64, 48)), Options(face_choice="point", face_point=(1.5, 2, 0.1)),
     Options(sync_mode="bounce", resize=(640, 360), pads=(-5, 0, 0, 0))],
    ids=str,
)  # fmt: skip
def test_options_go_through_json_and_say_only_what_differs(options):
    again = Options.from_json(options.to_json())
    assert again == options
    said = json.loads(options.to_json())
    assert set(said) == {item.name for item in fields(Options) if getattr(options, item.name) != item.default}
    assert Options.from_json(options.to_json().encode()) == options == Options.from_mapping(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [('{"cfr": 20}', "'cfr'"), ('{"crf": "20"}', "crf"), ('{"crf": NaN}', "crf"), ('{"crf": 1, "crf": 2}', "twice"), ("[]", "object"),
     ("null", "object"), ("", "not JSON"), ("{", "not JSON"), ("[" * 100_000, "not JSON"), ('{"crf": ' + "9" * 5000 + "}", "JSON"),
     (b"\xff\xfe\xfd", "not JSON"), ('{"self": 1}', "'self'"), ('{"": 1}', "''"), ('{"fps": {"a": 1}}', "fps"), ('{"boxes": [[1,2]]}', "boxes")],
    ids=lambda text: repr(text[:40]),
)  # fmt: skip
def test_wrong_options_in_json_are_refused_by_name(text, said):
    with pytest.raises(InvalidOption, match=said):
        Options.from_json(text)


def test_an_error_is_found_by_its_slug_and_an_unknown_one_keeps_its_text():
    for error in all_errors():
        assert type(named(error.slug, "why")) is error
    unknown = named("of_tomorrow", "why")
    assert type(unknown) is ServiceError and unknown.detail == "why (of_tomorrow)"


@pytest.mark.parametrize(
    ("spelling", "rate"),
    [(25, Fraction(25)), ("25", Fraction(25)), (29.97, Fraction(30000, 1001)), ("29.97", Fraction(30000, 1001)),
     ("30000/1001", Fraction(30000, 1001)), (23.976, Fraction(24000, 1001)), (59.94, Fraction(60000, 1001)),
     (12.5, Fraction(25, 2)), (24, Fraction(24)), (29.97002997, Fraction(30000, 1001))],
)  # fmt: skip
def test_frame_rates_are_exact_in_every_spelling(spelling, rate):
    assert parse_fps(spelling) == rate


def test_every_option_and_limit_has_a_help_text():
    for schema in (Options, Limits):
        for item in fields(schema):
            assert item.metadata["help"], item.name


def test_a_limit_must_be_positive():
    with pytest.raises(InvalidOption, match="duration_s"):
        Limits(duration_s=0)


def test_all_errors_are_lipsync_errors():
    assert all(issubclass(error, LipsyncError) for error in all_errors())

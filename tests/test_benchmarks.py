"""The page of benchmarks says what was measured and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report, serving_report
from benchmarks.tables import at_most
from lipsync.bench.rows import CPU_ROWS, CUDA_ROWS

DOCS = Path(__file__).resolve().parents[1] / "docs"
NUMBER = re.compile(r"\d+(?:\.\d+)*")


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return json.loads((DOCS / "benchmarks.json").read_text())


@pytest.fixture(scope="module")
def ladders() -> dict[str, Any]:
    return report.read_ladders()


def said(value: Any) -> Iterator[str]:
    """Every number in the results, those inside texts included."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from said(inner)
            yield from NUMBER.findall(key) if isinstance(key, str) else ()
    else:
        yield from NUMBER.findall(str(value))


def test_the_page_is_made_from_the_results(results, ladders):
    assert (DOCS / "benchmarks.md").read_text() == report.page(results, ladders)


def test_every_figure_on_the_page_stands_in_the_results_or_is_a_target(results, ladders):
    known = {number for section in report.SECTIONS if section in results for number in said(results[section])}
    known |= {str(value) for name, value in vars(report).items() if name.isupper() and isinstance(value, int | float)}
    known |= {str(value) for name, value in vars(serving_report).items() if isinstance(value, int | float)}
    known |= {"1080", "255"}  # the clips' size, and the levels of a sample
    known |= {number for result in ladders.values() for number in said(result)}
    known |= {number for row in CUDA_ROWS for number in NUMBER.findall(row.name)}
    text = re.sub(r"\]\([^)]*\)", "", report.page(results, ladders))
    unknown = [number for number in NUMBER.findall(text) if number not in known]
    assert not unknown


def test_every_measurement_is_on_the_page(results, ladders):
    assert set(results) <= set(report.SECTIONS)
    assert report.page(results, ladders).count("\n## ") == len(results) + 1 > 1


def test_a_ladder_that_was_not_measured_says_so_row_by_row():
    section = report.ladder({})
    assert section.count("not measured |") == len([row for row in CUDA_ROWS + CPU_ROWS if row.not_made is None])
    assert not re.search(r"\d frames/s|\d GB", section)


def test_a_target_that_is_missed_is_said_so():
    assert at_most(2.3, 2.2) == "**does not hold**"
    assert at_most(2.2, 2.2) == "holds"
    mark = {"machine": dict.fromkeys(("processor", "cores", "system", "python", "load"), 1), "date": "", "took_s": 1}
    clip = {"frames": 1, "clip_mb": 2, "peak_mb": 3, "peaks_mb": [3]}
    clips = {"one_minute": clip, "ten_minutes": clip}
    missed = {"memory": mark | clips | {"more_mb": 101.0, "detector": "d", "preset": "p"}}
    assert "101.0 MB more: **does not hold**" in report.page(missed)

"""The page of benchmarks says what was measured and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report

DOCS = Path(__file__).resolve().parents[1] / "docs"
NUMBER = re.compile(r"\d+(?:\.\d+)*")


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return json.loads((DOCS / "benchmarks.json").read_text())


def said(value: Any) -> Iterator[str]:
    """Every number in the results, those inside texts included."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from said(inner)
            yield from NUMBER.findall(key) if isinstance(key, str) else ()
    else:
        yield from NUMBER.findall(str(value))


def test_the_page_is_made_from_the_results(results):
    assert (DOCS / "benchmarks.md").read_text() == report.page(results)


def test_every_figure_on_the_page_stands_in_the_results_or_is_a_target(results):
    known = {number for section in report.SECTIONS if section in results for number in said(results[section])}
    known |= {str(value) for name, value in vars(report).items() if name.isupper() and isinstance(value, int | float)}
    known |= {"1080", "255"}  # the clips' size, and the levels of a sample
    text = re.sub(r"\]\([^)]*\)", "", report.page(results))
    unknown = [number for number in NUMBER.findall(text) if number not in known]
    assert not unknown


def test_every_measurement_is_on_the_page(results):
    assert set(results) <= set(report.SECTIONS)
    assert report.page(results).count("\n## ") == len(results) > 0


def test_a_target_that_is_missed_is_said_so():
    assert report.verdict(2.3, 2.2) == "**does not hold**"
    assert report.verdict(2.2, 2.2) == "holds"
    mark = {"machine": dict.fromkeys(("processor", "cores", "system", "python", "load"), 1), "date": "", "took_s": 1}
    clip = {"frames": 1, "clip_mb": 2, "peak_mb": 3, "peaks_mb": [3]}
    clips = {"one_minute": clip, "ten_minutes": clip}
    missed = {"memory": mark | clips | {"more_mb": 101.0, "detector": "d", "preset": "p"}}
    assert "101.0 MB more: **does not hold**" in report.page(missed)

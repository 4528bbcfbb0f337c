"""Markdown that the pages of figures are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def at_most(value: float, target: float) -> str:
    return "holds" if value <= target else "**does not hold**"


def at_least(value: float, target: float) -> str:
    return "holds" if value >= target else "**does not hold**"

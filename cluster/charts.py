"""Charts as PNG files, by matplotlib without its global state (``pip install 'lipsync-serve[dev]'`` brings it)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.traffic import NOT_SENT, Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2b6cb0", "#dd6b20", "#2f855a", "#805ad5", "#b83280", "#718096")
BAD = "#c53030"


def figure(*, columns: int, rows: int = 1, title: str = "") -> tuple[Figure, list[Axes]]:
    """A figure and its panels, row by row."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(5.2 * columns, 3.8 * rows), dpi=110, layout="constrained")
    panels = made.subplots(rows, columns, squeeze=False).flatten().tolist()
    if title:
        made.suptitle(title, fontsize=12)
    for panel in panels:
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    return made, panels


def name(panel: Axes, title: str, *, x: str, y: str) -> None:
    """Title and axes of a panel."""
    panel.set_title(title, fontsize=10)
    panel.set_xlabel(x, fontsize=9)
    panel.set_ylabel(y, fontsize=9)


def load_chart(outcomes: Sequence[Outcome], summary: dict[str, Any], path: Path, *, title: str) -> None:
    """Latency over the run, its distribution, and the throughput of each second."""
    made, (over_time, distribution, throughput) = figure(columns=3, title=title)
    for kind, colour in zip(summary["kinds"], COLOURS * 9, strict=False):
        of_kind = [one for one in outcomes if one.kind == kind]
        answered = [one for one in of_kind if not one.refusal]
        over_time.plot([o.due_s for o in answered], [o.latency_s for o in answered], ".", color=colour, label=kind)
        waits = sorted(one.latency_s for one in answered)
        distribution.step(
            waits, [(i + 1) / len(waits) for i in range(len(waits))], where="post", color=colour, label=kind
        )
    refused = [one for one in outcomes if one.refusal]
    if refused:
        over_time.plot([o.due_s for o in refused], [o.latency_s for o in refused], "x", color=BAD, label="refused")
    for panel in (over_time, distribution):
        panel.legend(fontsize=8, frameon=False)
    over_time.set_ylim(bottom=0)
    distribution.set_ylim(0, 1.02)
    for share in (0.5, 0.9, 0.99):
        distribution.axhline(share, color="#a0aec0", linewidth=0.7, linestyle=":")
    ends_s = [one.ended_s for one in outcomes if not one.refusal]
    step_s = max(1.0, max(ends_s, default=1.0) / 40)
    bins = [i * step_s for i in range(int(max(ends_s, default=1.0) / step_s) + 2)]
    frames = [one.frames / step_s for one in outcomes if not one.refusal]
    throughput.hist(ends_s, bins=bins, weights=frames, color=COLOURS[0], alpha=0.8)
    throughput.axvline(summary["duration_s"], color=BAD, linewidth=0.8, linestyle="--")
    lost = sum(one.refusal == NOT_SENT for one in outcomes)
    name(over_time, f"Latency ({lost} not sent)" if lost else "Latency", x="sent at, s", y="s")
    name(distribution, "Share of answers within", x="s", y="share")
    name(throughput, "Frames, when their answer ended (dashed: sending ended)", x="s", y="frames/s")
    made.savefig(path)

"""Draws the dashboard's panels from a Prometheus into one picture, where no Grafana is at hand. Wants matplotlib.

python -m cluster.plot_dashboard http://127.0.0.1:9090 dashboard.png --minutes 5
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from typing import Any

from cluster.dashboard import Panel, panels

_COLUMNS = 3
_STEPS = 120


def series(url: str, expression: str, *, minutes: float) -> list[dict[str, Any]]:
    """The expression's lines over the last minutes. Raises URLError, and HTTPError where Prometheus refuses it."""
    end_s = time.time()
    asked = {"query": expression, "start": end_s - minutes * 60, "end": end_s, "step": max(1, minutes * 60 / _STEPS)}
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{urllib.parse.urlencode(asked)}", timeout=30) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def name(legend: str, labels: dict[str, str]) -> str:
    """The legend with its {{labels}} filled in."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend)


def draw(axes: Any, panel: Panel, url: str, *, minutes: float) -> None:
    """One panel: its lines, or that there is nothing to see."""
    drawn = 0
    for expression, legend in panel.queries:
        for line in series(url, expression, minutes=minutes):
            points = [(float(at_s), float(value)) for at_s, value in line["values"]]
            points = [(at_s, value) for at_s, value in points if not math.isnan(value)]
            if points:
                now_s = time.time()
                at_min = [(at_s - now_s) / 60 for at_s, _ in points]
                axes.plot(at_min, [value for _, value in points], label=name(legend, line["metric"]), linewidth=1)
                drawn += 1
    axes.set_title(f"{panel.title} [{panel.unit}]", fontsize=9)
    axes.tick_params(labelsize=7)
    axes.set_xlim(-minutes, 0)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    if drawn:
        axes.legend(fontsize=6, loc="upper left", ncols=2)
    else:
        axes.text(0.5, 0.5, f"no data (wants a {panel.wants})" if panel.wants else "no data", transform=axes.transAxes)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of the Prometheus")
    parser.add_argument("output", help="the PNG to write")
    parser.add_argument("--minutes", type=float, default=60.0, help="how far back")
    given = parser.parse_args()

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = list(panels())
    rows = -(-len(shown) // _COLUMNS)
    figure, grid = pyplot.subplots(rows, _COLUMNS, figsize=(16, 2.6 * rows), layout="constrained")
    for axes, panel in zip(grid.flat, shown, strict=False):
        draw(axes, panel, given.url, minutes=given.minutes)
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_axis_off()
    figure.supxlabel("minutes", fontsize=8)
    figure.savefig(given.output, dpi=80)


if __name__ == "__main__":
    main()

"""One part of the ladder in a process of its own: its name is the argument, JSON comes on stdin and goes to stdout.

So a start is a start, a peak of memory is one row's, and a part that fails takes no other along.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from lipsync.checkpoints import load_generator
from lipsync.engine.device import choose_device

Given = dict[str, Any]


def machine(given: Given) -> Given:
    from lipsync.bench.cost import ceilings, cost_per_frame
    from lipsync.bench.machine import machine_facts

    device = choose_device(given["device"])
    facts = machine_facts(device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    model = load_generator(given["checkpoint"])
    return {
        "machine": facts,
        "cost_per_frame": cost_per_frame(model),
        "parameters": sum(one.numel() for one in model.parameters()),
        "ceilings": ceilings(device),
    }


def seeded(given: Given) -> Given:
    """Made once and kept in a file, because it takes seconds."""
    from lipsync.bench.inputs import seeded_model

    torch.save(seeded_model().state_dict(), given["path"])
    return given


def checks(given: Given) -> Given:
    from lipsync.bench.checks import check

    return check(**given)


def row(given: Given) -> Given:
    from lipsync.bench.row import Order, measure

    return measure(Order.from_json(given))


def still(given: Given) -> Given:
    from lipsync.bench.still import measure_still

    return measure_still(load_generator(given["checkpoint"]), given["device"])


def stages(given: Given) -> Given:
    try:
        from lipsync.bench.stages import measure_stages
    except ImportError as missing:
        return {"not_measured": f"{missing.name} is not installed"}
    return measure_stages(**given)


PARTS: dict[str, Callable[[Given], Given]] = {
    "seeded": seeded,
    "machine": machine,
    "checks": checks,
    "row": row,
    "still": still,
    "stages": stages,
}


def main() -> None:
    answer, sys.stdout = sys.stdout, sys.stderr  # what libraries print is not the answer
    print(json.dumps(PARTS[sys.argv[1]](json.load(sys.stdin))), file=answer)


if __name__ == "__main__":
    main()

"""The whole measurement: correctness, the machine's ceilings, the rows, a still face, and end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lipsync.bench.row import Order
from lipsync.bench.rows import FIRST_START, SECOND_START, Row, in_order_of_running, rows_for
from lipsync.bench.table import with_shares
from lipsync.engine.device import choose_device
from lipsync.errors import EngineError, InvalidOption

REFERENCE = Row(name="fp32, exact", batch=8, precision="fp32", exact=True)
_MOST_OF_IT = 0.4
"""No part may take more than this share of the whole time."""
_LEAST_S = 10.0
"""With less time left no further part is begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to measure, how much of it, and for how long at most."""

    device: str = "auto"
    checkpoint: str | None = None
    face: str | None = None
    audio: str | None = None
    seconds: float = 40.0
    """Of voice, end to end."""
    frames: int | None = None
    """In each run of a row; None: 8192 on CUDA, 32 on a CPU."""
    runs: int = 3
    minutes: float = 8.0
    """What would take longer is left out, and said to be."""
    resume: bool = False
    """Keep what an earlier result in the same folder has, and measure what it lacks."""
    only: str = ""
    """Measure only rows whose names hold this, and nothing end to end."""


Result = dict[str, Any]
Tell = Callable[[str], None]


class Ladder:
    """Runs part after part and keeps what was found; ``tell`` hears of each."""

    def __init__(self, settings: Settings, *, tell: Tell, kept: Result | None = None) -> None:
        """``kept`` is an earlier result: what it has is kept, what it lacks is measured."""
        self._settings, self._tell = settings, tell
        self._kept: Result = kept or {}
        self._device = choose_device(settings.device)
        self._ends_s = time.monotonic() + 60 * settings.minutes
        self._what: Result = {"device": str(self._device), "checkpoint": settings.checkpoint}

    def run(self) -> Result:
        """Everything, as one JSON object. Raises EngineError where the device does not draw what it should, and
        InvalidOption where the earlier result is another machine's."""
        started = time.monotonic()
        asked, kept = self._settings, self._kept
        with tempfile.TemporaryDirectory() as folder:
            if asked.checkpoint is None:
                path = str(Path(folder) / "seeded.pth")
                self._what["checkpoint"] = self._needed("seeded", {"path": path})["path"]
            checked = self._needed("checks", self._what | {"is_trained": asked.checkpoint is not None})
            if not checked["holds"]:
                raise EngineError(f"the engine is not correct on this device, so nothing was measured: {checked}")
            result: Result = {
                "checks": checked["found"],
                "device": str(self._device),
                "generator": asked.checkpoint or "seeded weights at the published widths",
                "frames_per_run": self._frames,
                "runs": asked.runs,
            }
            result |= self._needed("machine", self._what)
            if kept:
                _refuse_another(kept, result)
                result |= {name: kept[name] for name in ("machine", "ceilings")}
            result["rows"] = self._rows(Path(folder))
            result["still_face"] = _known(kept, "still_face") or self._part("still", self._what)
            result["end_to_end"] = _known(kept, "end_to_end") or self._end_to_end(folder)
        result["took_s"] = round(time.monotonic() - started + kept.get("took_s", 0.0), 1)
        return with_shares(result)

    @property
    def _frames(self) -> int:
        return self._settings.frames or (8192 if self._device.type == "cuda" else 32)

    def _rows(self, folder: Path) -> list[Result]:
        order = Order(
            row=REFERENCE,
            frames=self._frames,
            compared=min(self._frames, 256),
            runs=self._settings.runs,
            cache=str(folder / "compiled"),
            reference=str(folder / "reference.npy"),
            started_s=time.time(),
            **self._what,
        )
        known = {row["name"]: row for row in self._kept.get("rows", []) if "not_measured" not in row}
        if SECOND_START not in known:
            known.pop(FIRST_START, None)  # the folder that it filled is gone
        running = [row for row in in_order_of_running(self._device.type) if row.name not in known]
        if running:
            self._needed("row", asdict(order))
        found: dict[str, Result] = dict(known)
        for row in running:
            if self._settings.only not in row.name:
                found[row.name] = {"not_measured": "not asked for"}
                continue
            if row.name == SECOND_START and "not_measured" in found.get(FIRST_START, {"not_measured": ""}):
                found[row.name] = self._left_out(row.name, "there was no first start to its end")
                continue
            whole = -(-self._frames // row.batch) * row.batch  # no row is to spend its time on padding
            found[row.name] = self._part("row", asdict(replace(order, row=row, frames=whole, started_s=time.time())))
        return [
            asdict(row) | found.get(row.name, {"not_measured": row.not_made}) for row in rows_for(self._device.type)
        ]

    def _end_to_end(self, folder: str) -> Result:
        asked = self._settings
        if asked.only:
            return {"not_measured": "not asked for"}
        given = {"face": asked.face, "audio": asked.audio, "seconds": asked.seconds, "cache": f"{folder}/compiled"}
        return self._part("stages", self._what | given | {"checkpoint": asked.checkpoint})

    def _needed(self, name: str, given: Result) -> Result:
        found = self._part(name, given)
        if "not_measured" in found:
            raise EngineError(
                f"the ladder cannot go on without {name}, which was not measured: {found['not_measured']}."
            )
        return found

    def _part(self, name: str, given: Result) -> Result:
        """What that part found, or {"not_measured": why}."""
        label = given["row"]["name"] if name == "row" else name
        left_s = min(self._ends_s - time.monotonic(), _MOST_OF_IT * 60 * self._settings.minutes)
        if left_s < _LEAST_S:
            return self._left_out(label, f"the {self._settings.minutes:g} minutes were over")
        started = time.monotonic()
        try:
            output = _run(name, json.dumps(given), timeout_s=left_s)
        except subprocess.TimeoutExpired:
            return self._left_out(label, f"not done within {left_s:.0f} s")
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
            return self._left_out(label, f"it failed: {lines[-1][:300]}")
        found: Result = json.loads(output.splitlines()[-1])
        self._tell(f"{label}: {time.monotonic() - started:.0f} s")
        return found

    def _left_out(self, label: str, reason: str) -> Result:
        self._tell(f"{label}: not measured: {reason}")
        return {"not_measured": reason}


def _known(kept: Result, name: str) -> Result | None:
    found: Result = kept.get(name, {"not_measured": ""})
    return None if "not_measured" in found else found


def _refuse_another(kept: Result, now: Result) -> None:
    """What stands in one table was measured on one machine, with one generator, in one way."""
    for what in ("device", "generator", "frames_per_run", "runs"):
        if kept[what] != now[what]:
            raise InvalidOption(
                f"the earlier result has {what} {kept[what]}, this one {now[what]}: leave --resume out."
            )
    for what in ("processor", "torch", "chip"):
        before, after = kept["machine"].get(what), now["machine"].get(what)
        if (before or {}) != (after or {}) and (what != "chip" or before["name"] != after["name"]):
            raise InvalidOption(f"the earlier result is another machine's ({what} {before}): leave --resume out.")


def _run(part: str, given: str, *, timeout_s: float) -> str:
    """What the part printed. Raises TimeoutExpired and CalledProcessError; no process of its is left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lipsync.bench.child", part],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # torch's compiler starts processes of its own
    )
    try:
        output, errors = process.communicate(given, timeout=timeout_s)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, part, output, errors)
    return output

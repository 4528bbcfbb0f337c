"""One batch on the device: staged, drawn, and drawn apart where the whole failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, Protocol

import numpy as np

from lipsync.batcher.queue import F, Part
from lipsync.batcher.settings import BatchReport
from lipsync.core import F32, I32, U8
from lipsync.errors import EngineError


class Device(Protocol[F]):
    """What draws: an engine. ``stage`` may run beside ``draw``; neither runs beside itself."""

    @property
    def batch_size(self) -> int:
        """Frames that are best drawn together."""
        ...

    @property
    def healthy(self) -> bool:
        """False once it can never draw again."""
        ...

    def check(self, crops: U8, crop_index: I32, mel: F32, mel_starts: I32) -> F:
        """One caller's frames. Raises InputError where they are at fault."""
        ...

    def stage(self, parts: Sequence[F]) -> F:
        """Several callers' frames in a row, made ready to draw."""
        ...

    def draw(self, frames: F) -> U8:
        """A patch per frame, in order; the first axis counts frames."""
        ...


@dataclass(slots=True, eq=False)
class Batch(Generic[F]):
    """Frames chosen for one pass over the device, and what became of them."""

    parts: list[Part[F]]
    room: int
    staging: Future[F] | None = None
    started_s: float = 0.0
    drawing_s: float = 0.0
    outcomes: list[tuple[Part[F], U8 | Exception]] = field(default_factory=list)
    """Of the parts that were drawn or failed; the others' callers had gone before the batch began."""
    retried: int = 0

    @property
    def frames(self) -> int:
        return sum(len(part) for part, _ in self.outcomes)

    @property
    def requests(self) -> int:
        return len({part.ticket.request or part.ticket.number for part, _ in self.outcomes})

    @property
    def waited_s(self) -> tuple[float, ...]:
        return tuple(self.started_s - part.ticket.since_s for part, _ in self.outcomes)

    def report(self, *, failed: int) -> BatchReport:
        return BatchReport(
            self.frames, self.room, self.requests, self.waited_s, self.drawing_s, retried=self.retried, failed=failed
        )

    @property
    def error(self) -> Exception | None:
        """The first, if any."""
        return next((outcome for _, outcome in self.outcomes if isinstance(outcome, Exception)), None)


def stage(device: Device[F], parts: Sequence[Part[F]]) -> F:
    return device.stage([part.frames() for part in parts])


def draw(device: Device[F], batch: Batch[F], clock: Callable[[], float]) -> None:
    """Draw the batch and fill in its outcomes; errors become outcomes. Parts that nobody waits for are left out."""
    batch.started_s = clock()
    wanted = [part for part in batch.parts if part.is_wanted]
    if wanted:
        staging = batch.staging if len(wanted) == len(batch.parts) else None
        batch.outcomes = _draw_together(device, wanted, staging)
        failed = [part for part, outcome in batch.outcomes if isinstance(outcome, Exception)]
        if failed and len(wanted) > 1 and device.healthy:
            batch.outcomes = [outcome for part in wanted if part.is_wanted for outcome in _draw_alone(device, part)]
            batch.retried = len(batch.outcomes)
        for part, outcome in batch.outcomes:
            part.ticket.has_failed |= isinstance(outcome, Exception)
    batch.drawing_s = clock() - batch.started_s


def _draw_alone(device: Device[F], part: Part[F]) -> list[tuple[Part[F], U8 | Exception]]:
    return _draw_together(device, [part], None)


def _draw_together(
    device: Device[F], parts: list[Part[F]], staging: Future[F] | None
) -> list[tuple[Part[F], U8 | Exception]]:
    count = sum(len(part) for part in parts)
    try:
        frames = staging.result() if staging is not None else stage(device, parts)
        patches = device.draw(frames)
        if len(patches) != count:
            raise EngineError(f"the device drew {len(patches)} patches for {count} frames. Report this as a defect.")
    except Exception as error:
        return [(part, _own(error, alone=len(parts) == 1)) for part in parts]
    found: list[tuple[Part[F], U8 | Exception]] = []
    first = 0
    for part in parts:
        found.append((part, patches[first : first + len(part)]))
        first += len(part)
    return found


def _own(error: Exception, *, alone: bool) -> Exception:
    """An error that is raised to one caller only: several must not write their tracebacks into one."""
    if alone:
        return error
    own = EngineError(str(error))
    own.__cause__ = error
    return own


def place(part: Part[F], patches: U8, *, is_all: bool) -> U8 | None:
    """Put a part's patches where they belong in their call's. Returns all of those once none is missing.

    ``is_all``: the batch drew nothing else, so that its array can be handed on as it is.
    """
    ticket = part.ticket
    if len(part) == ticket.count:
        ticket.patches = patches if is_all else patches.copy()  # a view would hold the whole batch in memory
    else:
        if ticket.patches is None:
            ticket.patches = np.empty((ticket.count, *patches.shape[1:]), patches.dtype)
        ticket.patches[part.start : part.stop] = patches
    ticket.drawn += len(part)
    return ticket.patches if ticket.drawn == ticket.count else None

"""Data sets on disk, made part by part: a part that is there is kept, those that are missing are made side by side."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits

T = TypeVar("T")
Make = Callable[[], Mapping[str, npt.NDArray[np.generic]]]
log = logging.getLogger(__name__)


def write_parts(parts: Mapping[Path, Make], *, workers: int) -> None:
    """Write what each ``Make`` returns to its path (npz), ``workers`` processes at a time.

    Every ``Make`` is pickled, so it is a ``functools.partial`` of a module's function. The parts do not depend on how
    many processes make them, as long as each draws from a generator of its own.
    """
    missing = {path: make for path, make in parts.items() if not path.exists()}
    if not missing:
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of BLAS and OpenMP half alive
    count = min(workers, len(missing))
    # A process for every part: the synthesiser remembers what it said before, and a part must not depend on that.
    with ProcessPoolExecutor(count, context, _keep_to_one_core, max_tasks_per_child=1) as pool:
        made = {pool.submit(_write, path, make): path for path, make in missing.items()}
        try:
            for one in as_completed(made):
                log.info("%s: made in %.0f s", made[one].name, one.result())
        except BaseException:  # also Ctrl-C: parts that have begun may end, no other begins
            pool.shutdown(cancel_futures=True)
            raise


def apart(work: Callable[[], T]) -> T:
    """What the work returns, done in a process of its own, as every part is: a ``functools.partial`` that pickles."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _keep_to_one_core) as pool:
        return pool.submit(work).result()


def _write(path: Path, make: Make) -> float:
    began = time.monotonic()
    unfinished = path.with_suffix(".tmp.npz")
    np.savez(unfinished, **make())  # type: ignore[arg-type]
    unfinished.replace(path)
    return time.monotonic() - began


def _keep_to_one_core() -> None:
    """One thread a process, BLAS' others would only spin, and take the core from the process beside."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: parts that have begun may end
    threadpool_limits(1)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)

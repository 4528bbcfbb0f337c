"""Fixtures that every test may use."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"


def pytest_configure() -> None:
    """Ctrl-C as in a terminal, for the tests and what they start: a shell has it ignored in what it starts behind."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real media beside the project; the test skips where there is none."""
    if not ASSETS.is_dir():
        pytest.skip(f"no real media at {ASSETS}")
    return ASSETS


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)

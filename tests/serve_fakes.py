"""The served application without Ray: its own classes behind handles that call in this process."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from lipsync.core import F32, I32, U8, Claim
from lipsync.flow import Ahead
from serve.admission import Admission
from serve.settings import AdmissionSettings
from tests.fakes import window_of


class FakeBooks:
    """A handle of the Admission deployment: ``.method.remote(...)``; ``fault`` makes every call fail that way."""

    def __init__(self, settings: AdmissionSettings, *, fault: BaseException | None = None, delay_s: float = 0.0):
        self.real = Admission(settings)
        self.fault, self.delay_s = fault, delay_s
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> _Method:
        return _Method(self, name)


class _Method:
    def __init__(self, books: FakeBooks, name: str):
        self._books, self._name = books, name

    def remote(self, *args: Any) -> asyncio.Future[Any]:
        self._books.calls.append(self._name)
        # a call that was made is carried out, also when whoever made it goes away
        return asyncio.shield(asyncio.ensure_future(self._answer(args)))

    async def _answer(self, args: tuple[Any, ...]) -> Any:
        await asyncio.sleep(self._books.delay_s)
        if self._books.fault is not None:
            if self._name == "leave":  # nobody waits for it: its failure would be reported as forgotten
                return None
            raise self._books.fault
        return await getattr(self._books.real, self._name)(*args)


class LocalHandle:
    """A handle whose only replica is an object in this process."""

    def __init__(self, replica: Any, *, method_name: str = "", stream: bool = False):
        self._replica, self._method_name, self._stream = replica, method_name, stream

    def _init(self, **_: Any) -> None:
        pass

    def options(self, *, method_name: str, stream: bool = False, _by_reference: bool) -> LocalHandle:
        return LocalHandle(self._replica, method_name=method_name, stream=stream)

    def remote(self, *args: Any, **named: Any) -> Any:
        called = getattr(self._replica, self._method_name)(*args, **named)
        return _Streamed(called) if self._stream else _Asked(called)


class _Asked:
    """An answer to come; as with Ray's, whoever stops waiting for it does not stop the work."""

    def __init__(self, called: Any):
        self._working = asyncio.ensure_future(called)

    def __await__(self) -> Any:
        return asyncio.shield(self._working).__await__()

    def cancel(self) -> None:
        self._working.cancel()


class _Streamed:
    """Runs in a task of its own, as it would on a replica, until it ends or is cancelled."""

    def __init__(self, items: Any):
        self._ahead: Ahead[Any] = Ahead(items, ahead=2)
        self._closing: asyncio.Future[None] | None = None

    def __aiter__(self) -> Ahead[Any]:
        return self._ahead

    def cancel(self) -> None:
        self._closing = asyncio.ensure_future(self._ahead.aclose())


class Speaking:
    """Draws each crop with its lower half as bright as what it hears is loud. ``fault_after`` frames it raises
    ``fault``; each call takes ``call_s``."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.frames = 0
        self.call_s = 0.0
        self.fault: BaseException | None = None
        self.fault_after = 0

    async def generate(self, crops: U8, crop_index: I32, mel: F32, mel_starts: I32, *, claim: Claim) -> U8:
        await asyncio.sleep(self.call_s)
        if self.fault is not None and self.frames >= self.fault_after:
            raise self.fault
        self.frames += len(crop_index)
        patches = crops[crop_index].copy()
        for patch, start in zip(patches, mel_starts.tolist(), strict=True):
            patch[48:] = np.uint8(128 + 30 * float(window_of(mel, start).mean()))
        return patches

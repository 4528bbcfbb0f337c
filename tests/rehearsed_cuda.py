"""A stand-in for ``torch.cuda`` on a CPU, strict about what a real device forgives most of the time.

Operations run at once, on the CPU, and are entered as if the stream that is current had run them later. Fails with
``Unordered`` where one stream, or the host, touches memory that another wrote or reads without an event between them;
where memory goes back to the allocator while a stream that is not its own may still use it; and where the host reads an
answer before it waited for it. A recorded graph's answers are garbage until it is launched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

Clock = dict[str, int]


class Unordered(RuntimeError):
    """Two streams may touch this memory in either order."""


def later(*clocks: Clock) -> Clock:
    """What is known to have passed once all of these have."""
    return {name: max(clock.get(name, 0) for clock in clocks) for clock in clocks for name in clock}


class Event:
    def __init__(self, device: RehearsedCuda) -> None:
        self._device = device
        self.clock: Clock = {}

    def query(self) -> bool:
        """A device that is slow: nothing has passed before the host waited for it."""
        return later(self._device.host, self.clock) == self._device.host

    def synchronize(self) -> None:
        self._device.host = later(self._device.host, self.clock)


class Stream:
    def __init__(self, device: RehearsedCuda, name: str) -> None:
        self._device, self.name = device, name
        self.clock: Clock = {}

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event(self._device)
        self.clock = later(self.clock, self._device.host)
        event.clock = dict(self.clock)
        return event

    def wait_event(self, event: Event) -> None:
        self.clock = later(self.clock, event.clock)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def synchronize(self) -> None:
        self._device.host = later(self._device.host, self.clock)


@dataclass
class Memory:
    """One storage: who allocated it, when each stream last wrote and read it."""

    storage: Any  # kept, so that its address is given to no other until it is forgotten here
    owner: str | None  # None: the host's
    written: Clock = field(default_factory=dict)
    read: Clock = field(default_factory=dict)


class CUDAGraph:
    """Operations that were recorded, to be run again on the same memory."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.own: set[int] = set()
        self.device: RehearsedCuda | None = None

    def replay(self) -> None:
        assert self.device is not None, "it was never recorded"
        self.device.replay(self)


class RehearsedCuda(TorchDispatchMode):
    """The names of ``torch.cuda`` that the engine uses. Entered, it watches every operation of this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.host: Clock = {}
        self._streams: list[Stream] = []
        self._default = self.Stream()
        self._current = self._default
        self._memory: dict[int, Memory] = {}
        self._recording: CUDAGraph | None = None
        self._watching = True
        self.fits = 10**9
        """Frames of the largest graph that can be recorded."""
        self.launches = 0

    # What the engine calls.

    def Stream(self) -> Stream:
        self._streams.append(Stream(self, f"stream {len(self._streams)}"))
        return self._streams[-1]

    def Event(self, *, blocking: bool) -> Event:
        return Event(self)

    def current_stream(self) -> Stream:
        return self._current

    def device(self, _device: torch.device) -> Any:
        return nullcontext()

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def graph_pool_handle(self) -> object:
        return object()

    CUDAGraph = CUDAGraph

    @contextmanager
    def graph(self, graph: CUDAGraph, *, pool: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert pool is not None and capture_error_mode == "thread_local"
        self._synchronise()  # as torch.cuda.graph does
        graph.device, self._recording = self, graph
        try:
            with self.stream(stream):
                yield
        finally:
            self._recording = None
        for out in (out for *_, outs in graph.calls for out in outs):
            self._unwatched(lambda out=out: out.fill_(1) if out.dtype == torch.bool else out.fill_(77))

    def empty_cache(self) -> None:
        self.forget_freed()

    # Memory.

    def host_tensor(self, tensor: Tensor) -> Tensor:
        """Enter a tensor as the host's own memory."""
        self._of(tensor, owner=None)
        return tensor

    def read_by_host(self, tensor: Tensor) -> None:
        self._must_have_passed(self._of(tensor, owner=None).written, self.host, "the host reads", tensor)

    def forget_freed(self) -> None:
        """Look at memory that nobody holds any more: may its owner give it away at once?"""
        for address, memory in list(self._memory.items()):
            if torch._C._storage_Use_Count(memory.storage._cdata) > 1:  # type: ignore[attr-defined]
                continue
            del self._memory[address]
            if memory.owner is None:
                continue
            owner = next(stream for stream in self._streams if stream.name == memory.owner)
            passed = later(owner.clock, self.host)
            for name, at in later(memory.written, memory.read).items():
                if name != memory.owner and at > passed.get(name, 0):
                    raise Unordered(f"memory of {memory.owner} is freed while {name} may still use it")

    def _of(self, tensor: Tensor, *, owner: str | None) -> Memory:
        storage = tensor.untyped_storage()
        return self._memory.setdefault(storage.data_ptr(), Memory(storage, owner))

    def _must_have_passed(self, what: Clock, known: Clock, who: str, tensor: Tensor) -> None:
        for name, at in what.items():
            if at > known.get(name, 0):
                raise Unordered(f"{who} {tuple(tensor.shape)} {tensor.dtype} that {name} may still be busy with")

    def _synchronise(self) -> None:
        self.host = later(self.host, *(stream.clock for stream in self._streams))

    # Operations.

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        done = func(*args, **kwargs)
        if self._watching:
            given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
            made = [one for one in tree_flatten(done)[0] if isinstance(one, Tensor)]
            self._enter(given, made, self._written_by(func, args, kwargs))
            if self._recording is not None:
                self._record(func, args, kwargs, given, made)
        return done

    def _written_by(self, func: Any, args: Any, kwargs: Any) -> list[Tensor]:
        marked = [
            kwargs.get(about.name, args[k] if k < len(args) else None)
            for k, about in enumerate(func._schema.arguments)
            if about.alias_info is not None and about.alias_info.is_write
        ]
        return [one for one in tree_flatten(marked)[0] if isinstance(one, Tensor)]

    def _enter(self, given: list[Tensor], made: list[Tensor], written: list[Tensor]) -> None:
        self.forget_freed()
        addresses = {one.untyped_storage().data_ptr() for one in given}
        new = [one for one in made if one.untyped_storage().data_ptr() not in addresses]
        if made and not new and not written:
            return  # another view of the same memory: nothing moves
        stream = self._current
        stream.clock = later(stream.clock, self.host)
        now = stream.clock[stream.name] = stream.clock.get(stream.name, 0) + 1
        for one in given:
            memory = self._of(one, owner=None)  # not seen before: a number, or the model as it was given
            self._must_have_passed(memory.written, stream.clock, f"{stream.name} reads", one)
            memory.read[stream.name] = now
        for one in [*new, *written]:
            memory = self._of(one, owner=stream.name)
            self._must_have_passed(later(memory.written, memory.read), stream.clock, f"{stream.name} writes", one)
            memory.written[stream.name] = now

    # Graphs.

    def _record(self, func: Any, args: Any, kwargs: Any, given: list[Tensor], made: list[Tensor]) -> None:
        graph = self._recording
        assert graph is not None
        if any(len(one) > self.fits for one in given if one.dtype == torch.uint8):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        held = {one.untyped_storage().data_ptr() for one in given}
        outs = [one for one in made if one.untyped_storage().data_ptr() not in held]
        graph.own |= {one.untyped_storage().data_ptr() for one in outs}
        graph.calls.append((func, args, kwargs, outs))

    def replay(self, graph: CUDAGraph) -> None:
        self.launches += 1
        tensors = [one for call in graph.calls for one in tree_flatten(call[1:])[0] if isinstance(one, Tensor)]
        inside = [one for one in tensors if one.untyped_storage().data_ptr() in graph.own]
        outside = [one for one in tensors if one.untyped_storage().data_ptr() not in graph.own]
        self._enter(outside, [], inside)
        self._unwatched(lambda: self._run_again(graph))

    def _run_again(self, graph: CUDAGraph) -> None:
        for func, args, kwargs, outs in graph.calls:
            made = [one for one in tree_flatten(func(*args, **kwargs))[0] if isinstance(one, Tensor)]
            for out, one in zip(outs, made, strict=bool(outs)):
                out.copy_(one)

    def _unwatched(self, work: Callable[[], Any]) -> Any:
        self._watching = False
        try:
            return work()
        finally:
            self._watching = True


class Torch:
    """torch, with this device in place of ``torch.cuda``."""

    def __init__(self, cuda: RehearsedCuda) -> None:
        self.cuda = cuda

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, shape: tuple[int, ...], *, dtype: torch.dtype, pin_memory: bool) -> Tensor:
        return self.cuda.host_tensor(self.cuda._unwatched(lambda: torch.empty(shape, dtype=dtype)))

    def from_numpy(self, array: np.ndarray[Any, Any]) -> Tensor:
        return self.cuda.host_tensor(torch.from_numpy(array))


def rehearse(monkeypatch: pytest.MonkeyPatch) -> RehearsedCuda:
    """Put the stand-in under ``lipsync.engine.cuda``, and make CPU engines run on it."""
    from lipsync.engine import cuda

    device = RehearsedCuda()
    to, numpy = Tensor.to, Tensor.numpy

    def copied(tensor: Tensor, *args: Any, non_blocking: bool = False, **kwargs: Any) -> Tensor:
        return tensor.clone() if non_blocking else to(tensor, *args, **kwargs)

    def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        device.read_by_host(tensor)
        return numpy(tensor, *args, **kwargs)

    monkeypatch.setattr(cuda, "torch", Torch(device))
    monkeypatch.setattr(Tensor, "to", copied)
    monkeypatch.setattr(Tensor, "numpy", read)
    monkeypatch.setattr("lipsync.engine.engine.open_runner", cuda.CudaRunner)
    return device

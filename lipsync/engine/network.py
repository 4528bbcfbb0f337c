"""The generator laid out for each number format: folded, channels_last, packed, compiled; made when first needed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lipsync.engine.device import DTYPES
from lipsync.engine.info import Techniques
from lipsync.engine.packed import can_pack, pack
from lipsync.engine.runner import Run
from lipsync.engine.step import Step
from lipsync.model.folding import fold
from lipsync.model.wav2lip import Wav2Lip
from lipsync.options import Precision

_SHAPES = 64


class Network:
    """One set of weights, as a ``Run`` in every number format, quickest at one batch size. ``model`` is left alone."""

    def __init__(self, model: Wav2Lip, *, device: torch.device, techniques: Techniques, batch_size: int) -> None:
        self._model = fold(model) if techniques.folded else copy.deepcopy(model).eval()
        self._model.output_block[2] = TellingSigmoid()
        self._device, self._batch_size = device, batch_size
        self._channels_last = techniques.channels_last
        self._packed = techniques.packed and techniques.folded and techniques.channels_last and device.type == "cpu"
        self._steps: dict[Precision, Step] = {}

    def plain(self, precision: Precision) -> Run:
        """Layer by layer."""
        if precision not in self._steps:
            model, dtype = self._laid_out(precision), DTYPES[precision]
            self._steps[precision] = self._step(
                pack(model, self._batch_size) if self._packed and can_pack(dtype) else model, dtype
            )
        return self._steps[precision]

    def compiled(self, precision: Precision) -> Run:
        """Compiled for each shape when it is first run at it."""
        # Not mode="max-autotune": the graphs that it would record belong to one thread and to torch's own bookkeeping.
        options: dict[str, Any] = (
            {"max_autotune": True, "coordinate_descent_tuning": True} if self._device.type == "cuda" else {}
        )
        step = self._step(self._laid_out(precision), DTYPES[precision])  # not packed: the compiler does that itself
        run: Run = torch.compile(step, dynamic=False, options=options)
        return run

    def _laid_out(self, precision: Precision) -> Wav2Lip:
        dtype = DTYPES[precision]
        is_base = self._device.type == "cpu" and dtype == torch.float32
        model = self._model if is_base else copy.deepcopy(self._model).to(self._device, dtype)
        if self._channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def _step(self, model: Wav2Lip, dtype: torch.dtype) -> Step:
        return Step(model, device=self._device, dtype=dtype, channels_last=self._channels_last)


class TellingSigmoid(nn.Module):
    """The sigmoid, but NaN where the logit is infinite: that is an overflow on the way, which 0 or 1 would hide."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.sigmoid().masked_fill(logits.isinf(), torch.nan)


@contextmanager
def while_compiling(device: torch.device) -> Iterator[None]:
    """Around the first run at each shape, when torch compiles.

    It compiles one network for as many shapes as there are buckets; else it stops at eight in silence. For a CPU the
    weights are frozen: torch looks at that switch while it traces, when the options of ``torch.compile`` are not yet in
    force, and without it leaves convolutions as they are.
    """
    from torch._inductor import config

    freezing = config.patch(freezing=device.type == "cpu")
    with torch._dynamo.config.patch(recompile_limit=_SHAPES), freezing:
        yield


def is_compile_failure(error: BaseException) -> bool:
    """Whether torch could not compile, as opposed to a device that failed while it ran."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)

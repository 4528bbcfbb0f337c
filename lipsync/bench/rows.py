"""The ladder's rows: the original's five steps, then one technique of ours at a time, then what was left."""

from __future__ import annotations

from dataclasses import dataclass

from lipsync.engine.device import MatmulPrecision
from lipsync.engine.info import PLAIN, Techniques
from lipsync.options import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to run the generator. ``name`` is its key in the results."""

    name: str
    batch: int
    precision: Precision
    techniques: Techniques = Techniques()
    compile: bool = False
    matmul: MatmulPrecision = "high"
    exact: bool = False
    all_buckets: bool = False
    """The engine's usual buckets instead of this batch alone: what its start costs as a service has it."""
    through_batcher: bool = False
    """Segments of many requests at once through the frame batcher, instead of one long call."""
    not_made: str | None = None
    """Why this project has no such row to run."""


FIRST_START, SECOND_START = "ours 5, all buckets, first start", "ours 5, all buckets, second start"
_LAYERS = Techniques(folded=False, packed=False, graphs=False, in_flight=1)
_FOLDED = Techniques(graphs=False, in_flight=1)

CUDA_ROWS = (
    Row(name="original 1: batch 128, fp32", batch=128, precision="fp32", techniques=PLAIN, matmul="highest"),
    Row(name="original 2: batch 512", batch=512, precision="fp32", techniques=PLAIN, matmul="highest"),
    Row(name="original 3: + fp16", batch=512, precision="fp16", techniques=PLAIN),
    Row(name="original 4: + compile", batch=512, precision="fp16", techniques=PLAIN, compile=True),
    Row(name="original 5: batch 1024", batch=1024, precision="fp16", techniques=PLAIN, compile=True),
    Row(name="ours 1: original 3 + channels_last", batch=512, precision="fp16", techniques=_LAYERS),
    Row(name="ours 2: + folding", batch=512, precision="fp16", techniques=_FOLDED),
    Row(name="ours 3: + graphs", batch=512, precision="fp16", techniques=Techniques(in_flight=1)),
    Row(name="ours 4: + two batches in flight", batch=512, precision="fp16"),
    Row(name="ours 5: + compile (the default)", batch=512, precision="fp16", compile=True),
    Row(name="ours 5, batch 256", batch=256, precision="fp16", compile=True),
    Row(name="ours 5, batch 1024", batch=1024, precision="fp16", compile=True),
    Row(name="ours 5, bf16", batch=512, precision="bf16", compile=True),
    Row(name="ours 4, bf16", batch=512, precision="bf16"),
    Row(name="ours 4, fp32 with TF32", batch=512, precision="fp32"),
    Row(name="ours 4, fp32 without TF32", batch=512, precision="fp32", matmul="highest"),
    Row(name=FIRST_START, batch=512, precision="fp16", compile=True, all_buckets=True),
    Row(name=SECOND_START, batch=512, precision="fp16", compile=True, all_buckets=True),
    Row(
        name="ours 5, through the frame batcher",
        batch=512,
        precision="fp16",
        compile=True,
        all_buckets=True,
        through_batcher=True,
    ),
    Row(name="TensorRT", batch=512, precision="fp16", not_made="no such backend is made: see the decision on backends"),
    Row(name="fp8", batch=512, precision="fp16", not_made="no such backend is made: see the decision on backends"),
)

CUDA_ORDER = (
    "ours 4: + two batches in flight",
    FIRST_START,
    SECOND_START,
    "ours 5: + compile (the default)",
    "ours 5, through the frame batcher",
    "original 1: batch 128, fp32",
    "original 2: batch 512",
    "original 3: + fp16",
    "ours 1: original 3 + channels_last",
    "ours 2: + folding",
    "ours 3: + graphs",
    "ours 4, bf16",
    "ours 4, fp32 with TF32",
    "ours 4, fp32 without TF32",
    "original 4: + compile",
    "original 5: batch 1024",
    "ours 5, batch 1024",
    "ours 5, batch 256",
    "ours 5, bf16",
)
"""The most telling rows first: the time for all of them is bounded, and compiling takes most of it. No row before the
first start compiles, so that it finds nothing compiled."""

CPU_ROWS = (
    Row(name="cpu 1: plain, fp32", batch=8, precision="fp32", techniques=PLAIN),
    Row(name="cpu 2: + channels_last", batch=8, precision="fp32", techniques=_LAYERS),
    Row(name="cpu 3: + folding", batch=8, precision="fp32", techniques=Techniques(packed=False)),
    Row(name="cpu 4: + packing (the default)", batch=8, precision="fp32"),
    Row(name="cpu 4, bf16", batch=8, precision="bf16"),
    Row(name="cpu 4, through the frame batcher", batch=8, precision="fp32", through_batcher=True),
)
"""Without compiling, which takes a CPU minutes: ``benchmarks/engine.py`` has it, and onnxruntime, in turns."""


def rows_for(device_type: str) -> tuple[Row, ...]:
    """In the order in which they are shown."""
    return CUDA_ROWS if device_type == "cuda" else CPU_ROWS


def in_order_of_running(device_type: str) -> list[Row]:
    if device_type != "cuda":
        return list(CPU_ROWS)
    made = {row.name: row for row in CUDA_ROWS if row.not_made is None}
    return [made[name] for name in CUDA_ORDER]

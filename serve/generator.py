"""The Generator: a replica with a GPU or a share of one; the engine and its frame batcher. Never sees media."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Any

from lipsync.batcher import BatchReport, FrameBatcher
from lipsync.checkpoints import load_generator
from lipsync.compile_cache import usual_compile_cache
from lipsync.core import F32, I32, U8, Claim
from lipsync.engine import Engine
from lipsync.errors import CheckpointNotFound, EngineError
from lipsync.metrics import BatchMeter
from lipsync.weights import default_checkpoint

from .metrics import RayMeters
from .settings import BatchingSettings, Settings

log = logging.getLogger("ray.serve")
_LAST_WORDS_S = 0.3


class Generator:
    """Ready when its checkpoint is loaded and every bucket has been compiled and run once."""

    def __init__(self, settings: Settings, device: str) -> None:
        os.environ.pop(settings.auth.keys_env, None)
        began = time.monotonic()
        self._engine, self._note = self.load(settings, device)
        self._meter = BatchMeter(RayMeters(), buckets=self._engine.info.buckets)
        self._batcher = FrameBatcher(self._engine, on_batch=self.on_batch)
        self._stuck_after_s = settings.generator.stuck_after_s
        warm_up_s = self._batcher.on_device(self._engine.warm_up).result()
        log.info(f"generator {self._note} on {self._engine.info.device_name}: warmed up in {warm_up_s:.1f} s")
        self._start_up_s = time.monotonic() - began

    def load(self, settings: Settings, device: str) -> tuple[Engine, str]:
        """The engine, and a word on what it draws with. Raises CheckpointError and its kin, DeviceUnavailable."""
        chosen = settings.generator
        path = settings.checkpoint or default_checkpoint()
        if path is None:
            raise CheckpointNotFound("No generator is packaged here, and no checkpoint is set. Set args.checkpoint.")
        engine = Engine(
            load_generator(path, trust_torchscript=settings.trust_torchscript),
            device=device,
            precision="fp32" if device == "cpu" else chosen.precision,
            batch_size=chosen.batch_size,
            compile="auto" if chosen.compile else False,
            compile_cache=chosen.compile_cache or usual_compile_cache(),
            compile_cache_bytes=chosen.compile_cache_bytes,
            compile_cache_ttl_s=chosen.compile_cache_ttl_s,
            memory_fraction=chosen.gpus if device == "cuda" and chosen.gpus < 1 else None,
            exact=chosen.exact,
            threads=chosen.threads,
        )
        return engine, Path(path).name if settings.checkpoint else f"packaged default, {Path(path).name}"

    def on_batch(self, report: BatchReport) -> None:
        """One batch was drawn; called on a thread of the batcher's."""
        self._meter.on_batch(report)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """New batching settings, while frames are being drawn. Raises pydantic's ValidationError."""
        self._batcher.configure(BatchingSettings.model_validate(user_config).for_batcher())

    async def generate(self, crops: U8, crop_index: I32, mel: F32, mel_starts: I32, *, claim: Claim) -> U8:
        """See ``lipsync.render.Generator``. A device that failed for good takes its process along: nothing else mends
        it, and callers that try again should meet another one."""
        try:
            return await self._batcher.generate(crops, crop_index, mel, mel_starts, claim=claim)
        except EngineError:
            if not self._batcher.healthy:
                log.exception("the device has failed; this replica ends itself")
                asyncio.get_running_loop().call_later(_LAST_WORDS_S, os._exit, 1)
            raise

    async def describe(self) -> dict[str, Any]:
        """What draws here, as ``/v1/models`` shows it."""
        info = self._engine.info
        return {
            "id": "wav2lip",
            "checkpoint": self._note,
            "device": info.device_name,
            "precision": info.precision,
            "batch_size": info.batch_size,
            "buckets": list(info.buckets),
            "compiled": info.compiled,
            "parameters": info.parameters,
            "start_up_s": round(self._start_up_s, 2),
        }

    def check_health(self) -> None:
        """Raises EngineError where the device has failed for good or does not answer: Ray then replaces the replica."""
        self._refresh()
        if not self._batcher.healthy:
            raise EngineError("The device has failed. This replica wants replacing.")
        if self._batcher.drawing_for_s > self._stuck_after_s:
            raise EngineError(f"A batch has been on the device for {self._batcher.drawing_for_s:.0f} s. It is stuck.")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """For ``serve.autoscaling``: how much waits here, how fast it goes away, and how busy that is."""
        counts = self._refresh()
        return {
            "queued_frames": float(counts.queued_frames + counts.held_frames),
            "frames_per_s": self._meter.frames_per_s,
            "busy_ratio": self._meter.busy_ratio,
        }

    def _refresh(self) -> Any:
        counts, engine = self._batcher.counts, self._engine.counts
        self._meter.refresh(counts, out_of_memory=engine.out_of_memory, redone=engine.redone)
        return counts

    def __del__(self) -> None:
        if hasattr(self, "_batcher"):
            self._batcher.close()

"""The frame batcher: many requests' frames in common batches on one device."""

from lipsync.batcher.batcher import FrameBatcher
from lipsync.batcher.drawing import Device
from lipsync.batcher.settings import BatcherCounts, BatcherSettings, BatchReport

__all__ = ["BatchReport", "BatcherCounts", "BatcherSettings", "Device", "FrameBatcher"]

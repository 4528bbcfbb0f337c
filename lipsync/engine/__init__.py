"""The engine: one device that turns crops and a mel into patches."""

from lipsync.engine.engine import Engine, EngineCounts, EngineInfo

__all__ = ["Engine", "EngineCounts", "EngineInfo"]

"""The engine: one device that turns crops and a mel into patches."""

from lipsync.engine.engine import Engine
from lipsync.engine.info import EngineCounts, EngineInfo, Techniques

__all__ = ["Engine", "EngineCounts", "EngineInfo", "Techniques"]

"""Readiness by what the controller says runs."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from serve import presence
from serve.presence import KINDS, Presence


@pytest.fixture
def controller(monkeypatch):
    """What runs, by kind; an exception is raised."""
    said = SimpleNamespace(running=dict.fromkeys(KINDS, 1), error=None, asked=0)

    def status():
        said.asked += 1
        if said.error is not None:
            raise said.error
        found = {kind: SimpleNamespace(replica_states={"RUNNING": count}) for kind, count in said.running.items()}
        return SimpleNamespace(applications={"lipsync": SimpleNamespace(deployments=found)})

    monkeypatch.setattr(presence.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(presence.serve, "status", status)
    monkeypatch.setattr(presence.serve, "get_replica_context", lambda: SimpleNamespace(app_name="lipsync"))
    return said


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_is_wanted(controller, kind):
    assert await Presence().is_whole()
    controller.running[kind] = 0
    assert not await Presence().is_whole()
    del controller.running[kind]
    assert not await Presence().is_whole()


async def test_what_was_said_holds_for_a_moment_and_while_the_controller_is_away(controller, monkeypatch):
    seen = Presence()
    assert await seen.is_whole() and await seen.is_whole()
    assert controller.asked == 1
    monkeypatch.setattr(presence, "_HOLDS_S", 0.0)
    controller.running["Generator"] = 0
    assert not await seen.is_whole()
    controller.error = ConnectionError("no controller")
    assert not await seen.is_whole()


async def test_a_controller_that_hangs_is_not_waited_for(controller, monkeypatch):
    monkeypatch.setattr(presence, "_ANSWER_WITHIN_S", 0.05)
    monkeypatch.setattr(presence, "_HOLDS_S", 0.0)
    asked = []

    def hang():
        asked.append(1)
        time.sleep(0.5)
        return SimpleNamespace(applications={})

    monkeypatch.setattr(presence.serve, "status", hang)
    began_s, seen = time.monotonic(), Presence()
    assert await seen.is_whole() and await seen.is_whole()
    assert time.monotonic() - began_s < 0.4
    assert len(asked) == 1, "every look would keep a thread that requests need"
    await asyncio.sleep(0.6)
    assert not await seen.is_whole(), "it has answered meanwhile"


async def test_a_defect_is_not_taken_for_a_controller_that_is_away(controller):
    controller.error = TypeError("a defect")
    with pytest.raises(TypeError):
        await Presence().is_whole()


async def test_where_no_ray_runs_nothing_is_asked():
    assert await Presence().is_whole()

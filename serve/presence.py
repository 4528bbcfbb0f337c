"""Whether a replica of every kind runs, as Serve's controller has it: for readiness; no request waits for it."""

from __future__ import annotations

import asyncio
import logging
import time

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.common import ReplicaState
from ray.serve.exceptions import RayServeException

log = logging.getLogger("ray.serve")
KINDS = ("Preprocessor", "Renderer", "Generator")
_HOLDS_S = 2.0
_ANSWER_WITHIN_S = 2.0
_AWAY = (RayError, RayServeException, ConnectionError, TimeoutError)


class Presence:
    """Of this replica's application. Where the controller does not answer, what it said last holds; at first, that all
    are there."""

    def __init__(self) -> None:
        self._is_whole, self._asked_s = True, -_HOLDS_S
        # WHY one at a time: a look at a controller that hangs keeps its thread, and requests need the others
        self._looking: asyncio.Future[bool] | None = None

    async def is_whole(self) -> bool:
        """Whether at least one replica of each kind was running within the last seconds."""
        if self._looking is None and time.monotonic() - self._asked_s >= _HOLDS_S:
            self._looking = asyncio.ensure_future(asyncio.to_thread(self._look))
        looking = self._looking
        if looking is None:
            return self._is_whole
        await asyncio.wait({looking}, timeout=_ANSWER_WITHIN_S)
        if looking.done() and looking is self._looking:
            self._looking, self._asked_s = None, time.monotonic()
            try:
                self._is_whole = looking.result()
            except _AWAY as error:
                log.warning(f"the controller does not say what runs ({type(error).__name__})")
        return self._is_whole

    def _look(self) -> bool:
        if not ray.is_initialized():  # local testing: there is no controller, and every replica is here
            return True
        application = serve.status().applications.get(serve.get_replica_context().app_name)
        found = application.deployments if application is not None else {}
        return all(kind in found and found[kind].replica_states.get(ReplicaState.RUNNING, 0) > 0 for kind in KINDS)

"""What an error from another replica means: whose fault it is, and whether the same work may be tried again."""

from __future__ import annotations

from typing import Literal

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    RpcError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from lipsync.errors import Closed, EngineError, LipsyncError

Fault = Literal["died", "below", "lost", "busy"]
"""died: the replica that was asked died at it. below: something that it needed failed, or it was being stopped.
lost: an object in the store is gone. busy: nobody took the call."""


class EndedEarly(Exception):
    """A call's stream ended as if all were well, before its last item."""


_DEATHS = (ActorDiedError, WorkerCrashedError, NodeDiedError, LocalRayletDiedError, OutOfMemoryError)
_BELOW = (ActorUnavailableError, RpcError, TaskCancelledError, EngineError, Closed, EndedEarly)
_LOST = (ObjectLostError,)
_BUSY = (BackPressureError, DeploymentUnavailableError, ObjectStoreFullError, OutOfDiskError)


def cause_of(error: BaseException) -> BaseException:
    """The error that was raised, without the wrapping of the replicas that it went through.

    Ray's wrapper is an instance of the error's class too, but says the remote traceback, with paths and addresses.
    """
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException) and error.cause is not error:
        error = error.cause
    return error


def fault_of(error: BaseException) -> Fault | None:
    """What went wrong, or None where trying again would be wrong: a caller's mistake, or ours."""
    cause = cause_of(error)
    if isinstance(cause, _LOST):
        return "lost"
    if isinstance(cause, _DEATHS):
        return "died" if cause is error else "below"
    if isinstance(cause, _BUSY):
        return "busy"
    if isinstance(cause, _BELOW):
        return "below"
    # Serve's own say that a call met a replica on its way out
    if isinstance(cause, RayError | RayServeException) and not isinstance(cause, LipsyncError | RayTaskError):
        return "below"
    return None

"""What an answer that is no success means: which error, whether the same request may be sent again, and when."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from lipsync.errors import (
    Closed,
    DeadlineExceeded,
    InputError,
    InputTooLarge,
    LipsyncError,
    Overloaded,
    ServiceError,
    StreamBroken,
    Unauthorized,
    WorkerLost,
    named,
)

LARGEST_PROBLEM_BYTES = 65_536
_LONGEST_TEXT = 4_000
_PASSING = (Overloaded, WorkerLost, StreamBroken, Closed)
_LASTING = (InputError, Unauthorized, DeadlineExceeded)
_BUSY_STATUSES = {429, 502, 503, 504}
_BY_STATUS: dict[int, type[LipsyncError]] = {
    401: Unauthorized,
    403: Unauthorized,
    408: DeadlineExceeded,
    413: InputTooLarge,
    429: Overloaded,
    503: Overloaded,
    504: DeadlineExceeded,
}


class Refused(Exception):
    """An attempt that failed: with which error, whether another may do better, and how long to wait at least."""

    def __init__(
        self,
        error: LipsyncError,
        *,
        may_repeat: bool = False,
        retry_after_s: float = 0.0,
        cause: Exception | None = None,
    ) -> None:
        super().__init__(error.detail)
        self.error = error
        self.may_repeat = may_repeat
        self.retry_after_s = retry_after_s
        self.cause = cause


def may_pass(error: LipsyncError) -> bool:
    """Whether the same request may succeed a little later, by the error alone."""
    return isinstance(error, _PASSING)


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> Refused:
    """What an answer with another status than 200 means.

    Our own problem document (RFC 9457) decides by its slug; anything else is a proxy's, and decides by its status.
    """
    retry_after_s = _retry_after_s(headers.get("retry-after", ""))
    problem = _problem(headers.get("content-type", ""), body)
    if problem is None:
        error = _BY_STATUS.get(status, ServiceError)(f"The server answered {status}{_said(headers, body)}")
        return Refused(error, may_repeat=status in _BUSY_STATUSES | {500}, retry_after_s=retry_after_s)
    detail = str(problem.get("detail") or problem.get("title") or f"The server answered {status}.")
    error = named(_slug(problem), detail[:_LONGEST_TEXT])
    may_repeat = may_pass(error) or (status in _BUSY_STATUSES and not isinstance(error, _LASTING))
    return Refused(error, may_repeat=may_repeat, retry_after_s=retry_after_s)


def _problem(content_type: str, body: bytes) -> dict[str, Any] | None:
    if content_type.partition(";")[0].strip().lower() != "application/problem+json":
        return None
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return problem if isinstance(problem, dict) else None


def _slug(problem: dict[str, Any]) -> str:
    """The member ``error``, or the end of the type's URI."""
    slug = problem.get("error") or str(problem.get("type", "")).rpartition("#")[2].rpartition(":")[2]
    return str(slug)[:100]


def _said(headers: Mapping[str, str], body: bytes) -> str:
    if "location" in headers:
        return f", a redirect to {headers['location'][:200]}. Give the client that server's URL."
    text = " ".join(body.decode("utf-8", "replace").split())
    return f": {text[:200]}" if text else "."


def _retry_after_s(value: str) -> float:
    """Seconds, or a date, as RFC 9110 has them; 0 for anything else."""
    try:
        if value.strip().isdecimal():
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0

"""Errors as HTTP answers: RFC 9457 problem documents with the library's slugs. Status codes live here alone."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse

from lipsync.errors import (
    Closed,
    DeadlineExceeded,
    DecodeTimeout,
    DetectorUnavailable,
    InputError,
    InputTooLarge,
    InvalidOption,
    LipsyncError,
    MalformedRequest,
    Overloaded,
    ResultTooLarge,
    ServiceError,
    Unauthorized,
    UnsupportedMedia,
    WorkerLost,
)

STATUS: dict[type[LipsyncError], int] = {
    LipsyncError: 500,
    InputError: 422,
    MalformedRequest: 400,
    InvalidOption: 400,
    DetectorUnavailable: 400,
    InputTooLarge: 413,
    UnsupportedMedia: 415,
    DecodeTimeout: 422,
    ResultTooLarge: 422,
    Unauthorized: 401,
    Overloaded: 503,
    WorkerLost: 503,
    Closed: 503,
    DeadlineExceeded: 504,
}
"""By the nearest class of an error's."""
KEY_STATUS = 429
"""An Overloaded that only this caller's own requests are the reason of."""

_SAID_TO_CALLERS = (InputError, ServiceError, ResultTooLarge)


def told(error: BaseException, request_id: str) -> LipsyncError:
    """The error as a caller may see it: what others say of the operator's files and of defects is for the log alone."""
    if isinstance(error, _SAID_TO_CALLERS):
        return error
    if not isinstance(error, LipsyncError) or type(error) is LipsyncError:
        return LipsyncError(f"Something failed that should not. The log has it under {request_id}.")
    meaning = (error.__doc__ or "").strip().partition("\n")[0]
    return type(error)(f"{meaning} The log has it under {request_id}.")


def status_of(error: LipsyncError) -> int:
    if isinstance(error, Overloaded) and error.reason == "key":
        return KEY_STATUS
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def reason_of(error: LipsyncError) -> str:
    """The label that a refusal is counted under."""
    return f"overloaded_{error.reason}" if isinstance(error, Overloaded) and error.reason else error.slug


def document(error: LipsyncError, request_id: str) -> dict[str, Any]:
    """The body, of an error that was ``told``."""
    status = status_of(error)
    return {
        "type": f"urn:lipsync:error:{error.slug}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": error.detail,
        "error": error.slug,
        "request_id": request_id,
    }


def headers(error: LipsyncError) -> dict[str, str]:
    """What goes with the document."""
    if isinstance(error, Overloaded):
        return {"Retry-After": str(math.ceil(error.retry_after_s))}
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    return {"Retry-After": "1"} if status_of(error) == HTTPStatus.SERVICE_UNAVAILABLE else {}


def answer(error: LipsyncError, request_id: str) -> JSONResponse:
    return JSONResponse(
        document(error, request_id), status_of(error), headers=headers(error), media_type="application/problem+json"
    )

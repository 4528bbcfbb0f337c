"""One logical request over all its attempts: what is sent, what the answer means, whether and when to try again.

It does no I/O of its own: both clients do as it says, and tell it what came.
"""

from __future__ import annotations

import random
import time
import uuid
from dataclasses import dataclass, fields

import httpx

from lipsync.client.receive import Receiver
from lipsync.client.refusal import LARGEST_PROBLEM_BYTES, Refused, may_pass, refusal
from lipsync.client.upload import Metered, OnTransfer, Transfer, Upload
from lipsync.errors import DeadlineExceeded, InvalidOption, LipsyncError, ServiceError, StreamBroken

CONNECT_TIMEOUT_S = 10.0
RECOVERABLE = (Refused, LipsyncError, httpx.HTTPError)
"""What ``Exchange.failed`` judges; anything else is a defect, or the caller's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often a request is sent at most, and how long to wait between: a random time, between half of a bound and all
    of it, and the bound doubles. As they stand (16 to 32 s) they outlast the restart of an Ingress or a proxy.

    A server's ``Retry-After`` is waited out in full, plus that random time; beyond ``longest_retry_after_s`` the
    refusal is raised at once. Raises InvalidOption where a number is negative or there is not even one attempt.
    """

    attempts: int = 7
    first_pause_s: float = 0.5
    longest_pause_s: float = 20.0
    longest_retry_after_s: float = 60.0

    def __post_init__(self) -> None:
        for item in fields(self):
            if not getattr(self, item.name) >= (1 if item.name == "attempts" else 0):
                raise InvalidOption(f"retries: {item.name} must not be {getattr(self, item.name)!r}.")

    def pause_s(self, attempt: int, *, retry_after_s: float = 0.0) -> float:
        """Seconds between attempt number ``attempt``, from 1, and the next."""
        bound_s = min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(attempt - 1, 60))
        return retry_after_s + random.uniform(bound_s / 2, bound_s)


class Exchange:
    """One logical request: for each attempt ``next_request``, ``begin``, ``feed``, ``finish``, or ``failed``."""

    def __init__(
        self,
        method: str,
        path: str,
        *,
        receiver: Receiver,
        retries: Retries,
        timeout_s: float | None,
        upload: Upload | None = None,
        request_id: str | None = None,
        progress: OnTransfer | None = None,
    ) -> None:
        self.request_id = request_id or uuid.uuid4().hex
        self.headers = httpx.Headers()
        self._method, self._path = method, path
        self._receiver, self._upload = receiver, upload
        self._retries = retries
        self._timeout_s = timeout_s
        self._give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
        self._progress = progress
        self._attempt = self._sent_bytes = self._received_bytes = 0
        self._status: int | None = None
        self._problem = bytearray()

    def next_request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request of the next attempt."""
        self._attempt += 1
        self._status, self._sent_bytes, self._received_bytes = None, 0, 0
        self._problem.clear()
        left_s = self._left_s()
        headers = {"X-Request-Id": self.request_id, "Accept": f"{self._receiver.media_type}, application/problem+json"}
        if self._upload is not None:
            headers |= {"Content-Type": self._upload.content_type, "Content-Length": str(self._upload.byte_count)}
        timeout = httpx.Timeout(left_s, connect=min(CONNECT_TIMEOUT_S, left_s or CONNECT_TIMEOUT_S))
        request = http.build_request(self._method, self._path, headers=headers, timeout=timeout)
        if self._upload is not None:
            request.stream = Metered(self._upload, self._sent)
        return request

    def begin(self, response: httpx.Response) -> None:
        """The answer's status and headers are here."""
        self._status, self.headers = response.status_code, response.headers
        if self._status != 200:
            return
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != self._receiver.media_type:
            raise ServiceError(
                f"The server answered with {media_type or 'no type'} in place of {self._receiver.media_type}. "
                "Give the URL of a lipsync server."
            )
        self._receiver.begin()

    def feed(self, data: bytes) -> bytes:
        """More of the answer's body; returns what is to be handed on now."""
        self._left_s()
        if self._status != 200:
            self._problem += data[: LARGEST_PROBLEM_BYTES - len(self._problem)]
            if len(self._problem) == LARGEST_PROBLEM_BYTES:
                raise self._refusal()
            return b""
        self._received_bytes += len(data)
        media = self._receiver.feed(data)
        self._tell()
        return media

    def finish(self) -> None:
        """The answer's body has ended. Raises where it was no success, or is not whole."""
        if self._status != 200:
            raise self._refusal()
        self._receiver.finish()

    def failed(self, error: Exception) -> float:
        """Seconds to wait before the next attempt. Raises what the caller is to see where there shall be none."""
        refused = self._judge(error)
        pause_s = self._retries.pause_s(self._attempt, retry_after_s=refused.retry_after_s)
        is_last = (
            not refused.may_repeat
            or self._attempt >= self._retries.attempts
            or refused.retry_after_s > self._retries.longest_retry_after_s
            or (self._give_up_at is not None and time.monotonic() + pause_s >= self._give_up_at)
        )
        if not is_last:
            self._tell(failed=refused.error)
            return pause_s
        refused.error.add_note(f"Request {self.request_id}, attempt {self._attempt} of {self._retries.attempts}.")
        if refused.retry_after_s:
            refused.error.add_note(f"The server asks to wait {refused.retry_after_s:.0f} s.")
        raise refused.error from refused.cause

    def _judge(self, error: Exception) -> Refused:
        if isinstance(error, Refused):
            return error
        if isinstance(error, LipsyncError):
            return Refused(error, may_repeat=may_pass(error), cause=error.__cause__)  # type: ignore[arg-type]
        # WHY: every wait but the one for a connection may last exactly until the deadline
        waited = isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout)
        if waited or (self._give_up_at is not None and time.monotonic() >= self._give_up_at):
            return Refused(self._too_late(), cause=error)
        said = str(error) or type(error).__name__
        if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol | httpx.DecodingError):
            return Refused(ServiceError(f"The server cannot be talked to: {said}."), cause=error)
        if self._status is None:
            return Refused(ServiceError(f"No answer from the server: {said}."), may_repeat=True, cause=error)
        broken = StreamBroken(f"The answer broke off after {self._received_bytes:,} bytes: {said}.")
        return Refused(broken, may_repeat=True, cause=error)

    def _refusal(self) -> Refused:
        assert self._status is not None
        return refusal(self._status, self.headers, bytes(self._problem))

    def _left_s(self) -> float | None:
        """Seconds until the deadline, None without one. Raises DeadlineExceeded."""
        if self._give_up_at is None:
            return None
        left_s = self._give_up_at - time.monotonic()
        if left_s <= 0:
            raise self._too_late()
        return left_s

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"The whole result was not here within timeout_s={self._timeout_s}. Give more time, or a shorter voice."
        )

    def _sent(self, byte_count: int) -> None:
        self._left_s()
        self._sent_bytes = byte_count
        self._tell()

    def _tell(self, *, failed: LipsyncError | None = None) -> None:
        if self._progress is not None:
            total = 0 if self._upload is None else self._upload.byte_count
            self._progress(Transfer(self._sent_bytes, total, self._received_bytes, self._attempt, failed))

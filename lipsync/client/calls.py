"""The API's calls, as both clients make them: what each sends, what it expects, and what its answer becomes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from lipsync.client.exchange import Exchange, Retries
from lipsync.client.receive import (
    LARGEST_IN_MEMORY_BYTES,
    LARGEST_JSON_BYTES,
    InFile,
    InMemory,
    Receiver,
    Result,
    Resumed,
)
from lipsync.client.upload import LARGEST_INPUT_BYTES, OnTransfer, Upload
from lipsync.core import Source
from lipsync.errors import InvalidBoxes, InvalidOption, ServiceError
from lipsync.media.source import Blob
from lipsync.options import Options, parse_fps

if TYPE_CHECKING:
    from lipsync.faces.given import GivenBoxes

READY_TIMEOUT_S = 5.0
_TIMING = re.compile(r"\s*([\w.-]+)\s*(?:;[^,]*?\bdur\s*=\s*([0-9.]+))")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Makes the exchange of each call. Raises InvalidOption for a URL or a key that no server could have."""

    url: str
    api_key: str | None
    timeout_s: float | None
    retries: Retries

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.url)
        except (httpx.InvalidURL, TypeError) as error:
            raise InvalidOption(f"{self.url!r} is not a URL: {error}.") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise InvalidOption(f"Give the server's URL like http://localhost:8000, not {self.url!r}.")
        if self.api_key is not None and not re.fullmatch(r"[\x21-\x7e]+", self.api_key):
            raise InvalidOption("api_key must be printable ASCII without spaces, and not empty.")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise InvalidOption(f"timeout_s must be above zero, or None for no deadline, not {self.timeout_s}.")

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries. A compressed mp4 would only cost time."""
        key = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        return {"Accept-Encoding": "identity", "User-Agent": "lipsync-client"} | key

    def lipsync(
        self,
        face: Source,
        audio: Source,
        *,
        receiver: InMemory | InFile | Resumed,
        options: Options | None,
        progress: OnTransfer | None,
        request_id: str | None,
    ) -> Exchange:
        """``POST /v1/lipsync``; as a stream where the receiver is one. Raises what is wrong with an input's file."""
        upload = Upload({"audio": _blob(audio), "face": _blob(face)}, options)
        path = "v1/lipsync?stream=true" if isinstance(receiver, Resumed) else "v1/lipsync"
        return self._exchange("POST", path, receiver, upload=upload, progress=progress, request_id=request_id)

    def faces(
        self, face: Source, *, receiver: InMemory, options: Options | None, progress: OnTransfer | None
    ) -> Exchange:
        """``POST /v1/faces``."""
        return self._exchange(
            "POST", "v1/faces", receiver, upload=Upload({"face": _blob(face)}, options), progress=progress
        )

    def get(self, path: str, *, receiver: InMemory) -> Exchange:
        """``GET`` a JSON document."""
        return self._exchange("GET", path, receiver)

    def _exchange(
        self,
        method: str,
        path: str,
        receiver: Receiver,
        *,
        upload: Upload | None = None,
        progress: OnTransfer | None = None,
        request_id: str | None = None,
    ) -> Exchange:
        if request_id is not None and not re.fullmatch(r"[\x21-\x7e]{1,128}", request_id):
            raise InvalidOption("request_id must be 1 to 128 printable ASCII characters without spaces.")
        return Exchange(
            method,
            path,
            receiver=receiver,
            retries=self.retries,
            timeout_s=self.timeout_s,
            upload=upload,
            progress=progress,
            request_id=request_id,
        )


def result_receiver(output_path: str | os.PathLike[str] | None) -> InMemory | InFile:
    """Where a whole result goes."""
    return InMemory("video/mp4", limit_bytes=LARGEST_IN_MEMORY_BYTES) if output_path is None else InFile(output_path)


def json_receiver() -> InMemory:
    """Where a JSON document goes."""
    return InMemory("application/json", limit_bytes=LARGEST_JSON_BYTES)


def whole_result(exchange: Exchange, receiver: InMemory | InFile) -> Result:
    """The result of a finished exchange; puts the file in its place. Raises ServiceError where headers are missing."""
    headers = exchange.headers
    try:
        frames, fps = int(headers["x-lipsync-frames"]), parse_fps(headers["x-lipsync-fps"])
        faces = int(headers["x-lipsync-faces"]) if "x-lipsync-faces" in headers else None
    except (KeyError, ValueError, ArithmeticError) as error:
        raise ServiceError(
            f"The answer's X-Lipsync headers are missing or wrong ({error!r}): another version?"
        ) from error
    request_id = headers.get("x-request-id", exchange.request_id)
    timings_ms = _timings_ms(headers)
    data = receiver.keep()
    return Result(request_id, frames, fps, timings_ms, faces=faces, path=receiver.path, data=data)


def stream_result(exchange: Exchange, receiver: Resumed) -> Result | None:
    """What a whole stream says of itself; None before its end."""
    if (complete := receiver.complete) is None:
        return None
    request_id = exchange.headers.get("x-request-id", exchange.request_id)
    return Result(request_id, complete.frames, complete.fps, complete.timings_ms)


def document(receiver: InMemory) -> Any:
    """The JSON document. Raises ServiceError."""
    try:
        return json.loads(receiver.keep())
    except (ValueError, RecursionError) as error:
        raise ServiceError(f"The server's answer is not the JSON that it says it is: {error}.") from error


def boxes(receiver: InMemory) -> GivenBoxes:
    """The boxes that ``/v1/faces`` answers with. Raises ServiceError where they are none."""
    from lipsync.faces.given import tracks_from_json  # brings OpenCV

    try:
        return tracks_from_json(receiver.keep())
    except InvalidBoxes as error:
        raise ServiceError(f"The server's boxes are not valid: {error.detail}") from error


def _blob(source: Source) -> Blob:
    return Blob.of(source, limit_bytes=LARGEST_INPUT_BYTES)


def _timings_ms(headers: Mapping[str, str]) -> dict[str, float]:
    found = (_TIMING.match(entry) for entry in headers.get("server-timing", "").split(","))
    return {match[1]: float(match[2]) for match in found if match is not None}

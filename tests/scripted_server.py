"""A real HTTP server on localhost that answers each request with the next step of a script, down to the bytes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from email.policy import HTTP


@dataclass
class Received:
    """One request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def parts(self) -> dict[str, bytes]:
        """The parts of a multipart body by name, read by the standard library's own parser."""
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        message = message_from_bytes(head + self.body, policy=HTTP)
        assert message.is_multipart(), "not multipart"
        return {_name(part): part.get_payload(decode=True) for part in message.iter_parts()}  # type: ignore


def _name(part: Message) -> str:
    return str(part.get_param("name", header="content-disposition"))


Step = Callable[[asyncio.StreamWriter], Awaitable[bool]]
"""Writes an answer; True where the connection stays open for the next request."""


def answer(status: int, body: bytes = b"", **headers: str) -> Step:
    """A whole answer with its length."""

    async def step(writer: asyncio.StreamWriter) -> bool:
        writer.write(_head(status, {"Content-Length": str(len(body))} | headers) + body)
        await writer.drain()
        return True

    return step


def problem(status: int, slug: str, detail: str = "what is wrong, and what to do.", **headers: str) -> Step:
    """A problem document as the application answers with."""
    document = {
        "type": f"urn:lipsync:error:{slug}", "title": slug, "status": status, "detail": detail, "error": slug, "request_id": "r1",
    }  # fmt: skip
    return answer(status, json.dumps(document).encode(), **{"Content-Type": "application/problem+json"} | headers)


def mp4(body: bytes) -> Step:
    """A whole result."""
    return answer(
        200, body, **{"Content-Type": "video/mp4", "X-Lipsync-Frames": "75", "X-Lipsync-Fps": "30000/1001", "X-Lipsync-Faces": "70",
                      "Server-Timing": 'open;dur=1.5, decode;desc="a b";dur=20, broken, total;dur=99.25', "X-Request-Id": "theirs"},
    )  # fmt: skip


def document(value: object) -> Step:
    """A JSON document."""
    return answer(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})


def cut_mp4(body: bytes, *, length: int) -> Step:
    """A result that says ``length`` bytes and breaks off before."""

    async def step(writer: asyncio.StreamWriter) -> bool:
        writer.write(_head(200, {"Content-Type": "video/mp4", "Content-Length": str(length)}) + body)
        await writer.drain()
        return False

    return step


def stream(
    *pieces: bytes,
    cut: bool = False,
    pause_s: float = 0.0,
    hang: bool = False,
    status: int = 200,
    media_type: str = "video/mp4",
) -> Step:
    """A chunked answer; ``cut`` drops the connection before its last chunk, ``hang`` waits for the client to go."""

    async def step(writer: asyncio.StreamWriter) -> bool:
        writer.write(
            _head(status, {"Content-Type": media_type, "Transfer-Encoding": "chunked", "X-Request-Id": "theirs"})
        )
        for piece in pieces:
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
            await asyncio.sleep(pause_s)
        if hang:
            await asyncio.sleep(60)
        if not cut:
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        return not cut

    return step


async def drop(writer: asyncio.StreamWriter) -> bool:
    """No answer at all: the connection is closed."""
    return False


async def hang(writer: asyncio.StreamWriter) -> bool:
    """No answer while the client waits."""
    await asyncio.sleep(60)
    return False


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode()


@dataclass
class Scripted:
    """The server. ``requests`` has what came; ``gone`` is set when a client closed while its answer was being made."""

    steps: list[Step] = field(default_factory=list)
    requests: list[Received] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    _transports: list[asyncio.WriteTransport] = field(default_factory=list)

    def __enter__(self) -> Scripted:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def _stop(self) -> None:
        for _ in range(6):  # turns of the loop until what waits is being served: asyncio would leave it open else
            await asyncio.sleep(0)
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for transport in self._transports:  # what a client has not read yet would keep them open beyond the loop
            transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._transports.append(writer.transport)
        try:
            while (received := await _read(reader)) is not None:
                self.requests.append(received)
                step = self.steps.pop(0) if self.steps else answer(500, b"the script has no more steps")
                making = asyncio.ensure_future(step(writer))
                left = asyncio.ensure_future(reader.read(1))
                await asyncio.wait({making, left}, return_when=asyncio.FIRST_COMPLETED)
                making.cancel() if left.done() else left.cancel()
                stays, _ = await asyncio.gather(making, left, return_exceptions=True)
                if isinstance(stays, BaseException):  # cancelled, or in the midst of writing
                    self.gone.set()
                if stays is not True:
                    return
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    except asyncio.IncompleteReadError:
        return None
    return Received(method, target, headers, body)

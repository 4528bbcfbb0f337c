"""The HTTP interface: routes, uploads, answers. Knows the desk and nothing of Ray's handles.

An answer's header X-Request-Id is set by Ray Serve, from the request's own or a new one (see ``request_id``).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, aclosing
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from lipsync import ending
from lipsync.core import Fragment
from lipsync.errors import InputTooLarge, MalformedRequest, Overloaded
from lipsync.flow import Ahead
from lipsync.output import stream_bytes
from lipsync.pipeline import Report

from . import problems
from .auth import Keys
from .description import STREAM, describe, limits_document
from .exporters import gather
from .form import TEXTS, options_of
from .multipart import Form, most_bytes, receive
from .request_id import harmless
from .requests import Desk, Request, timings
from .settings import Settings
from .spool import blocks

_LENGTH = re.compile(r"[0-9]{1,18}")


class Http:
    """The routes of one Ingress replica. ``models`` tells what draws, ``is_whole`` whether all kinds of worker run."""

    def __init__(
        self,
        settings: Settings,
        desk: Desk,
        keys: Keys,
        *,
        models: Callable[[], Awaitable[list[dict[str, Any]]]],
        is_whole: Callable[[], Awaitable[bool]],
    ) -> None:
        self._settings, self._desk, self._keys, self._models = settings, desk, keys, models
        self._is_whole = is_whole

    def api(self) -> FastAPI:
        """An ASGI application."""
        api = FastAPI(
            title="lipsync-serve",
            version="1",
            description="A face and a voice in, the same face speaking that voice out.",
            redoc_url=None,
            swagger_ui_oauth2_redirect_url=None,
        )
        api.exception_handler(HTTPException)(_unknown_path)
        api.exception_handler(RequestValidationError)(self._wrong_query)
        described = describe(self._settings)
        for method, path, answer in (
            ("POST", "/v1/lipsync", self.post_lipsync),
            ("POST", "/v1/faces", self.post_faces),
            ("GET", "/v1/models", self.get_models),
            ("GET", "/v1/limits", self.get_limits),
            ("GET", "/healthz", self.get_healthz),
            ("GET", "/readyz", self.get_readyz),
            ("GET", "/metrics", self.get_metrics),
        ):
            api.add_api_route(path, answer, methods=[method], response_class=Response, **described[path])
        return api

    async def post_lipsync(
        self, http: HttpRequest, stream: Annotated[bool, Query(description=STREAM)] = False
    ) -> Response:
        """The face speaking the voice: an mp4, or with `stream=true` a fragmented mp4 as it is made."""
        async with _Answering(self._desk, http) as answering:
            key = self._keys.check(http.headers.get("authorization"))
            request = await self._desk.enter(answering.stack, request_id=answering.id, key=key)
            form = await self._receive(http, request, ("face", "audio"))
            fragments = self._desk.fragments(
                request,
                face=form.files["face"],
                voice=form.files["audio"],
                options=options_of(form.texts),
                soon=stream,
            )
            answer = self._streamed if stream else self._whole
            return await answer(answering, request, fragments)
        return answering.response

    # Both have the work done by a task of its own: a caller that goes away cancels the answer, not the tidying up

    async def _streamed(
        self, answering: _Answering, request: Request, fragments: AsyncGenerator[Fragment, None]
    ) -> Response:
        made = Ahead(fragments, ahead=1)
        answering.stack.push_async_callback(made.aclose)
        data = stream_bytes(_iterated(made))
        first = await anext(data)  # errors until here are ordinary answers

        async def body() -> AsyncIterator[bytes]:
            try:
                yield first
                async for piece in data:
                    yield piece
                yield ending.complete(**_result(request.report))
            except Exception as error:
                said = self._desk.refuse(error, request_id=request.id)
                yield ending.failed(said, request_id=request.id)

        return _Holding(body(), self._desk, answering.keep())

    async def _whole(
        self, answering: _Answering, request: Request, fragments: AsyncGenerator[Fragment, None]
    ) -> Response:
        writing = asyncio.create_task(self._desk.result(request, fragments))
        answering.stack.push_async_callback(_stopped, writing)
        path = await asyncio.shield(writing)
        headers = _headers(request.report) | {"Content-Length": str(path.stat().st_size)}
        return _Holding(blocks(path), self._desk, answering.keep(), headers=headers)

    async def post_faces(self, http: HttpRequest) -> Response:
        """Where the face is, in every source frame: accepted back as the option `boxes`."""
        async with _Answering(self._desk, http) as answering:
            key = self._keys.check(http.headers.get("authorization"))
            request = await self._desk.enter(answering.stack, request_id=answering.id, key=key)
            form = await self._receive(http, request, ("face",))
            found = await self._desk.boxes(request, face=form.files["face"], options=options_of(form.texts))
            return Response(found, headers=_headers(request.report), media_type="application/json")
        return answering.response

    async def _receive(self, http: HttpRequest, request: Request, files: tuple[str, ...]) -> Form:
        limits = self._settings.limits
        most = {
            "face": max(limits.video_bytes, limits.image_bytes),
            "audio": max(limits.video_bytes, limits.audio_bytes),
        }
        allowed = {name: most[name] for name in files}
        declared = http.headers.get("content-length", "0")
        if _LENGTH.fullmatch(declared) and int(declared) > most_bytes(allowed):
            raise InputTooLarge(f"The request has {int(declared):,} bytes, more than are taken. Send smaller files.")
        kind = http.headers.get("content-type")
        with ExitStack() as stack:
            self._desk.waiting(stack)
            body = _moving(http.stream(), within_s=self._settings.upload_stall_s)
            received = receive(body, kind, request.folder, files=allowed, texts=TEXTS, limits=limits)
            try:
                form = await self._desk.in_time(request, received)
            except ClientDisconnect as error:
                raise MalformedRequest("The body broke off: its sender went away.") from error
        if missing := [name for name in files if name not in form.files]:
            raise MalformedRequest(f"The part {missing[0]!r} is missing. Send it as a file.")
        return form

    async def _wrong_query(self, http: HttpRequest, error: RequestValidationError) -> Response:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        request_id = _request_id(http)
        said = self._desk.refuse(MalformedRequest(f"{wrong}. See /docs."), request_id=request_id)
        return problems.answer(said, request_id)

    async def get_models(self, http: HttpRequest) -> Response:
        """What draws the faces."""
        async with _Answering(self._desk, http) as answering:
            self._keys.check(http.headers.get("authorization"))
            return JSONResponse({"models": await self._models()})
        return answering.response

    async def get_limits(self, http: HttpRequest) -> Response:
        """What an input may be at most, and how much may be under way."""
        async with _Answering(self._desk, http) as answering:
            self._keys.check(http.headers.get("authorization"))
            return JSONResponse(limits_document(self._settings))
        return answering.response

    async def get_healthz(self) -> PlainTextResponse:
        """This replica answers."""
        return PlainTextResponse("ok\n")

    async def get_readyz(self, http: HttpRequest) -> Response:
        """A request would be accepted now, and there are workers to do it."""
        async with _Answering(self._desk, http) as answering:
            missing = ""
            if not await self._is_whole():
                missing = "Some kind of worker is not running (yet)."
            elif not await self._desk.has_room():
                missing = "A request would be refused now: enough is under way."
            if missing:  # neither counted nor logged: nothing was refused
                return problems.answer(Overloaded(f"{missing} Try again in a moment."), answering.id)
            return PlainTextResponse("ready\n")
        return answering.response

    async def get_metrics(self, http: HttpRequest) -> Response:
        """The cluster's metrics, gathered from the exporters of all nodes."""
        async with _Answering(self._desk, http) as answering:
            self._keys.check(http.headers.get("authorization"))
            return PlainTextResponse(await gather(), media_type="text/plain; version=0.0.4")
        return answering.response


async def _moving(body: AsyncGenerator[bytes, None], *, within_s: float) -> AsyncGenerator[bytes, None]:
    """The same pieces. Raises MalformedRequest where the next one does not come in time: a place at the service's is
    not held by who sends nothing."""
    async with aclosing(body):
        while True:
            try:
                async with asyncio.timeout(within_s):
                    data = await anext(body, None)
            except TimeoutError as error:
                raise MalformedRequest(
                    f"Nothing of the body came for {within_s:g} s. Send it again, without a pause."
                ) from error
            if data is None:
                return
            yield data


class _Answering:
    """A request's id and what is to be closed after it; errors become answers.

    async with _Answering(desk, http) as answering:
        return …
    return answering.response   # an error's
    """

    def __init__(self, desk: Desk, http: HttpRequest) -> None:
        self.id = _request_id(http)
        self.stack = AsyncExitStack()
        self.response: Response
        self._desk = desk

    def keep(self) -> AsyncExitStack:
        """What is to be closed, for a body that outlives this block."""
        return self.stack.pop_all()

    async def __aenter__(self) -> _Answering:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        self._desk.leave(self.stack)
        if not isinstance(error, Exception):
            return False
        self.response = problems.answer(self._desk.refuse(error, request_id=self.id), self.id)
        return True


class _Holding(StreamingResponse):
    """A video; what its request holds is let go when it was sent, or when nobody takes it, were it before the start."""

    def __init__(
        self, body: AsyncIterator[bytes], desk: Desk, stack: AsyncExitStack, *, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(body, headers=headers, media_type="video/mp4")
        self._desk, self._stack = desk, stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._desk.leave(self._stack)


def _request_id(http: HttpRequest) -> str:
    return harmless(http.headers.get("x-request-id", ""))


async def _stopped(work: asyncio.Task[Path]) -> None:
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


async def _iterated(made: Ahead[Fragment]) -> AsyncGenerator[Fragment, None]:
    async for fragment in made:
        yield fragment


def _result(report: Report) -> dict[str, Any]:
    timings_ms = {name: round(spent_s * 1000, 1) for name, spent_s in timings(report).items()}
    return {"frames": report.frame_count, "fps": report.fps, "timings_ms": timings_ms}


def _headers(report: Report) -> dict[str, str]:
    return {
        "X-Lipsync-Frames": str(report.frame_count),
        "X-Lipsync-Fps": f"{report.fps.numerator}/{report.fps.denominator}",
        "X-Lipsync-Faces": str(report.face_frames),
        "Server-Timing": ", ".join(f"{name};dur={spent_s * 1000:.1f}" for name, spent_s in timings(report).items()),
    }


async def _unknown_path(http: HttpRequest, error: HTTPException) -> Response:
    body = {
        "type": "about:blank",
        "title": error.detail,
        "status": error.status_code,
        "detail": f"{http.method} {http.url.path[:200]} is not part of this API; /docs shows what is.",
        "error": "not_found" if error.status_code == 404 else "method_not_allowed",
        "request_id": _request_id(http),
    }
    return JSONResponse(body, error.status_code, headers=error.headers, media_type="application/problem+json")

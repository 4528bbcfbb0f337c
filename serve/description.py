"""How the HTTP interface describes itself in its OpenAPI document: what each path takes and answers, with examples."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, get_type_hints

from fastapi import Security
from fastapi.security import HTTPBearer

from lipsync.errors import (
    DeadlineExceeded,
    InputTooLarge,
    LipsyncError,
    MalformedRequest,
    NoFace,
    Overloaded,
    Unauthorized,
    UnsupportedMedia,
)
from lipsync.options import Limits

from . import problems
from .form import body_schema
from .settings import AdmissionSettings, Settings

STREAM = "send it while it is made, as a fragmented mp4"
_FACE = "image (jpg, png, webp, avif, heic), animation (gif, webp) or video"
_AUDIO = "sound file, or a video whose sound is used"
_UNDER_WAY = ("requests", "frames", "requests_per_key")
_Described = dict[str, Any]


def limits_document(settings: Settings) -> _Described:
    """What ``/v1/limits`` answers."""
    return {
        "inputs": asdict(settings.limits),
        "under_way": settings.admission.model_dump(include=set(_UNDER_WAY)),
        "deadline_s": settings.deadline_s,
        "result_bytes": settings.result_bytes,
    }


def describe(settings: Settings) -> dict[str, _Described]:
    """By path, what FastAPI is to be told of its operation."""
    keyed: _Described = {}
    asking: tuple[int, ...] = ()
    working: tuple[int, ...] = (400, 413, 415, 422, 503, 504)
    if settings.auth.mode == "keys":
        keyed, asking, working = {"dependencies": [Security(_KEY)]}, (401,), (401, 429, *working)
    limits = _json("the limits", _limits_schema(), limits_document(settings))
    return {
        "/v1/lipsync": _answers(_VIDEO, *working) | {"openapi_extra": _BODY_OF_LIPSYNC} | keyed,
        "/v1/faces": _answers(_FACES, *working) | {"openapi_extra": _BODY_OF_FACES} | keyed,
        "/v1/models": _answers(_MODELS, *asking, 503) | keyed,
        "/v1/limits": _answers(limits, *asking) | keyed,
        "/healthz": {"responses": {200: _text("it does", "ok\n")}},
        "/readyz": _answers(_text("it would", "ready\n"), 503),
        "/metrics": _answers(_text("in Prometheus' text format", _METRICS), *asking) | keyed,
    }


_KEY = HTTPBearer(scheme_name="apiKey", description="One of the service's API keys.", auto_error=False)
"""Only described here: ``serve.auth`` looks at the header."""


# ---------------------------------------------------------------- answers


def _answers(good: _Described, *refusals: int) -> _Described:
    return {"responses": {200: good} | {status: _REFUSALS[status] for status in sorted((*refusals, 500))}}


def _content(
    meaning: str, media_type: str, schema: _Described, example: Any = None, **headers: _Described
) -> _Described:
    content = {"schema": schema} | ({} if example is None else {"example": example})
    return {"description": meaning, "headers": {"X-Request-Id": _ID} | headers, "content": {media_type: content}}


def _json(meaning: str, schema: _Described, example: Any, **headers: _Described) -> _Described:
    return _content(meaning, "application/json", schema, example, **headers)


def _text(meaning: str, example: str) -> _Described:
    return _content(meaning, "text/plain", {"type": "string"}, example)


def _header(meaning: str, kind: str, example: Any) -> _Described:
    return {"description": meaning, "schema": {"type": kind}, "example": example}


def _object(properties: dict[str, _Described]) -> _Described:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(properties),
        "properties": properties,
    }


def _values(kind: str, meaning: str, **more: Any) -> _Described:
    return {"type": kind, "description": meaning} | more


_ID = _header("the request's own where that is harmless, else a new one; the log has it too", "string", "4f1d…")
_CAME_TO = {
    "X-Lipsync-Frames": _header("frames of the result; of /v1/faces, of the source", "integer", 75),
    "X-Lipsync-Fps": _header("their rate, exactly", "string", "30000/1001"),
    "X-Lipsync-Faces": _header("frames of the source in which a face was found", "integer", 70),
    "Server-Timing": _header(
        "milliseconds by stage, all workers of a stage added up, and in all",
        "string",
        "open;dur=3.1, detect;dur=180.4, total;dur=190.0",
    ),
}
_VIDEO = _content(
    "the video; a stream has no headers of what it came to, and says it in its last box",
    "video/mp4",
    {"type": "string", "format": "binary"},
    **_CAME_TO,
)
_BOX = {"type": ["array", "null"], "items": {"type": "integer"}, "minItems": 4, "maxItems": 4}
_FACES_EXAMPLE = {
    "version": 1,
    "width": 640,
    "height": 360,
    "fps": "25",
    "frames": 2,
    "boxes": [[212, 90, 334, 251], None],
}
_FACES = _json(
    "where the face is; /v1/lipsync takes it back whole as `boxes`",
    _object(
        {
            "version": _values("integer", "of this document", const=1),
            "width": _values("integer", "of a frame, pixels", minimum=1),
            "height": _values("integer", "of a frame, pixels", minimum=1),
            "fps": _values("string", "frames per second, exactly: 25 or 30000/1001"),
            "frames": _values("integer", "of the source", minimum=1),
            "boxes": _values("array", "for each frame x1, y1, x2, y2, or null where there is no face", items=_BOX),
        }
    ),
    _FACES_EXAMPLE,
    **_CAME_TO,
)
_MODEL = _object(
    {
        "id": _values("string", "what to call it"),
        "checkpoint": _values("string", "the file that it was read from"),
        "device": _values("string", "what it draws on"),
        "precision": _values("string", "in which number format", enum=["fp16", "bf16", "fp32"]),
        "batch_size": _values("integer", "frames of a full batch", minimum=1),
        "buckets": _values("array", "the batch sizes that it was warmed up for", items={"type": "integer"}),
        "compiled": _values("boolean", "by torch.compile"),
        "parameters": _values("integer", "of its network"),
        "start_up_s": _values("number", "from nothing to ready"),
    }
)
_MODELS = _json(
    "what draws the faces, as one replica says",
    _object({"models": {"type": "array", "items": _MODEL}}),
    {
        "models": [
            {
                "id": "wav2lip",
                "checkpoint": "generator.safetensors",
                "device": "NVIDIA H100",
                "precision": "fp16",
                "batch_size": 512,
                "buckets": [64, 128, 256, 512],
                "compiled": True,
                "parameters": 36_000_000,
                "start_up_s": 41.2,
            }
        ]
    },
)
_METRICS = (
    "# HELP ray_lipsync_requests_running Requests that were admitted and are being worked on.\n"
    "# TYPE ray_lipsync_requests_running gauge\n"
    'ray_lipsync_requests_running{application="lipsync",deployment="Ingress"} 3.0\n'
)


def _limits_schema() -> _Described:
    hints = get_type_hints(Limits)
    inputs = {item.name: _number(hints[item.name], item.metadata["help"]) for item in fields(Limits)}
    return _object(
        {
            "inputs": _object(inputs) | {"description": "what an input may be at most"},
            "under_way": _object({name: _setting(AdmissionSettings, name) for name in _UNDER_WAY})
            | {"description": "how much is taken at once"},
            "deadline_s": _setting(Settings, "deadline_s"),
            "result_bytes": _setting(Settings, "result_bytes"),
        }
    )


def _setting(schema: type[AdmissionSettings] | type[Settings], name: str) -> _Described:
    field = schema.model_fields[name]
    return _number(field.annotation, field.description or "")


def _number(kind: Any, meaning: str) -> _Described:
    return _values("integer" if kind is int else "number", meaning)


# ---------------------------------------------------------------- refusals


def _refusal(meaning: str, error: LipsyncError) -> tuple[int, _Described]:
    document = problems.document(error, "4f1d…")
    schema = _object({name: {"type": "string"} for name in document} | {"status": {"type": "integer"}})
    headers = {name: _header("see RFC 9110", "string", value) for name, value in problems.headers(error).items()}
    return document["status"], _content(meaning, "application/problem+json", schema, document, **headers)


_KEYS_OWN = Overloaded("This API key has as many requests under way as it may. Try again in 2 s.")
_KEYS_OWN.reason = "key"
_REFUSALS = dict(
    _refusal(meaning, error)
    for meaning, error in (
        (
            "no multipart body, a part missing or unknown, or an option with a value it does not take",
            MalformedRequest("The part 'audio' is missing. Send it as a file."),
        ),
        (
            "no API key, or an unknown one",
            Unauthorized("The API key is missing or unknown. Send it as 'Authorization: Bearer KEY'."),
        ),
        (
            "more bytes than are taken",
            InputTooLarge("The file has more than 200,000,000 bytes, the most allowed. Send a smaller one."),
        ),
        ("a part that is no media", UnsupportedMedia("The face is no image and no video. Send one.")),
        (
            "media that cannot be used: unreadable, over the limits, without a face",
            NoFace("There is no face in 75 frames. Send another."),
        ),
        ("this key has enough requests under way; see Retry-After", _KEYS_OWN),
        (
            "a defect; the log has it under the request's id",
            LipsyncError("Something failed that should not. The log has it under 4f1d…."),
        ),
        (
            "the service has enough to do, or workers died; see Retry-After",
            Overloaded("As many requests are under way as this service takes. Try again in 2 s."),
        ),
        (
            "the request took too long",
            DeadlineExceeded("The request took longer than 840 s. Send less, or try when it is calmer."),
        ),
    )
)

# ---------------------------------------------------------------- bodies

_BODY_OF_LIPSYNC = body_schema(
    {"face": _FACE, "audio": _AUDIO},
    examples={
        "plain": {"face": "(face.jpg)", "audio": "(voice.wav)"},
        "options, a field each": {"face": "(face.mp4)", "audio": "(voice.wav)", "sync_mode": "bounce", "crf": 20},
        "options as JSON": {"face": "(face.mp4)", "audio": "(voice.wav)", "options": '{"resize_factor": 2}'},
        "boxes found before": {
            "face": "(face.mp4)",
            "audio": "(voice.wav)",
            "boxes": _FACES_EXAMPLE["boxes"],
            "boxes_size": [640, 360],
        },
    },
)
_BODY_OF_FACES = body_schema(
    {"face": _FACE},
    examples={
        "plain": {"face": "(face.mp4)"},
        "the face at a point": {"face": "(face.mp4)", "face_choice": "point", "face_point": [320, 140, 0.5]},
    },
)

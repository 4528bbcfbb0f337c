"""How the HTTP interface describes itself in its OpenAPI document."""

from __future__ import annotations

from typing import Any

FACE = "image (jpg, png, webp, avif, heic), animation (gif, webp) or video"
AUDIO = "sound file, or a video whose sound is used"


def describe_problem(status: int, meaning: str) -> dict[int | str, dict[str, Any]]:
    example = {"type": "urn:lipsync:error:no_face", "title": "…", "status": status, "detail": "…", "error": "no_face"}
    schema = {"type": "object", "required": ["type", "status", "detail", "error", "request_id"]}
    content = {"application/problem+json": {"schema": schema, "example": example | {"request_id": "…"}}}
    return {status: {"description": meaning, "content": content}}


PROBLEMS: dict[int | str, dict[str, Any]] = {}
for _status, _meaning in (
    (400, "no multipart body, a part missing or unknown, or an option with a value it does not take"),
    (401, "no API key, or an unknown one"),
    (413, "more bytes than are taken"),
    (415, "a part that is no media"),
    (422, "media that cannot be used: unreadable, over the limits, without a face"),
    (429, "this key has enough requests under way; see Retry-After"),
    (503, "the service has enough to do; see Retry-After"),
    (504, "the request took too long"),
):
    PROBLEMS |= describe_problem(_status, _meaning)
VIDEO: dict[int | str, dict[str, Any]] = {
    200: {"description": "the video", "content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}}
}

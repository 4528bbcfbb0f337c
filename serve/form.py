"""A request's form: its options from texts, and how the API's description shows them."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lipsync.errors import MalformedRequest
from lipsync.faces.given import tracks_from_json
from lipsync.options import Options, named_values

_HINTS = get_type_hints(Options)
TEXTS = frozenset(_HINTS) | {"options"}
"""Names of the parts that are no files."""


def options_of(texts: dict[str, str]) -> Options:
    """Options from a form's texts: one JSON object named ``options``, and fields named like an option.

    ``boxes`` may be a list, or the whole document that ``/v1/faces`` answers with.
    Raises MalformedRequest, InvalidOption, InvalidBoxes.
    """
    values = named_values(texts["options"]) if "options" in texts else {}
    for name, text in texts.items():
        if name == "options":
            continue
        if name in values:
            raise MalformedRequest(f"{name} is given twice: in options and as a field of its own.")
        values[name] = _value(name, text)
    if isinstance(values.get("boxes"), dict):
        _unfold(values)
    return Options.from_mapping(values)


def _unfold(values: dict[str, Any]) -> None:
    """What ``/v1/faces`` answered, given as ``boxes``: it says the size of the frames too. Raises InvalidBoxes."""
    given = tracks_from_json(json.dumps(values["boxes"]))
    if "boxes_size" in values:
        raise MalformedRequest("boxes_size is given twice: boxes say it already.")
    values["boxes"], values["boxes_size"] = given.boxes, (given.width, given.height)


def _value(name: str, text: str) -> Any:
    """A field's text as JSON where it is JSON, numbers in a row as a list, else as it stands."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        is_row = name in _HINTS and get_origin(_plain(_HINTS[name])) is tuple
        return [_number(part) for part in re.split(r"[,\s]+", text.strip())] if is_row else text


def _number(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text


def _plain(hint: Any) -> Any:
    """The type without ``| None``."""
    if get_origin(hint) in (tuple, Literal) or type(None) not in get_args(hint):
        return hint
    return next(arg for arg in get_args(hint) if arg is not type(None))


def body_schema(files: dict[str, str], *, examples: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """The OpenAPI description of a multipart body with these files (name → what it is) and the options; ``examples``
    (what it shows → the parts)."""
    properties: dict[str, Any] = {
        name: {"type": "string", "format": "binary", "description": text} for name, text in files.items()
    }
    properties["options"] = {
        "type": "string",
        "description": "options as one JSON object, instead of a field each",
        "examples": ['{"sync_mode": "bounce", "crf": 20}'],
    }
    for item in fields(Options):
        properties[item.name] = _schema(_plain(_HINTS[item.name])) | {"description": item.metadata["help"]}
        if item.default is not None:
            properties[item.name]["default"] = item.default
    # an array is one part, in JSON, and not a part for each item
    encoding = {name: {"contentType": "application/json"} for name, one in properties.items() if one["type"] == "array"}
    schema = {"type": "object", "required": list(files), "additionalProperties": False, "properties": properties}
    shown = {
        str(number): {"summary": what, "value": value}
        for number, (what, value) in enumerate((examples or {}).items(), 1)
    }
    content = {"multipart/form-data": {"schema": schema, "encoding": encoding, "examples": shown}}
    return {"requestBody": {"required": True, "content": content}}


def _schema(hint: Any) -> dict[str, Any]:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"type": "string", "enum": list(args)}
    if origin is tuple:
        inner = _plain(args[0])
        items = {"type": ["array", "null"]} if get_origin(inner) is tuple else _schema(inner)
        bounds = {} if args[-1] is Ellipsis else {"minItems": len(args), "maxItems": len(args)}
        return {"type": "array", "items": items} | bounds
    return {"type": {"bool": "boolean", "int": "integer", "float": "number"}.get(hint.__name__, "string")}

"""Command-line parameters made from the fields of ``Options``: one schema, no second list."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from lipsync.errors import InvalidBoxes
from lipsync.faces.given import LARGEST_FILE, tracks_from_json
from lipsync.options import Options

_PANELS = {
    "sync_mode": "Time and sync",
    "detector": "Face",
    "blend": "Picture and encoding",
}


def takes_options(function: Callable[..., None]) -> Callable[..., None]:
    """Replace ``function``'s last parameter, ``options``, by one command-line option per field of ``Options``."""
    own = [p for name, p in inspect.signature(function, eval_str=True).parameters.items() if name != "options"]
    extra = _parameters()

    @functools.wraps(function)
    def wrapper(**given: Any) -> None:
        asked = {parameter.name: given.pop(parameter.name) for parameter in extra}
        function(**given, options=_options(asked))

    parameters = own + extra
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _parameters() -> list[inspect.Parameter]:
    hints = get_type_hints(Options)
    panel, parameters = "", []
    for item in fields(Options):
        panel = _PANELS.get(item.name, panel)
        text = item.metadata["help"]
        hint, default = _cli_type(item.name, hints[item.name]), item.default
        if item.name == "boxes":
            text = "JSON file with a box (or null) per source frame, as lipsync detect writes it"
        option = typer.Option(help=text, rich_help_panel=panel, show_default=default is not None)
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(item.name, kind, default=default, annotation=Annotated[hint, option]))
    return parameters


def _cli_type(name: str, hint: Any) -> Any:
    if name == "boxes":
        return Path | None
    if get_origin(hint) is not None and get_origin(hint) not in (Literal, tuple):
        inner = next(arg for arg in get_args(hint) if arg is not type(None))
        return _cli_type(name, inner) | None
    return str if hint is Fraction else hint


def _options(asked: dict[str, Any]) -> Options:
    if asked["boxes"] is not None:
        asked["boxes"] = tracks_from_json(_read(asked["boxes"])).boxes
    return Options(**asked)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise InvalidBoxes(f"Cannot read {path}: {error.strerror}. Give a file that lipsync detect wrote.") from error

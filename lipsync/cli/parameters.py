"""Command-line parameters made from the fields of ``Options``: one schema, no second list."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import Field, fields
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from lipsync.errors import InvalidBoxes
from lipsync.faces.given import LARGEST_FILE, tracks_from_json
from lipsync.options import Options

Trust = Annotated[bool, typer.Option("--trust-torchscript", help="load a TorchScript file, which can run code")]

_PANELS = {
    "sync_mode": "Time and sync",
    "detector": "Face",
    "blend": "Picture and encoding",
}
EVERY = frozenset(item.name for item in fields(Options))


def names_in(panel: str) -> frozenset[str]:
    """The options that stand together in the help under this heading."""
    return frozenset(item.name for item, heading in _headed() if heading == panel)


def takes_options(names: frozenset[str] = EVERY) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's last parameter, ``options``, by one command-line option per field of ``Options`` named."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [p for name, p in inspect.signature(function, eval_str=True).parameters.items() if name != "options"]
        extra = _parameters(names)

        @functools.wraps(function)
        def wrapper(**given: Any) -> None:
            asked = {parameter.name: given.pop(parameter.name) for parameter in extra}
            function(**given, options=_options(asked))

        parameters = own + extra
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def _headed() -> Iterator[tuple[Field[Any], str]]:
    heading = ""
    for item in fields(Options):
        heading = _PANELS.get(item.name, heading)
        yield item, heading


def _parameters(names: frozenset[str]) -> list[inspect.Parameter]:
    hints = get_type_hints(Options)
    parameters = []
    for item, heading in _headed():
        if item.name not in names or item.name == "boxes_size":  # the file of boxes says it
            continue
        text = item.metadata["help"]
        hint, default = _cli_type(item.name, hints[item.name]), item.default
        if item.name == "boxes":
            text = "JSON file with a box (or null) per source frame, as lipsync detect writes it"
        # WHY: a spelling of our own keeps typer from adding --no-nosmooth and its like
        spelling = "--" + item.name.replace("_", "-")
        option = typer.Option(spelling, help=text, rich_help_panel=heading, show_default=default not in (None, False))
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
    if asked.get("boxes") is not None:
        given = tracks_from_json(_read(asked["boxes"]))
        asked |= {"boxes": given.boxes, "boxes_size": (given.width, given.height)}
    return Options(**asked)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise InvalidBoxes(f"Cannot read {path}: {error.strerror}. Give a file that lipsync detect wrote.") from error

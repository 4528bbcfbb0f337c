"""``lipsync weights``: list, fetch, inspect and convert model files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import DownloadColumn, Progress

from lipsync.cli.parameters import Trust
from lipsync.cli.run import AsJson, JsonAnyway

if TYPE_CHECKING:
    from lipsync.weights import Presence

app = typer.Typer(help="List, fetch, inspect and convert model files.", no_args_is_help=True)


@app.command("list")
def list_known(as_json: AsJson = False) -> None:
    """Say which files are known, which are here, where their authors offer the others and under which terms."""
    from lipsync import weights

    present = [weights.presence(name) for name in weights.KNOWN]
    if as_json:
        print(json.dumps({found.file.name: _for_machines(found) for found in present}))
        return
    for found in present:
        print(f"{found.file.name}: {found.file.purpose}")
        print(f"  {in_words(found)}")
        print(f"  terms: {found.file.terms}")
        if found.state != "missing":  # which has said it
            print(f"  from: {found.file.origin}")


def in_words(found: Presence) -> str:
    """A known file's state, and where it is or what to do."""
    return f"here: {found.path}" if found.state == "here" else f"{found.state}: {found.advice}"


def _for_machines(found: Presence) -> dict[str, str]:
    said = {"state": found.state, "path": str(found.path), "advice": found.advice}
    return said | {name: getattr(found.file, name) for name in ("purpose", "terms", "origin")}


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="a name from `lipsync weights list`", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Fetch a file whose content is pinned by its sha256; for the others say where their authors offer them."""
    from lipsync import weights

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), DownloadColumn())
    with Progress(*columns, console=console, transient=True, disable=as_json or not console.is_terminal) as bar:
        task = bar.add_task(name)
        path = weights.pull(name, progress=lambda done, total: bar.update(task, completed=done, total=total))
    print(json.dumps({"name": name, "path": str(path)}) if as_json else path)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="a checkpoint file", show_default=False)],
    trust_torchscript: Trust = False,
    _as_json: JsonAnyway = False,
) -> None:
    """Say what a checkpoint file holds, as JSON; a file that cannot be used is an error that says why."""
    from lipsync import checkpoints

    print(json.dumps(asdict(checkpoints.inspect(path, trust_torchscript=trust_torchscript)), indent=2))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="any accepted checkpoint", show_default=False)],
    target: Annotated[Path, typer.Argument(help="the .safetensors file to write", show_default=False)],
    dtype: Annotated[Literal["fp32", "fp16"], typer.Option(help="number format of the written weights")] = "fp32",
    trust_torchscript: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as safetensors, which cannot run code and loads faster."""
    from lipsync import checkpoints

    written = checkpoints.convert(source, target, dtype=dtype, trust_torchscript=trust_torchscript)
    print(json.dumps({"output": str(target), **asdict(written)}) if as_json else target)

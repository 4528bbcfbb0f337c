"""``lipsync weights``: list, fetch, inspect and convert model files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import DownloadColumn, Progress

from lipsync.cli.parameters import Trust

app = typer.Typer(help="List, fetch, inspect and convert model files.", no_args_is_help=True)


@app.command("list")
def list_known() -> None:
    """Say which files are known, which are here, where their authors offer the others and under which terms."""
    from lipsync import weights

    for entry in weights.KNOWN.values():
        found = weights.find(entry.name)
        print(f"{entry.name}: {entry.purpose}")
        print(f"  {'here: ' + str(found) if found else 'not here'}")
        print(f"  terms: {entry.terms}")
        print(f"  from: {entry.origin}" + ("   (lipsync weights pull " + entry.name + ")" if entry.url else ""))


@app.command()
def pull(name: Annotated[str, typer.Argument(help="a name from `lipsync weights list`", show_default=False)]) -> None:
    """Fetch a file whose content is pinned by its sha256; for the others say where their authors offer them."""
    from lipsync import weights

    with Progress(*Progress.get_default_columns(), DownloadColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(name)
        path = weights.pull(name, progress=lambda done, total: bar.update(task, completed=done, total=total))
    print(path)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="a checkpoint file", show_default=False)],
    trust_torchscript: Trust = False,
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
) -> None:
    """Write a checkpoint as safetensors, which cannot run code and loads faster."""
    from lipsync import checkpoints

    checkpoints.convert(source, target, dtype=dtype, trust_torchscript=trust_torchscript)
    print(target)

"""``lipsync run``: make one face speak one voice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from lipsync.cli.parameters import Trust, takes_options
from lipsync.options import Limits, Options
from lipsync.pipeline import Progress as Step

if TYPE_CHECKING:
    from lipsync.service import Stats

Checkpoint = Annotated[
    Path | None, typer.Option(help="Wav2Lip checkpoint (.pth, .pt, .safetensors); default: the packaged one")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Exact = Annotated[bool, typer.Option("--exact", help="plain fp32 network, for comparison with the reference")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result, or an error, as one JSON object")]
JsonAnyway = Annotated[
    bool, typer.Option("--json", help="print an error as one JSON object; the result is JSON anyway")
]


@takes_options()
def command(
    face: Annotated[Path, typer.Argument(help="image or video with a face", show_default=False)],
    voice: Annotated[Path, typer.Argument(help="audio, or a video whose sound is used", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="mp4 file to write")] = Path("result.mp4"),
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    batch_size: Annotated[int | None, typer.Option(help="frames per forward pass; default: 512 on CUDA")] = None,
    precision: Annotated[
        Literal["fp16", "bf16", "fp32"], typer.Option(help="on CUDA; a CPU uses fp32, or bf16 if asked")
    ] = "fp16",
    compile: Annotated[bool, typer.Option(help="compile the network (CUDA only)")] = True,
    exact: Exact = False,
    yunet: Annotated[Path | None, typer.Option(help="YuNet's .onnx; default: the one that was pulled")] = None,
    s3fd: Annotated[Path | None, typer.Option(help="s3fd.pth, for --detector s3fd")] = None,
    trust_torchscript: Trust = False,
    as_json: AsJson = False,
    *,
    options: Options,
) -> None:
    """Make FACE speak VOICE and write an mp4."""
    _refuse_unusable(face, voice)
    from lipsync.service import LipsyncService

    with LipsyncService(
        checkpoint,
        device,
        wav2lip_batch_size=batch_size,
        use_fp16=precision != "fp32",
        amp_dtype="bf16" if precision == "bf16" else "fp16",
        use_compile=compile,
        exact=exact,
        trust_torchscript=trust_torchscript,
        yunet_path=yunet,
        s3fd_path=s3fd,
    ) as service:
        say = Console(stderr=True, quiet=as_json, soft_wrap=True).print
        say(f"checkpoint: {escape(service.checkpoint_note)}", highlight=False)
        with ProgressBar(quiet=as_json) as bar:
            stats = service.process(face, voice, output, options=options, progress=bar)
    report(output, service.checkpoint_note, stats, as_json=as_json)


def report(output: Path, checkpoint: str, stats: Stats, *, as_json: bool) -> None:
    """Say what was made: a line on stderr, or one JSON object on stdout."""
    if as_json:
        print(json.dumps({"output": str(output), "checkpoint": checkpoint, **stats}))
        return
    seconds = stats["num_frames"] / stats["fps"]
    Console(stderr=True, soft_wrap=True).print(
        f"[bold]{escape(str(output))}[/]: {stats['num_frames']} frames, {seconds:.2f} s at {stats['fps']:g} fps, "
        f"made in {stats['total_time']:.1f} s",
        highlight=False,
    )


def _refuse_unusable(face: Path, voice: Path) -> None:
    """Raise what is wrong with the inputs' headers before seconds are spent on loading the network."""
    from lipsync.media.probe import probe_face, probe_voice
    from lipsync.media.source import Blob

    limits = Limits()
    for media, probe in ((face, probe_face), (voice, probe_voice)):
        probe(Blob.of(media, limit_bytes=max(limits.video_bytes, limits.image_bytes, limits.audio_bytes)), limits)


class ProgressBar:
    """Stage, share done and frames per second, on a terminal's stderr; a callback for the pipeline's progress."""

    def __init__(self, *, quiet: bool) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<17}"),
            BarColumn(bar_width=22),  # all in one line of 80 columns
            _Frames(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._tasks = {
            "detect": self._bar.add_task("looking for faces", total=None, visible=False),
            "render": self._bar.add_task("rendering", total=None, visible=False),
        }

    def __call__(self, step: Step) -> None:
        self._bar.update(self._tasks[step.stage], completed=step.done, total=step.total, visible=True)

    def __enter__(self) -> Callable[[Step], None]:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._bar.stop()


class _Frames(ProgressColumn):
    """Frames, and how many a second since the start: fragments come many frames at once, between which rich's own speed
    knows no time."""

    def render(self, task: Task) -> Text:
        total = "?" if task.total is None else f"{task.total:.0f}"
        speed = f", {task.completed / task.elapsed:.0f} frames/s" if task.elapsed else ""
        return Text(f"{task.completed:.0f}/{total}{speed}", no_wrap=True)

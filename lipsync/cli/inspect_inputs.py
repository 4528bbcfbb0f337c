"""``lipsync probe`` and ``lipsync detect``: what an input is, and where its face is."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer

from lipsync.cli.parameters import names_in, takes_options
from lipsync.cli.run import AsJson, JsonAnyway, ProgressBar
from lipsync.errors import OutputError
from lipsync.options import Limits, Options

_ANYTHING = Limits(
    **{
        name: 10**12 for name in ("video_bytes", "image_bytes", "audio_bytes", "video_pixels", "image_pixels", "frames")
    },
    min_side=1,
    max_side=10**6,
    duration_s=1e9,
    min_fps=1e-6,
    max_fps=1e6,
    min_sample_rate_hz=1,
    max_sample_rate_hz=10**9,
    channels=1000,
)
"""What `lipsync probe` describes need not be acceptable."""


def probe(
    media: Annotated[Path, typer.Argument(help="any image, video or audio file", show_default=False)],
    _as_json: JsonAnyway = False,
) -> None:
    """Say what a file is, from its content and headers, as JSON. Limits are not applied beyond what reading needs."""
    from lipsync.errors import NoVideoStream
    from lipsync.media.probe import probe_face, probe_voice
    from lipsync.media.source import Blob

    limits = _ANYTHING
    blob = Blob.of(media, limit_bytes=max(limits.video_bytes, limits.audio_bytes))
    try:
        info = probe_face(blob, limits)
    except NoVideoStream:
        info = probe_voice(blob, limits)
    print(json.dumps(asdict(info), indent=2, default=_plain))


@takes_options((names_in("Face") | {"compat"}) - {"box", "boxes"})
def detect(
    face: Annotated[Path, typer.Argument(help="image or video with a face", show_default=False)],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write; default: stdout")] = None,
    yunet: Annotated[Path | None, typer.Option(help="YuNet's .onnx; default: the one that was pulled")] = None,
    s3fd: Annotated[Path | None, typer.Option(help="s3fd.pth, for --detector s3fd")] = None,
    as_json: AsJson = False,
    *,
    options: Options,
) -> None:
    """Find the face in every source frame and write its boxes as JSON, as `lipsync run --boxes` reads them."""
    from lipsync.detection import find_track

    with ProgressBar(quiet=as_json) as bar:
        text = find_track(face, options, yunet_path=yunet, s3fd_path=s3fd, progress=bar)
    if output is None:
        print(text, end="")
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"Cannot write {output}: {error.strerror}. Choose a writable place with room.") from error
    boxes = json.loads(text)["boxes"]
    with_face = sum(box is not None for box in boxes)
    if as_json:
        print(json.dumps({"output": str(output), "num_frames": len(boxes), "num_frames_with_face": with_face}))
    else:
        print(f"{output}: a face in {with_face} of {len(boxes)} frames", file=sys.stderr)


def _plain(value: Any) -> Any:
    if isinstance(value, Fraction):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")

"""``python -m lipsync.bench``: the ladder where only torch, numpy and OpenCV are installed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lipsync.bench.chart import write_chart
from lipsync.bench.ladder import Ladder, Settings
from lipsync.bench.table import text
from lipsync.engine.device import choose_device
from lipsync.errors import LipsyncError


def main() -> None:
    settings, folder = read_arguments()
    try:
        show(settings, folder, as_json=False)
    except LipsyncError as error:
        sys.exit(f"error ({error.slug}): {error.detail}")


def read_arguments() -> tuple[Settings, Path]:
    usual = Settings()
    parser = argparse.ArgumentParser(prog="python -m lipsync.bench", description=__doc__)
    parser.add_argument("checkpoint", nargs="?", help="default: seeded weights at the published widths")
    parser.add_argument("face", nargs="?", help="image or video for the end-to-end rows; default: the packaged face")
    parser.add_argument("audio", nargs="?", help="voice for the end-to-end rows; default: the packaged one")
    parser.add_argument("--device", default=usual.device, help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--frames", type=int, help="in each run of a row; default: 8192 on CUDA, 32 on a CPU")
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="of voice, end to end")
    parser.add_argument("--minutes", type=float, default=usual.minutes, help="what would take longer is left out")
    parser.add_argument("--resume", action="store_true", help="keep what the folder has, and measure what it lacks")
    parser.add_argument("--only", default="", help="measure only rows whose names hold this, and nothing end to end")
    parser.add_argument("--output", type=Path, default=Path("ladder"), help="folder for the JSON and the chart")
    given = vars(parser.parse_args())
    folder: Path = given.pop("output")
    return Settings(**given), folder


def show(settings: Settings, folder: Path, *, as_json: bool) -> None:
    """Measure; write ``ladder_cuda`` or ``ladder_cpu``, .json and .png, into the folder; print table or JSON."""
    kind = "cpu" if choose_device(settings.device).type == "cpu" else "cuda"
    path = folder / f"ladder_{kind}.json"
    kept = json.loads(path.read_text()) if settings.resume and path.exists() else None
    result = Ladder(settings, tell=lambda line: print(line, file=sys.stderr, flush=True), kept=kept).run()
    folder.mkdir(parents=True, exist_ok=True)
    written = json.dumps(result, indent=2, ensure_ascii=False)
    path.write_text(written + "\n")
    write_chart(result, path.with_suffix(".png"))
    print(written if as_json else text(result))


if __name__ == "__main__":
    main()

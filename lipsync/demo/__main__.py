"""``python -m lipsync.demo``: make the packaged faces, voices and generator from nothing, step by step."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import time
from pathlib import Path

import torch

TIMES, RECIPE = "times.json", "recipe.json"
SHAPES = ("utterances", "hearing_steps", "frame_parts", "drawing_steps", "drawing_rate", "begin")
"""The options that decide what is made."""
STEPS = ("media", "speech", "hearing", "frames", "drawing", "export", "evaluate", "card", "truth")
GOES_ON = ("speech", "hearing", "frames", "drawing")
"""Steps that make what is kept in the folder, and go on where they were left; the others begin anew."""
log = logging.getLogger(__name__)


def main() -> int:
    """Run the named steps, or all of them in order; every step goes on where it was left. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lipsync.demo", description=__doc__)
    parser.add_argument("steps", nargs="*", help=f"of {', '.join(STEPS)}; all of them when none is named")
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="where data and checkpoints are kept")
    parser.add_argument("--assets", type=Path, default=Path("lipsync/assets"), help="where the packaged files go")
    parser.add_argument("--report", type=Path, default=Path("docs/benchmarks/demo_model.json"))
    parser.add_argument("--card", type=Path, default=Path("docs/model_card.md"))
    parser.add_argument("--truth", type=Path, default=Path("tests/data"), help="where the tests' sentence goes")
    parser.add_argument("--sheet", type=Path, default=Path("docs/images/demo_model.png"))
    parser.add_argument("--recordings", type=Path, nargs="*", default=[], help="recorded speech to measure on, wav")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="and as many processes where parts are made"
    )
    parser.add_argument("--utterances", type=int, default=8000)
    parser.add_argument("--hearing-steps", type=int, default=17000)
    parser.add_argument("--frame-parts", type=int, default=4, help="of 2400 frames each")
    parser.add_argument("--drawing-steps", type=int, default=16000)
    parser.add_argument("--drawing-rate", type=float, default=1.5e-3)
    parser.add_argument("--begin", type=Path, help="a generator of the same drawing widths that drawing starts from")
    options = parser.parse_args()
    if unknown := set(options.steps) - set(STEPS):
        parser.error(f"there is no step {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}.")
    makes = set(options.steps or STEPS) & set(GOES_ON)
    if makes and (
        refusal := keep_recipe(options.folder / RECIPE, {name: str(getattr(options, name)) for name in SHAPES})
    ):
        parser.error(refusal)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    for step in options.steps or STEPS:
        began = time.monotonic()
        try:
            run(step, options)
        except KeyboardInterrupt:
            log.info("interrupted in %s: the same command goes on from here", step)
            return 130
        finally:  # also of what Ctrl-C ended: it goes on from there
            taken = note_time(options.folder / TIMES, step, time.monotonic() - began)
        log.info("%s: done, %.0f s", step, taken)
    log.info("in all %.0f min", sum(read_times(options.folder / TIMES).values()) / 60)
    return 0


def keep_recipe(path: Path, recipe: dict[str, str]) -> str | None:
    """Write down what is to be made; why not, where something else was begun there."""
    begun = json.loads(path.read_text()) if path.exists() else recipe
    other = [f"--{name.replace('_', '-')} {begun[name]}" for name in recipe if begun[name] != recipe[name]]
    if other:
        return f"{path.parent} was begun with {', '.join(other)}: say the same, or name another --folder."
    write_whole(path, json.dumps(recipe, indent=1) + "\n")
    return None


def write_whole(path: Path, text: str) -> None:
    """All of it or, when interrupted, what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text)
    unfinished.replace(path)


def note_time(path: Path, step: str, seconds: float) -> float:
    """Write down what the step took; one that goes on adds to what it had taken before. Returns the sum."""
    times = read_times(path)
    times[step] = round((times.get(step, 0) if step in GOES_ON else 0) + seconds, 1)
    write_whole(path, json.dumps(times, indent=1) + "\n")
    return times[step]


def read_times(path: Path) -> dict[str, float]:
    """Seconds of each step that has begun."""
    return json.loads(path.read_text()) if path.exists() else {}


def run(step: str, options: argparse.Namespace) -> None:
    """One step. Imports stay here: each step wants other packages."""
    folder: Path = options.folder
    speech, frames = folder / "speech", folder / "frames"
    hearing, drawing, generator = folder / "hearing.pt", folder / "drawing.pt", options.assets / "generator.safetensors"
    if step == "media":
        from lipsync.demo.media import write_media

        write_media(options.assets)
    elif step == "speech":
        from lipsync.demo.corpus import make_corpus

        make_corpus(speech, seed=1, count=options.utterances, workers=options.threads)
    elif step == "hearing":
        from lipsync.demo.corpus import read_corpus
        from lipsync.demo.hearing import Course, train_hearing

        train_hearing(read_corpus(speech), hearing, Course(steps=options.hearing_steps))
    elif step == "frames":
        from lipsync.demo.corpus import read_corpus
        from lipsync.demo.frames import make_frames

        make_frames(frames, read_corpus(speech, limit=4), parts=options.frame_parts, workers=options.threads)
    elif step == "drawing":
        from lipsync.demo.drawing import Course as DrawingCourse
        from lipsync.demo.drawing import train_drawing

        course = DrawingCourse(steps=options.drawing_steps, rate=options.drawing_rate)
        train_drawing(frames, drawing, course, options.begin)
    elif step == "export":
        from lipsync.demo.corpus import read_corpus
        from lipsync.demo.export import export

        log.info("%s", export(hearing, drawing, read_corpus(speech, limit=2), generator))
    elif step == "evaluate":
        _evaluate(options, hearing, generator, speech)
    elif step == "card":
        from lipsync.demo.card import write_card

        write_card(options.card, options.report)
    elif step == "truth":
        from lipsync.demo.corpus import read_corpus
        from lipsync.demo.truth import write_truth

        write_truth(options.truth, read_corpus(speech, limit=1))


def _evaluate(options: argparse.Namespace, hearing: Path, generator: Path, speech: Path) -> None:
    from lipsync.bench.machine import machine_facts
    from lipsync.checkpoints import load_generator
    from lipsync.demo.corpus import read_corpus
    from lipsync.demo.evaluation import evaluate
    from lipsync.demo.hearing import load_hearing

    made = {
        "sha256": hashlib.sha256(generator.read_bytes()).hexdigest(),
        "machine": machine_facts(torch.device("cpu")),
        "threads": options.threads,
        "s": read_times(options.folder / TIMES),
    }
    result = evaluate(
        load_generator(generator), load_hearing(hearing), read_corpus(speech, limit=2), report=options.report,
        sheet=options.sheet, recordings=options.recordings, made=made,
    )  # fmt: skip
    log.info("%s", json.dumps({key: value for key, value in result.items() if key != "sequences"}, indent=1))


if __name__ == "__main__":
    sys.exit(main())

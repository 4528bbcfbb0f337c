"""Puts load on a served application and says what it did under it.

    python -m cluster.load http://localhost:8000 --rate 2 --mix short=6,video=1,stream=3 --duration 60 --chart load.png

An open loop (``--rate``) sends at random times whatever becomes of earlier requests, as the world does; a closed loop
(``--callers``) sends the next when the last was answered. JSON goes to ``--json``, the tables to standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.mix import KINDS, Inputs, Mix
from cluster.summary import summarise, tables
from cluster.traffic import NOT_SENT, Sender, closed_loop, open_loop, warm_up

KEY_ENV = "LIPSYNC_API_KEY"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    kinds = ", ".join(f"{kind.name} ({kind.face}, {kind.voice_s:g} s)" for kind in KINDS.values())
    parser = argparse.ArgumentParser(prog="python -m cluster.load", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", help="the application's address")
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument("--rate", type=_positive, help="open loop: requests a second")
    loop.add_argument("--callers", type=int, default=2, help="closed loop: callers at once (default 2)")
    parser.add_argument("--duration", type=_positive, default=30.0, help="seconds in which requests are sent")
    parser.add_argument("--mix", default="short", help=f"kinds by weight, like short=6,video=1. Kinds: {kinds}")
    parser.add_argument("--in-flight", type=int, default=400, help="most requests at once; beyond it, one is not sent")
    parser.add_argument("--timeout", type=_positive, default=300.0, help="seconds until a request is given up")
    parser.add_argument("--attempts", type=int, default=1, help="how often a request is sent until it is answered")
    parser.add_argument("--warm-up", type=int, default=1, help="requests of each kind before, which do not count")
    parser.add_argument("--fresh", action="store_true", help="a face of its own for each request: no cache helps")
    parser.add_argument("--picture", type=Path, help="the still face, in place of the packaged one")
    parser.add_argument("--clip", type=Path, help="the face video, in place of the packaged one")
    parser.add_argument("--voice", type=Path, help="a WAV that is cut to length, in place of the packaged one")
    parser.add_argument("--seed", type=int, default=0, help="of the times and the mix")
    parser.add_argument("--json", type=Path, help="where the results go as JSON")
    parser.add_argument("--chart", type=Path, help="where a chart goes as PNG")
    return parser.parse_args(given)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value


async def run(options: argparse.Namespace, sender: Sender) -> None:
    """Warm up, then send for as long as asked; ``sender.outcomes`` grows meanwhile."""
    async with sender:
        await warm_up(sender, rounds=options.warm_up)
        loop: Coroutine[Any, Any, None]
        if options.rate is not None:
            loop = open_loop(sender, rate_per_s=options.rate, duration_s=options.duration, seed=options.seed)
        else:
            loop = closed_loop(sender, callers=options.callers, duration_s=options.duration)
        showing = asyncio.create_task(_show(sender, duration_s=options.duration))
        try:
            await loop
        finally:
            showing.cancel()
            with suppress(asyncio.CancelledError):
                await showing


async def _show(sender: Sender, *, duration_s: float) -> None:
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=duration_s)
        while True:
            progress.update(task, completed=min(sender.now_s, duration_s), description=_line(sender))
            await asyncio.sleep(0.25)


def _line(sender: Sender) -> str:
    ended = sender.outcomes
    answered = [one for one in ended if not one.refusal]
    frames = sum(one.frames for one in answered)
    return (
        f"{len(answered)} answered, {sum(one.refusal not in ('', NOT_SENT) for one in ended)} refused, "
        f"{sender.in_flight} in flight, {frames / max(sender.now_s, 1.0):.1f} frames/s"
    )


def report(options: argparse.Namespace, sender: Sender, *, is_whole: bool) -> dict[str, Any]:
    """What is written as JSON."""
    duration_s = options.duration if is_whole else min(options.duration, sender.now_s)
    loop = {"rate_per_s": options.rate} if options.rate is not None else {"callers": options.callers}
    return {
        "url": options.url,
        "date": time.strftime("%Y-%m-%d"),
        "loop": loop,
        "mix": sender.mix.weights,
        "is_fresh": options.fresh,
        "attempts": options.attempts,
        "is_whole": is_whole,
        **summarise(sender.outcomes, duration_s=duration_s),
        "refusals_said": {one.refusal: one.detail for one in sender.outcomes if one.detail},
    }


def _title(options: argparse.Namespace) -> str:
    loop = f"{options.callers} callers" if options.rate is None else f"{options.rate:g} requests/s at random times"
    return f"{loop}, {options.mix}"


def main(given: list[str] | None = None) -> int:
    """0 where anything was answered, 1 where nothing was, 2 for wrong usage, 130 after an interruption."""
    options = arguments(given)
    try:
        if options.chart is not None:
            import matplotlib  # noqa: F401  (not after minutes of load)
        sender = Sender(
            options.url,
            mix=Mix.parse(options.mix, seed=options.seed),
            inputs=Inputs(picture=options.picture, clip=options.clip, voice=options.voice, is_fresh=options.fresh),
            in_flight=max(options.in_flight, options.callers if options.rate is None else 1),
            timeout_s=options.timeout,
            attempts=options.attempts,
            api_key=os.environ.get(KEY_ENV),
        )
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    is_whole = True
    try:
        asyncio.run(run(options, sender))
    except KeyboardInterrupt:
        is_whole = False
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    results = report(options, sender, is_whole=is_whole)
    for table in tables(results):
        Console().print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    if options.chart is not None:
        from cluster.charts import load_chart

        load_chart(sender.outcomes, results, options.chart, title=_title(options))
    if not is_whole:
        return 130
    return 0 if results["all"]["answered"] else 1


if __name__ == "__main__":
    sys.exit(main())

"""Breaks a cluster of its own on this machine while load runs on it, and says what the callers noticed.

    python -m cluster.chaos --json docs/benchmarks/chaos.json

In each round a replica of each kind, the one of its kind that is at work; in every fourth also what is fewer in a
cluster: the proxy, the Serve controller, a worker node, the head's server, a full disk, a network that is slow to one
node. Every request has a face of its own content, so that no cache spares a Preprocessor its work.
Every answer is compared, byte for byte, with one that was made before anything was broken. A fault has been got over
when what was killed is there again, the controller counts every replica as running, and a request (or an attempt)
that was sent afterwards has been answered. What a machine does not allow is left out, and the log says why.

The cluster stands behind HAProxy with the throughput-optimised transport, as the manifests have it. Callers use the
client as it is. A request that needed a second attempt is set against the faults that take requests along (an
Ingress, a proxy, a full disk); without one of those the cluster should have answered it by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.__main__ import machine
from benchmarks.serving import MODE
from cluster.breakable import REPLICA_KINDS, Breakable, breakable
from cluster.breaking import FAULTS, CannotBreak, Fault
from cluster.mix import Inputs, Mix
from cluster.summary import percentiles, summarise
from cluster.traffic import Outcome, Sender, closed_loop, warm_up
from lipsync.client import Retries

MIX = "short=3,short-stream=1,video=2"
CALLERS = 3
PREPARING, RENDERING = {"open", "measure", "voice", "detect"}, {"render"}
ANY = PREPARING | RENDERING
WORK = {"Preprocessor": PREPARING, "Renderer": RENDERING, "Generator": RENDERING}
"""What breaks off where a replica dies at work, by its kind: calls as Ingresses make them."""
ATTEMPTS = Retries().attempts
"""As any caller of the client has them."""
REQUEST_TIMEOUT_S = 120.0
CALM_S = 1.0
GIVE_UP_S = 240.0
ROUNDS, EVERY = 20, 4
"""Replicas of each kind are killed in every round, everything else in every fourth: 20 times and 5."""


class Load:
    """Requests that go on, from a thread of their own: nodes of a cluster can be started from the main thread alone."""

    def __init__(self, url: str, *, mix: str, callers: int) -> None:
        self._callers = callers
        self.sender = Sender(
            url,
            mix=Mix.parse(mix),
            inputs=Inputs(is_fresh=True),  # else caches leave Preprocessors nothing to do
            in_flight=callers,
            timeout_s=REQUEST_TIMEOUT_S,
            attempts=ATTEMPTS,
        )
        self.calm_digests: dict[str, set[str]] = {}
        """Of the answers to each kind of request before anything was broken."""
        self._runs, self._over = threading.Event(), threading.Event()
        self._thread = ThreadPoolExecutor(1)

    async def _run(self) -> None:
        async with self.sender:
            await warm_up(self.sender, rounds=2)
            for one in self.sender.outcomes:
                self.calm_digests.setdefault(one.kind, set()).add(one.digest)
            loop = closed_loop(self.sender, callers=self._callers, duration_s=float("inf"), is_over=self._over.is_set)
            self._runs.set()
            await loop

    @property
    def has_ended(self) -> bool:
        return self._running.done()

    def __enter__(self) -> Load:
        """Returns when load runs. Raises what stands against it."""
        self._running = self._thread.submit(lambda: asyncio.run(self._run()))
        while not self._runs.wait(0.1):
            if self.has_ended:
                self._running.result()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends when the last requests have. Raises what went wrong with sending."""
        self._over.set()
        self._running.result()
        self._thread.shutdown()


def in_rounds(faults: Sequence[Fault], rounds: int) -> list[Fault]:
    """What is broken, in order. The first round has every fault."""
    return [
        fault
        for number in range(rounds)
        for fault in faults
        if fault.name in REPLICA_KINDS or number % EVERY == 0
    ]  # fmt: skip


def break_all(
    target: Breakable,
    faults: Sequence[Fault],
    *,
    mix: str = MIX,
    callers: int = CALLERS,
    until_s: float = float("inf"),
) -> dict[str, Any]:
    """The faults one after another; none is begun after ``until_s`` (monotonic)."""
    skipped: dict[str, str] = {}
    log: list[dict[str, Any]] = []
    began = time.monotonic()
    with Load(target.app.url, mix=mix, callers=callers) as load:
        if any(len(digests) != 1 for digests in load.calm_digests.values()):
            raise RuntimeError("two answers to one request differ before anything was broken")
        for fault in faults:
            if load.has_ended or time.monotonic() > until_s:
                break
            if fault.name in skipped:
                continue
            try:
                log.append(_strike(target, fault, load.sender))
                print(json.dumps(log[-1]), file=sys.stderr, flush=True)
            except CannotBreak as error:
                skipped[fault.name] = str(error)
            time.sleep(CALM_S)
    right = {kind: digest for kind, (digest,) in load.calm_digests.items()}
    result = _results(load.sender.outcomes, log, skipped, right=right, took_s=time.monotonic() - began)
    crossed = None if isinstance(target.link, str) else asdict(target.link.counts())
    return result | {
        "mix": mix,
        "pieces_done_again": sum((Counter(one["pieces_done_again"]) for one in log), Counter[str]()),
        "crossed_link": crossed,
    }


def _strike(target: Breakable, fault: Fault, sender: Sender) -> dict[str, Any]:
    """Break it, and wait until it has been got over. Recovery counts from the moment before it was broken."""
    before = target.app.done_again()
    struck_s, began = sender.now_s, time.monotonic()
    is_replaced = fault.strike(target)
    answered_s: float | None = None
    replaced_s: float | None = None
    while (waited_s := time.monotonic() - began) < GIVE_UP_S and (answered_s is None or replaced_s is None):
        after = [one.ended_s for one in list(sender.outcomes) if one.last_sent_s >= struck_s and not one.refusal]
        answered_s = answered_s or (min(after) - struck_s if after else None)
        if replaced_s is None and is_replaced():
            replaced_s = waited_s
        time.sleep(0.2)
    entry = {
        "fault": fault.name,
        "takes_requests": fault.takes_requests,
        "at_s": round(struck_s, 3),
        "answered_again_s": _rounded(answered_s),
        "replaced_s": _rounded(replaced_s),
        "bound_s": fault.bound_s,
    }
    again = dict(target.app.done_again() - before)
    return entry | {"is_in_time": _over_s(entry) <= fault.bound_s, "pieces_done_again": again}


def _helped(outcomes: Sequence[Outcome], log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The requests of which an attempt failed, with each failure's cause: the fault, of those that take requests along,
    that had been struck and not yet been got over at that moment. None where there was no such fault."""
    takes = [(one["fault"], one["at_s"], one["at_s"] + _over_s(one)) for one in log if one["takes_requests"]]
    found = []
    for outcome in outcomes:
        failures = [
            {
                "at_s": round(one.at_s, 3),
                "slug": one.slug,
                "detail": one.detail[:120],
                "cause": next((name for name, from_s, to_s in reversed(takes) if from_s <= one.at_s <= to_s), None),
            }
            for one in outcome.failures
        ]
        if failures:
            found.append({"kind": outcome.kind, "sent_s": round(outcome.sent_s, 1), "failures": failures})
    return found


def _over_s(entry: Mapping[str, Any]) -> float:
    """How long it took until a fault had been got over."""
    waited_s = (entry["replaced_s"], entry["answered_again_s"])
    return max(GIVE_UP_S if one is None else one for one in waited_s)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _results(
    outcomes: Sequence[Outcome],
    log: list[dict[str, Any]],
    skipped: dict[str, str],
    *,
    right: Mapping[str, str],
    took_s: float,
) -> dict[str, Any]:
    answered = [one for one in outcomes if not one.refusal]
    helped = _helped(outcomes, log)
    faults = {}
    for name in dict.fromkeys(one["fault"] for one in log):
        of_kind = [one for one in log if one["fault"] == name]
        faults[name] = {
            "times": len(of_kind),
            "in_time": sum(one["is_in_time"] for one in of_kind),
            "in_mid_work": sum(any(map(WORK.get(name, ANY).__contains__, one["pieces_done_again"])) for one in of_kind),
            "replaced_s": percentiles(one["replaced_s"] for one in of_kind if one["replaced_s"] is not None),
            "answered_again_s": percentiles(
                one["answered_again_s"] for one in of_kind if one["answered_again_s"] is not None
            ),
        }
    return {
        "requests": len(outcomes),
        "by_kind": dict(Counter(one.kind for one in outcomes)),
        "answered_right": sum(one.digest == right[one.kind] for one in answered),
        "answered_wrong": sum(one.digest != right[one.kind] for one in answered),
        "attempts": ATTEMPTS,
        "refused": dict(Counter(one.refusal for one in outcomes if one.refusal)),
        "refusals_said": {one.refusal: one.detail[:200] for one in outcomes if one.refusal},
        "hung": sum(one.ended_s - one.sent_s > REQUEST_TIMEOUT_S + 5 for one in outcomes),
        "latency_s": summarise(outcomes, duration_s=took_s)["all"]["latency_s"],
        "needed_more_attempts": len(helped),
        "without_cause": sum(any(failure["cause"] is None for failure in one["failures"]) for one in helped),
        "faults": faults,
        "skipped": skipped,
        "log": log,
        "helped": helped,
    }


def main(given: list[str] | None = None) -> int:
    """0 where every request was answered, right, without help but where its Ingress or proxy was gone, and all that was
    broken came back in its time."""
    parser = argparse.ArgumentParser(prog="python -m cluster.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of all replicas; each {EVERY}th has all else too")
    parser.add_argument("--callers", type=int, default=CALLERS, help="requests under way all the time")
    parser.add_argument("--minutes", type=float, default=60.0, help="nothing more is broken after so long")
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), choices=list(FAULTS), help="only these")
    parser.add_argument("--json", type=Path, help="where the log goes")
    options = parser.parse_args(given)
    on, began = machine(), time.monotonic()
    os.environ |= MODE
    with breakable() as target:
        faults = in_rounds([FAULTS[name] for name in options.faults], options.rounds)
        result = break_all(target, faults, callers=options.callers, until_s=time.monotonic() + 60 * options.minutes)
    result |= {"machine": on, "date": time.strftime("%Y-%m-%d"), "took_s": round(time.monotonic() - began, 1)}
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if options.json is not None:
        options.json.write_text(text)
    print(
        json.dumps({key: result[key] for key in result if key not in ("log", "helped")}, indent=1, ensure_ascii=False)
    )
    return 0 if held(result) else 1


def held(result: Mapping[str, Any]) -> bool:
    """Whether nobody was let down, and all that was broken came back in its time."""
    return (
        result["requests"] == result["answered_right"] > 0
        and not result["without_cause"]
        and not result["hung"]
        and all(one["is_in_time"] for one in result["log"])
    )


if __name__ == "__main__":
    sys.exit(main())

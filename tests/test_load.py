"""The load generator against a server that does as it was told."""

from __future__ import annotations

import asyncio
import io
import json
import random
import wave
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image
from scripted_server import Scripted, Step, mp4, problem, stream

from cluster import load
from cluster.mix import KINDS, Inputs, Mix
from cluster.summary import percentiles, summarise, tables
from cluster.traffic import NOT_SENT, Outcome, Sender, closed_loop, open_loop, warm_up
from lipsync import ending
from lipsync.media.sniff import sniff

INPUTS = Inputs()


def sender(server: Scripted, mix: str = "short", **more: object) -> Sender:
    settings = {"in_flight": 64, "timeout_s": 20.0, "inputs": INPUTS} | more
    return Sender(server.url, mix=Mix.parse(mix), **settings)  # type: ignore[arg-type]


def after(pause_s: float, step: Step) -> Step:
    async def slow(writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(pause_s)
        return await step(writer)

    return slow


async def test_slow_answers_do_not_hold_up_an_open_loop_and_latency_counts_from_the_time_due() -> None:
    rate_per_s, duration_s = 20.0, 2.0
    with Scripted([after(1.0, mp4(b"video")) for _ in range(200)]) as server:
        async with sender(server) as sending:
            await open_loop(sending, rate_per_s=rate_per_s, duration_s=duration_s, seed=3)
    times, due_s = random.Random(3), []
    while (sum(due_s[-1:]) + (gap := times.expovariate(rate_per_s))) < duration_s:
        due_s.append(sum(due_s[-1:]) + gap)
    ended = sorted(sending.outcomes, key=lambda one: one.due_s)
    assert [one.due_s for one in ended] == pytest.approx(due_s)
    assert all(one.refusal == "" and one.frames == 75 for one in ended)
    assert max(one.ended_s for one in ended) < 15, "one after the other it would have taken 30 s and more"
    assert all(one.latency_s == one.ended_s - one.due_s >= 1.0 for one in ended)
    assert sending.in_flight == 0


async def test_a_sender_that_was_held_up_counts_the_wait_and_says_so() -> None:
    late = [Outcome("short", due_s=1.0, sent_s=3.0, ended_s=3.5, frames=50)] * 3
    summary = summarise(late, duration_s=10)
    assert summary["all"]["latency_s"]["p50"] == 2.5
    assert summary["is_sender_the_bottleneck"]
    assert "late" in str(tables(summary)[0].caption)


async def test_beyond_the_most_in_flight_requests_are_not_sent_and_that_is_counted() -> None:
    with Scripted([after(1.5, mp4(b"video")) for _ in range(100)]) as server:
        async with sender(server, in_flight=3) as sending:
            await open_loop(sending, rate_per_s=20, duration_s=1.0)
    assert len(server.requests) == 3
    group = summarise(sending.outcomes, duration_s=1)["all"]
    assert (group["sent"], group["answered"]) == (3, 3)
    assert group["not_sent"] == len(sending.outcomes) - 3 > 5
    assert all(one.refusal == NOT_SENT for one in sending.outcomes if not one.frames)


async def test_a_closed_loop_has_as_many_requests_under_way_as_callers() -> None:
    most = under_way = 0

    def counted(step: Step) -> Step:
        async def count(writer: asyncio.StreamWriter) -> bool:
            nonlocal most, under_way
            under_way += 1
            most = max(most, under_way)
            stays = await after(0.1, step)(writer)
            under_way -= 1
            return stays

        return count

    with Scripted([counted(mp4(b"video")) for _ in range(200)]) as server:
        async with sender(server) as sending:
            await closed_loop(sending, callers=3, duration_s=1.0)
    assert most == 3
    assert len(sending.outcomes) == len(server.requests) > 6


async def test_attempts_that_came_to_nothing_are_told() -> None:
    with Scripted([mp4(b"video"), problem(503, "overloaded"), problem(503, "overloaded"), mp4(b"video")]) as server:
        async with sender(server, attempts=3) as sending:
            await warm_up(sending, rounds=2)
    first, second = sending.outcomes
    assert first.failures == ()
    assert second.refusal == ""
    assert [one.slug for one in second.failures] == ["overloaded", "overloaded"]
    assert second.sent_s < second.failures[0].at_s < second.failures[1].at_s < second.ended_s


async def test_the_server_s_own_times_and_a_stream_s_first_bytes_are_read() -> None:
    with Scripted([mp4(b"video")]) as server:
        async with sender(server) as sending:
            await warm_up(sending, rounds=1)
    assert sending.outcomes[0].stages_ms == {"open": 1.5, "decode": 20.0, "total": 99.25}
    end = ending.complete(frames=250, fps=Fraction(25), timings_ms={"encode": 7.0})
    with Scripted([stream(_page(b"ftyp"), _page(b"moof"), end, pause_s=0.3)]) as server:
        async with sender(server, "stream") as sending:
            await warm_up(sending, rounds=1)
    (one,) = sending.outcomes
    assert server.requests[0].target == "/v1/lipsync?stream=true"
    assert (one.refusal, one.frames, one.stages_ms) == ("", 250, {"encode": 7.0})
    assert one.first_s is not None and one.ended_s - one.first_s > 0.4


def _page(kind: bytes) -> bytes:
    return (16).to_bytes(4, "big") + kind + b"isom\0\0\0\0"


async def test_refusals_are_counted_by_reason_and_a_caller_who_was_refused_waits() -> None:
    steps = [mp4(b"a"), problem(503, "overloaded", **{"Retry-After": "2"}), problem(422, "no_face"), mp4(b"b")]
    with Scripted(steps) as server:
        async with sender(server) as sending:
            await closed_loop(sending, callers=1, duration_s=0.4, pause_s=0.15)
    summary = summarise(sending.outcomes, duration_s=0.4)
    assert summary["all"]["refused"].items() >= {"overloaded": 1, "no_face": 1}.items()
    assert sending.outcomes[2].sent_s - sending.outcomes[1].ended_s >= 0.15


async def test_a_server_that_hangs_ends_with_the_time_limit() -> None:
    async def hangs(writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(60)
        return False

    with Scripted([hangs]) as server:
        async with sender(server, timeout_s=0.5) as sending:
            await closed_loop(sending, callers=1, duration_s=0.1, pause_s=0)
    assert [one.refusal for one in sending.outcomes] == ["deadline_exceeded"]


def test_the_command_writes_json_a_table_and_a_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Scripted([mp4(b"video") for _ in range(500)]) as server:
        code = load.main([server.url, "--rate", "20", "--duration", "1.5", "--mix", "short=3,video", "--fresh",
                          "--json", str(tmp_path / "load.json"), "--chart", str(tmp_path / "load.png")])  # fmt: skip
    assert code == 0
    results = json.loads((tmp_path / "load.json").read_text())
    answered = results["all"]["answered"]
    assert results["all"]["sent"] == answered == len(server.requests) - 2, "one of each kind warmed up"
    at_most = 75 * answered / 1.5  # what is answered after the run does not count
    assert 0.4 * at_most < results["frames_per_s"] <= at_most + 1
    assert set(results["kinds"]) == {"short", "video"}
    with Image.open(tmp_path / "load.png") as chart:
        assert chart.width > 1000
    assert "requests/s" in capsys.readouterr().out


def test_wrong_usage_is_said_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = tmp_path / "voice.mp3"
    noise.write_bytes(b"ID3 no wave")
    assert load.main(["http://127.0.0.1:9", "--mix", "tall"]) == 2
    assert load.main(["http://127.0.0.1:9", "--voice", str(noise)]) == 2
    assert load.main(["http://127.0.0.1:9", "--fresh", "--picture", str(noise)]) == 2
    said = capsys.readouterr().err
    assert "'tall' is no kind" in said and "no PCM WAV" in said and "Only a JPEG" in said
    assert load.main(["http://127.0.0.1:9", "--timeout", "2"]) == 1, "nobody there"


@pytest.mark.parametrize("text", ["", "short=0", "short=-1,long=2", "short=much"])
def test_a_wrong_mix_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Mix.parse(text)


def test_a_mix_is_drawn_by_its_weights() -> None:
    mix = Mix.parse("short=3, video", seed=1)
    drawn = [mix.draw().name for _ in range(4000)]
    assert drawn.count("short") / len(drawn) == pytest.approx(0.75, abs=0.03)
    assert set(drawn) == {"short", "video"}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_inputs_are_as_long_as_their_kind_says_and_still_media_when_fresh(kind) -> None:
    fresh = Inputs(is_fresh=True)
    with wave.open(io.BytesIO(fresh.voice(kind))) as voice:
        assert voice.getnframes() / voice.getframerate() == pytest.approx(kind.voice_s)
    one, other = fresh.face(kind, number=1), fresh.face(kind, number=2)
    assert one != other and len(one) == len(other)
    assert INPUTS.face(kind, number=1) == INPUTS.face(kind, number=2)
    assert sniff(one) == sniff(INPUTS.face(kind, number=1))
    if kind.face == "picture":
        Image.open(io.BytesIO(one)).load()


def test_percentiles_are_values_that_occurred() -> None:
    assert percentiles([]) is None
    assert percentiles([3.0]) == {"p50": 3.0, "p90": 3.0, "p99": 3.0, "max": 3.0}
    assert percentiles(range(1, 101)) == {"p50": 50, "p90": 90, "p99": 99, "max": 100}

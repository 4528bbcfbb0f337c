"""Work on replicas that die: it goes on where it broke off, never twice and never without an end; with Ray's own errors."""

import asyncio
from contextlib import aclosing
from fractions import Fraction
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    ObjectReconstructionFailedError,
    ObjectStoreFullError,
    OutOfMemoryError,
    OwnerDiedError,
    RaySystemError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, RayServeException, ReplicaUnavailableError

from lipsync.core import Index
from lipsync.errors import EngineError, InputCrashedWorker, NoFace, Overloaded, UnreadableMedia, WorkerLost, all_errors
from lipsync.flow import in_order
from lipsync.media.source import Blob
from lipsync.metrics import RETRIES
from lipsync.options import Limits, Options
from lipsync.pipeline import Job
from lipsync.plan import Span
from serve import stages as stages_module
from serve.faults import EndedEarly, cause_of, fault_of
from serve.solitude import BEGUN, Solitude
from serve.stages import Handles, RequestStages
from serve.wire import FaceHeader, Inputs

REALLY_SLEEP = asyncio.sleep
FACE, VOICE = b"a face" * 10, b"a voice" * 10
OWNER = OwnerDiedError("00" * 28, None, "")
DIED, LOST, BUSY, BELOW = ActorDiedError(), OWNER, BackPressureError(5, 5), ActorUnavailableError("away", None)


def wrapped(error: BaseException) -> RayTaskError:
    """As it arrives from a replica in which it was raised."""
    return RayTaskError("method", "Traceback, /srv/secret", error, ip="10.0.0.7").as_instanceof_cause()


# ---------------------------------------------------------------- whose fault it is


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ActorDiedError(), "died"), (WorkerCrashedError(), "died"), (NodeDiedError("x"), "died"), (LocalRayletDiedError(), "died"),
        (wrapped(ActorDiedError()), "below"), (wrapped(wrapped(WorkerCrashedError())), "below"),
        (ActorUnavailableError("x", None), "below"), (TaskCancelledError(), "below"), (RaySystemError("x"), "below"), (OutOfMemoryError("x"), "died"), (wrapped(OutOfMemoryError("x")), "below"),
        (wrapped(EngineError("x")), "below"), (EndedEarly("x"), "below"),
        (RayServeException("an upstream actor died"), "below"), (ReplicaUnavailableError("x"), "below"), (wrapped(RayServeException("x")), "below"),
        (OWNER, "lost"), (ObjectLostError("00" * 28, None, ""), "lost"), (ObjectReconstructionFailedError("00" * 28), "lost"), (wrapped(OWNER), "lost"),
        (BackPressureError(5, 5), "busy"), (wrapped(BackPressureError(5, 5)), "busy"), (ObjectStoreFullError("x"), "busy"),
        (NoFace("x"), None), (wrapped(NoFace("x")), None), (wrapped(UnreadableMedia("x")), None), (Overloaded("x"), None),
        (TypeError("x"), None), (wrapped(TypeError("x")), None), (RayTaskError("m", "t", "no exception", ip="x"), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)  # fmt: skip
def test_a_fault_is_told_by_whose_it_is(error, fault):
    assert fault_of(error) == fault


def test_the_cause_is_the_error_that_was_raised_and_carries_no_traceback_of_rays():
    plain = NoFace("No face.")
    for error in (plain, wrapped(plain), wrapped(wrapped(plain))):
        assert type(cause_of(error)) is NoFace and str(cause_of(error)) == "No face."


def test_rays_wrapped_errors_do_not_become_errors_of_ours():
    assert type(wrapped(NoFace("x"))) in NoFace.__subclasses__(), "Ray makes a subclass as it goes"
    assert {error.__module__ for error in all_errors()} == {"lipsync.errors"}


# ---------------------------------------------------------------- replicas that fail as told


class Chunk(str):
    """Of a voice that has five."""

    @property
    def is_last(self) -> bool:
        return self == "chunk 4"


class Replica:
    """A handle. ``plan`` has a step for each call, in turn: how many items it gives (all with None; -1: it does not even
    begin) and the error it ends with."""

    def __init__(self, *plan: tuple[int | None, BaseException | None]):
        self.plan = list(plan)
        self.calls: list[SimpleNamespace] = []

    def options(self, *, method_name: str, stream: bool, _by_reference: bool) -> Any:
        assert stream and _by_reference, "arrays and inputs never travel by value"
        return SimpleNamespace(remote=partial(self._call, method_name))

    def _call(self, method, ref, *args, **named) -> Any:
        count, error = self.plan.pop(0) if self.plan else (None, None)
        call = SimpleNamespace(method=method, ref=ref, args=args, named=named, is_cancelled=False, given=0)
        self.calls.append(call)
        return Response(call, self._items(method, args), count, error, alone=named["alone"])

    def _items(self, method, args) -> list[Any]:
        if method == "open":
            return [OPENED]
        if method == "measure":
            return [3.0]
        if method == "voice":
            return [Chunk(f"chunk {number}") for number in range(args[1], 5)]
        return [f"made of {piece}" for piece in args[1]]


class Response:
    """A streaming response: ``count`` items (all where none is said), then the error; alone, BEGUN before them."""

    def __init__(self, call, items, count, error, *, alone):
        self._call, self._error = call, error
        given = items if count is None else items[: max(0, count)]
        self._items = iter([BEGUN, *given] if alone and count != -1 else given)

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.sleep(0)
        for item in self._items:
            self._call.given += 1
            return item
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    def cancel(self):
        self._call.is_cancelled = True


class Piece(int):
    """A segment's task, as far as anybody looks into it here."""

    segment: Any

    def __new__(cls, number, *, backwards):
        piece = super().__new__(cls, number)
        shown = np.arange(8, dtype=np.int32)
        piece.segment = SimpleNamespace(source_frames=80 - 8 * number - shown if backwards else 8 * number + shown)
        return piece


class Counting:
    def __init__(self):
        self.counts: dict[str, float] = {}

    def add(self, metric, amount=1.0, *, label=""):
        self.counts[metric.name] = self.counts.get(metric.name, 0) + amount

    def set(self, metric, value): ...

    def observe(self, metric, value, *, label=""): ...


class World:
    """One request's stages over one replica for everything."""

    def __init__(self, *plan, tries: int = 3, admitted=None):
        self.replica, self.meters, self.accused = Replica(*plan), Counting(), []
        self.face, self.voice = Blob.of(FACE, limit_bytes=999), Blob.of(VOICE, limit_bytes=999)
        self.job = Job(self.face, self.voice, Options(), Limits())
        self.frames: list[int] = []
        self.stages = RequestStages(
            Handles(self.replica, self.replica), face=self.face, voice=self.voice, tries=tries, meters=self.meters,
            admitted=admitted or self._admitted, accuse=self._accuse,
        )  # fmt: skip

    async def _admitted(self, frames):
        self.frames.append(frames)

    async def _accuse(self, content_hash):
        self.accused.append(content_hash)

    @property
    def retries(self) -> float:
        return self.meters.counts.get(RETRIES.name, 0)

    def render(self, pieces=5, *, backwards=False):
        run = [Piece(number, backwards=backwards) for number in range(pieces)]
        return self.stages.render(self.job, HEADER, run, fps=Fraction(25))

    def detect(self, pieces=5):
        return self.stages.detect(self.job, HEADER, list(range(pieces)))

    def hear(self):
        return self.stages.voice(self.job, Span())


HEADER: Any = SimpleNamespace(info=1, index=2, geometry=3, width=4, height=5)
OPENED: Any = FaceHeader(SimpleNamespace(kind="video"), Index.__new__(Index), None, 64, 48)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    """No test waits; what would have been waited is noted."""
    waited: list[float] = []
    really = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds:
            waited.append(seconds)
        await really(0)

    monkeypatch.setattr(
        stages_module,
        "asyncio",
        SimpleNamespace(
            sleep=sleep,
            Lock=asyncio.Lock,
            to_thread=asyncio.to_thread,
            create_task=asyncio.create_task,
            gather=asyncio.gather,
            get_running_loop=asyncio.get_running_loop,
        ),
    )
    return waited


async def everything(items) -> list[Any]:
    return [item async for item in items]


STREAMS = {"voice": World.hear, "detect": World.detect, "render": World.render}
WHOLE = {
    "voice": [f"chunk {n}" for n in range(5)], "detect": [f"made of {n}" for n in range(5)], "render": [f"made of {n}" for n in range(5)],
}  # fmt: skip


@pytest.mark.parametrize("stage", STREAMS)
@pytest.mark.parametrize(
    "fault", [DIED, LOST, BUSY, BELOW, wrapped(DIED), wrapped(EngineError("x"))], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("after", [0, 2])
async def test_work_goes_on_where_it_broke_off(stage, fault, after):
    world = World((after, fault))
    assert await everything(STREAMS[stage](world)) == WHOLE[stage]
    first, second = world.replica.calls
    if stage == "voice":
        assert (first.args[1], second.args[1]) == (0, after)
    else:
        assert second.args[1] == list(range(after, 5)), "only what is left is asked for again"
    assert world.retries == (fault is not BUSY)


@pytest.mark.parametrize("stage", STREAMS)
@pytest.mark.parametrize("fault", [DIED, LOST, BUSY, BELOW], ids=lambda e: type(e).__name__)
async def test_what_breaks_after_its_last_item_is_whole_and_not_asked_for_again(stage, fault):
    world = World((5, fault))
    assert await everything(STREAMS[stage](world)) == WHOLE[stage]
    assert len(world.replica.calls) == 1 and world.retries == 0


@pytest.mark.parametrize("stage", STREAMS)
@pytest.mark.parametrize("after", [0, 2])
async def test_a_stream_that_ends_too_early_without_a_word_is_gone_on_with(stage, after):
    world = World((after, None))
    assert await everything(STREAMS[stage](world)) == WHOLE[stage]
    assert world.retries == 1


async def test_an_opening_without_an_answer_is_asked_for_again(expected):
    world = World((0, None))
    await world.stages.open_face(world.job)
    assert world.frames == [75]


FAULTS = st.sampled_from([DIED, LOST, BUSY, BELOW, wrapped(LOST), wrapped(DIED)])


@settings(max_examples=150, deadline=None)
@given(stage=st.sampled_from(sorted(STREAMS)), plan=st.lists(st.tuples(st.integers(0, 3), FAULTS), max_size=8))
def test_whatever_fails_nothing_is_twice_and_nothing_missing(stage, plan):
    world = World(*plan)

    async def run() -> tuple[list[Any], str]:
        got: list[Any] = []
        try:
            async for item in STREAMS[stage](world):
                got.append(item)
        except (InputCrashedWorker, WorkerLost) as error:
            return got, error.slug
        return got, ""

    got, slug = asyncio.run(run())
    assert got == WHOLE[stage][: len(got)]
    assert slug or got == WHOLE[stage]
    assert len(world.replica.calls) <= len(plan) + 1


@pytest.mark.parametrize("tries", [1, 3, 5])
async def test_one_piece_is_given_out_as_often_as_it_may_be_and_no_more(tries):
    world = World(*[(0, BELOW)] * 50, tries=tries)
    with pytest.raises(WorkerLost, match=f"failed {tries} times.*ActorUnavailableError"):
        await everything(world.render())
    assert len(world.replica.calls) == tries
    assert world.accused == []


async def test_tries_are_counted_by_piece_and_not_by_request():
    world = World(*[(1, BELOW)] * 4, tries=2)
    assert await everything(world.render()) == WHOLE["render"]
    assert len(world.replica.calls) == 5


@pytest.mark.parametrize("error", [NoFace("none"), UnreadableMedia("bad"), TypeError("a defect")], ids=repr)
@pytest.mark.parametrize("stage", STREAMS)
async def test_a_callers_mistake_is_never_tried_again_and_comes_out_plain(stage, error):
    world = World((2, wrapped(error)))
    with pytest.raises(type(error)) as caught:
        await everything(STREAMS[stage](world))
    assert caught.value is error, "without Ray's wrapping, which says the remote traceback"
    assert len(world.replica.calls) == 1 and world.retries == 0


@pytest.mark.parametrize(("stage", "blamed"), [("voice", VOICE), ("detect", FACE), ("render", FACE)])
async def test_an_input_on_which_a_second_worker_died_that_had_nothing_else_to_do_is_accused(stage, blamed):
    world = World((1, DIED), (0, WorkerCrashedError()), tries=9)
    with pytest.raises(InputCrashedWorker, match="will not be tried again"):
        await everything(STREAMS[stage](world))
    assert world.accused == [Blob.of(blamed, limit_bytes=999).content_hash]
    assert [call.named["alone"] for call in world.replica.calls] == [False, True]


async def test_who_died_waiting_to_work_alone_is_not_accused():
    world = World((1, DIED), (-1, DIED), (-1, DIED), tries=9)
    assert await everything(world.render()) == WHOLE["render"]
    assert world.accused == []
    assert [call.named["alone"] for call in world.replica.calls] == [False, True, True, True]


async def test_deaths_while_waiting_to_work_alone_are_no_tries_but_bounded():
    world = World((0, DIED), *[(-1, DIED)] * 5, tries=2)
    assert await everything(world.render()) == WHOLE["render"]
    endless = World((0, DIED), *[(-1, DIED)] * 50, tries=2)
    with pytest.raises(WorkerLost):
        await everything(endless.render())
    assert len(endless.replica.calls) == 1 + 3 * 2 and endless.accused == []


async def test_only_what_a_worker_died_under_is_worked_on_alone():
    world = World((1, BELOW), (1, DIED), (1, BELOW))
    assert await everything(world.render()) == WHOLE["render"]
    assert [call.named["alone"] for call in world.replica.calls] == [False, False, True, False]


async def test_calls_share_a_replica_except_one_that_wants_it_alone():
    solitude, under_way, seen = Solitude(), set(), []

    async def work(name, *, alone):
        async with solitude.work(alone=alone):
            under_way.add(name)
            seen.append((name, len(under_way)))
            await asyncio.sleep(0.01)
            under_way.discard(name)

    async def cancelled():
        task = asyncio.create_task(work("gone", alone=True))
        await asyncio.sleep(0)
        task.cancel()

    calls = [work(f"shared {n}", alone=False) for n in range(3)] + [
        work("alone", alone=True),
        work("late", alone=False),
    ]
    await asyncio.wait_for(asyncio.gather(*calls, cancelled()), 2)
    assert seen[:3] == [("shared 0", 1), ("shared 1", 2), ("shared 2", 3)]
    assert ("alone", 1) in seen and ("late", 1) in seen
    assert [name for name, _ in seen].index("alone") < [name for name, _ in seen].index("late")


async def test_deaths_on_different_pieces_accuse_nobody():
    world = World((1, DIED), (1, DIED), (1, DIED))
    assert await everything(world.render()) == WHOLE["render"]
    assert world.accused == []


async def test_deaths_below_accuse_nobody():
    world = World(*[(0, wrapped(DIED))] * 9)
    with pytest.raises(WorkerLost):
        await everything(world.render())
    assert world.accused == []


@pytest.mark.parametrize("lost", [LOST, wrapped(ObjectReconstructionFailedError("00" * 28))], ids=["owner", "wrapped"])
async def test_lost_inputs_are_put_again_and_only_those(lost):
    world = World((1, lost), (1, BELOW), (None, None))
    assert await everything(world.render()) == WHOLE["render"]
    assert world.stages.puts == 2
    first, second, third = [call.ref.inputs[0] for call in world.replica.calls]
    assert first is not second and second is third
    assert isinstance(second, Inputs) and bytes(second.face) == FACE and bytes(second.voice) == VOICE


async def test_inputs_that_many_pieces_miss_at_once_are_put_again_once():
    world = World()
    await world.stages._ref(world.job)
    first, call = world.stages._inputs, world.replica._call

    def lost_at_first(*arguments, **named):
        world.replica.plan = [(1, LOST)] if arguments[1].inputs[0] is first else []
        return call(*arguments, **named)

    world.replica._call = lost_at_first
    made = await asyncio.gather(*(everything(world.render()) for _ in range(6)))
    assert made == [WHOLE["render"]] * 6
    assert world.stages.puts == 2


async def test_a_store_without_room_for_the_inputs_is_waited_for(monkeypatch):
    world, put = World(), stages_module.put_inputs
    full = iter([ObjectStoreFullError("full")] * 5)

    def putting(face, voice):
        for error in full:
            raise error
        return put(face, voice)

    monkeypatch.setattr(stages_module, "put_inputs", putting)
    assert await everything(world.render()) == WHOLE["render"]


async def test_inputs_are_put_once_for_all_stages():
    world = World()
    await asyncio.gather(*(everything(make(world)) for make in STREAMS.values()))
    assert world.stages.puts == 1


async def test_who_is_not_taken_is_waited_for_however_long_and_is_no_retry(pauses):
    world = World(*[(0, BUSY)] * 1500, tries=2)
    assert await everything(world.render()) == WHOLE["render"]
    assert len(pauses) == 1500 and world.retries == 0
    assert max(pauses) <= 3.0 and 0 < pauses[0] <= 0.4, "short at first, and bounded"


async def test_pauses_differ_so_that_callers_do_not_come_back_together(pauses):
    await everything(World(*[(0, BUSY)] * 30).render())
    assert len(set(pauses[5:])) > 20


async def test_a_run_that_its_consumer_leaves_lying_is_stopped_and_gone_on_with(monkeypatch):
    monkeypatch.setattr(stages_module, "_PATIENCE_S", 0.01)
    world, got = World(), []
    async with aclosing(world.render()) as items:
        async for item in items:
            got.append(item)
            if len(got) in (2, 3, 5):
                await REALLY_SLEEP(0.1)
    assert got == WHOLE["render"]
    assert [call.args[1] for call in world.replica.calls] == [[0, 1, 2, 3, 4], [2, 3, 4], [3, 4]], "nothing twice"
    assert all(call.is_cancelled for call in world.replica.calls)
    assert world.retries == 0


@pytest.mark.parametrize(("window", "most_calls"), [(8, 6), (2, 11)])
async def test_a_reader_that_is_always_slow_costs_a_new_beginning_for_every_few_segments(
    monkeypatch, window, most_calls
):
    monkeypatch.setattr(stages_module, "_PATIENCE_S", 0.01)
    world = World()

    async def one_run():
        yield [Piece(number, backwards=False) for number in range(40)]

    def start(run):
        return world.stages.render(world.job, HEADER, run, fps=Fraction(25))

    got = []
    async for item in in_order(one_run(), start, window=window):
        got.append(item)
        await REALLY_SLEEP(0.03)
    assert got == [f"made of {number}" for number in range(40)]
    assert 2 < len(world.replica.calls) <= most_calls


@pytest.mark.parametrize("ask", [World.hear, World.detect, partial(World.render, backwards=True)])
async def test_what_would_gain_nothing_by_it_is_not_stopped(ask, monkeypatch):
    monkeypatch.setattr(stages_module, "_PATIENCE_S", 0.01)
    world = World()
    async for _ in ask(world):
        await REALLY_SLEEP(0.05)
    (call,) = world.replica.calls
    assert not call.is_cancelled


async def test_a_consumer_that_keeps_up_is_never_stopped(monkeypatch):
    monkeypatch.setattr(stages_module, "_PATIENCE_S", 1.0)
    world = World()
    async for _ in world.render(40):
        await REALLY_SLEEP(0.01)
    await REALLY_SLEEP(1.1)
    (call,) = world.replica.calls
    assert not call.is_cancelled


@pytest.mark.parametrize("stage", STREAMS)
async def test_a_consumer_that_stops_cancels_the_call(stage):
    world = World()
    async with aclosing(STREAMS[stage](world)) as items:
        async for _ in items:
            break
    assert [call.is_cancelled for call in world.replica.calls] == [True]
    finished = World()
    await everything(STREAMS[stage](finished))
    assert [call.is_cancelled for call in finished.replica.calls] == [False]


@pytest.fixture
def expected(monkeypatch):
    """Frames by the voice alone: there is no index here to make a timeline of."""
    monkeypatch.setattr(stages_module, "_expected_frames", lambda job, face, heard_s: round(25 * heard_s))


async def test_opening_admits_once_with_the_frames_that_the_headers_tell(expected):
    world = World((None, BELOW))
    face = await world.stages.open_face(world.job)
    assert world.frames == [75]
    assert (face.width, face.height) == (64, 48)
    assert sorted(call.method for call in world.replica.calls) == ["measure", "open"] and world.retries == 0


@pytest.mark.parametrize(
    ("plan", "blamed"),
    [
        ([(0, DIED), (None, None), (0, DIED)], FACE),  # calls: open, measure, open alone
        ([(None, None), (0, DIED), (0, DIED)], VOICE),  # open, measure, measure alone
    ],
    ids=["face", "voice"],
)
async def test_the_input_whose_header_killed_two_workers_is_accused_and_not_the_other(expected, plan, blamed):
    world = World(*plan, tries=9)
    with pytest.raises(InputCrashedWorker):
        await world.stages.open_face(world.job)
    assert world.accused == [Blob.of(blamed, limit_bytes=999).content_hash]
    assert world.frames == [], "nothing was admitted"


async def test_a_refusal_of_the_admission_ends_the_request_and_is_not_tried_again(expected):
    async def full(frames):
        raise Overloaded("full")

    world = World(admitted=full)
    with pytest.raises(Overloaded):
        await world.stages.open_face(world.job)
    assert sorted(call.method for call in world.replica.calls) == ["measure", "open"]


async def test_a_request_without_a_voice_says_so_to_the_replicas():
    world = World()
    alone = RequestStages(
        Handles(world.replica, world.replica), face=world.face, voice=None, tries=3, meters=world.meters,
        admitted=world._admitted, accuse=world._accuse,
    )  # fmt: skip
    await everything(alone.detect(world.job, HEADER, [range(3)]))
    ref = world.replica.calls[0].ref
    assert ref.inputs[0].voice.size == 0
    assert (await ref.resolve()).voice.byte_count == 0

"""Who may begin: the books keep their bounds whatever comes in whichever order, and a gate without books decides alone."""

import asyncio
import copy
from contextlib import AsyncExitStack
from contextvars import ContextVar
from time import monotonic
from types import SimpleNamespace

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError

from lipsync.errors import InputCrashedWorker, Overloaded
from serve import gate as gate_module
from serve.admission import Admission, Books, Decision, Lease
from serve.gate import Gate
from serve.settings import AdmissionSettings
from tests.serve_fakes import FakeBooks

SMALL = AdmissionSettings(requests=4, frames=100, requests_per_key=2, lease_s=10, retry_after_s=3)


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def books(clock):
    return Books(SMALL, clock=clock)


# ---------------------------------------------------------------- the books


class AnyOrder(RuleBasedStateMachine):
    """Requests come, learn their lengths, are renewed, go, and die, in any order; the books are checked against a model."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.books = Books(SMALL, clock=self.clock)
        self.model: dict[str, tuple[str, int, float]] = {}  # key, frames, until when
        self.gone: dict[str, float] = {}

    def left(self) -> set[str]:
        return {name for name, until in self.gone.items() if until > self.clock.now_s}

    def living(self) -> dict[str, tuple[str, int, float]]:
        return {name: entry for name, entry in self.model.items() if entry[2] > self.clock.now_s}

    @rule(name=st.integers(0, 30), key=st.sampled_from(["", "a", "b"]))
    def enter(self, name, key):
        name = str(name)
        living = self.living()
        if name in living or name in self.left():
            return
        decision = self.books.enter(Lease(name, key))
        if len(living) >= SMALL.requests:
            assert decision == Decision("requests", 3)
        elif key and sum(entry[0] == key for entry in living.values()) >= SMALL.requests_per_key:
            assert decision == Decision("key", 3)
        elif decision.reason:
            # what is expected of it, going by those before, is more than there is room for
            assert decision == Decision("frames", 3) and living
        else:
            self.model[name] = (key, 0, self.clock.now_s + SMALL.lease_s)

    @rule(name=st.integers(0, 30), frames=st.integers(0, 250))
    def know(self, name, frames):
        name = str(name)
        if name not in self.living():
            return
        key = self.model[name][0]
        others = sum(entry[1] for other, entry in self.living().items() if other != name)
        decision = self.books.know(Lease(name, key, frames))
        if others and others + frames > SMALL.frames:
            assert decision == Decision("frames", 3)
            del self.model[name]
            self.gone[name] = self.clock.now_s + SMALL.lease_s
        else:
            assert not decision.reason
            self.model[name] = (key, frames, self.clock.now_s + SMALL.lease_s)

    @rule(name=st.integers(0, 30))
    def renew(self, name):
        name = str(name)
        if name in self.left():
            self.books.renew([Lease(name, "", 90)])  # overtaken by the leaving: changes nothing
        elif name in self.living():
            key, frames, _ = self.model[name]
            self.books.renew([Lease(name, key, frames)])
            self.model[name] = (key, frames, self.clock.now_s + SMALL.lease_s)

    @rule(name=st.integers(0, 30))
    def leave(self, name):
        self.books.leave(str(name))
        self.model.pop(str(name), None)
        self.gone[str(name)] = self.clock.now_s + SMALL.lease_s

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds):
        self.clock.now_s += seconds

    @invariant()
    def the_books_say_what_is_under_way_and_keep_their_bounds(self):
        living = self.living()
        assert self.books.requests == len(living) <= SMALL.requests
        frames = [entry[1] for entry in living.values()]
        assert self.books.frames == sum(frames)
        assert sum(frames) <= SMALL.frames or sum(count > 0 for count in frames) == 1, "only one alone may be larger"
        for key in ("a", "b"):
            assert sum(entry[0] == key for entry in living.values()) <= SMALL.requests_per_key
        probed = copy.deepcopy(self.books)
        assert self.books.has_room == (not probed.enter(Lease("one more", "")).reason), "as a request would find it"


AnyOrder.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=30, deadline=None)
test_the_books_keep_their_bounds_in_any_order = AnyOrder.TestCase


def test_a_request_of_any_length_is_taken_alone_and_no_other_beside_it(books):
    books.enter(Lease("long", ""))
    assert not books.know(Lease("long", "", 1000)).reason
    assert not books.has_room
    books.enter(Lease("short", ""))
    assert books.know(Lease("short", "", 1)) == Decision("frames", 3)
    assert books.requests == 1, "the refused one is out"
    books.leave("long")
    books.enter(Lease("short", ""))
    assert not books.know(Lease("short", "", 1)).reason


def test_requests_whose_frames_nobody_tells_do_not_make_others_look_short(books):
    for number in range(50):
        books.enter(Lease("told", ""))
        books.know(Lease("told", "", 60))
        books.leave("told", 60)
        books.enter(Lease(str(number), ""))
        books.know(Lease(str(number), "", 0))  # only faces are looked for, or the header does not say
        books.leave(str(number))
    books.enter(Lease("first", ""))
    books.know(Lease("first", "", 60))
    assert not books.has_room, "one more of the usual 60 would be too much for 100"


def test_an_entry_runs_out_when_its_ingress_is_not_heard_of(books, clock):
    books.enter(Lease("a", ""))
    clock.now_s += 9.9
    assert books.requests == 1
    books.renew([Lease("a", "")])
    clock.now_s += 9.9
    assert books.requests == 1
    clock.now_s += 0.2
    assert books.requests == 0


def test_what_has_run_out_takes_no_place_of_its_key(books, clock):
    for name in "ab":
        assert not books.enter(Lease(name, "k")).reason
    assert books.enter(Lease("c", "k")).reason == "key"
    clock.now_s += SMALL.lease_s + 1
    assert not books.enter(Lease("d", "k")).reason


def test_renewals_fill_new_books_again(books, clock):
    held = [Lease("a", "k", 60), Lease("b", "k", 30)]
    again = Books(SMALL, clock=clock)
    again.renew(held)
    assert (again.requests, again.frames) == (2, 90)
    assert again.enter(Lease("c", "k")) == Decision("key", 3)


def test_an_accused_input_is_refused_for_an_hour_whoever_sends_it(books, clock):
    books.accuse("hash")
    assert books.check(["other", "hash"]) == Decision("input")
    assert not books.check(["other"]).reason
    clock.now_s += 3601
    assert not books.check(["hash"]).reason


def test_what_is_remembered_of_accused_inputs_is_bounded(books, monkeypatch):
    monkeypatch.setattr("serve.admission._ACCUSED_MOST", 3)
    for number in range(10):
        books.accuse(str(number))
    assert list(books._accused) == ["7", "8", "9"]


# ---------------------------------------------------------------- the gate


DEAD = [
    ActorDiedError(), ActorUnavailableError("away", None), WorkerCrashedError(), BackPressureError(5, 5),
    RayTaskError("enter", "trace", ActorDiedError(), ip="x"),
]  # fmt: skip


async def entered(gate, stack, name, key=""):
    return await stack.enter_async_context(gate.request(name, key=key))


async def test_a_request_is_in_the_books_for_as_long_as_it_runs():
    books = FakeBooks(SMALL)
    gate = Gate(books, SMALL)
    async with gate.request("a", key="k") as inside:
        await inside.know(50)
        assert (books.real._books.requests, books.real._books.frames) == (1, 50)
        assert inside.lease.frames == 50
    await asyncio.sleep(0.01)
    assert books.real._books.requests == 0


@pytest.mark.parametrize(("reason", "keys"), [("requests", ["", "", "", ""]), ("key", ["k", "k"])])
async def test_a_refusal_says_why_and_when_to_come_back(reason, keys):
    gate = Gate(FakeBooks(SMALL), SMALL)
    async with AsyncExitStack() as stack:
        for number, key in enumerate(keys):
            await entered(gate, stack, str(number), key)
        with pytest.raises(Overloaded, match="Try again in 3 s") as caught:
            await entered(gate, stack, "late", "k")
        assert (caught.value.reason, caught.value.retry_after_s) == (reason, 3)


async def test_while_everything_is_taken_the_books_are_not_asked_each_time():
    books = FakeBooks(SMALL)
    gate = Gate(books, SMALL)
    async with AsyncExitStack() as stack:
        for number in range(4):
            await entered(gate, stack, str(number))
        for number in range(50):
            with pytest.raises(Overloaded):
                await entered(gate, stack, f"late {number}")
    assert books.calls.count("enter") == 5


async def test_frames_and_accused_inputs_are_refused_when_they_are_known():
    gate = Gate(FakeBooks(SMALL), SMALL)
    async with AsyncExitStack() as stack:
        first, second, third = [await entered(gate, stack, name) for name in "abc"]
        await first.know(80)
        with pytest.raises(Overloaded) as caught:
            await second.know(30)
        assert caught.value.reason == "frames"
        await gate.accuse("bad")
        with pytest.raises(InputCrashedWorker):
            await gate.check(["good", "bad"])
        await gate.check(["good"])
        await third.know(1)


async def test_what_a_replica_accused_itself_stays_refused_when_the_books_start_anew():
    books = FakeBooks(SMALL)
    gate = Gate(books, SMALL)
    await gate.accuse("bad")
    books.real = Admission(SMALL)
    with pytest.raises(InputCrashedWorker):
        await gate.check(["bad"])
    await gate.check(["good"])


async def test_leaving_and_renewing_are_no_calls_of_the_request_and_not_cancelled_with_it():
    request = ContextVar("request", default="none")
    seen: list[tuple[str, str]] = []

    class Noting(FakeBooks):
        def __getattr__(self, name):
            method = super().__getattr__(name)

            def remote(*args):
                seen.append((name, request.get()))
                return method.remote(*args)

            return SimpleNamespace(remote=remote)

    settings = SMALL.model_copy(update={"lease_s": 0.03})
    request.set("first")
    async with AsyncExitStack() as stack:
        await entered(Gate(Noting(settings), settings), stack, "a")
        await asyncio.sleep(0.05)
    assert {("enter", "first"), ("renew", "none"), ("leave", "none")} == set(seen)


async def test_whoever_asks_often_whether_there_is_room_does_not_reach_the_books_each_time():
    books = FakeBooks(SMALL)
    gate = Gate(books, SMALL)
    assert all([await gate.has_room() for _ in range(50)])
    assert all(await asyncio.gather(*(gate.has_room() for _ in range(50))))
    assert books.calls == ["has_room"]
    gate = Gate(slow := FakeBooks(SMALL, delay_s=0.05), SMALL)
    assert all(await asyncio.gather(*(gate.has_room() for _ in range(50))))
    assert slow.calls == ["has_room"], "nor while they think"


@pytest.mark.parametrize("fault", DEAD, ids=lambda error: type(error).__name__)
async def test_without_books_the_gate_decides_alone_and_within_the_same_bounds(fault):
    gate = Gate(FakeBooks(SMALL, fault=fault), SMALL)
    async with AsyncExitStack() as stack:
        inside = [await entered(gate, stack, name, key) for name, key in (("a", "k"), ("b", "k"), ("c", ""))]
        with pytest.raises(Overloaded) as caught:
            await entered(gate, stack, "d", "k")
        assert caught.value.reason == "key"
        await inside[0].know(90)
        with pytest.raises(Overloaded) as caught:
            await inside[1].know(30)
        assert caught.value.reason == "frames"
        await gate.accuse("bad")
        with pytest.raises(InputCrashedWorker):
            await gate.check(["bad"])
        await inside[2].know(10)
        assert not await gate.has_room(), "as full as it is by this replica's own account"
    async with AsyncExitStack() as stack:
        for number in range(4):
            await entered(gate, stack, f"again {number}")
        with pytest.raises(Overloaded) as caught:
            await entered(gate, stack, "fifth")
        assert caught.value.reason == "requests"


async def test_books_that_do_not_answer_in_time_are_not_waited_for(monkeypatch):
    monkeypatch.setattr(gate_module, "_ANSWER_WITHIN_S", 0.02)
    gate = Gate(FakeBooks(SMALL, delay_s=5), SMALL)
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(1):
            inside = await entered(gate, stack, "a")
            await inside.know(10)
            assert await gate.has_room(), "a request would be let in, by this replica's own account"


async def test_for_a_while_after_they_did_not_answer_nobody_waits_for_them(monkeypatch):
    monkeypatch.setattr(gate_module, "_ANSWER_WITHIN_S", 0.2)
    books = FakeBooks(SMALL, delay_s=5)
    gate = Gate(books, SMALL)
    async with AsyncExitStack() as stack:
        await entered(gate, stack, "a")
        asked, began_s = len(books.calls), monotonic()
        await entered(gate, stack, "b")
        await gate.check(["x"])
        assert monotonic() - began_s < 0.1 and len(books.calls) == asked


async def test_who_is_refused_by_a_replica_alone_leaves_books_that_may_have_let_it_in(monkeypatch):
    monkeypatch.setattr(gate_module, "_ANSWER_WITHIN_S", 0.02)
    monkeypatch.setattr(gate_module, "_AWAY_FOR_S", 0.0)
    books = FakeBooks(SMALL)
    gate = Gate(books, SMALL)
    async with AsyncExitStack() as stack:
        for number in range(SMALL.requests):
            await entered(gate, stack, f"held {number}")
        books.real, books.delay_s = Admission(SMALL), 0.1  # they know nothing any more, and are slow
        with pytest.raises(Overloaded):
            await entered(gate, stack, "one more")
        await asyncio.sleep(0.3)
        assert "leave" in books.calls and books.real._books.requests == 0


async def test_an_error_that_is_no_lost_worker_is_not_swallowed():
    with pytest.raises(TypeError, match="a defect"):
        async with Gate(
            FakeBooks(SMALL, fault=RayTaskError("enter", "t", TypeError("a defect"), ip="x")), SMALL
        ).request("a", key=""):
            pass


async def test_what_is_held_is_renewed_until_it_leaves_and_fills_books_that_came_back():
    settings = SMALL.model_copy(update={"lease_s": 0.06})  # renewed every 20 ms
    books = FakeBooks(settings)
    gate = Gate(books, settings)
    async with gate.request("a", key="k") as inside:
        await inside.know(50)
        await asyncio.sleep(0.15)
        assert books.real._books.requests == 1, "longer than one lease"
        books.real = Admission(settings)  # it died, and came back with empty books
        await asyncio.sleep(0.05)
        assert (books.real._books.requests, books.real._books.frames) == (1, 50)
    await asyncio.sleep(0.05)
    assert books.real._books.requests == 0
    renewed = books.calls.count("renew")
    await asyncio.sleep(0.05)
    assert books.calls.count("renew") == renewed, "nothing is held: nothing is renewed"


async def test_renewals_survive_books_that_are_away_for_a_while():
    settings = SMALL.model_copy(update={"lease_s": 0.06})
    books = FakeBooks(settings)
    gate = Gate(books, settings)
    async with gate.request("a", key=""):
        books.fault = ActorDiedError()
        await asyncio.sleep(0.1)
        books.fault = None
        await asyncio.sleep(0.05)
        assert books.real._books.requests == 1


async def test_a_caller_who_leaves_at_the_gate_is_not_kept_in_the_books():
    books = FakeBooks(SMALL, delay_s=0.05)
    entering = asyncio.create_task(entered(Gate(books, SMALL), AsyncExitStack(), "a"))
    await asyncio.sleep(0.02)
    entering.cancel()
    await asyncio.sleep(0.04)
    assert books.real._books.requests == 1, "the call came through all the same"
    await asyncio.sleep(0.06)
    assert books.real._books.requests == 0


async def test_a_request_that_fails_leaves_the_books_too():
    books = FakeBooks(SMALL)
    gate = Gate(books, SMALL)
    with pytest.raises(RuntimeError):
        async with gate.request("a", key=""):
            raise RuntimeError
    await asyncio.sleep(0.01)
    assert books.real._books.requests == 0 and gate._own.requests == 0


def test_at_the_door_a_request_is_taken_to_be_as_long_as_those_before_it():
    books = Books(AdmissionSettings(requests=50, frames=1000))
    for number in range(60):  # each alone: they are done before the next comes
        assert not books.enter(Lease(str(number), "")).reason
        assert not books.know(Lease(str(number), "", 300)).reason
        books.leave(str(number), 300)
    let_in = [name for name in "abcdef" if not books.enter(Lease(name, "")).reason]
    assert let_in == ["a", "b", "c"], "a fourth of 300 frames would be more than 1000"
    for name in let_in:
        books.leave(name)
    assert not books.enter(Lease("alone", "")).reason


def test_headers_that_promise_much_and_come_to_nothing_close_no_door():
    books = Books(AdmissionSettings(requests=4, frames=1000))
    for number in range(60):
        books.enter(Lease(str(number), ""))
        books.know(Lease(str(number), "", 900))
        books.leave(str(number))
    assert [books.enter(Lease(name, "")).reason for name in "abcde"] == ["", "", "", "", "requests"]


async def test_what_a_request_came_to_is_learnt_and_one_that_failed_is_not():
    books = FakeBooks(AdmissionSettings(requests=50, frames=1000))
    gate = Gate(books, books.real._books._settings)
    with pytest.raises(RuntimeError):
        async with gate.request("failed", key="") as inside:
            await inside.know(900)
            raise RuntimeError
    async with gate.request("made", key="") as inside:
        await inside.know(200)
        inside.came_to = 200
    await asyncio.sleep(0.01)
    assert books.real._books._usual_frames == gate._own._usual_frames == pytest.approx(1 + 0.1 * 199)


def test_what_is_said_of_a_request_after_it_left_comes_too_late(books, clock):
    books.enter(Lease("a", ""))
    books.leave("a")
    books.renew([Lease("a", "", 10)])
    assert books.know(Lease("a", "", 10)) == Decision()
    books.leave("b")  # who went away while asking: the entry comes after the leaving
    books.enter(Lease("b", ""))
    assert (books.requests, books.frames) == (0, 0)
    clock.now_s += SMALL.lease_s
    assert books.requests == 0 and not books._left, "nothing is kept of them for long"


def test_books_that_are_asked_nothing_keep_nothing_of_who_left_long_ago(books, clock):
    for number in range(100):
        books.leave(str(number))
        clock.now_s += SMALL.lease_s / 4
    assert len(books._left) <= 4

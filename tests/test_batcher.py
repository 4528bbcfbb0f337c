"""The frame batcher in simulated time: whose frames are drawn, when, with whom, and what no neighbour can do to them."""

import asyncio
import gc
import math
import threading
import weakref
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulated import (
    OF,
    Clients,
    NumberDevice,
    Numbers,
    Poisoned,
    World,
    come_by_themselves,
    mixed_sizes,
    simulated,
)
from lipsync.batcher import BatcherSettings, BatchReport, FrameBatcher
from lipsync.core import Claim
from lipsync.errors import EngineError, InvalidOption

PASS_S = 0.02


class Desk:
    """Calls to a batcher in a world of its own. The n-th call's frames are n million and so many."""

    def __init__(self, *, batch_size: int = 512, settings: BatcherSettings | None = None, **more) -> None:
        self.world = World()
        self.device = NumberDevice(self.world, batch_size=batch_size, pass_s=PASS_S)
        self.batcher = simulated(self.world, self.device, settings=settings, **more)
        self.calls: list[Future] = []

    def call(self, count: int, *, first_frame: int = 10_000, **claim) -> Future:
        n = len(self.calls)
        frames = Numbers(range(n * OF, n * OF + count))
        self.calls.append(self.batcher.submit(frames, claim=Claim(first_frame=first_frame, **claim)))
        return self.calls[-1]

    def drawn(self, n: int) -> list[tuple[float, int]]:
        """When, and how many of the n-th call's frames, pass by pass."""
        counted = [(at_s, int((numbers // OF == n).sum())) for at_s, numbers in self.device.passes]
        return [(at_s, count) for at_s, count in counted if count]

    def passes(self) -> list[dict[int, int]]:
        """How many of each call's frames each pass drew."""
        found = []
        for _, numbers in self.device.passes:
            calls, counts = np.unique(numbers // OF, return_counts=True)
            found.append(dict(zip(calls.tolist(), counts.tolist(), strict=True)))
        return found


def busy_desk(**more) -> Desk:
    """One batch runs and one is staged: whatever is called now waits for both."""
    desk = Desk(**more)
    desk.call(2 * desk.device.batch_size)
    return desk


def whole(n: int, count: int) -> list[int]:
    return list(range(n * OF, n * OF + count))


# When a batch is chosen.


def test_a_call_on_a_free_device_is_drawn_at_once():
    desk = Desk(batch_size=8)
    call = desk.call(3)
    assert desk.device.passes[0][0] == 0.0 and not call.done()
    desk.world.run()
    assert call.result().tolist() == whole(0, 3)
    assert desk.world.now_s == PASS_S


def test_frames_that_arrive_while_the_device_is_busy_join_one_next_batch():
    desk = Desk()
    for n in range(60):
        desk.world.later(n * PASS_S / 10, lambda: desk.call(8))
    desk.world.run()
    assert [len(each) for each in desk.passes()] == [1, 10, 10, 10, 10, 10, 9]
    assert all(call.result().tolist() == whole(n, 8) for n, call in enumerate(desk.calls))


def test_a_full_batch_is_staged_beside_the_one_that_runs_and_takes_no_late_comer():
    desk = Desk(batch_size=8)
    desk.call(8)
    desk.call(16)
    desk.world.run(PASS_S / 2)
    assert desk.batcher.counts.queued_frames == 8, "eight run, eight are staged"
    desk.call(1, first_frame=0)
    desk.world.run()
    assert desk.passes() == [{0: 8}, {1: 8}, {2: 1, 1: 7}, {1: 1}]


def test_a_large_call_is_spread_over_batches_and_comes_back_whole():
    desk = Desk(batch_size=100)
    call = desk.call(1234)
    desk.world.run()
    assert call.result().tolist() == whole(0, 1234)
    assert len(desk.device.passes) == math.ceil(1234 / 100)


def test_no_frames_are_no_work():
    desk = Desk()
    assert desk.call(0).result(timeout=0).shape == (0, 96, 96, 3)
    assert desk.device.passes == []


def test_a_smaller_memory_makes_smaller_batches_from_then_on():
    desk = Desk(batch_size=64)
    desk.call(64)
    desk.device.batch_size = 32
    desk.call(100)
    desk.world.run()
    assert desk.passes() == [{0: 64}, {1: 32}, {1: 32}, {1: 32}, {1: 4}]


# Lingering.


def test_a_free_device_lingers_only_when_asked_and_never_with_a_first_share():
    desk = Desk(settings=BatcherSettings(linger_s=0.005))
    desk.call(10)
    desk.world.run(0.003)
    assert desk.device.passes == []
    desk.call(20)
    desk.world.run(0.1)
    assert desk.drawn(0) == [(0.005, 10)] and desk.drawn(1) == [(0.005, 20)]
    desk.call(5, first_frame=0)
    assert desk.drawn(2) == [(0.1, 5)]
    desk.world.run()


def test_a_full_batch_does_not_linger():
    desk = Desk(batch_size=8, settings=BatcherSettings(linger_s=1.0))
    desk.call(8)
    assert desk.drawn(0) == [(0.0, 8)]
    desk.world.run()


def test_settings_change_while_frames_wait():
    desk = Desk(settings=BatcherSettings(linger_s=10.0))
    desk.call(10)
    desk.world.run(1.0)
    assert desk.device.passes == []
    desk.batcher.configure(BatcherSettings(linger_s=0.0, queued_frames=5, first_share_frames=0))
    assert desk.drawn(0) == [(1.0, 10)]
    desk.call(4, first_frame=0)
    desk.call(4, first_frame=0)
    assert (desk.batcher.counts.queued_frames, desk.batcher.counts.held_frames) == (4, 4)
    desk.batcher.configure(BatcherSettings())
    assert (desk.batcher.counts.queued_frames, desk.batcher.counts.held_frames) == (8, 0)
    desk.world.run()


@pytest.mark.parametrize(
    "wrong",
    [{"linger_s": -1}, {"linger_s": math.inf}, {"first_share_frames": -1}, {"queued_frames": 0}, {"turn_frames": 0}],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(InvalidOption, match=next(iter(wrong))):
        BatcherSettings(**wrong)


# Whose turn it is.


def test_a_short_request_beside_a_long_one_starts_its_first_share_in_the_next_batch_with_room():
    desk = Desk(batch_size=128)
    for n in range(24):
        desk.call(128, first_frame=128 * n, request="long")
    desk.world.run(5.5 * PASS_S)
    desk.call(50, first_frame=0, request="short")
    desk.world.run()
    (started_s, count), *more = desk.drawn(24)
    assert (count, more) == (50, [])
    assert started_s <= 7 * PASS_S + 1e-9, "one ran and one was staged already"


def test_many_waiting_segments_give_no_more_than_one():
    desk = busy_desk(batch_size=128)
    for _ in range(20):
        desk.call(128, request="many")
    for request in ("a", "b", "c"):
        desk.call(128, request=request)
    desk.world.run()
    assert [next(iter(drawn)) for drawn in desk.passes()[2:7]] == [1, 21, 22, 23, 2]


def test_requests_without_a_name_are_requests_of_their_own():
    desk = busy_desk(batch_size=128)
    for _ in range(5):
        desk.call(128, request="named")
    desk.call(128)
    desk.call(128)
    desk.world.run()
    assert [next(iter(drawn)) for drawn in desk.passes()[2:6]] == [1, 6, 7, 2]


def test_a_segment_that_was_begun_is_ended_before_another_turn():
    desk = busy_desk(batch_size=100)
    for n in range(6):
        desk.call(60, request=str(n))
    desk.world.run()
    assert desk.passes()[2:] == [{1: 60, 2: 40}, {2: 20, 3: 60, 4: 20}, {4: 40, 5: 60}, {6: 60}]


def test_who_was_away_has_saved_nothing_up():
    desk = busy_desk(batch_size=128)
    desk.call(128, request="away for long")
    for _ in range(10):
        desk.call(128, request="always there")
    desk.world.run(6.5 * PASS_S)
    assert sorted(next(iter(drawn)) for drawn in desk.passes()[2:]) == [1, 2, 3, 4, 5]
    for _ in range(4):
        desk.call(128, request="away for long")
    desk.world.run()
    later = [next(iter(drawn)) for drawn in desk.passes()[7:]]
    assert later == [6, 12, 13, 7, 14, 8, 15, 9, 10, 11], "6 was staged; then they take turns, one ahead at most"


def test_one_long_call_takes_turns_with_short_ones():
    desk = busy_desk(batch_size=128)
    desk.call(1000, request="long")
    for n in range(3):
        desk.call(100, request=str(n))
    desk.world.run()
    assert desk.passes()[2:6] == [{1: 128}, {2: 100, 3: 28}, {3: 72, 4: 56}, {4: 44, 1: 84}]


def test_with_turns_as_long_as_the_queue_who_came_first_is_drawn_first():
    desk = busy_desk(batch_size=128, settings=BatcherSettings(turn_frames=16_384, first_share_frames=0))
    desk.call(1000, request="long")
    for n in range(3):
        desk.call(100, request=str(n))
    desk.world.run()
    assert desk.passes()[2:] == [{1: 128}] * 7 + [{1: 104, 2: 24}, {2: 76, 3: 52}, {3: 48, 4: 80}, {4: 20}]


def test_a_higher_class_goes_first_even_before_a_first_share_of_a_lower_one():
    desk = busy_desk(batch_size=64)
    desk.call(40, first_frame=0, priority=1)
    desk.call(64, priority=0)
    desk.call(30, priority=-1)
    desk.world.run()
    assert desk.passes()[2:] == [{3: 30, 2: 34}, {2: 30, 1: 34}, {1: 6}]


def test_inside_a_class_first_shares_then_the_earliest_deadline_then_the_others():
    desk = busy_desk(batch_size=8)
    desk.call(8)
    for due_in_s in (3.0, 1.0, 2.0):
        desk.call(8, due_in_s=due_in_s)
    desk.call(8, first_frame=0)
    desk.call(8, first_frame=60)
    desk.world.run()
    assert desk.passes()[2:] == [{5: 8}, {6: 4, 3: 4}, {3: 4, 4: 4}, {4: 4, 2: 4}, {2: 4, 1: 4}, {1: 4, 6: 4}]


def test_only_so_many_leading_frames_of_a_call_are_a_first_share():
    desk = busy_desk(batch_size=32, settings=BatcherSettings(first_share_frames=40))
    desk.call(32)
    desk.call(64, first_frame=32)
    desk.world.run()
    assert desk.passes()[2:] == [{2: 8, 1: 24}, {1: 8, 2: 24}, {2: 32}]


@given(
    segments=st.lists(st.lists(st.integers(1, 200), min_size=8, max_size=20), min_size=2, max_size=5),
    batch_size=st.sampled_from([8, 64, 100, 512]),
)
@settings(max_examples=40, deadline=None)
def test_while_two_requests_both_wait_neither_gets_more_than_a_turn_ahead(segments, batch_size):
    desk = busy_desk(batch_size=batch_size)
    of_call = [-1]
    for request, counts in enumerate(segments):
        for count in counts:
            of_call.append(request)
            desk.call(count, request=str(request))
    desk.world.run()
    given_to, totals = [0] * len(segments), [sum(counts) for counts in segments]
    for drawn in desk.passes()[2:]:
        for call, count in drawn.items():
            given_to[of_call[call]] += count
        waiting = [g for g, total in zip(given_to, totals, strict=True) if g < total]
        if len(waiting) > 1:
            assert max(waiting) - min(waiting) <= 2 * 128


# The bound.


def test_the_queue_is_bounded_in_frames_and_callers_wait_for_room():
    desk = Desk(batch_size=10, settings=BatcherSettings(queued_frames=50))
    calls = [desk.call(20) for _ in range(10)]
    seen = []

    def look() -> None:
        counts = desk.batcher.counts
        seen.append(counts.queued_frames)
        if counts.queued_frames + counts.held_frames:
            desk.world.later(PASS_S, look)

    desk.world.later(0.001, look)
    desk.world.run()
    assert max(seen) <= 50 and len(seen) > 10
    assert [call.result().tolist() for call in calls] == [whole(n, 20) for n in range(10)]


def test_a_call_larger_than_the_queue_goes_in_alone():
    desk = Desk(batch_size=10, settings=BatcherSettings(queued_frames=50))
    calls = [desk.call(30), desk.call(300), desk.call(30)]
    desk.world.run()
    assert [len(call.result()) for call in calls] == [30, 300, 30]


def test_of_those_that_wait_for_room_a_first_share_goes_in_first():
    desk = Desk(batch_size=10, settings=BatcherSettings(queued_frames=40))
    for _ in range(8):
        desk.call(40, request="long")
    desk.call(8, first_frame=0, request="short")
    desk.world.run()
    ends_s = [desk.drawn(n)[-1][0] for n in range(9)]
    assert ends_s[8] < ends_s[2]


def test_a_held_call_that_is_cancelled_leaves_and_lets_others_in():
    desk = Desk(batch_size=10, settings=BatcherSettings(queued_frames=20))
    calls = [desk.call(20), desk.call(20), desk.call(500), desk.call(10)]
    assert desk.batcher.counts.held_frames > 0
    assert calls[2].cancel()
    desk.world.run()
    assert desk.drawn(2) == [] and [len(calls[n].result()) for n in (0, 1, 3)] == [20, 20, 10]
    assert desk.batcher.counts.cancelled_frames == 500


# Who has gone.


def test_frames_of_a_cancelled_call_are_never_drawn_not_even_when_they_were_staged():
    desk = Desk(batch_size=8)
    desk.call(8)
    staged, waiting, other = desk.call(8), desk.call(30), desk.call(8)
    desk.world.run(PASS_S / 2)
    assert staged.cancel() and waiting.cancel()
    desk.world.run()
    assert desk.drawn(1) == desk.drawn(2) == []
    assert other.result().tolist() == whole(3, 8)
    assert desk.drawn(3) == [(PASS_S, 8)], "and they took nobody's time"
    assert desk.batcher.counts.cancelled_frames == 38


def test_a_call_cancelled_half_way_draws_no_more():
    desk = Desk(batch_size=10)
    call = desk.call(100)
    desk.world.run(2.5 * PASS_S)
    call.cancel()
    desk.world.run()
    assert sum(count for _, count in desk.drawn(0)) == 30
    assert desk.batcher.counts.queued_frames == 0


# What fails.


def test_one_bad_frame_fails_its_own_call_and_never_its_neighbours():
    reports: list[BatchReport] = []
    desk = Desk(on_batch=reports.append)
    desk.call(4)
    calls = [desk.call(40, request=str(n)) for n in range(5)]
    desk.device.poison = {3 * OF + 17}
    desk.world.run()
    with pytest.raises(Poisoned):
        calls[2].result()
    assert all(calls[n].result().tolist() == whole(n + 1, 40) for n in (0, 1, 3, 4))
    assert desk.passes()[2:] == [{n: 40} for n in range(1, 6)], "each was drawn once more, alone, and only once"
    assert [(report.retried, report.failed) for report in reports] == [(0, 0), (5, 1)]
    assert desk.batcher.healthy and desk.batcher.counts.failed == 1


def test_a_failed_call_draws_none_of_its_other_frames():
    desk = Desk(batch_size=10)
    call = desk.call(100)
    desk.device.poison = {15}
    desk.world.run()
    with pytest.raises(Poisoned):
        call.result()
    assert desk.drawn(0) == [(0.0, 10), (PASS_S, 10)], "the staged batch was left out"
    assert desk.batcher.counts.queued_frames == 0


def test_a_device_that_fails_for_good_fails_all_with_the_cause():
    desk = Desk(batch_size=8, settings=BatcherSettings(queued_frames=40))
    calls = [desk.call(8) for _ in range(10)]
    desk.device.dies_at = OF
    desk.world.run()
    assert calls[0].result().tolist() == whole(0, 8)
    for call in calls[1:]:
        with pytest.raises((EngineError, RuntimeError), match="illegal access"):
            call.result()
    assert len({id(call.exception()) for call in calls[1:]}) == 9, "each caller gets an error of its own"
    assert isinstance(calls[5].exception().__cause__, RuntimeError)
    assert not desk.batcher.healthy
    with pytest.raises(EngineError, match="illegal access"):
        desk.call(1)
    assert len(desk.device.passes) == 2
    counts = desk.batcher.counts
    assert (counts.queued_frames, counts.held_frames, counts.failed) == (0, 0, 9)


def test_a_device_that_returns_too_few_patches_is_found_out():
    desk = Desk()
    desk.device.draw = lambda frames: frames.numbers[:-1]
    call = desk.call(5)
    desk.world.run()
    with pytest.raises(EngineError, match="4 patches for 5 frames"):
        call.result()


def test_metrics_that_fail_touch_no_batch(caplog):
    def broken(report):
        raise ZeroDivisionError

    desk = Desk(on_batch=broken)
    call = desk.call(5)
    desk.world.run()
    assert len(call.result()) == 5
    assert "on_batch failed" in caplog.text


def test_counts_say_what_happened():
    reports: list[BatchReport] = []
    desk = Desk(batch_size=100, on_batch=reports.append)
    desk.call(10, request="a")
    desk.call(30, request="b")
    desk.call(50, request="b")
    desk.world.run()
    counts = desk.batcher.counts
    assert (counts.calls, counts.batches, counts.frames, counts.requests) == (3, 2, 90, 2)
    assert (counts.frames_per_batch, counts.requests_per_batch) == (45.0, 1.0)
    assert counts.waited_s == pytest.approx(2 * PASS_S) and counts.drawing_s == pytest.approx(0.0)
    assert [(r.frames, r.room, r.requests, r.waited_s) for r in reports] == [
        (10, 100, 1, (0.0,)),
        (80, 100, 1, (PASS_S, PASS_S)),
    ]


# Any interleaving.

STEPS = st.one_of(
    st.tuples(
        st.just("call"),
        st.integers(0, 90),
        st.sampled_from(["", "a", "b", "c"]),
        st.sampled_from([0, 8, 32, 500]),
        st.integers(0, 1),
        st.sampled_from([None, 0.01, 5.0]),
    ),
    st.tuples(st.just("cancel"), st.integers(0, 40)),
    st.tuples(st.just("wait"), st.sampled_from([0.001, 0.01, 0.02, 0.05])),
    st.tuples(st.just("poison"), st.integers(0, 40), st.integers(0, 89)),
    st.tuples(st.just("configure"), st.sampled_from([0.0, 0.03]), st.sampled_from([1, 60, 1000])),
)


@given(steps=st.lists(STEPS, max_size=60), batch_size=st.sampled_from([1, 8, 64]))
@settings(max_examples=250, deadline=None)
def test_any_interleaving_gives_each_call_its_own_frames_in_order(steps, batch_size):
    desk = Desk(batch_size=batch_size)
    poison, counts = play(desk, steps)
    for n, (call, count) in enumerate(zip(desk.calls, counts, strict=True)):
        assert call.done(), "nobody is left waiting"
        if call.cancelled():
            continue
        if any(bad // OF == n and bad % OF < count for bad in poison):
            assert isinstance(call.exception(), Poisoned)
        else:
            assert call.exception() is None, "a neighbour's fault became its own"
            assert call.result().tolist() == ([] if not count else whole(n, count))
    now = desk.batcher.counts
    assert (now.queued_frames, now.held_frames) == (0, 0)
    if not poison:
        drawn = np.concatenate([numbers for _, numbers in desk.device.passes] or [np.empty(0, np.int64)])
        assert len(np.unique(drawn)) == len(drawn), "no frame is drawn twice"
        assert now.frames + now.cancelled_frames == sum(counts)


@given(steps=st.lists(STEPS, max_size=30), dies_at=st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_a_device_may_fail_for_good_at_any_time_and_nobody_is_left_waiting(steps, dies_at):
    desk = Desk(batch_size=16)
    desk.device.dies_at = dies_at * OF
    try:
        play(desk, steps)
    except EngineError:
        assert not desk.batcher.healthy, "calls are refused from then on"
    desk.world.run()
    assert all(call.done() for call in desk.calls)
    assert (desk.batcher.counts.queued_frames, desk.batcher.counts.held_frames) == (0, 0)


def play(desk: Desk, steps: list[tuple]) -> tuple[set[int], list[int]]:
    """Take the steps and wait for the end. Returns which frames are bad, and each call's size."""
    gone: set[int] = set()
    poison: set[int] = set()
    note = desk.device.before_pass

    def no_gone_frame(numbers):
        assert not gone & set((numbers // OF).tolist()), "frames of a cancelled call were drawn"
        note(numbers)

    desk.device.before_pass = no_gone_frame
    counts: list[int] = []
    for kind, *more in steps:
        if kind == "call":
            count, request, first_frame, priority, due_in_s = more
            counts.append(count)
            desk.call(count, request=request, first_frame=first_frame, priority=priority, due_in_s=due_in_s)
        elif kind == "wait":
            desk.world.run(desk.world.now_s + more[0])
        elif kind == "cancel" and more[0] < len(desk.calls) and desk.calls[more[0]].cancel():
            gone.add(more[0])
        elif kind == "poison":
            call, frame = more
            # poison only what is still to be called: a frame is bad from the start
            if call >= len(desk.calls):
                poison.add(call * OF + frame)
                desk.device.poison = poison
        elif kind == "configure":
            desk.batcher.configure(BatcherSettings(linger_s=more[0], queued_frames=more[1]))
    desk.world.run()
    return poison, counts


# Figures, with a device whose every pass costs the same.


def test_mixed_sizes_fill_the_batches_under_load():
    world = World()
    device = NumberDevice(world)
    clients = Clients(world, simulated(world, device), device)
    for size in mixed_sizes(64, np.random.default_rng(1)):
        clients.come(size)
    world.run()
    assert np.mean(clients.pass_frames[1:]) / 512 >= 0.97, "but for the first, which nobody else was there to join"


def test_first_shares_start_soon_at_high_load():
    world = World()
    device = NumberDevice(world, pass_s=PASS_S)
    clients = Clients(world, simulated(world, device), device)
    come_by_themselves(clients, load=0.85, frames_per_s=512 / PASS_S, seconds=40.0)
    world.run()
    waits_s = clients.share_waits_s()
    assert len(waits_s) > 1000
    assert np.quantile(waits_s, 0.99) <= 2.5 * PASS_S


# On threads, as it is used.


class SlowDevice(NumberDevice):
    """Draws when it is let."""

    def __init__(self, **more) -> None:
        super().__init__(World(), **more)
        self.began, self.may_end = threading.Semaphore(0), threading.Semaphore(0)

    def draw(self, frames):
        self.began.release()
        assert self.may_end.acquire(timeout=20)
        return super().draw(frames)


@pytest.fixture
def slow():
    device = SlowDevice(batch_size=64)
    batcher = FrameBatcher(device)
    yield device, batcher
    device.may_end.release(1000)
    batcher.close()


async def generate(batcher: FrameBatcher, numbers: range, **claim) -> np.ndarray:
    return await batcher.generate(None, list(numbers), None, None, claim=Claim(**claim))


async def test_a_device_that_gives_another_shape_fails_the_call_instead_of_leaving_it_waiting(slow):
    device, batcher = slow
    shapes = iter(range(1, 100))
    device.draw = lambda frames: np.zeros((len(frames), next(shapes)), np.int64)
    async with asyncio.timeout(5):
        with pytest.raises(ValueError):
            await generate(batcher, range(200))  # in pieces, which are put in their places


async def test_tasks_on_one_loop_share_batches(slow):
    device, batcher = slow
    first = asyncio.create_task(generate(batcher, range(3)))
    await asyncio.to_thread(device.began.acquire)
    others = [asyncio.create_task(generate(batcher, range(10 * n, 10 * n + 5))) for n in range(1, 6)]
    await asyncio.sleep(0)
    device.may_end.release(2)
    assert (await first).tolist() == [0, 1, 2]
    assert [(await other).tolist() for other in others] == [list(range(10 * n, 10 * n + 5)) for n in range(1, 6)]
    assert [len(numbers) for _, numbers in device.passes] == [3, 25]


async def test_a_cancelled_task_takes_its_frames_back_and_returns_at_once(slow):
    device, batcher = slow
    first = asyncio.create_task(generate(batcher, range(3)))
    await asyncio.to_thread(device.began.acquire)
    second, third = (asyncio.create_task(generate(batcher, range(n, n + 5))) for n in (10, 20))
    await asyncio.sleep(0)
    for task in (first, second):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    device.may_end.release(2)
    assert (await third).tolist() == [20, 21, 22, 23, 24]
    assert [numbers.tolist() for _, numbers in device.passes] == [[0, 1, 2], [20, 21, 22, 23, 24]]


def test_callers_on_many_threads_and_loops_get_their_own():
    device = NumberDevice(World(), batch_size=16)
    batcher = FrameBatcher(device)
    got: dict[int, list[list[int]]] = {}

    def client(n: int) -> None:
        async def calls() -> list[list[int]]:
            spans = [range(n * OF + 40 * i, n * OF + 40 * i + 7 * n % 40) for i in range(20)]
            drawn = await asyncio.gather(*(generate(batcher, span, request=str(n)) for span in spans))
            return [patches.ravel().tolist() for patches in drawn]

        got[n] = asyncio.run(calls())

    threads = [threading.Thread(target=client, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for n in range(1, 9):
        assert got[n] == [list(range(n * OF + 40 * i, n * OF + 40 * i + 7 * n % 40)) for i in range(20)]
    batcher.close()


async def test_closing_ends_the_batch_that_runs_and_fails_the_rest(slow):
    device, batcher = slow
    first = asyncio.create_task(generate(batcher, range(3)))
    await asyncio.to_thread(device.began.acquire)
    rest = asyncio.create_task(generate(batcher, range(300)))
    closing = asyncio.create_task(asyncio.to_thread(batcher.close))
    while batcher.healthy:  # else the rest could be on the device when it closes
        await asyncio.sleep(0.001)
    device.may_end.release()
    await closing
    assert (await first).tolist() == [0, 1, 2]
    with pytest.raises(EngineError, match="closed"):
        await rest
    with pytest.raises(EngineError, match="closed"):
        await generate(batcher, range(3))
    assert not batcher.healthy


async def test_a_timer_ends_the_lingering():
    batcher = FrameBatcher(NumberDevice(World()), settings=BatcherSettings(linger_s=0.01))
    assert len(await generate(batcher, range(3), first_frame=100)) == 3
    batcher.close()


async def test_nothing_is_kept_of_a_call_that_has_ended():
    batcher = FrameBatcher(NumberDevice(World()))
    gc.disable()
    try:
        frames = Numbers(range(100))
        patches = await asyncio.wrap_future(batcher.submit(frames, claim=Claim()))
        kept = weakref.ref(patches), weakref.ref(frames.numbers)
        await asyncio.to_thread(batcher.close)
        del patches, frames
        assert [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()


def test_work_for_the_device_runs_on_its_thread():
    batcher = FrameBatcher(NumberDevice(World()))
    name = batcher.on_device(lambda: threading.current_thread().name).result(timeout=20)
    assert name.startswith("lipsync-device")
    batcher.close()

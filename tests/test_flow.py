"""Work that runs ahead: order, bounds, errors, and that nothing is left running."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync.errors import Closed
from lipsync.flow import Ahead, call, in_order, iterate, stoppable


async def sequence(items):
    for item in items:
        await asyncio.sleep(0)
        yield item


class Workers:
    """Starts a worker per run and keeps count of what is under way."""

    def __init__(self, delays=()):
        self.delays = list(delays)
        self.under_way = self.most = self.closed = 0
        self.started = []

    def start(self, run):
        self.started.append(list(run))
        self.under_way += len(run)
        self.most = max(self.most, self.under_way)
        return self._work(run)

    async def _work(self, run):
        try:
            for item in run:
                await asyncio.sleep(self.delays[item % len(self.delays)] if self.delays else 0)
                yield item * 10
        finally:
            self.closed += 1


@given(
    runs=st.lists(st.integers(1, 5), max_size=12),
    window=st.integers(1, 6),
    delays=st.lists(st.sampled_from([0, 0.001, 0.003]), min_size=1, max_size=5),
)
@settings(max_examples=25, deadline=None)
def test_items_come_in_the_order_of_the_runs_whatever_finishes_first(runs, window, delays):
    numbered, pieces = iter(range(1000)), []
    for length in runs:
        pieces.append([next(numbered) for _ in range(length)])

    async def collect():
        workers = Workers(delays)
        return [item async for item in in_order(sequence(pieces), workers.start, window=window)], workers

    items, workers = asyncio.run(collect())
    assert items == [item * 10 for piece in pieces for item in piece]
    assert workers.closed == len(pieces)


@pytest.mark.parametrize(("first_takes_s", "ahead_s"), [(0.05, 0.05), (0.5, 0.2)])
async def test_the_first_run_has_a_head_start_until_its_first_item_and_no_longer(first_takes_s, ahead_s):
    began = time.monotonic()
    started: list[float] = []

    async def work(run):
        started.append(time.monotonic() - began)
        await asyncio.sleep(first_takes_s if run == [0] else 0)
        yield run[0]

    runs = sequence([[n] for n in range(6)])
    assert [item async for item in in_order(runs, work, window=6, head_start_s=0.2)] == list(range(6))
    assert started[0] < 0.04
    assert all(ahead_s <= at < ahead_s + 0.1 for at in started[1:]), "and the others do not wait for each other"


async def test_no_more_than_the_window_is_started_ahead_of_a_slow_consumer():
    workers = Workers()
    async with aclosing(in_order(sequence([[n] for n in range(50)]), workers.start, window=4)) as items:
        taken = 0
        async for _ in items:
            taken += 1
            await asyncio.sleep(0.002)
            assert len(workers.started) <= taken + 4
            if taken == 10:
                break


async def test_a_run_longer_than_the_window_goes_alone():
    workers = Workers()
    pieces = [[0], list(range(1, 10)), [10]]
    assert len([i async for i in in_order(sequence(pieces), workers.start, window=3)]) == 11


async def test_an_error_comes_in_its_place_and_ends_the_rest():
    async def worker(run):
        for item in run:
            await asyncio.sleep(0)
            if item == 3:
                raise RuntimeError("third")
            yield item

    got = []
    with pytest.raises(RuntimeError, match="third"):
        async for item in in_order(sequence([[n] for n in range(9)]), worker, window=5):
            got.append(item)
    assert got == [0, 1, 2]
    assert len(asyncio.all_tasks()) == 1


async def test_an_error_of_the_runs_themselves_reaches_the_consumer():
    async def broken():
        yield [0]
        raise ValueError("no more runs")

    workers = Workers()
    with pytest.raises(ValueError, match="no more runs"):
        async for _ in in_order(broken(), workers.start, window=2):
            pass  # only the error matters


async def test_closing_early_leaves_no_task_and_closes_every_worker():
    workers = Workers([0.01])
    items = in_order(sequence([[n] for n in range(20)]), workers.start, window=6)
    assert await anext(items) == 0
    await items.aclose()
    assert len(asyncio.all_tasks()) == 1
    assert workers.closed == len([run for run in workers.started if run])


async def test_cancelling_the_consumer_leaves_no_task():
    workers = Workers([0.01])

    async def consume():
        async with aclosing(in_order(sequence([[n] for n in range(99)]), workers.start, window=6)) as items:
            async for _ in items:
                pass  # until cancelled

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.03)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(asyncio.all_tasks()) == 1


async def test_ahead_runs_in_front_of_its_consumer_but_no_further_than_asked():
    made = []

    async def source():
        for n in range(10):
            made.append(n)
            yield n

    ahead = Ahead(source(), ahead=2)
    await asyncio.sleep(0.01)
    assert len(made) == 3  # two waiting, one at the door
    assert [n async for n in ahead] == list(range(10))
    with pytest.raises(StopAsyncIteration):
        await anext(ahead)


async def test_a_cancelled_call_waits_for_its_thread_and_tells_it_to_stop():
    stop, ended = threading.Event(), threading.Event()

    def work():
        stop.wait(5)
        time.sleep(0.02)
        ended.set()

    with ThreadPoolExecutor(1) as executor:
        task = asyncio.create_task(call(executor, work, stop=stop))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()


async def test_a_blocking_generator_is_closed_on_a_thread_when_its_consumer_goes():
    closed_on = []

    def steps(stop):
        try:
            yield from range(100)
        finally:
            closed_on.append(threading.current_thread())
            assert stop.is_set()

    with ThreadPoolExecutor(1) as executor:
        async with aclosing(iterate(executor, steps)) as items:
            assert await anext(items) == 0
    assert closed_on and closed_on[0] is not threading.main_thread()


async def test_a_long_step_ends_at_once_when_its_consumer_is_cancelled():
    ticks = []

    def slow(stop):
        for n in stoppable(range(1000), stop):
            ticks.append(n)
            time.sleep(0.005)
        yield "done"

    async def consume(executor):
        async with aclosing(iterate(executor, slow)) as items:
            await anext(items)

    with ThreadPoolExecutor(1) as executor:
        task = asyncio.create_task(consume(executor))
        await asyncio.sleep(0.05)
        task.cancel()
        started = time.perf_counter()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.perf_counter() - started < 1
    assert 0 < len(ticks) < 500


async def test_work_that_has_not_begun_is_taken_back():
    begun, ran = threading.Event(), []
    with ThreadPoolExecutor(1) as executor:
        first = asyncio.create_task(call(executor, lambda: begun.wait(5)))
        second = asyncio.create_task(call(executor, lambda: ran.append(1)))
        await asyncio.sleep(0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        begun.set()
        assert await first
    assert ran == []


async def test_a_source_that_is_cancelled_from_outside_ends_in_an_error_and_not_in_silence():
    async def cancelled():
        yield 1
        raise asyncio.CancelledError

    ahead = Ahead(cancelled(), ahead=2)
    assert await anext(ahead) == 1
    with pytest.raises(Closed):
        await asyncio.wait_for(anext(ahead), 2)


@pytest.mark.parametrize("later", range(6))
async def test_closing_just_after_the_first_item_ends_the_head_start(later):
    async def runs():
        for n in range(100):
            yield [n]

    async def start(run):
        for n in run:
            yield n

    items = in_order(runs(), start, window=2, head_start_s=30.0)
    assert await anext(items) == 0
    for _ in range(later):
        await asyncio.sleep(0)
    closing = asyncio.ensure_future(items.aclose())
    done, _ = await asyncio.wait([closing], timeout=5)
    assert done, "whoever waited for the first item was not woken by its cancellation"

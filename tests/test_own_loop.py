"""Coroutines for callers that do not await: an interrupt ends them in good order."""

import asyncio
import gc
import signal
from contextlib import suppress

import pytest

from lipsync.own_loop import run_to_end


async def interrupt_soon():
    def interrupt():
        raise KeyboardInterrupt

    asyncio.get_running_loop().call_later(0.01, interrupt)


def test_an_interrupt_cancels_the_work_and_lets_it_clean_up_before_it_is_raised():
    told = []

    async def helper():
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            told.append("helper has ended")

    async def work():
        await interrupt_soon()
        task = asyncio.create_task(helper())
        try:
            await asyncio.sleep(60)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            told.append("work has ended")

    with pytest.raises(KeyboardInterrupt):
        run_to_end(work())
    assert told == ["helper has ended", "work has ended"]


def test_ctrl_c_itself_does_the_same():
    told = []

    async def work():
        asyncio.get_running_loop().call_later(0.01, signal.raise_signal, signal.SIGINT)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            told.append("work has ended")

    with pytest.raises(KeyboardInterrupt):
        run_to_end(work())
    assert told == ["work has ended"]


def test_what_goes_wrong_while_interrupted_work_ends_does_not_hide_the_interrupt(caplog):
    async def work():
        await interrupt_soon()
        try:
            await asyncio.sleep(60)
        finally:
            raise ValueError("no time to clean up")

    with pytest.raises(KeyboardInterrupt):
        run_to_end(work())
    gc.collect()
    assert caplog.text == ""


def test_results_and_errors_come_through():
    async def work(error=None):
        if error is not None:
            raise error
        return 7

    assert run_to_end(work()) == 7
    with pytest.raises(ZeroDivisionError):
        run_to_end(work(ZeroDivisionError()))

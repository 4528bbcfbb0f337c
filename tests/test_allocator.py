"""Freed memory goes back to the system, at once or every so often, where a process has asked for it; otherwise it need not."""

import subprocess
import sys

import pytest

PROBE = """
import ctypes, sys
from lipsync.allocator import return_large_blocks
if sys.argv[1] == "asked" and not return_large_blocks():
    sys.exit("no glibc")
def mapped():
    class Info(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in
                    "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo2.restype = Info
    return libc.mallinfo2().hblks
before = bytearray(4_000_000)
del before  # teaches glibc to keep blocks of this size
count = mapped()
block = bytearray(2_000_000)
print(mapped() - count)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
@pytest.mark.parametrize(("asked", "mapped"), [("asked", 1), ("not", 0)])
def test_a_large_block_is_the_systems_own_after_one_was_freed_only_if_asked_for(asked: str, mapped: int) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, asked], capture_output=True, text=True, check=False)
    if "no glibc" in done.stderr:
        pytest.skip("the allocator is not glibc's")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == mapped


TRIMMED = """
import ctypes, sys, time
from lipsync.allocator import trim_regularly
def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
if sys.argv[1] == "asked" and not trim_regularly(every_s=0.5):
    sys.exit("no glibc")
ctypes.CDLL("libc.so.6").mallopt(-3, 32 << 20)  # as the first freed blocks teach glibc anyway
ctypes.CDLL("libc.so.6").mallopt(-1, 2**31 - 1)
blocks, pins = [], []
for _ in range(100):
    blocks.append(bytearray(2_000_000))
    pins.append(bytearray(100_000))  # stays, so that what is freed lies between what is not
held = resident_mb()
blocks.clear()
freed = resident_mb()
time.sleep(1.5)
print(held - freed, held - resident_mb())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
@pytest.mark.parametrize("asked", ["asked", "not"])
def test_freed_blocks_stay_for_the_next_batch_and_go_back_within_a_while_only_if_asked_for(asked: str) -> None:
    done = subprocess.run([sys.executable, "-c", TRIMMED, asked], capture_output=True, text=True, check=False)
    if "no glibc" in done.stderr:
        pytest.skip("the allocator is not glibc's")
    assert done.returncode == 0, done.stderr
    at_once_mb, later_mb = map(float, done.stdout.split())
    assert at_once_mb < 20, "what is freed must be there for the next batch"
    assert (later_mb > 150) == (asked == "asked")

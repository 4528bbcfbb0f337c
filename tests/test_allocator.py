"""Large blocks go back to the system at once where the command line has asked for it, and otherwise need not."""

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

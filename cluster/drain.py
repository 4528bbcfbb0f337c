"""Run on a node before it is stopped: Ray gives it no more work, Serve moves its replicas, and this waits for them.

A pod's preStop hook. Ends early where nothing is left, and in any case after ``--within-s``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_REPLICA = b"ray::ServeReplica"
_POLL_S = 2.0


def processes() -> Iterable[bytes]:
    """The command lines of this container's processes."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it ended meanwhile


def ask(within_s: float) -> None:
    """Tell Ray that this node goes away. Raises CalledProcessError where Ray refuses or does not answer."""
    command = ["ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "the pod is being stopped", "--deadline-remaining-seconds", str(int(within_s))]
    subprocess.run(command, check=True, timeout=60)


def wait(
    within_s: float,
    *,
    running: Callable[[], Iterable[bytes]] = processes,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Until no replica runs here: True, or False where some still do after ``within_s``."""
    until = clock() + within_s
    while any(line.startswith(_REPLICA) for line in running()):
        if clock() >= until:
            return False
        sleep(_POLL_S)
    return True


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--within-s", type=float, required=True, help="seconds until the node is stopped anyway")
    within_s = parser.parse_args().within_s
    try:
        ask(within_s)
    except (subprocess.SubprocessError, OSError) as error:
        print(f"Ray was not told: {error}. Its node is stopped as it is.", file=sys.stderr)
        return 1
    return 0 if wait(within_s) else 1


if __name__ == "__main__":
    raise SystemExit(main())

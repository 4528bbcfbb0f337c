"""A network link between this machine and a network namespace of its own, which may be made slow.

A process holds the namespace and the link's two ends, a TUN device in each, and passes packets between them, each held
for as long as is asked. (The kernel's own means, netem, is missing from many.) All of it lasts as long as that process,
which ends with the one that asked for it, however that ends: nothing stays behind on the machine. Wants Linux, root,
``/dev/net/tun``, iproute2 and util-linux.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from ipaddress import IPv4Network
from pathlib import Path

NETWORKS = IPv4Network("198.18.0.0/15")
"""Set aside for tests of network devices (RFC 2544): nobody's machines live there."""
MTU = 9000
MOST_HELD = 4000
"""Packets on their way in one direction; more are dropped, as a real link does."""
ANSWERS_WITHIN_S = 30.0
_AT_ONCE = 64
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_numbers = itertools.count()


class CannotLink(Exception):
    """This machine does not allow such a link; says why."""


@dataclass(slots=True)
class Counts:
    """What has come out at the other end so far, both directions together, and what was lost on the way."""

    packets: int = 0
    bytes: int = 0
    dropped: int = 0


class Held:
    """The packets on their way in one direction, in order; at most ``most``."""

    def __init__(self, most: int = MOST_HELD) -> None:
        self._most = most
        self._packets: deque[tuple[float, bytes]] = deque()

    @property
    def next_s(self) -> float:
        """When the next is due."""
        return self._packets[0][0] if self._packets else float("inf")

    def put(self, packet: bytes, *, due_s: float) -> bool:
        """False where there was no room."""
        if len(self._packets) >= self._most:
            return False
        self._packets.append((due_s, packet))
        return True

    def due(self, now_s: float) -> Iterator[bytes]:
        """Those whose time has come, taken off. None overtakes one before it."""
        while self.next_s <= now_s:
            yield self._packets.popleft()[1]


class SlowLink:
    """The link, from here (``near``, an IPv4 address) to the namespace (``far``). A context manager.

    From within the namespace every address of this machine is reachable, and nothing else. Raises CannotLink where
    the machine does not allow it. For one thread.
    """

    def __init__(self) -> None:
        self._delay_s = 0.0

    def __enter__(self) -> SlowLink:
        name = f"slow{os.getpid()}-{next(_numbers)}"
        try:
            own, network = _own_addresses(), _free_network()
            self.near, self.far = map(str, network.hosts())
            with _tun(name) as device:
                _bring_up(name, self.near, self.far)
                self._process = subprocess.Popen(
                    # isolated (-I): this folder's modules must not stand in front of the standard library's
                    ["unshare", "--net", sys.executable, "-I", __file__, str(device), name, self.far, self.near, *own],
                    pass_fds=[device], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    process_group=0,  # Ctrl-C is for the one that asked: what lives on the link ends before it
                )  # fmt: skip
        except (OSError, subprocess.CalledProcessError) as error:
            raise CannotLink(_said(error)) from error
        try:
            self.counts()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """What still lives in the namespace has no network from now on."""
        self._process.kill()
        self._process.communicate()

    @property
    def delay_s(self) -> float:
        """How long each packet is held, either way: a round trip takes twice as long."""
        return self._delay_s

    @delay_s.setter
    def delay_s(self, value: float) -> None:
        self._delay_s = value
        self.counts()

    def counts(self) -> Counts:
        """Raises CannotLink where the link has ended."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        try:
            process.stdin.write(f"{self._delay_s}\n".encode())
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and has said why
        if not select.select([process.stdout], [], [], ANSWERS_WITHIN_S)[0]:
            raise CannotLink(f"the link did not answer within {ANSWERS_WITHIN_S:g} s")
        if not (line := process.stdout.readline()):
            raise CannotLink(_last_line(process.stderr.read().decode()))
        return Counts(**json.loads(line))

    def command(self, command: Sequence[str]) -> list[str]:
        """``command``, so that it runs in the namespace."""
        return ["nsenter", f"--net=/proc/{self._process.pid}/ns/net", *command]

    def has(self, pid: int) -> bool:
        """Whether a process lives in the namespace. Raises OSError where there is no such process any more."""
        return Path(f"/proc/{pid}/ns/net").readlink() == Path(f"/proc/{self._process.pid}/ns/net").readlink()


def _own_addresses() -> list[str]:
    """Of this machine, but for the loopback ones."""
    devices = json.loads(_ip("-json", "-4", "address", "show", "scope", "global"))
    return [one["local"] for device in devices for one in device.get("addr_info", ())]


def _free_network() -> IPv4Network:
    """Two addresses that no route of this machine leads to, but for the default one."""
    told = _ip("-json", "-4", "route", "show", "table", "all")
    taken = [IPv4Network(route["dst"]) for route in json.loads(told) if route["dst"] != "default"]
    for number in range(0, NETWORKS.num_addresses, 4):
        first = NETWORKS[(4 * os.getpid() + number) % NETWORKS.num_addresses]  # two that start at once begin elsewhere
        network = IPv4Network((first, 30))
        if not any(network.overlaps(other) for other in taken):
            return network
    raise CannotLink(f"all of {NETWORKS} is in use here")


class _tun:
    """A new TUN device in the namespace of this process, as a file descriptor. It goes with the last copy of that."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> int:
        self._device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        try:
            fcntl.ioctl(self._device, _TUNSETIFF, struct.pack("16sH22x", self._name.encode(), _IFF_TUN | _IFF_NO_PI))
        except BaseException:
            self.__exit__()
            raise
        return self._device

    def __exit__(self, *_: object) -> None:
        os.close(self._device)


def _bring_up(name: str, own: str, other: str) -> None:
    _ip("link", "set", name, "addrgenmode", "none", "mtu", str(MTU))
    _ip("address", "add", own, "peer", other, "dev", name)
    _ip("link", "set", name, "up")


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


def _said(error: OSError | subprocess.CalledProcessError) -> str:
    return _last_line(error.stderr) if isinstance(error, subprocess.CalledProcessError) else str(error)


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


# ---------------------------------------------------------------- the process that holds it


def _pass_packets(near: int, far: int) -> None:
    """Until the standard input ends. Each line of it is a delay in seconds from now on, and is answered with counts."""
    counts, delay_s = Counts(), 0.0
    ways = {near: (far, Held()), far: (near, Held())}
    while True:
        next_s = min(held.next_s for _, held in ways.values())
        wait_s = None if next_s == float("inf") else max(0.0, next_s - time.monotonic())
        ready, _, _ = select.select([0, *ways], [], [], wait_s)
        if 0 in ready:
            orders = os.read(0, 4096).split()
            if not orders:
                return
            for order in orders:
                delay_s = float(order)
                print(json.dumps(asdict(counts)), flush=True)
        now_s = time.monotonic()
        for device, (other, held) in ways.items():
            if device in ready:
                for packet in _waiting(device):
                    counts.dropped += not held.put(packet, due_s=now_s + delay_s)
            for packet in held.due(now_s):
                _send(other, packet, counts)


def _waiting(device: int) -> Iterator[bytes]:
    for _ in range(_AT_ONCE):
        try:
            yield os.read(device, 65_536)
        except BlockingIOError:
            return


def _send(device: int, packet: bytes, counts: Counts) -> None:
    try:
        os.write(device, packet)
    except OSError:  # the device has no room for it: lost, as on any link
        counts.dropped += 1
    else:
        counts.packets += 1
        counts.bytes += len(packet)


def _main(near: int, name: str, own: str, other: str, *beyond: str) -> None:
    try:
        with _tun(name) as far:
            _ip("link", "set", "lo", "up")
            _bring_up(name, own, other)
            for address in beyond:  # no default route: what leads nowhere must fail at once, as a name server would
                _ip("route", "add", address, "via", other)
            _pass_packets(near, far)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(_said(error))


if __name__ == "__main__":
    _main(int(sys.argv[1]), *sys.argv[2:])

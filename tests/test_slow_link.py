"""The link that may be made slow: its queue by itself, and, as root, datagrams there and back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.slow_link import CannotLink, Held, SlowLink, _own_addresses

ROOT = Path(__file__).resolve().parents[1]
ECHO = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 7))
print("bound", flush=True)
while True:
    server.sendto(*server.recvfrom(65_536))
"""


def devices() -> set[str]:
    return set(os.listdir("/sys/class/net"))


@pytest.fixture
def link() -> Iterator[SlowLink]:
    try:
        with SlowLink() as made:
            yield made
    except CannotLink as error:
        pytest.skip(f"no such link here: {error}")


@pytest.fixture
def far(link: SlowLink) -> Iterator[socket.socket]:
    """A socket to something in the namespace that sends every datagram back."""
    with (
        subprocess.Popen(link.command([sys.executable, "-c", ECHO]), stdout=subprocess.PIPE) as echo,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller,
    ):
        assert echo.stdout is not None and echo.stdout.readline() == b"bound\n"
        caller.connect((link.far, 7))
        caller.settimeout(10)
        yield caller
        assert link.has(echo.pid) and not link.has(os.getpid())
        echo.kill()


def round_trip_s(caller: socket.socket, data: bytes = b"?") -> float:
    began = time.monotonic()
    caller.send(data)
    assert caller.recv(65_536) == data
    return time.monotonic() - began


def test_packets_are_held_in_order_until_they_are_due_and_what_overflows_is_lost() -> None:
    held = Held(most=3)
    assert held.next_s == float("inf")
    assert [held.put(bytes([n]), due_s=due_s) for n, due_s in enumerate((2.0, 1.0, 3.0, 4.0))] == [True] * 3 + [False]
    assert (held.next_s, list(held.due(1.9))) == (2.0, [])
    assert list(held.due(2.0)) == [b"\0", b"\1"], "the second was due before the first and does not overtake it"
    assert held.put(b"4", due_s=3.0)
    assert list(held.due(9.0)) == [b"\2", b"4"]


def test_a_round_trip_takes_the_delay_twice_and_no_longer_when_it_is_off_again(
    link: SlowLink, far: socket.socket
) -> None:
    calm_s = min(round_trip_s(far) for _ in range(5))
    link.delay_s = 0.2
    slow_s = [round_trip_s(far) for _ in range(3)]
    link.delay_s = 0.0
    again_s = min(round_trip_s(far) for _ in range(5))
    assert max(calm_s, again_s) < 0.2 and min(slow_s) >= 0.4, (calm_s, slow_s, again_s)


def test_large_datagrams_arrive_whole_in_order_and_are_counted(link: SlowLink, far: socket.socket) -> None:
    before = link.counts()
    sent = [os.urandom(30_000) for _ in range(4)]
    link.delay_s = 0.05
    for data in sent:
        far.send(data)
    assert [far.recv(65_536) for _ in sent] == sent
    after = link.counts()
    assert after.bytes - before.bytes > 2 * sum(map(len, sent))
    assert after.dropped == before.dropped


def test_two_links_at_once_have_networks_of_their_own_and_leave_nothing(link: SlowLink) -> None:
    before = devices()
    with SlowLink() as other:
        assert not {link.near, link.far} & {other.near, other.far}
        assert len(devices() - before) == 1
        seen = subprocess.run(other.command(["cat", "/proc/net/dev"]), capture_output=True, text=True, check=True)
        assert seen.stdout.count("slow") == 1, "its own end alone"
    assert devices() == before


def test_a_link_goes_with_the_process_that_asked_for_it(link: SlowLink) -> None:
    before = devices()
    code = "from cluster.slow_link import SlowLink; import time\nwith SlowLink(): print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == b"\n"
        assert len(devices() - before) == 1
        owner.send_signal(signal.SIGKILL)
    until = time.monotonic() + 10
    while devices() != before:
        assert time.monotonic() < until, devices() - before
        time.sleep(0.05)


def test_the_namespace_leads_to_this_machine_and_whatever_else_is_asked_for_fails_at_once(link: SlowLink) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        for own in [link.near, *_own_addresses()]:
            code = f"import socket; socket.create_connection(({own!r}, {server.getsockname()[1]}), timeout=10)"
            subprocess.run(link.command([sys.executable, "-c", code]), check=True)
    code = "import socket; socket.create_connection(('203.0.113.1', 80), timeout=10)"  # set aside for documentation
    tried = subprocess.run(link.command([sys.executable, "-c", code]), capture_output=True, text=True, check=False)
    assert "Network is unreachable" in tried.stderr


def test_what_stands_against_a_link_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(CannotLink, match="'ip'"), SlowLink():
        pass

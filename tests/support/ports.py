"""Ports of this machine for tests."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path

_MANY = 16_384


def _own_ports() -> Iterator[int]:
    """Those of this worker among the ports that the kernel gives to no client: ip(7), ip_local_port_range."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    own = range(max(1024, first - _MANY), first)[worker::workers]
    # Not those of the last run first, whose ends of connections may still be there.
    yield from cycle(random.SystemRandom().sample(own, len(own)))


_ports = _own_ports()


def free_port() -> int:
    """A port that nobody has, and nobody gets while a test stops at it and starts again."""
    for port in _ports:
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("", port))
            return port
    raise AssertionError("not reached: the ports are endless")

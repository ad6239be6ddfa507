"""Word from a daemon that it is ready: the protocol of sd_notify(3).

The daemon sends a datagram of KEY=VALUE lines to the socket that its variable NOTIFY_SOCKET names. systemd listens for
a unit of Type=notify, and `Listener` for whoever starts a daemon without systemd.
"""

from __future__ import annotations

import os
import select
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.host import process

VARIABLE = "NOTIFY_SOCKET"
_READY = "READY=1"
_DATAGRAM = 4096


def tell_ready() -> bool:
    """Say that this process is ready. Returns whether somebody was told; who asked may have given up since."""
    address = os.environ.get(VARIABLE)
    if not address:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            # An abstract address begins with a NUL byte, for which the variable has an @.
            sender.sendto(_READY.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


class Listener:
    """Where one daemon says that it is ready. A context manager: the socket goes at its end."""

    def __init__(self) -> None:
        with ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="ballpoint-"))
            self._socket = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC))
            self.address = str(Path(directory, "notify"))
            self._socket.bind(self.address)
            self._stack = stack.pop_all()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def wait(self, child: process.Child, seconds: float) -> bool:
        """Wait until `child`, or a process it started, is ready. Returns False where it ends before, or time is up."""
        deadline = SYSTEM_CLOCK.monotonic() + seconds
        ended = os.pidfd_open(child.pid)
        try:
            poll = select.poll()
            for fd in (self._socket.fileno(), ended):
                poll.register(fd, select.POLLIN)
            while (left := deadline - SYSTEM_CLOCK.monotonic()) > 0:
                happened = [fd for fd, _ in poll.poll(left * 1000)]
                if self._socket.fileno() not in happened:
                    return False
                if _READY in self._socket.recv(_DATAGRAM).decode().splitlines():
                    return True
            return False
        finally:
            os.close(ended)

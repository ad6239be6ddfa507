"""Freezing file systems from a process of its own: whatever becomes of the node, nothing stays frozen for ever.

`python -m ballpoint.volume.freezer FD` serves requests on a SOCK_SEQPACKET socket (core.wire): freeze {volume} and its
open root directory, thaw {volume}. When the socket ends, or a freeze reaches its deadline, it thaws.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import ExitStack
from typing import Any

from ballpoint.core import wire
from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import UnavailableError
from ballpoint.host import filesystem, process

# A freeze flushes what is dirty first, which is bounded per volume.
_CALL_SECONDS = 60.0
DEADLINE_SECONDS = 600.0


class Freezer:
    """The node's side; owns the child, and starts it again after it died (having thawed everything)."""

    def __init__(self) -> None:
        self._child: process.Child | None = None
        self._sock: socket.socket | None = None
        self._calls = 0

    def start(self) -> None:
        """Start the child; early, while there is memory and disk for it. Idempotent."""
        if self._child is not None and self._child.poll() is None:
            return
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "ballpoint.volume.freezer", str(theirs.fileno())]
            self._child = process.start(command, pass_fds=[theirs.fileno()], new_session=True)
        ours.settimeout(_CALL_SECONDS)
        self._sock = ours

    def freeze(self, volume_id: str, root: int) -> None:
        """Stop all writers of the file system with the open directory `root`; they wait. Again: moves the deadline.

        Raises:
            UnavailableError: it could not be frozen in time.
        """
        self._call({"op": "freeze", "volume": volume_id}, [root])

    def thaw(self, volume_id: str) -> None:
        """Let the writers go on. Idempotent."""
        self._call({"op": "thaw", "volume": volume_id}, [])

    def close(self) -> None:
        """End the child, which thaws everything. Idempotent."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._child is not None:
            self._child.wait()
            self._child = None

    def _call(self, message: dict[str, Any], fds: list[int]) -> None:
        answer = self._ask(message, fds)
        if not answer:
            # It had died before it could answer, and so has thawed everything: ask the next one.
            self.close()
            answer = self._ask(message, fds)
        if not answer or "error" in answer:
            raise UnavailableError(f"{message['op']} failed: {answer.get('error', 'the freezer has ended')}")

    def _ask(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """The child's answer; empty where it has ended."""
        self.start()
        assert self._sock is not None
        self._calls += 1
        answer: dict[str, Any] = {"id": 0}
        try:
            wire.send(self._sock, {"id": self._calls, **message}, fds)
            while answer and answer["id"] != self._calls:
                answer, _ = wire.receive(self._sock)
        except (BrokenPipeError, ConnectionResetError):
            return {}
        except OSError as error:
            raise UnavailableError(f"{message['op']} did not succeed: {error}") from error
        return answer


def main(fd: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when it has thawed, which the socket's end tells it to
    sock = socket.socket(fileno=fd)
    frozen: dict[str, tuple[int, float]] = {}
    try:
        while True:
            _thaw_late(frozen)
            deadlines = [deadline for _, deadline in frozen.values()]
            sock.settimeout(max(0.01, min(deadlines) - SYSTEM_CLOCK.monotonic()) if deadlines else None)
            try:
                message, fds = wire.receive(sock)
            except TimeoutError:
                continue
            if not message:
                return
            sock.settimeout(None)
            try:
                if message["op"] == "freeze":
                    _freeze(frozen, message["volume"], fds)
                else:
                    _thaw(frozen, message["volume"])
                wire.send(sock, {"id": message["id"], "ok": None})
            except OSError as error:
                wire.send(sock, {"id": message["id"], "error": str(error)})
    finally:
        with ExitStack() as stack:  # one that fails keeps no other frozen
            for volume_id in list(frozen):
                stack.callback(_thaw, frozen, volume_id)


def _freeze(frozen: dict[str, tuple[int, float]], volume_id: str, fds: list[int]) -> None:
    (mount,) = fds
    try:
        filesystem.fifreeze(mount)
    except OSError:
        os.close(mount)
        raise
    if volume_id in frozen:
        os.close(frozen[volume_id][0])
    frozen[volume_id] = (mount, SYSTEM_CLOCK.monotonic() + DEADLINE_SECONDS)


def _thaw(frozen: dict[str, tuple[int, float]], volume_id: str) -> None:
    if volume_id in frozen:
        mount, _ = frozen.pop(volume_id)
        try:
            filesystem.fithaw(mount)
        finally:
            os.close(mount)


def _thaw_late(frozen: dict[str, tuple[int, float]]) -> None:
    now = SYSTEM_CLOCK.monotonic()
    for volume_id, (_, deadline) in list(frozen.items()):
        if deadline <= now:
            _thaw(frozen, volume_id)


if __name__ == "__main__":
    main(int(sys.argv[1]))

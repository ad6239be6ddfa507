"""Freezing file systems from a process of its own: whatever becomes of the node, nothing stays frozen for ever.

`python -m ballpoint.volume.freezer FD` serves requests on a SOCK_SEQPACKET socket (core.wire): freeze {volume} and its
open root directory, thaw {volume}. Volumes are served side by side, the requests for one in their order. When the
socket ends, or a freeze reaches its deadline, it thaws.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ballpoint.core import wire
from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import UnavailableError
from ballpoint.host import filesystem, process, rcu

log = logging.getLogger(__name__)

# A freeze flushes what is dirty first, which is bounded per volume; one that takes longer goes on without its caller.
CALL_SECONDS = 10.0
# A child that is asked to end thaws, and does nothing else.
_CLOSE_SECONDS, _KILL_SECONDS = 5.0, 1.0
DEADLINE_SECONDS = 600.0

# Children that outlived their SIGKILL: kept, so that they are reaped when they end.
stuck: list[process.Child] = []


@dataclass
class Outcome:
    """What became of a request for several volumes, by id.

    Attributes:
        done: it was carried out.
        late: it is under way still, and will be carried out unless another request comes.
        failed: it was refused, and why.
    """

    done: set[str] = field(default_factory=set)
    late: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)


class Freezer:
    """The node's side; owns the child, and starts it again after it died (having thawed everything)."""

    def __init__(self) -> None:
        self._child: process.Child | None = None
        self._sock: socket.socket | None = None
        self._calls = 0
        self._expedited: str | None = None

    def start(self) -> None:
        """Start the child; early, while there is memory and disk for it. Idempotent."""
        if self._child is not None and self._child.poll() is None:
            return
        self.close()
        self._expedited = rcu.setting()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "ballpoint.volume.freezer", str(theirs.fileno())]
            self._child = process.start(command, pass_fds=[theirs.fileno()], new_session=True)
        self._sock = ours

    def freeze(self, roots: Mapping[str, int], seconds: float = CALL_SECONDS) -> Outcome:
        """Stop all writers of file systems; they wait. Again: moves the deadline.

        Args:
            roots: the open root directory of each, by volume id.
            seconds: deadline for all of them together.

        Raises:
            UnavailableError: the child cannot be asked.
        """
        return self._call("freeze", {name: [root] for name, root in roots.items()}, seconds)

    def thaw(self, volumes: Iterable[str], seconds: float = CALL_SECONDS) -> Outcome:
        """Let the writers go on. Idempotent; arguments and errors as of `freeze`."""
        return self._call("thaw", {name: [] for name in volumes}, seconds)

    def close(self) -> None:
        """End the child, which thaws everything; one that does not end in time is killed. Idempotent."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        child, self._child = self._child, None
        if child is None:
            return
        with suppress(subprocess.TimeoutExpired):
            if child.wait(_CLOSE_SECONDS):
                rcu.put_back(self._expedited)
            return
        child.kill()
        rcu.put_back(self._expedited)
        try:
            child.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            stuck.append(child)
            log.error("the freezer %d does not end: a disk holds it in the kernel", child.pid)

    def _call(self, op: str, volumes: Mapping[str, list[int]], seconds: float) -> Outcome:
        outcome = Outcome()
        deadline = SYSTEM_CLOCK.monotonic() + seconds
        left = dict(volumes)
        for _ in range(2):  # one that died before it could answer has thawed everything: the next one is asked
            self._ask(op, left, deadline, outcome)
            left = {name: fds for name, fds in left.items() if not _settled(name, outcome)}
            if not left:
                return outcome
            self.close()
        raise UnavailableError(f"{op} failed: the freezer has ended")

    def _ask(self, op: str, volumes: Mapping[str, list[int]], deadline: float, outcome: Outcome) -> None:
        """Note in `outcome` what became of each, except of those whose child ended before it answered."""
        self.start()
        assert self._sock is not None
        waiting: dict[int, str] = {}
        try:
            for name, fds in volumes.items():
                self._calls += 1
                self._sock.settimeout(_left(deadline))
                wire.send(self._sock, {"id": self._calls, "op": op, "volume": name}, fds)
                waiting[self._calls] = name
            while waiting:
                self._sock.settimeout(_left(deadline))
                answer, _ = wire.receive(self._sock)
                if not answer:
                    return
                name = waiting.pop(answer["id"], "")  # or of a call that did not wait for it
                if name and "error" in answer:
                    outcome.failed[name] = f"{op} failed: {answer['error']}"
                elif name:
                    outcome.done.add(name)
        except TimeoutError:
            outcome.late.update(name for name in volumes if not _settled(name, outcome))
        except (BrokenPipeError, ConnectionResetError):
            return


def _settled(name: str, outcome: Outcome) -> bool:
    return name in outcome.done or name in outcome.late or name in outcome.failed


def _left(deadline: float) -> float:
    return max(0.001, deadline - SYSTEM_CLOCK.monotonic())


class _Volumes:
    """The child's work: a thread for each volume that has something to do, because the kernel may hold any of them."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._frozen: dict[str, int] = {}
        self._work: dict[str, deque[tuple[dict[str, Any], list[int]]]] = {}

    def add(self, message: dict[str, Any], fds: list[int]) -> None:
        """Carry `message` out after all earlier ones for its volume; one that says the same again replaces the last."""
        name = message["volume"]
        with self._lock:
            work = self._work.get(name)
            if work is not None:
                if work and work[-1][0]["op"] == message["op"]:
                    for fd in work.pop()[1]:
                        os.close(fd)
                work.append((message, fds))
                return
            self._work[name] = deque([(message, fds)])
        threading.Thread(target=self._run, args=(name,)).start()

    def thaw_all(self) -> None:
        with self._lock:
            names = {*self._frozen, *self._work}
        for name in names:
            self.add({"op": "thaw", "volume": name}, [])

    def _run(self, name: str) -> None:
        while True:
            with self._lock:
                if not self._work[name]:
                    del self._work[name]
                    return
                message, fds = self._work[name].popleft()
            try:
                if message["op"] == "freeze":
                    self._freeze(name, fds)
                else:
                    self._thaw(name)
                answer: dict[str, Any] = {"ok": None}
            except OSError as error:
                answer = {"error": str(error)}
            if "id" in message:
                with suppress(OSError):  # whoever asked has gone, and then everything is thawed
                    wire.send(self._sock, {"id": message["id"], **answer})

    def _freeze(self, name: str, fds: list[int]) -> None:
        (root,) = fds
        try:
            with rcu.expedited():
                filesystem.fifreeze(root)
        except OSError:
            os.close(root)
            raise
        with self._lock:
            before = self._frozen.get(name)
            self._frozen[name] = root
        if before is not None:
            os.close(before)

    def _thaw(self, name: str) -> None:
        with self._lock:
            root = self._frozen.pop(name, None)
        if root is not None:
            try:
                filesystem.fithaw(root)
            finally:
                os.close(root)


def main(fd: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when it has thawed, which the socket's end tells it to
    sock = socket.socket(fileno=fd)
    volumes = _Volumes(sock)
    deadlines: dict[str, float] = {}
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    try:
        while True:
            wait = max(0.0, min(deadlines.values()) - SYSTEM_CLOCK.monotonic()) if deadlines else None
            if poll.poll(None if wait is None else wait * 1000 + 1):
                message, fds = wire.receive(sock)
                if not message:
                    return
                if message["op"] == "freeze":
                    deadlines[message["volume"]] = SYSTEM_CLOCK.monotonic() + DEADLINE_SECONDS
                else:
                    deadlines.pop(message["volume"], None)
                volumes.add(message, fds)
            now = SYSTEM_CLOCK.monotonic()
            for name in [name for name, deadline in deadlines.items() if deadline <= now]:
                del deadlines[name]
                volumes.add({"op": "thaw", "volume": name}, [])
    finally:
        volumes.thaw_all()  # its threads keep this process until they are done


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""What listens in the sprite, and who is told when that changes (contract 2.9).

The kernel tells nobody that a socket begins to listen, so it is asked again and again, but only while somebody watches.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ballpoint.agent.ports.network import Network
from ballpoint.agent.ports.owners import NOBODY, Owner, find
from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.tasks import Tasks
from ballpoint.host.sockdiag import NETLINK_SOCK_DIAG, Listening, SockDiag

log = logging.getLogger("agent.ports")

# So many are known at most; of a sprite in which more listen, the others are passed over.
KNOWN_MOST = 1000
# A packet lists some 300 sockets.
_PACKETS_AT_ONCE, _PACKETS_MOST = 4, 1000
_PAUSE_SECONDS = 0.5
_SHARERS_MOST = 4
# A sprite where tens of thousands listen is asked less often: 5 % of a processor at most.
_PAUSES_PER_COST = 20
OPENED, CLOSED = "port_opened", "port_closed"


class Port(NamedTuple):
    """A port that somebody listens on.

    Attributes:
        address: what it is bound to.
        pid: a process that holds the socket, as numbered inside; 0 where none was found.
        session: that process's session, as `Session.pid`; 0 likewise.
    """

    port: int
    address: str
    pid: int
    session: int

    def told(self) -> dict[str, Any]:
        """As clients are told."""
        return {"port": self.port, "address": self.address, "pid": self.pid}


class Watcher(Protocol):
    """Who is told."""

    def listed(self, ports: list[Port] | None) -> None:
        """What listens at the beginning; called before the other, and only once. None where the kernel does not say."""
        ...

    def changed(self, kind: str, port: Port) -> None:
        """OPENED or CLOSED."""
        ...


class Ports:
    """Watches the ports of one sprite.

    Args:
        proc: where the sprite's processes are shown.
    """

    def __init__(self, network: Network, proc: Path = Path("/proc")) -> None:
        self._network = network
        self._proc = proc
        self._tasks = Tasks()
        self._watchers: dict[Watcher, bool] = {}  # whether it has its list
        self._known: dict[tuple[bytes, int], tuple[int, Port]] = {}  # (address, port) -> (inode, what is told)
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._says = True  # the kernel did what it was asked the last time

    def watch(self, watcher: Watcher, *, soon: bool = True) -> Callable[[], None]:
        """Tell `watcher` from now on. Returns how to end it, which is idempotent.

        Args:
            soon: look at once; otherwise when a look is due, so that whoever goes before that costs nothing.
        """
        self._watchers[watcher] = False
        if self._looking is None and (soon or self._timer is None):
            self._look_in(0.0 if soon else _PAUSE_SECONDS)
        return lambda: self._end(watcher)

    def of_session(self, session: int, send: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        """Pass on what a session's processes listen on, as messages of contract 3.3; as `watch` otherwise.

        Args:
            session: as `Session.pid`.
        """
        return self.watch(_OfSession(session, send), soon=False)

    def _end(self, watcher: Watcher) -> None:
        self._watchers.pop(watcher, None)
        if not self._watchers:
            if self._timer is not None:
                self._timer.cancel()
            if self._looking is not None:
                self._looking.cancel()
            self._timer = self._looking = None
            self._known.clear()

    def _look_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._looking = self._tasks.start(self._look(), "look for ports")

    async def _look(self) -> None:
        began = time.thread_time()  # not the clock: where processors are short, a look takes long and costs no more
        says = await self._take_over()
        for watcher, has_list in list(self._watchers.items()):
            if not has_list and watcher in self._watchers:
                self._watchers[watcher] = True
                watcher.listed([port for _, port in self._known.values()] if says else None)
        self._looking = None
        if self._watchers:
            self._look_in(max(_PAUSE_SECONDS, _PAUSES_PER_COST * (time.thread_time() - began)))

    async def _take_over(self) -> bool:
        """Compare what is known with what listens now; False where the kernel does not say."""
        try:
            found = await self._listening()
        except OSError as error:
            if self._says:
                log.warning("cannot list the listening ports: %s", error)
            self._says = False
        else:
            self._says = True
            await self._compare(found)
        return self._says

    async def _listening(self) -> dict[tuple[bytes, int], set[int]]:
        """The inodes that listen, by address and port. OSError where the kernel did not say all of it."""
        found: dict[tuple[bytes, int], set[int]] = {}
        packets = 0
        # A new one each time: nobody inside can have sent it anything, and no list is half-read.
        with closing(SockDiag(self._network.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG))) as diag:
            for family in (socket.AF_INET, socket.AF_INET6):
                diag.ask(family)
                ended = False
                while not ended:
                    packets += 1
                    if packets > _PACKETS_MOST:
                        raise OSError(errno.EMSGSIZE, "too many")
                    if packets % _PACKETS_AT_ONCE == 0:
                        await SYSTEM_CLOCK.sleep(0)
                    part, ended = diag.receive()
                    self._add(found, part)
        return found

    def _add(self, found: dict[tuple[bytes, int], set[int]], part: list[Listening]) -> None:
        """Take a part over; of what is not known yet, only as much as there is room for."""
        for each in part:
            key = (each.address, each.port)
            if key in found:
                if len(found[key]) < KNOWN_MOST:
                    found[key].add(each.inode)
            elif key in self._known or len(found) < KNOWN_MOST:
                found[key] = {each.inode}

    async def _compare(self, found: dict[tuple[bytes, int], set[int]]) -> None:
        for key, (inode, port) in list(self._known.items()):
            if inode not in found.get(key, ()):
                del self._known[key]
                self._tell(CLOSED, port)
        new = [key for key in found if key not in self._known][: KNOWN_MOST - len(self._known)]
        owners: dict[int, Owner] = {}
        if new:
            for step in find({inode for key in new for inode in sorted(found[key])[:_SHARERS_MOST]}, self._proc):
                owners.update(step)
                await SYSTEM_CLOCK.sleep(0)
        for key in new:
            # Of several that share a port (SO_REUSEPORT), one whose owner is known.
            inode = next((each for each in sorted(found[key]) if each in owners), min(found[key]))
            address, number = key
            text = _text(address)
            port = Port(number, text, *owners.get(inode, NOBODY))
            self._known[key] = (inode, port)
            self._tell(OPENED, port)

    def _tell(self, kind: str, port: Port) -> None:
        for watcher, has_list in list(self._watchers.items()):
            if has_list and watcher in self._watchers:
                watcher.changed(kind, port)


class _OfSession:
    """Passes on what concerns one session."""

    def __init__(self, session: int, send: Callable[[dict[str, Any]], None]) -> None:
        self._session = session
        self._send = send

    def listed(self, ports: list[Port] | None) -> None:
        for port in ports or ():
            self.changed(OPENED, port)

    def changed(self, kind: str, port: Port) -> None:
        if port.session == self._session:
            self._send({"type": kind, **port.told()})


def _text(packed: bytes) -> str:
    if len(packed) == 4:
        return str(IPv4Address(packed))
    address = IPv6Address(packed)
    return str(address.ipv4_mapped or address)

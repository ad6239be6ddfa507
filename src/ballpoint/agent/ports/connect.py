"""TCP connections from inside the sprite: to what listens there, on its localhost too, and to what it can reach."""

from __future__ import annotations

import asyncio
import errno
import socket
from ipaddress import IPv6Address, ip_address

from ballpoint.agent.ports.network import Network
from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import InvalidError

REFUSED, TIMEOUT, UNAVAILABLE = "refused", "timeout", "unavailable"
LOCALHOST = "localhost"
# A listener whose queue is full drops what asks (tcp(7): tcp_abort_on_overflow), and the kernel asks again after 1, 3
# and 7 s. One client gives up on its answer after 10 s (contract 2.8).
_CONNECT_SECONDS = 8.0
# The kernel tells nobody that a port has begun to listen.
# A server is found out so much later than it listens: this part of the time it took, but for the shortest and longest.
_PAUSE_PART, _PAUSE_SECONDS, _PAUSE_MOST = 0.03, 0.002, 0.05


class ConnectError(Exception):
    """There is no connection.

    Attributes:
        reason: `refused` (nobody listens, or it cannot be reached), `timeout`, or `unavailable` (there is no room).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def addresses(host: str) -> list[tuple[int, str]]:
    """The (family, address) pairs to try for `host`: `localhost`, nothing (which is the same), or an IP address.

    Names are not resolved: what a name means inside is said by files of the sprite, which the agent does not read.

    Raises:
        InvalidError: it is something else.
    """
    if host.lower() in ("", LOCALHOST):
        return [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    try:
        address = ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError as error:
        raise InvalidError(
            f"the host {host[:100]!r} is neither localhost nor an IP address", hint="resolve it inside the sprite"
        ) from error
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise InvalidError("an address with a scope cannot be connected to", hint="leave out what follows the %")
        return [(socket.AF_INET6, str(address))]
    return [(socket.AF_INET, str(address))]


def port_number(value: object) -> int:
    """`value` as a TCP port.

    Raises:
        InvalidError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 16:
        raise InvalidError("a port is a number from 1 to 65535")
    return value


async def connect(network: Network, host: str, port: int, *, retry_seconds: float = 0.0) -> socket.socket:
    """A connected TCP socket that does not block and sends at once (TCP_NODELAY). The caller owns it.

    Args:
        retry_seconds: for so long, a port that refuses is tried again: its server may still be starting.

    Raises:
        ConnectError: there is no connection. InvalidError: as `addresses`.
    """
    loop = asyncio.get_running_loop()
    tried = addresses(host)
    began = loop.time()
    while True:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                return await _first(network, tried, port)
        except TimeoutError as error:
            raise ConnectError(TIMEOUT, f"port {port} did not answer within {_CONNECT_SECONDS:.0f} s") from error
        except ConnectError as error:
            waited = loop.time() - began
            pause = min(max(_PAUSE_SECONDS, waited * _PAUSE_PART), _PAUSE_MOST)
            if error.reason != REFUSED or waited + pause > retry_seconds:
                raise
        await SYSTEM_CLOCK.sleep(pause)


async def _first(network: Network, tried: list[tuple[int, str]], port: int) -> socket.socket:
    """A connection to the first of the addresses that takes it."""
    failure: ConnectError | None = None
    for family, address in tried:
        try:
            return await _one(network, family, address, port)
        except OSError as error:
            # Of a sprite's own ::1 it says no more than 127.0.0.1 did, where there is no IPv6.
            failure = failure or _failure(error, port)
    assert failure is not None
    raise failure


async def _one(network: Network, family: int, address: str, port: int) -> socket.socket:
    sock = network.socket(family)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _failure(error: OSError, port: int) -> ConnectError:
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
        return ConnectError(UNAVAILABLE, f"there is no room for a connection: {error.strerror}")
    if error.errno == errno.ETIMEDOUT:
        return ConnectError(TIMEOUT, f"port {port} did not answer")
    if error.errno == errno.ECONNREFUSED:
        return ConnectError(REFUSED, f"nobody listens on port {port}")
    return ConnectError(REFUSED, f"port {port} cannot be reached: {error.strerror}")

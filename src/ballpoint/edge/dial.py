"""Connections to servers inside sprites: an agent makes them there, and hands them over (agent/ports/handover.py)."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

from ballpoint.core.errors import BallpointError, UnavailableError
from ballpoint.edge.shared import SharedTransport
from ballpoint.edge.stream import CONNECT_SECONDS, NotStartedError, RefusedError, Stream, open_unix, settle

# The agent gives up a port that does not answer after 8 s; beside that it needs moments.
_ANSWER_SECONDS = 15.0
_ANSWER_MAX = 4096
# Where an agent does not say which port it meant (contract 4).
_DEFAULT_PORT = 8080
# A second one shows as such, and is closed; more are dropped by the kernel (cmsg(3), MSG_CTRUNC).
_ROOM = 2


class NothingListensError(UnavailableError):
    """Nobody serves the port: start a server there."""

    kind = "nothing_listens"
    status = 502


async def dial(path: Path, preamble: dict[str, Any]) -> Stream:
    """A connection to the port that `preamble["connect"]` names, made by the agent at `path`.

    Raises:
        NotStartedError: the agent does not answer; RefusedError: it says that its sprite does not run.
        NothingListensError: nobody listens; UnavailableError: not yet, as it was waited for, or there is no room.
    """
    wanted = preamble["connect"]
    asked = await open_unix(path, CONNECT_SECONDS)
    try:
        asked.send(json.dumps(preamble).encode() + b"\n")
        async with asyncio.timeout(_ANSWER_SECONDS + wanted["retry_seconds"]):
            answer, fds = await _answer(asked)
    except TimeoutError as error:
        raise UnavailableError("the sprite's agent does not answer", hint="try again") from error
    except OSError as error:
        raise NotStartedError("the sprite's agent has ended", hint="try again") from error
    finally:
        asked.close()
    if answer.get("ok") is True:
        sock = _checked(fds)
        stream = Stream()
        SharedTransport(sock, stream)
        return stream
    _close(fds)
    raise _refusal(answer, waited=wanted["retry_seconds"] > 0)


async def _answer(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The agent's line, and the descriptors that came with it, which the caller owns."""
    loop = asyncio.get_running_loop()
    fds: list[int] = []
    data, cut = b"", 0
    try:
        while b"\n" not in data and len(data) <= _ANSWER_MAX:
            try:
                part, more, flags, _ = socket.recv_fds(sock, _ANSWER_MAX, _ROOM, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                await _readable(loop, sock)
                continue
            fds += more
            cut |= flags & socket.MSG_CTRUNC
            if not part:
                break
            data += part
        answer = _decoded(data.partition(b"\n")[0]) if b"\n" in data else None
        if answer is None and not data:
            raise NotStartedError("the sprite's agent has ended", hint="try again")
        if answer is None or cut:
            raise UnavailableError("the sprite's agent does not make sense", hint="restart it")
    except BaseException:
        _close(fds)
        raise
    return answer, fds


def _decoded(line: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock.fileno(), settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())


def _checked(fds: list[int]) -> socket.socket:
    """The one descriptor, if it is a connected TCP socket: the agent may have been taken over."""
    try:
        if len(fds) != 1 or not stat.S_ISSOCK(os.fstat(fds[0]).st_mode):
            raise UnavailableError("the sprite's agent handed over no connection", hint="restart it")
        sock = socket.socket(fileno=fds[0])
    except BaseException:
        _close(fds)
        raise
    try:
        tcp = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.proto == socket.IPPROTO_TCP
        if not tcp or sock.type != socket.SOCK_STREAM:
            raise UnavailableError("the sprite's agent handed over another kind of socket", hint="restart it")
        sock.getpeername()  # ENOTCONN of one that listens, too
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise UnavailableError("the server in the sprite ended the connection at once", hint="try again") from error
    except BaseException:
        sock.close()
        raise
    return sock


def _refusal(answer: dict[str, Any], *, waited: bool) -> BallpointError:
    """What an agent's refusal means. Of its words only the reason and the port count, as they are the sprite's."""
    said = answer.get("port")
    port = said if isinstance(said, int) and 0 < said < 1 << 16 else _DEFAULT_PORT
    match answer.get("error"):
        case "not_running":
            return RefusedError("the sprite is stopping", hint="try again")
        case "refused" if waited:
            return UnavailableError(
                f"nothing listens on port {port} yet, and the sprite was started just now",
                hint=f"try again, or start a server on port {port} in the sprite",
                code=NothingListensError.kind,
            )
        case "refused":
            return NothingListensError(
                f"nothing listens on port {port}",
                hint=f"start a server in the sprite, for example: python3 -m http.server {port}",
            )
        case "stopped":
            return UnavailableError(
                "the service that answers here was stopped",
                hint="start it: ballpoint services start, or sprite-env services start in the sprite",
                code="service_stopped",
            )
        case "timeout":
            return UnavailableError(
                f"port {port} does not accept connections", hint="its server may be overloaded", code="port_timeout"
            )
    return UnavailableError("the sprite has no room for another connection", hint="try again")


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)

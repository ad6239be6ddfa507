"""Ending a session by request (contract 2.3): a signal, time to obey it, and then an end without asking."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from ballpoint.agent.server import Connection, Request
from ballpoint.agent.sessions.frames import parsed_object, signal_number
from ballpoint.agent.sessions.session import Session
from ballpoint.core.duration import parse_duration
from ballpoint.core.errors import BallpointError, InvalidError

log = logging.getLogger("agent.session")

_BODY_MAX = 64 * 1024
_TIMEOUT_SECONDS, _TIMEOUT_MAX = 10.0, 3600.0
# Whoever forks while its session is being killed is found in the next round.
_ROUNDS = 16
_SESSION_FIELD = 3  # proc_pid_stat(5), counted from behind the name


@dataclass(frozen=True)
class Wish:
    """What a client wants of a session's end.

    Attributes:
        number: signal to send.
        timeout: seconds until it is killed; 0 sends the signal and nothing else.
    """

    number: int
    timeout: float


def parse_kill(query: str, body: bytes) -> Wish:
    """Read what clients say in three ways: in the query, in a JSON body, or not at all. The query counts first.

    Raises:
        InvalidError: there is no such signal, or that is no time.
    """
    said: dict[str, Any] = {}
    if body.strip():
        parsed = parsed_object(body)
        if parsed is None:
            raise InvalidError("the body is no JSON object", hint='for example {"signal": "TERM", "timeout": 10}')
        said = parsed
    said |= dict(reversed(parse_qsl(query)))
    name = said.get("signal")
    number = signal.SIGTERM if name in (None, "") else signal_number(name)
    if number is None:
        raise InvalidError(f"there is no signal {str(name)[:32]!r}", hint="for example SIGTERM, KILL or 15")
    value = said.get("timeout")
    if value in (None, ""):
        return Wish(number, _TIMEOUT_SECONDS)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InvalidError("the timeout is no time", hint="seconds, or a Go duration such as 10s")
    timeout = parse_duration(value) if isinstance(value, str) else value
    if not 0 <= timeout <= _TIMEOUT_MAX:
        raise InvalidError(f"the timeout is not within 0 to {_TIMEOUT_MAX:g} seconds")
    return Wish(number, float(timeout))  # only now: a whole number may be more than a float can hold


class Kill:
    """One such request. What it began goes on where its client leaves."""

    def __init__(self, connection: Connection, request: Request, session: Session) -> None:
        self._connection = connection
        self._query = request.query
        self._session = session
        self._body = b""
        self._timer: asyncio.TimerHandle | None = None
        self._forced = False

    # ---- server.Handler ----

    def data(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > _BODY_MAX:
            self._connection.respond(413, {"error": "too_large", "message": f"at most {_BODY_MAX} bytes"})

    def end(self) -> None:
        try:
            wish = parse_kill(self._query, self._body)
        except BallpointError as error:
            self._connection.respond_error(error)
            return
        fields = {"content-type": "application/x-ndjson", "transfer-encoding": "chunked", "connection": "close"}
        self._connection.start_response(200, fields)
        session = self._session
        name = signal.Signals(wish.number).name if wish.number in set(signal.Signals) else str(wish.number)
        self._say(type="signal", message=f"{name} sent to session {session.id}", signal=name, pid=session.pid)
        session.when_ended(self._ended)
        if wish.number == signal.SIGKILL:
            self._force()
        else:
            session.signal(wish.number)
        if wish.timeout and session.exit_code is None:
            self._timer = asyncio.get_running_loop().call_later(wish.timeout, self._late, wish.timeout)
        elif not wish.timeout:
            self._close({"type": "complete"})

    def writable(self) -> None:
        pass

    def lost(self) -> None:
        pass

    # ---- what happens to the session ----

    def _late(self, seconds: float) -> None:
        self._say(type="timeout", message=f"session {self._session.id} goes on after {seconds:g} s")
        self._force()

    def _force(self) -> None:
        self._forced = True
        self._session.signal(signal.SIGKILL)
        kill_session(self._session.pid)

    def _ended(self, code: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        kind = "killed" if self._forced else "exited"
        self._say(type=kind, message=f"session {self._session.id} ended with {code}")
        self._close({"type": "complete", "exit_code": code})

    def _say(self, **line: Any) -> None:
        data = json.dumps(line).encode() + b"\n"
        self._connection.send(b"%x\r\n" % len(data), data, b"\r\n")

    def _close(self, last: dict[str, Any]) -> None:
        self._say(**last)
        self._connection.send(b"0\r\n\r\n")
        self._connection.close()


def kill_session(leader: int) -> None:
    """Kill every process of a session (setsid(2)), also those that have left its group."""
    for _ in range(_ROUNDS):
        found = list(_of_session(leader))
        if not found:
            return
        for pidfd in found:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
    log.warning("processes of session %d go on being made", leader)


def _of_session(leader: int) -> Iterator[int]:
    """A pidfd of each living process of a session; the caller owns them."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or not _belongs(entry.name, leader):
            continue
        try:
            pidfd = os.pidfd_open(int(entry.name))
        except ProcessLookupError:
            continue
        if _belongs(entry.name, leader):  # still the same process: its number was not used again meanwhile
            yield pidfd
        else:
            os.close(pidfd)


def _belongs(pid: str, leader: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(fields[_SESSION_FIELD]) == leader and fields[0] not in (b"Z", b"X")

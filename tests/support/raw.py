"""Clients that see the bytes: exec over WebSocket and HTTP, and raw requests."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.nodes import TestNode


@dataclass
class Heard:
    """What an exec said.

    Attributes:
        info: the first text frame.
        terminal: every exit frame, in order; one, if all is well.
        after: bytes of output that came after the first exit frame.
        close_code: of the WebSocket.
    """

    info: dict[str, Any] = field(default_factory=dict)
    stdout: bytes = b""
    stderr: bytes = b""
    terminal: list[int] = field(default_factory=list)
    after: bytes = b""
    close_code: int | None = None


def exec_websocket(node: TestNode, name: str, *argv: str, send: tuple[bytes | str, ...] = (), **query: str) -> Heard:
    """Run `argv` over a fresh WebSocket; `send` goes out at once, then the end of input."""
    fields = [("cmd", word) for word in argv] + list(query.items())
    url = f"{node.url.replace('http', 'ws', 1)}/v1/sprites/{name}/exec?{urlencode(fields)}"
    heard = Heard()
    headers = {"Authorization": f"Bearer {node.token}"}
    with connect(
        url, additional_headers=headers, compression=None, max_size=None, proxy=None, open_timeout=60
    ) as connection:
        with suppress(ConnectionClosed):  # a quick command has ended before its input
            for message in (*send, b"\x04"):
                connection.send(message)
        try:
            while True:
                _take(heard, connection.recv(timeout=60), query.get("tty") == "true")
        except ConnectionClosed as closed:
            heard.close_code = closed.rcvd.code if closed.rcvd is not None else None
    return heard


@dataclass
class Cursors:
    """What was heard of a session over any number of connections, each of which goes on where the last one ended.

    Attributes:
        info: the last first frame.
        terminal: every exit frame.
        dropped: what was said of bytes that are not kept any more.
    """

    info: dict[str, Any] = field(default_factory=dict)
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    terminal: list[int] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)

    def take(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            if message[:1] == b"\3":
                self.terminal.append(message[1])
            elif message:
                (self.stdout if message[0] == 1 else self.stderr).extend(message[1:])
            return
        content = json.loads(message)
        if content["type"] == "session_info":
            assert content["offsets"] == {"stdout": len(self.stdout), "stderr": len(self.stderr)}
            self.info = content
        else:
            assert content["type"] == "dropped"
            self.dropped.append(content)


def watch(node: TestNode, name: str, session: str | None, cursors: Cursors, **query: Any) -> ClientConnection:
    """A connection to a session from where `cursors` is, or to a new one."""
    path = "exec" if session is None else f"exec/{session}"
    if session is not None:
        query["since"] = f"{len(cursors.stdout)},{len(cursors.stderr)}"
    return connect(
        f"{node.url.replace('http', 'ws', 1)}/v1/sprites/{name}/{path}?{urlencode(query, doseq=True)}",
        additional_headers={"Authorization": f"Bearer {node.token}"},
        compression=None,
        max_size=None,
        proxy=None,
        open_timeout=60,
        close_timeout=0.2,  # who leaves in the middle does not read what comes before the answer to that
    )


class ControlSocket:
    """Runs commands one after the other on one connection."""

    def __init__(self, node: TestNode, name: str) -> None:
        self._stack = ExitStack()
        self._connection = self._stack.enter_context(
            connect(
                f"{node.url.replace('http', 'ws', 1)}/v1/sprites/{name}/control",
                additional_headers={"Authorization": f"Bearer {node.token}"},
                compression=None,
                max_size=None,
                proxy=None,
                open_timeout=60,
            )
        )

    def run(self, *argv: str) -> Heard:
        """Run `argv` to its end, which is told twice."""
        heard = Heard()
        message = {"type": "op.start", "op": "exec", "args": {"cmd": argv, "stdin": "false"}}
        self._connection.send("control:" + json.dumps(message))
        while True:
            said = self._connection.recv(timeout=60)
            if isinstance(said, str) and said.startswith("control:"):
                end = json.loads(said.removeprefix("control:"))
                assert end["type"] == "op.complete"
                assert [end["args"]["exitCode"]] == heard.terminal
                return heard
            _take(heard, said, False)

    def close(self) -> None:
        self._stack.close()


def _take(heard: Heard, message: str | bytes, tty: bool) -> None:
    if isinstance(message, str):
        content = json.loads(message)
        if content["type"] == "session_info":
            heard.info = content
        elif content["type"] == "exit":
            heard.terminal.append(content["exit_code"])
        return
    if not message:
        return  # keep-alive
    if heard.terminal:
        heard.after += message
    if tty:
        heard.stdout += message
    elif message[0] == 1:
        heard.stdout += message[1:]
    elif message[0] == 2:
        heard.stderr += message[1:]
    elif message[0] == 3:
        heard.terminal.append(message[1])


def exec_http(node: TestNode, name: str, *argv: str, body: bytes | None = None, **query: str) -> Heard:
    """Run `argv` over HTTP POST, one frame in each chunk."""
    fields = [("cmd", word) for word in argv] + list(query.items())
    if body is not None:
        fields.append(("stdin", "true"))
    parts = urlsplit(node.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    try:
        headers = {"Authorization": f"Bearer {node.token}"}
        connection.request("POST", f"/v1/sprites/{name}/exec?{urlencode(fields)}", body=body, headers=headers)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        heard = Heard()
        while size := int(response.fp.readline(), 16):
            frame = response.fp.read(size)
            assert response.fp.readline() == b"\r\n"
            _take(heard, frame, tty=False)
        return heard
    finally:
        connection.close()


def raw_request(node: TestNode, data: bytes) -> bytes:
    """Send `data` as it is, and read what comes until the connection ends."""
    parts = urlsplit(node.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30) as connection:
        connection.sendall(data)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer

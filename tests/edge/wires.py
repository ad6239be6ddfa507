"""Raw connections for tests: exact bytes in and out, and just enough HTTP to tell where a message ends."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

_SECONDS = 30.0
_READ = 256 * 1024


class EndedError(Exception):
    """The other side ended the connection before what was waited for had come."""


@dataclass
class Message:
    """A request or response.

    Attributes:
        raw: the head as it came.
        line: its first line.
        fields: (lower-case name, value), in order.
        body: without chunk framing; chunks: as they were framed.
    """

    raw: bytes
    line: str
    fields: list[tuple[str, str]]
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.line.split(" ")[1])

    def all(self, name: str) -> list[str]:
        return [value for given, value in self.fields if given == name]

    def get(self, name: str) -> str | None:
        """The value of a field that must not be there twice."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} is there {len(values)} times"
        return values[0] if values else None


def parse(raw: bytes) -> Message:
    line, *rest = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    pairs = [each.partition(":") for each in rest]
    return Message(raw, line, [(name.lower(), value.strip()) for name, _, value in pairs])


def get(target: str, *fields: str, method: str = "GET", version: str = "1.1", host: str = "edge") -> bytes:
    """The head of a request with these fields, beside its Host."""
    return "\r\n".join([f"{method} {target} HTTP/{version}", f"Host: {host}", *fields, "", ""]).encode("latin-1")


def post(target: str, body: bytes, *fields: str, host: str = "edge") -> bytes:
    """A whole request with a body."""
    return get(target, f"Content-Length: {len(body)}", *fields, method="POST", host=host) + body


class Wire:
    """A connected stream socket with what was read of it and not yet used."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(_SECONDS)
        self.buffer = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Vanish: a TCP connection is reset, not ended."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def finish(self) -> None:
        """Send no more."""
        self.sock.shutdown(socket.SHUT_WR)

    def send(self, data: bytes) -> Wire:
        self.sock.sendall(data)
        return self

    def _fill(self) -> None:
        data = self.sock.recv(_READ)
        if not data:
            raise EndedError(self.buffer)
        self.buffer += data

    def until(self, marker: bytes) -> bytes:
        """What comes up to and with `marker`."""
        while marker not in self.buffer:
            self._fill()
        data, _, self.buffer = self.buffer.partition(marker)
        return data + marker

    def exactly(self, count: int) -> bytes:
        parts = [self.buffer]
        have = len(self.buffer)
        while have < count:
            part = self.sock.recv(_READ)
            if not part:
                raise EndedError(b"".join(parts))
            parts.append(part)
            have += len(part)
        data = b"".join(parts)
        self.buffer = data[count:]
        return data[:count]

    def rest(self) -> bytes:
        """What comes until the end, however it ends."""
        parts, self.buffer = [self.buffer], b""
        try:
            while part := self.sock.recv(_READ):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)

    def head(self) -> Message:
        return parse(self.until(b"\r\n\r\n"))

    def request(self) -> tuple[Message, bytes]:
        """The next request, and its exact bytes."""
        message = self.head()
        body = self._body(message)
        return message, message.raw + body

    def _body(self, message: Message) -> bytes:
        if message.get("transfer-encoding") == "chunked":
            raw = b""
            while True:
                line = self.until(b"\r\n")
                size = int(line, 16)
                chunk = self.exactly(size + 2)
                raw += line + chunk
                if size == 0:
                    break
                message.chunks.append(chunk[:-2])
            message.body = b"".join(message.chunks)
            return raw
        message.body = self.exactly(int(message.get("content-length") or 0))
        return message.body

    def response(self, method: str = "GET") -> Message:
        """The next final response with its body; one without a length lasts until the end."""
        message = self.head()
        if method == "HEAD" or message.status in (101, 204, 304) or message.status < 200:
            return message
        if message.get("transfer-encoding") is None and message.get("content-length") is None:
            message.body = self.rest()
        else:
            self._body(message)
        return message

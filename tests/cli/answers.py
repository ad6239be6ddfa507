"""A server that answers as a test says, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.cli.command import DEADLINE


@dataclass(frozen=True)
class Asked:
    """A request."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answers:
    """What to answer, by method and path; 404 to all else.

    Attributes:
        to: a status, a content type, and pieces of the body, each a chunk of its own; an event among them is waited
            for. Those of a list are given one after the other, the last one again and again.
        asked: each request, in order.
    """

    url: str = ""
    to: dict[tuple[str, str], list[tuple[int, str, list[bytes | threading.Event]]]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def answer(self, method: str, path: str, status: int, body: Any = None) -> None:
        """Answer with a JSON document, or with nothing."""
        self.to.setdefault((method, path), []).append(
            (status, "application/json", [] if body is None else [json.dumps(body).encode()])
        )

    def stream(self, method: str, path: str, *events: dict[str, Any] | threading.Event) -> None:
        """Answer with NDJSON."""
        lines = [each if isinstance(each, threading.Event) else json.dumps(each).encode() + b"\n" for each in events]
        self.to.setdefault((method, path), []).append((200, "application/x-ndjson", lines))


@contextmanager
def answering() -> Iterator[Answers]:
    answers = Answers()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            asked = Asked(
                self.command, parts.path, dict(parse_qsl(parts.query)), dict(self.headers.items()), self._body()
            )
            answers.asked.append(asked)
            missing = [(404, "application/json", [b'{"error": "not_found", "message": "there is no such thing"}'])]
            known = answers.to.get((asked.method, asked.path), missing)
            status, kind, pieces = known[0] if len(known) == 1 else known.pop(0)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if status == 204:
                self.end_headers()
                return
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in [*pieces, b""]:
                if isinstance(piece, threading.Event):
                    piece.wait(DEADLINE)
                    continue
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _answer

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        answers.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield answers
        finally:
            server.shutdown()
            thread.join()

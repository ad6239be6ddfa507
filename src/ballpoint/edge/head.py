"""Strict parsing of HTTP/1 heads and bodies (RFC 9112): what two parsers could read differently is refused.

Own code and not a library's, because a library forgives: here every leniency would be a way to smuggle a request past
the one that was authorized.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HEAD_MAX = 64 * 1024
_TARGET_MAX = 48 * 1024
_HOST_MAX = 255
_LENGTH_DIGITS_MAX = 18
_CHUNK_LINE_MAX = 18  # 16 hexadecimal digits and the line's end

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"[\x21-\x7e]+")
# A field line (RFC 9112 5), its value of visible characters, spaces, tabs and obs-text (RFC 9110 5.5). One that is
# folded, or has a space before its colon, is none.
_FIELD = rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]++):([\t\x20-\x7e\x80-\xff]*+)\r\n"
_FIELDS = re.compile(rb"(?:" + _FIELD + rb")*+")
_EACH_FIELD = re.compile(_FIELD)
_HOST = re.compile(rb"[0-9A-Za-z.\-_]*(:[0-9]{0,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{0,5})?")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")

# Connection-specific fields (RFC 9110 7.6.1): never passed on.
HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
# Connection may not name these (RFC 9110 7.6.1): they would be left out, and the message read differently further on.
_NEVER_HOP_BY_HOP = frozenset({b"host", b"content-length", b"transfer-encoding"})


class FramingError(Exception):
    """A message that must not be passed on. `status` is what its sender is told."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(slots=True)
class Head:
    """Fields of a request or response.

    Attributes:
        fields: (name as sent, value), in order; names: the same names in lower case.
        length: of the body by Content-Length; None where there is none.
        chunked: the body is chunked.
        version: 0 or 1, of HTTP/1.x.
    """

    fields: list[tuple[bytes, bytes]]
    names: list[bytes]
    version: int
    length: int | None = None
    chunked: bool = False

    def get(self, name: bytes) -> bytes | None:
        """Value of the last field `name` (lower case)."""
        return _values(self.fields, self.names, name)[-1] if name in self.names else None

    def tokens(self, name: bytes) -> set[bytes]:
        """Lower-case members of the comma-separated list in all fields `name` (lower case)."""
        return _tokens(self.fields, self.names, name)

    @property
    def keep_alive(self) -> bool:
        """Whether the sender wants to use the connection again."""
        if b"connection" not in self.names:
            return self.version == 1
        tokens = self.tokens(b"connection")
        return b"close" not in tokens and (self.version == 1 or b"keep-alive" in tokens)

    def end_to_end(self, without: frozenset[bytes], prefix: bytes) -> list[tuple[bytes, bytes]]:
        """The fields that may be passed on, less those in `without` or beginning with `prefix` (lower case)."""
        gone = without | HOP_BY_HOP
        if b"connection" in self.names:
            gone |= self.tokens(b"connection")
        return [
            pair
            for pair, name in zip(self.fields, self.names, strict=True)
            if name not in gone and not name.startswith(prefix)
        ]


@dataclass(slots=True)
class RequestHead(Head):
    """A request's head. `target` is in origin form."""

    method: bytes = b""
    target: bytes = b""
    host: bytes = b""

    @property
    def upgrade(self) -> bytes | None:
        """The protocol asked for by an upgrade. Beside a body it is ignored: both would use the connection at once."""
        if b"upgrade" not in self.names or self.version != 1 or self.has_body:
            return None
        return self.get(b"upgrade") if b"upgrade" in self.tokens(b"connection") else None

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.length)


@dataclass(slots=True)
class ResponseHead(Head):
    """A response's head."""

    status: int = 0
    reason: bytes = b""


def find_end(buffer: bytes | bytearray) -> int:
    """Where the head at the start of `buffer` ends, or -1 while it is not complete.

    Raises:
        FramingError: it can never become a head that is passed on.
    """
    end = buffer.find(b"\r\n\r\n")
    head = buffer if end < 0 else buffer[: end + 4]
    if len(head) > HEAD_MAX:
        raise FramingError("the header is too large", 431)
    # A bare LF ends a line for some parsers, a bare CR for others.
    if head.count(b"\n") != head.count(b"\r\n"):
        raise FramingError("a line does not end with CR LF")
    if b"\0" in head:
        raise FramingError("NUL in the header")
    return -1 if end < 0 else end + 4


def parse_request(data: bytes) -> RequestHead:
    """Parse a complete request head, its final empty line included.

    Raises:
        FramingError: it is malformed or ambiguous.
    """
    line, _, rest = data.partition(b"\r\n")
    parts = line.split(b" ")
    if len(parts) != 3:
        raise FramingError("malformed request line")
    method, target, version_text = parts
    if not _TOKEN.fullmatch(method):
        raise FramingError("malformed method")
    if not _TARGET.fullmatch(target) or b"#" in target:
        raise FramingError("malformed request target")
    if len(target) > _TARGET_MAX:
        raise FramingError("the request target is too long", 414)
    if version_text not in (b"HTTP/1.0", b"HTTP/1.1"):
        raise FramingError("only HTTP/1.0 and HTTP/1.1 are served", 505 if version_text.startswith(b"HTTP/") else 400)
    version = version_text[-1] - ord("0")
    fields, names = _fields(rest)
    hosts = _values(fields, names, b"host")
    if len(hosts) > 1 or (not hosts and version == 1):
        raise FramingError("there must be exactly one Host")
    host = hosts[0] if hosts else b""
    if not _HOST.fullmatch(host) or len(host) > _HOST_MAX:
        raise FramingError("malformed Host")
    length, chunked = _framing(fields, names, version)
    return RequestHead(
        fields,
        names,
        version,
        length,
        chunked,
        method=method,
        target=_origin_form(target, host),
        host=host,
    )


def parse_response(data: bytes) -> ResponseHead:
    """Parse a complete response head of one of our own servers, as strictly.

    Raises:
        FramingError: it is malformed or ambiguous.
    """
    line, _, rest = data.partition(b"\r\n")
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise FramingError("malformed status line", 502)
    fields, names = _fields(rest)
    version = int(match[1])
    length, chunked = _framing(fields, names, version)
    return ResponseHead(
        fields,
        names,
        version,
        length,
        chunked,
        status=int(match[2]),
        reason=match[3] or b"",
    )


def _fields(block: bytes) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """The fields in `block`, which ends with an empty line, and their names in lower case."""
    end = len(block) - 2
    match = _FIELDS.match(block, 0, end)
    if match is None or match.end() != end or not block.endswith(b"\r\n"):
        raise FramingError("a header line is malformed, or has control characters")
    fields = [(name, value.strip(b" \t")) for name, value in _EACH_FIELD.findall(block, 0, end)]
    return fields, [name.lower() for name, _ in fields]


def _values(fields: list[tuple[bytes, bytes]], names: list[bytes], name: bytes) -> list[bytes]:
    if name not in names:
        return []
    return [pair[1] for pair, given in zip(fields, names, strict=True) if given == name]


def _tokens(fields: list[tuple[bytes, bytes]], names: list[bytes], name: bytes) -> set[bytes]:
    values = _values(fields, names, name)
    return {part.strip(b" \t").lower() for value in values for part in value.split(b",")} - {b""}


def _framing(fields: list[tuple[bytes, bytes]], names: list[bytes], version: int) -> tuple[int | None, bool]:
    if b"connection" in names and _tokens(fields, names, b"connection") & _NEVER_HOP_BY_HOP:
        raise FramingError("Connection names a field that belongs to the message")
    lengths = _values(fields, names, b"content-length")
    codings = _values(fields, names, b"transfer-encoding")
    if codings and lengths:
        raise FramingError("Content-Length beside Transfer-Encoding")
    if codings:
        if version == 0 or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise FramingError("the only Transfer-Encoding is chunked")
        return None, True
    if not lengths:
        return None, False
    if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > _LENGTH_DIGITS_MAX:
        raise FramingError("there must be one Content-Length, in digits")
    return int(lengths[0]), False


def _origin_form(target: bytes, host: bytes) -> bytes:
    if target.startswith(b"/"):
        return target
    scheme, separator, rest = target.partition(b"://")
    if separator and scheme.lower() in (b"http", b"https"):
        authority, slash, path = rest.partition(b"/")
        if b"?" not in authority and authority.lower() == host.lower():
            return slash + path if slash else b"/"
    raise FramingError("the request target is for another server")


class Chunks:
    """Follows a chunked body (RFC 9112 7.1) without changing it. Extensions are refused, and trailers, as a rule.

    Args:
        keep: collect what the chunks hold.
        drops_trailers: trailers are well-formed or refused, and then left out: all that follows the line of the last
            chunk is `withheld`, and the one who passes the body on ends it with an empty line of his own.

    Attributes:
        done: the last chunk has been seen.
        content: what the chunks held so far, for the caller to take and clear; empty without `keep`.
        withheld: how many bytes at the end of what was taken last are not to be passed on.
        dropped: some were withheld.
    """

    def __init__(self, *, keep: bool = False, drops_trailers: bool = False) -> None:
        self.done = False
        self.content = bytearray()
        self.withheld = 0
        self.dropped = False
        self._keep = keep
        self._drops_trailers = drops_trailers
        self._trailers = 0
        self._data_left = 0
        self._line = b""
        self._state = "size"

    def take(self, data: bytes) -> int:
        """How many bytes at the start of `data` belong to the body; all of them while it is not done.

        Raises:
            FramingError: it is malformed.
        """
        at = 0
        self.withheld = 0
        while at < len(data) and not self.done:
            if self._state == "data":
                step = min(self._data_left, len(data) - at)
                self._data_left -= step
                if self._keep:
                    self.content += data[at : at + step]
                at += step
                if self._data_left == 0:
                    self._state = "end of data"
                continue
            newline = data.find(b"\n", at)
            stop = len(data) if newline < 0 else newline + 1
            trailing = self._drops_trailers and self._state == "end of body"
            if trailing:
                self.withheld += stop - at
                self.dropped = True
                self._trailers += stop - at
            self._line += data[at:stop]
            at = stop
            if (self._trailers if trailing else len(self._line)) > (HEAD_MAX if trailing else _CHUNK_LINE_MAX):
                raise FramingError("malformed chunk")
            if newline >= 0:
                self._take_line()
        return at

    def _take_line(self) -> None:
        line, self._line = self._line, b""
        if not line.endswith(b"\r\n"):
            raise FramingError("malformed chunk")
        text = line[:-2]
        if self._state == "end of body" and text and self._drops_trailers:
            if not _EACH_FIELD.fullmatch(line):
                raise FramingError("malformed trailer")
            return
        if self._state in ("end of data", "end of body"):
            if text:
                raise FramingError("malformed chunk" if self._state == "end of data" else "trailers are not accepted")
            self.done = self._state == "end of body"
            self._state = "size"
            return
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,16}", text):
            raise FramingError("malformed chunk size")
        self._data_left = int(text, 16)
        self._state = "data" if self._data_left else "end of body"

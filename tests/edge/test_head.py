"""The parser of heads and bodies by itself."""

from __future__ import annotations

import string
from contextlib import suppress

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ballpoint.edge.head import HEAD_MAX, Chunks, FramingError, RequestHead, find_end, parse_request, parse_response

TOKEN = string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~"
names = st.text(TOKEN, min_size=1, max_size=20)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=40)
targets = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=40)
OURS = {"host", "content-length", "transfer-encoding", "connection", "upgrade", "expect"}

# Pieces from which a fuzzer makes what is nearly a request.
PIECES = [
    b"GET ", b"POST ", b"/", b" ", b"HTTP/1.1", b"HTTP/1.0", b"\r\n", b"\r", b"\n", b"\0", b":", b": ", b"\t",
    b"Host: a", b"Content-Length: ", b"5", b"Transfer-Encoding: ", b"chunked", b"Connection: ", b"upgrade", b",",
    b"\r\n\r\n", b"HTTP/1.1 200 OK", b"http://a", b"\xff",
]  # fmt: skip
nearly = st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=3)), max_size=30).map(b"".join)


def parse(data: bytes) -> RequestHead:
    end = find_end(data)
    assert end > 0
    return parse_request(data[:end])


@given(nearly)
@example(b"\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: \xb2\r\n\r\n")
def test_it_parses_or_says_that_it_does_not(data: bytes) -> None:
    with suppress(FramingError):
        end = find_end(data)
        assert -1 <= end <= len(data)
        if end >= 0:
            assert data[:end].endswith(b"\r\n\r\n")
            for parse_head in (parse_request, parse_response):
                with suppress(FramingError):
                    parse_head(data[:end])


@given(nearly, st.data())
def test_where_a_head_ends_does_not_depend_on_the_pieces_it_comes_in(data: bytes, draw: st.DataObject) -> None:
    def outcome(prefix: bytes) -> int | str:
        try:
            return find_end(prefix)
        except FramingError as error:
            return error.message

    whole = outcome(data)
    part = outcome(data[: draw.draw(st.integers(0, len(data)))])
    if isinstance(part, str):
        assert isinstance(whole, str)  # what can never be a head does not become one
    elif part >= 0:
        assert whole == part


@given(names, targets, st.lists(st.tuples(names, values), max_size=8), st.integers(0, 10**17) | st.just("chunked"))
def test_what_it_passes_on_reads_the_same_to_another_parser(
    method: str, target: str, fields: list[tuple[str, str]], framing: int | str
) -> None:
    framing_field = ("Transfer-Encoding", framing) if framing == "chunked" else ("Content-Length", str(framing))
    given_fields = [("Host", "edge"), framing_field, *(pair for pair in fields if pair[0].lower() not in OURS)]
    lines = [f"{method} /{target} HTTP/1.1", *(f"{name}: {value}" for name, value in given_fields), "", ""]
    data = "\r\n".join(lines).encode("latin-1")

    head = parse(data)
    assert (head.method, head.target) == (method.encode(), b"/" + target.encode())
    assert (head.length, head.chunked) == ((None, True) if framing == "chunked" else (framing, False))

    other = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
    other.receive_data(data)
    event = other.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (head.method, head.target)
    assert list(event.headers) == [
        # h11 changes the case of this one value
        (name.lower(), value.lower() if name.lower() == b"transfer-encoding" else value)
        for name, value in head.fields
    ]


@given(nearly)
def test_what_another_parser_refuses_is_refused_or_has_a_reason_to_pass(data: bytes) -> None:
    """Of what we take, the framing must be what another parser sees too."""
    try:
        end = find_end(data)
        head = parse_request(data[:end]) if end > 0 else None
    except FramingError:
        return
    if head is None:
        return
    other = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
    other.receive_data(data[:end])
    event = other.next_event()
    assert isinstance(event, h11.Request)
    lengths = [int(value) for name, value in event.headers if name == b"content-length"]
    codings = [value for name, value in event.headers if name == b"transfer-encoding"]
    assert lengths == ([] if head.length is None else [head.length])
    assert codings == ([b"chunked"] if head.chunked else [])


# ---- chunks ----


def encode(chunks: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def feed(body: Chunks, data: bytes, cuts: list[int]) -> tuple[bytes, bytes]:
    """What of `data`, cut at these places, `body` takes, and what it leaves."""
    taken = b""
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, stop in zip(edges, edges[1:], strict=False):
        if body.done:
            break
        taken += data[start : start + body.take(data[start:stop])]
    return taken, data[len(taken) :]


cuts = st.lists(st.integers(0, 400), max_size=20)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.binary(max_size=40), cuts)
def test_a_chunked_body_ends_where_it_ends_however_it_comes(chunks: list[bytes], behind: bytes, at: list[int]) -> None:
    body = Chunks()
    raw = encode(chunks)
    assert feed(body, raw + behind, at) == (raw, behind)
    assert body.done


@given(
    st.lists(
        st.one_of(st.sampled_from([b"\r\n", b"\n", b"0", b"5", b"a", b";", b" "]), st.binary(max_size=3)), max_size=20
    ).map(b"".join),
    cuts,
)
def test_a_malformed_body_is_refused_however_it_comes(data: bytes, at: list[int]) -> None:
    def outcome(cuts: list[int]) -> tuple[bytes, bool] | None:
        body = Chunks()
        try:
            taken, _ = feed(body, data, cuts)
        except FramingError:
            return None
        return taken, body.done

    assert outcome(at) == outcome([])


@pytest.mark.parametrize("size", [1, HEAD_MAX - 1, HEAD_MAX])
def test_a_head_that_is_not_complete_is_waited_for(size: int) -> None:
    assert find_end(b"a" * size) == -1

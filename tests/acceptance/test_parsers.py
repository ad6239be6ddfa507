"""Whatever comes from a network or an instance is read, or refused with the one error that its reader names.

The table says for each function that takes bytes or text apart which test tries anything on it, or why nobody hostile
can choose what it reads. A new one is found by the calls it makes, and fails here until it has its line.
"""

from __future__ import annotations

import ast
import asyncio
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ballpoint.agent import ringlog
from ballpoint.agent.services.log import parse_line
from ballpoint.cli.client import streams
from ballpoint.cli.client.http import error_of
from ballpoint.cli.client.joined import Joined
from ballpoint.cli.client.terminal import RawTerminal
from ballpoint.core import wire
from ballpoint.core.errors import BallpointError, InvalidError, UnavailableError
from ballpoint.core.hosts import Site
from ballpoint.edge import dial
from ballpoint.edge.head import FramingError, parse_request
from ballpoint.edge.question import question_of
from ballpoint.network.upstream import read_message
from ballpoint.node.urls.visitor import Visitor, first_field
from ballpoint.registry.registry import _decode_page, _encode_page
from ballpoint.runtime.container.instance import is_anchor
from ballpoint.store.url import check_url, redacted
from tests.edge.test_head import nearly

from .hostile import BYTES, JSON, TEXT

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "ballpoint"
# Calls by which something is taken apart.
SIGNS = frozenset(
    {
        "loads", "unpack", "unpack_from", "iter_unpack", "from_bytes", "parse_qs", "parse_qsl", "fromisoformat",
        "urlsplit", "convert", "b64decode", "receive_data", "feed_data", "from_wire", "parse",
    }
)  # fmt: skip
HERE = "tests/acceptance/test_parsers.py"
# What it reads is the kernel's, what its own process or the one before wrote, or the administrator's.
OURS = (
    "agent/notes.py", "agent/sessions/journal.py", "agent/ringlog.py:Ring", "cli/client/settings.py",
    "cli/client/exec_command.py", "cli/host/", "core/config.py", "edge/__main__.py", "host/blocktrace.py",
    "host/btf.py", "host/fiemap.py", "host/filesystem.py", "host/held.py", "host/loop.py", "host/namespaces.py",
    "host/netlink.py", "host/nft.py", "image/", "node/durable/", "node/main.py", "node/node.py", "node/settings.py",
    "node/supervisor.py", "node/urls/urls.py:_settings", "runtime/container/runtime.py",
    "runtime/container/zygote.py", "store/deployment.py", "volume/pool.py", "volume/record.py",
    "volume/superblock.py", "volume/sync/reads.py",
)  # fmt: skip
# A log is written by nodes alone, but by those of many versions.
TRIED = {
    "cli/client/said.py": f"{HERE}::test_whatever_a_sprite_says_ends_a_command_with_a_code_or_in_words",
    "agent/files/request.py": "tests/agent/files/test_requests.py::test_any_body_is_an_object_or_refused",
    "agent/frames.py": "tests/agent/test_frames.py::test_garbage_is_read_alike_however_it_is_cut",
    "agent/ports/handover.py": "tests/agent/ports/test_handover.py::test_whatever_is_wanted_is_a_port_or_refused",
    "agent/ports/proxy.py:parse_first": (
        "tests/agent/ports/test_proxy.py::test_whatever_comes_first_is_a_host_and_a_port_or_refused"
    ),
    "agent/ports/proxy.py:is_eof": (
        "tests/agent/ports/test_proxy.py::test_whatever_text_comes_later_is_an_end_or_nothing"
    ),
    "agent/ringlog.py:_read": f"{HERE}::test_whatever_is_in_a_log_of_an_instance_can_be_shown",
    "agent/server.py": "tests/agent/test_bad_input.py::test_any_bytes",
    "agent/services/definition.py": (
        "tests/agent/services/test_definition.py::test_whatever_is_in_the_file_is_services_or_refused"
    ),
    "agent/services/log.py": f"{HERE}::test_any_line_of_a_services_log_is_one",
    "agent/services/routes.py": "tests/agent/services/test_definition.py::"
    "test_whatever_a_client_says_is_a_definition_or_refused",
    "agent/sessions/exec_request.py": "tests/agent/test_queries.py::test_any_text_is_a_query_or_refused",
    "agent/sessions/frames.py": "tests/agent/test_bad_input.py::test_any_operation_on_a_control_socket",
    "agent/sessions/kill.py": "tests/agent/test_kill.py::test_any_wish_is_one_or_is_refused",
    "agent/sessions/multiplexed.py": "tests/agent/test_bad_input.py::test_any_operation_on_a_control_socket",
    "agent/websocket.py": "tests/agent/test_bad_input.py::test_any_bytes_as_frames",
    "api/log_in.py": "tests/api/test_fuzz.py::test_any_form_logs_in_or_is_answered_with_the_page",
    "api/tasks.py": "tests/api/test_fuzz.py::test_whatever_is_said_of_tasks_they_can_be_listed_behind_it",
    "cli/client/http.py": f"{HERE}::test_any_answer_is_an_error_that_can_be_told",
    "core/wire.py": f"{HERE}::test_any_packet_is_a_message_or_refused_and_its_descriptors_are_closed",
    "edge/dial.py": f"{HERE}::test_whatever_an_agent_says_of_a_connection_is_an_answer_or_nothing",
    "host/sockdiag.py": "tests/host/test_sockdiag.py::test_garbage_is_read_to_its_end",
    "network/upstream.py:read_message": f"{HERE}::test_any_bytes_are_messages_to_the_resolver",
    "network/upstream.py": "tests/network/test_resolver.py::test_any_bytes_are_a_question_or_none",
    "node/urls/visitor.py": f"{HERE}::test_any_request_makes_a_question_that_the_node_can_read",
    "registry/registry.py": f"{HERE}::test_any_text_is_a_token_of_a_page_or_refused",
    "store/url.py": f"{HERE}::test_any_text_is_the_url_of_a_store_or_refused",
    "volume/log/envelope.py": "tests/volume/log/test_envelope.py::test_no_header_does_anything_but_be_read_or_refused",
    "volume/log/page.py": "tests/volume/log/test_map.py::test_no_content_does_anything_but_be_read_or_refused",
    "volume/log/changes.py": "tests/volume/log/test_commit.py::test_what_a_defective_writer_signs_is_read_or_refused",
}


def _takers() -> Iterator[str]:
    """Each function that takes something apart, as `file:Class.function`."""

    def walk(node: ast.AST, inside: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call) and _is_sign(child.func):
                yield inside
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            yield from walk(child, (*inside, child.name) if named else inside)  # type: ignore[attr-defined]

    for file in sorted(SOURCES.rglob("*.py")):
        for inside in walk(ast.parse(file.read_text()), ()):
            yield f"{file.relative_to(SOURCES)}:{'.'.join(inside)}"


def _is_sign(called: ast.expr) -> bool:
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    return name in SIGNS or (name == "decode" and "json" in ast.unparse(called))


def test_everything_that_takes_bytes_apart_has_its_line() -> None:
    takers = set(_takers())
    nobodys = [each for each in takers if not each.startswith((*TRIED, *OURS))]
    assert nobodys == [], "name the test that tries anything on it in TRIED, or whose it is in OURS"
    unused = [line for line in (*TRIED, *OURS) if not any(each.startswith(line) for each in takers)]
    assert unused == []


@pytest.mark.parametrize("test", sorted(set(TRIED.values())))
def test_what_tries_anything_is_there_and_searches_at_random(test: str) -> None:
    path, _, name = test.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    found = [
        each
        for each in ast.walk(tree)
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name == name
    ]
    assert any("given(" in ast.unparse(decorator) for each in found for decorator in each.decorator_list)


@given(BYTES, st.integers(0, 3))
def test_any_packet_is_a_message_or_refused_and_its_descriptors_are_closed(data: bytes, count: int) -> None:
    """An agent that was taken over sends the node what it likes."""
    before = os.listdir("/proc/self/fd")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        socket.send_fds(theirs, [data or b" "], [0] * count)
        try:
            message, fds = wire.receive(ours)
        except InvalidError:
            fds = []
        else:
            assert isinstance(message, dict)
            assert len(fds) == count
        for fd in fds:
            os.close(fd)
    assert os.listdir("/proc/self/fd") == before


@given(st.binary(max_size=15).filter(lambda name: b"\0" not in name), st.lists(st.integers(1, 99), max_size=3))
@example(b"\rNSpid:\t7\t1\r", [300])
@example(b"\x0bNSpid:\t7\t1\x0b", [300, 17])
@example(b"\xff", [300, 1])
def test_whatever_a_process_calls_itself_it_is_no_anchor_by_that(name: bytes, numbers: list[int]) -> None:
    shown = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")  # as proc_task_name() of fs/proc/array.c does
    line = b"".join(b"\t%d" % number for number in numbers)
    assert is_anchor(b"Name:\t%b\nUmask:\t0022\nNSpid:%b\n" % (shown, line)) is (numbers[1:] == [1])


@given(st.binary(), st.binary(), st.integers(0, 2 * ringlog.SIZE), st.booleans(), st.integers(0, 2**64 - 1))
def test_whatever_is_in_a_log_of_an_instance_can_be_shown(
    head: bytes, data: bytes, at: int, known: bool, written: int
) -> None:
    fd = ringlog.create()
    try:
        os.pwrite(fd, data[: 2 * ringlog.SIZE - at], at)
        os.pwrite(fd, ringlog.HEADER.pack(ringlog.MAGIC, written) if known else head, 0)
        assert len(ringlog.read(fd)) <= 2 * ringlog.SIZE
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    finally:
        os.close(fd)


@given(
    st.binary() | st.from_regex(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9.]{2,9}Z? (stdout|stderr|x) .*"),
    st.floats(0, 1e10),
)
@example(b"0001-01-01T00:00:00.000Z stdout x", 0.0)
def test_any_line_of_a_services_log_is_one(data: bytes, now: float) -> None:
    """A log lies in the sprite, whose programs may write into it what they like."""
    line = parse_line(data, now)
    assert line.stream in ("stdout", "stderr")
    line.text.encode()


@given(BYTES, st.booleans())
def test_whatever_an_agent_says_of_a_connection_is_an_answer_or_nothing(data: bytes, waited: bool) -> None:
    answer = dial._decoded(data)
    assert answer is None or isinstance(answer, dict)
    assert isinstance(dial._refusal(answer or {}, waited=waited), BallpointError)


@given(st.dictionaries(st.sampled_from(["error", "port", "message"]), JSON | st.sampled_from(["refused", "stopped"])))
def test_whatever_an_agent_refuses_with_is_a_refusal_in_our_words(said: dict[str, Any]) -> None:
    error = dial._refusal(said, waited=False)
    assert isinstance(error, BallpointError)
    assert len(error.message) < 200


@given(nearly, st.lists(st.sampled_from(["Cookie", "Origin", "Authorization", "Sec-Fetch-Site", "Accept", "X"])), TEXT)
def test_any_request_makes_a_question_that_the_node_can_read(data: bytes, names: list[str], value: str) -> None:
    fields = "".join(f"{name}: {value}\r\n" for name in names).encode("utf-8", "surrogatepass")
    for request in (data, b"GET /%b HTTP/1.1\r\nHost: web.sprites.localhost\r\n%b\r\n" % (data[:20], fields)):
        try:
            question = question_of(parse_request(request), "127.0.0.1", "sprites.localhost")
        except FramingError:
            continue
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            wire.send(theirs, question)
            received, _ = wire.receive(ours)
        visitor = Visitor.of(received)
        assert isinstance(visitor.navigates, bool)
        first_field(visitor.target.partition("?")[2], "code").encode()


@given(TEXT | st.from_regex(r"(a=b?&?|to=%?[0-9a-f]{0,2}&){0,12}", fullmatch=True))
def test_any_query_has_a_field_or_not(query: str) -> None:
    assert isinstance(first_field(query, "to"), str)


SITE = Site("sprites.localhost", "http", 8080)


@given(TEXT | st.from_regex(r"https?://[a-z.@:/\\]{0,9}\.sprites\.localhost(:8080)?[/?#@]?.{0,5}"))
def test_any_host_is_somebodys_and_a_url_is_a_sprites_or_none(text: str) -> None:
    assert SITE.place(text).kind in ("api", "auth", "sprite", "nobody")
    read = SITE.read(text)
    if read is not None:
        assert SITE.origin(read[0]) + read[1] in (text, text + "/")


@given(st.binary(max_size=200))
async def test_any_bytes_are_messages_to_the_resolver(data: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    left = len(data)
    while (message := await read_message(reader)) is not None:
        left -= 2 + len(message)
    assert left >= 0


@given(TEXT)
def test_any_text_is_a_token_of_a_page_or_refused(text: str) -> None:
    try:
        name = _decode_page(text)
    except InvalidError:
        return
    assert _decode_page(_encode_page(name)) == name


@given(TEXT | st.from_regex(r"(s3|gs|az|file)://[\[\]a-z@:/.?=&%-]{0,30}", fullmatch=True))
def test_any_text_is_the_url_of_a_store_or_refused(text: str) -> None:
    assert isinstance(redacted(text), str)
    try:
        check_url(text)
    except InvalidError:
        return


@given(st.integers(400, 599), BYTES | JSON.map(lambda value: b'{"message": "x", "hint": 5}'))
def test_any_answer_is_an_error_that_can_be_told(status: int, body: bytes) -> None:
    assert isinstance(error_of(status, body), BallpointError)


class Telling:
    """A WebSocket on which all of `messages` come, and then the end."""

    def __init__(self, messages: list[str | bytes]) -> None:
        self._messages = iter(messages)

    async def recv(self) -> str | bytes:
        message = next(self._messages, None)
        if message is None:
            raise ConnectionError("it has said all")
        return message

    async def send(self, message: str | bytes) -> None:
        """Whatever it is told is well."""


_SAID = st.fixed_dictionaries(
    {"type": st.sampled_from(["session_info", "dropped", "exit", "port_opened"])},
    optional={
        name: JSON | st.sampled_from([0, 7, "stdout", {"stdout": 3}, {"stderr": "x"}])
        for name in ("session_id", "tty", "offsets", "start", "end", "stream", "exit_code", "port", "address")
    },
)


@given(st.lists(_SAID.map(json.dumps) | JSON.map(json.dumps) | st.text() | BYTES, max_size=6))
async def test_whatever_a_sprite_says_ends_a_command_with_a_code_or_in_words(messages: list[str | bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "write", lambda stream, data: None)
        node: Any = None
        joined = Joined(node, "web", terminal=RawTerminal(), forwards=None)
        try:
            code = await joined._receive(Telling(messages))
        except (UnavailableError, ConnectionError):
            return
        assert type(code) is int

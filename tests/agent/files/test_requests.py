"""What a request may say: whatever it is, it becomes one operation, or a refusal that starts nothing."""

from __future__ import annotations

import json
import posixpath
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ballpoint.agent.files.errors import FileError, error_body, shown
from ballpoint.agent.files.request import (
    Fields,
    Operation,
    chmod_operation,
    chown_operation,
    copy_operation,
    delete_operation,
    fields_of_body,
    fields_of_query,
    list_operation,
    read_operation,
    rename_operation,
    watch_operation,
    write_operation,
)
from ballpoint.core.errors import BallpointError, InvalidError
from tests.agent.files.world import FilesWorld

READERS = [
    lambda fields: read_operation(fields, None), write_operation, list_operation, delete_operation, rename_operation,
    copy_operation, chmod_operation, chown_operation, watch_operation,
]  # fmt: skip
NAMES = [
    "path", "source", "dest", "paths", "workingDir", "mode", "recursive", "asRoot", "mkdirParents", "mkdir", "sync",
    "pattern", "preserveAttrs", "uid", "gid",
]  # fmt: skip
COUNTS = {b"read": 4, b"write": 5, b"list": 4, b"delete": 3, b"rename": 3, b"copy": 5, b"chmod": 4, b"chown": 5}

segment = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0"), min_size=1, max_size=8)
relative = (
    st.lists(st.one_of(segment, st.sampled_from([".", "..", ""])), min_size=1, max_size=6).map("/".join).filter(bool)
)
absolute = relative.map("/{}".format)
anything: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | absolute
    | st.sampled_from(["0644", "true"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def assert_sound(operation: Operation) -> None:
    verb, *arguments = operation.arguments
    assert operation.user in ("sprite", "root")
    for argument in operation.arguments:
        assert b"\0" not in argument
    if verb == b"watch":
        assert arguments[0] in (b"0", b"1")
        paths = arguments[1:]
        assert 0 < len(paths) <= 64
    else:
        assert len(operation.arguments) == COUNTS[verb]
        paths = arguments[: 2 if verb in (b"rename", b"copy") else 1]
    for path in paths:
        assert path.startswith(b"/")
        assert 0 < len(path) < 4096
    if verb in (b"chmod", b"write"):
        assert 0 <= int(arguments[1], 8) <= 0o7777


@given(st.dictionaries(st.sampled_from(NAMES), anything))
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_any_object_is_an_operation_or_refused(content: dict[str, Any]) -> None:
    try:
        fields = fields_of_body(json.dumps(content).encode())
    except InvalidError:
        return
    for read in READERS:
        try:
            assert_sound(read(fields))
        except BallpointError as error:
            json.dumps(error_body(error, fields.about)).encode()
            assert error.status == 400


@given(st.binary(max_size=60))
def test_any_body_is_an_object_or_refused(body: bytes) -> None:
    try:
        fields_of_body(body)
    except InvalidError:
        pass


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_any_query_is_an_operation_or_refused(query: str) -> None:
    for read in READERS:
        try:
            assert_sound(read(fields_of_query(query)))
        except BallpointError as error:
            assert error.status == 400


@given(st.one_of(relative, absolute), st.one_of(absolute, relative, st.just("")))
def test_paths_are_those_that_a_process_in_the_directory_means(path: str, directory: str) -> None:
    fields = fields_of_query(urlencode({"path": path, "workingDir": directory}))
    expected = posixpath.join("/home/sprite", directory, path)
    got = list_operation(fields).arguments[1].decode()
    assert posixpath.normpath(got).lstrip("/") == posixpath.normpath(expected).lstrip("/")


@given(st.binary(min_size=1, max_size=40).filter(lambda path: b"\0" not in path))
def test_bytes_of_a_query_arrive(path: bytes) -> None:
    query = urlencode({"path": b"/" + path})
    operation = delete_operation(fields_of_query(query))
    *above, last = path.split(b"/")
    kept = [each for each in above if each not in (b"", b".")]
    assert operation.arguments[1] == b"/" + b"/".join([*kept, last])
    assert operation.path == shown(operation.arguments[1])


@given(st.text(max_size=30))
def test_ranges_of_any_text(text: str) -> None:
    operation = read_operation(Fields({"path": "/x"}), text)
    first, last = operation.arguments[2:]
    assert all(word == b"-" or word.isdigit() for word in (first, last))


@pytest.mark.parametrize("value", ["True", "1", True, "TRUE"])
def test_true(value: object) -> None:
    assert delete_operation(Fields({"path": "/x", "recursive": value})).arguments[2] == b"1"


@pytest.mark.parametrize("value", ["False", "0", False, "", None])
def test_false(value: object) -> None:
    assert delete_operation(Fields({"path": "/x", "recursive": value})).arguments[2] == b"0"


def test_too_long_a_path_is_the_kernels_error() -> None:
    with pytest.raises(FileError):
        list_operation(Fields({"path": "/" + "x" * 4095}))
    list_operation(Fields({"path": "/" + "x" * 4094}))


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"\xff", b"[" * 50_000, b'{"path": 1}', b'{"path": "/a\\u0000b"}',
                                  b'{"path": "/\\ud800", "mode": "0644"}'])  # fmt: skip
async def test_bad_bodies(world: FilesWorld, body: bytes) -> None:
    for request in ("POST /fs/chmod", "POST /fs/copy", "DELETE /fs/delete"):
        if request.startswith("DELETE") and not body:
            continue
        answer = await world.ask(request, {"content-length": str(len(body))}, body)
        assert answer.status == 400
        assert {"error", "message", "code", "path"} <= answer.json.keys()
        assert (answer.json["error"], answer.json["code"]) == ("invalid", "EINVAL")
    assert world.files.pids == []


async def test_too_large_a_body(world: FilesWorld) -> None:
    body = b" " * 70_000
    answer = await world.ask("POST /fs/chmod", {"content-length": str(len(body))}, body)
    assert (answer.status, answer.json["error"]) == (413, "too_large")


@pytest.mark.parametrize("request_line", ["GET /fs/read", "GET /fs/read?path=", "PUT /fs/write?path=/x&mode=9",
                                          "GET /fs/list?path=/x&recursive=maybe", "DELETE /fs/delete",
                                          "GET /fs/list?path=%00", "GET /fs/read?" + "a=1&" * 1500])  # fmt: skip
async def test_bad_queries(world: FilesWorld, request_line: str) -> None:
    answer = await world.ask(request_line)
    assert (answer.status, answer.json["error"], answer.json["code"]) == (400, "invalid", "EINVAL")
    assert world.files.pids == []


async def test_other_methods_and_paths(world: FilesWorld) -> None:
    assert (await world.ask("POST /fs/read?path=/x")).status == 405
    assert (await world.ask("GET /fs/nosuch?path=/x")).status == 404
    assert (await world.ask("GET /fs")).status == 404


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**40))
def test_sizes_of_ranges(number: int) -> None:
    operation = read_operation(Fields({"path": "/x"}), f"bytes={number}-{number}")
    assert operation.arguments[2:] == (str(number).encode(),) * 2

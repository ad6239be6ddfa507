"""Bad input gets a documented status or close code, changes nothing, and never shows a traceback."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus

from tests.acceptance.hostile import JSON, TEXT
from tests.agent.test_control_socket import hear
from tests.agent.world import PREAMBLE, World, listen, output_until, post_head

BAD_QUERIES = [
    "cmd=true&max_run_after_disconnect=soon",
    "cmd=true&max_run_after_disconnect=-1s",
    "cmd=true&max_run_after_disconnect=1s%20",
    "cmd=true&env=NAME",
    "cmd=true&env=%3Dvalue",
    "cmd=true&env=A%00B%3D1",
    "cmd=true&env=A%3D1%002",
    "cmd=tr%00ue",
    "cmd=true&cmd=%00",
    "cmd=true&dir=/tmp%00",
    "cmd=true&path=%00",
    "cmd=",
    "cmd=true&tty=maybe",
    "cmd=true&stdin=2",
    "cmd=true&rows=0",
    "cmd=true&rows=-1",
    "cmd=true&rows=10001",
    "cmd=true&rows=0000100001",
    "cmd=true&cols=" + "9" * 5000,
    "cmd=true&cols=%D9%A1",
    "&".join(["cmd=x"] * 20_001),
]


@pytest.mark.parametrize("query", BAD_QUERIES, ids=range(len(BAD_QUERIES)))
async def test_bad_queries(world: World, query: str) -> None:
    answer = await world.ask(f"POST /exec?{query}")
    assert (answer.status, answer.json["error"]) == (400, "invalid")
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    answer = await world.ask(f"GET /exec?{query}", handshake)
    assert (answer.status, answer.json["error"]) == (400, "invalid")
    assert world.started == 0


async def test_a_refused_websocket_says_why(world: World) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await world.open("true", rows="many")
    assert refused.value.response.status_code == 400
    assert "not a terminal size" in json.loads(refused.value.response.body)["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"Sec-WebSocket-Version": "13"},
        {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "short"},
        {"Sec-WebSocket-Version": "8", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="},
    ],
)
async def test_half_a_handshake(world: World, fields: dict[str, str]) -> None:
    answer = await world.ask("GET /exec?cmd=true", {"Connection": "Upgrade", "Upgrade": "websocket", **fields})
    assert (answer.status, answer.json["error"]) == (400, "invalid")
    assert world.started == 0


@pytest.mark.parametrize(
    "preamble",
    [
        b"\n",
        b"nonsense\n",
        b"[]\n",
        b"1\n",
        b"null\n",
        b"\xff\n",
        b"[" * 4000 + b"\n",
        b'{"a": "' + b"x" * 5000 + b'"}\n',
        b"x" * 5000,
    ],
    ids=range(9),
)
async def test_bad_preambles(world: World, preamble: bytes) -> None:
    wire = (await world.wire(preamble)).send(post_head(["true"], {}))
    assert await wire.rest() == b""
    wire.close()
    assert world.started == 0


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /exec HTTP/9.9\r\n\r\n",
        b"GET /exec HTTP/1.1\r\nHost agent\r\n\r\n",
        b"GET /exec HTTP/1.1\r\nA: \x00\r\n\r\n",
        b"POST /exec?cmd=true HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /exec?cmd=true HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_malformed_requests(world: World, request_: bytes) -> None:
    wire = (await world.wire()).send(request_)
    answer = await wire.answer()
    assert (answer.status, answer.json["error"]) == (400, "invalid")
    wire.close()
    assert world.started == 0


async def test_a_malformed_body_cuts_the_response(world: World) -> None:
    """No error may be written into the frames of a response that has begun."""
    wire = await world.wire()
    query = {"stdin": "true", "max_run_after_disconnect": "1ms"}
    wire.send(post_head(["cat"], query, "Transfer-Encoding: chunked") + b"3\r\nabc\r\n")
    assert (await wire.head())[0] == 200
    assert await wire.frame() == b"\1abc"
    wire.send(b"nonsense\r\n")
    assert await wire.rest() == b""
    wire.close()


@pytest.mark.parametrize("close", [True, False])
async def test_a_second_request_is_dropped(world: World, close: bool) -> None:
    gate = world.gate()
    fields = ["Content-Length: 0", *(["Connection: close"] if close else [])]
    wire = await world.wire()
    wire.send(post_head(["sh", "-c", f"read x < {gate.path}; echo first"], {}, *fields))
    wire.send(post_head(["echo", "second"], {}, *fields))
    assert (await wire.head())[0] == 200
    wire.send(post_head(["echo", "third"], {}, *fields) + b"nonsense")
    gate.open()
    assert (await wire.frames()).told == (b"first\n", b"", [0], b"")
    wire.close()
    assert world.started == 1


async def test_a_request_byte_by_byte(world: World) -> None:
    wire = await world.wire(b"")
    for byte in PREAMBLE + post_head(["cat"], {"stdin": "true"}, "Content-Length: 3") + b"abc":
        wire.send(bytes((byte,)))
        await wire.writer.drain()
    assert (await wire.head())[0] == 200
    assert (await wire.frames()).told == (b"abc", b"", [0], b"")
    wire.close()


async def test_an_enormous_argument_list(world: World) -> None:
    heard = await world.run(*["echo", *["x" * 1000] * 4000])
    assert (heard.stdout, heard.terminal) == (b"", [126])
    assert b"Argument list too long" in heard.stderr


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff" * 100,
        b"\x82\x05hello",  # a client's frame without a mask
        b"\xf2\x80\0\0\0\0",  # reserved bits
        b"\x80\x80\0\0\0\0",  # goes on with nothing
        b"\x09\x80\0\0\0\0",  # a ping in parts
        b"\x89\xfe\x00\x7e\0\0\0\0" + bytes(126),  # a ping too long
        b"\x88\x81\0\0\0\0x",  # a close code of one byte
    ],
)
async def test_binary_garbage_on_the_socket(world: World, raw: bytes) -> None:
    async with world.open("cat", stdin="true", max_run_after_disconnect="1ms") as client:
        client.transport.write(raw)
        assert (await listen(client)).close_code == 1002


async def test_what_is_not_understood_is_ignored(world: World) -> None:
    texts = [
        "",
        "garbage",
        "null",
        "[]",
        "1",
        '"x"',
        "{}",
        "[" * 100_000,
        '{"type":' * 5_000,
        "9" * 10_000,
        '{"type": ["signal"]}',
        '{"type": "new"}',
        '{"type": "resize"}',
        '{"type": "resize", "rows": "1", "cols": null}',
        '{"type": "resize", "rows": 1e9, "cols": 1}',
        '{"type": "resize", "rows": 65536, "cols": 65536}',
        '{"type": "signal"}',
    ]
    names: list[object] = [None, "", "SIG", "NOPE", 0, -1, 65, 1e3, "0", "65", "00019999", "9" * 5000, "１５", {}, [15]]
    texts += [json.dumps({"type": "signal", "signal": name}) for name in names]
    for tty in ("false", "true"):
        async with world.open("cat", stdin="true", tty=tty) as client:
            for text in texts:
                await client.send(text)
            if tty == "false":
                await client.send(b"\x7fan unknown stream")
            await client.send(b"\0still here\n" if tty == "false" else b"still here\n")
            await output_until(client, b"still here", tty == "true")
            await client.send(b"\4")
            assert (await listen(client, tty == "true")).terminal == [0]


async def test_text_that_is_no_text(world: World) -> None:
    async with world.open("cat", stdin="true") as client:
        client.transport.write(b"\x81\x83\0\0\0\0\xff\xfe\xfd")
        await client.send(b"\4")
        assert (await listen(client)).terminal == [0]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(
        st.binary(max_size=300), st.binary(max_size=60).map(lambda raw: b"GET " + raw + b" HTTP/1.1\r\n\r\n")
    )
)
async def test_any_bytes(world: World, data: bytes) -> None:
    wire = (await world.wire()).send(data)
    wire.writer.write_eof()
    answer = await wire.rest()
    wire.close()
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200"))


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
async def test_any_bytes_as_frames(world: World, data: bytes) -> None:
    async with world.open("true") as client:
        client.transport.write(data)
        heard = await listen(client)
    assert heard.terminal in ([], [0])


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.text(alphabet="cmdenvtyrowsi=&%01;+\x00é", max_size=60))
async def test_any_query(world: World, query: str) -> None:
    answer = await world.ask(f"POST /exec?cmd=true&{quote_plus(query, safe='=&%;+')}", {"Content-Length": "0"})
    assert answer.status in (200, 400)


# None of them names a program: they run here.
ARGUMENTS = st.dictionaries(
    st.sampled_from(["id", "since", "dir", "env", "rows", "cols", "stdin", "max_run_after_disconnect"]) | TEXT,
    JSON,
).map(lambda said: {name: value for name, value in said.items() if name not in ("cmd", "path")})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    said=st.fixed_dictionaries({"args": ARGUMENTS, "op": st.just("exec") | TEXT, "type": st.just("op.start") | JSON}),
    commands=st.sampled_from([["true"], []]),
)
@example(said={"type": "op.start", "op": "exec", "args": {"id": "x", "since": "\ud800"}}, commands=[])
@example(said={"type": "op.start", "op": "exec", "args": {"env": "A=\ud800"}}, commands=["true"])
@example(said={"type": "op.start", "op": "exec", "args": {"stdin": True}}, commands=[])
async def test_any_operation_on_a_control_socket(world: World, said: dict[str, Any], commands: list[str]) -> None:
    """It is done or refused, and the socket goes on."""
    said["args"]["cmd"] = commands
    async with world.control() as client:
        for message in (said, {"type": "op.start", "op": "exec", "args": {"cmd": ["true"]}}):
            await client.send("control:" + json.dumps(message))
            await client.send(b"\4")  # a shell would wait for its input
            heard = await hear(client)
            assert heard.told[-1] in ("complete", "error")
        assert heard.codes == [0, 0]

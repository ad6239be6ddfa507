"""Watching a session that somebody else began: from its first byte, from a cursor, several at once, after its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from tests.agent.world import Heard, World, eventually, listen, output_until, stalled

# Twenty rounds of both streams, each a few pages long.
_BOTH = (
    'for i in $(seq 20); do head -c 5000 /dev/zero | tr "\\0" "$(printf %x $((i % 16)))"; '
    'head -c 3000 /dev/zero | tr "\\0" "$(printf %x $((i % 16)))" >&2; done'
)
_OUT = b"".join(b"%x" % (i % 16) * 5000 for i in range(1, 21))
_ERR = b"".join(b"%x" % (i % 16) * 3000 for i in range(1, 21))


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[World]:
    """An agent that keeps 128 KiB."""
    made = World(tmp_path, journal_bytes=128 << 10)
    await made.start()
    yield made
    await made.close()
    assert made.failures == []
    made.close_gates()


async def refused(world: World, session_id: str, **query: object) -> int:
    with pytest.raises(InvalidStatus) as caught:
        async with world.attach(session_id, **query):
            pass
    return int(caught.value.response.status_code)


def parts(heard: Heard) -> tuple[bytes, bytes]:
    return heard.stdout, heard.stderr


async def test_reads_from_the_beginning_and_from_a_cursor_are_one_uninterrupted_read(world: World) -> None:
    gate = world.gate()
    script = f"{_BOTH}; read x < {gate.path}; {_BOTH}; exit 3"
    async with world.open("bash", "-c", script) as client:
        first = Heard()
        while len(first.stdout) < len(_OUT) or len(first.stderr) < len(_ERR):
            first.take(await client.recv())
        assert first.info["offsets"] == {"stdout": 0, "stderr": 0}
        session = first.info["session_id"]
        client.transport.abort()
    async with world.attach(session, since="60000,12345") as viewer:
        early = await output_until(viewer, b"4" * 5000)
        assert early.info["offsets"] == {"stdout": 60000, "stderr": 12345}
        assert not early.info["is_owner"]
        async with world.attach(session, since="0") as whole:
            gate.open()
            all_of_it = await listen(whole)
        rest = await listen(viewer, heard=early)
    assert parts(all_of_it) == (_OUT * 2, _ERR * 2)
    assert parts(rest) == ((_OUT * 2)[60000:], (_ERR * 2)[12345:])
    assert (all_of_it.terminal, rest.terminal) == ([3], [3])
    assert (all_of_it.close_code, rest.close_code) == (1000, 1000)


async def test_without_a_cursor_all_is_shown(world: World) -> None:
    async with world.open("sh", "-c", "echo one; cat; echo two >&2", stdin="true") as client:
        info = (await output_until(client, b"one\n")).info
        async with world.attach(info["session_id"]) as viewer:
            seen = await output_until(viewer, b"one\n")
            await client.send(b"\4")
            assert (await listen(viewer, heard=seen)).told == (b"one\n", b"two\n", [0], b"")
        assert (await listen(client)).terminal == [0]


async def test_only_what_comes(world: World) -> None:
    async with world.open("sh", "-c", "echo one; echo err >&2; cat", stdin="true") as client:
        info = (await output_until(client, b"err\n")).info
        async with world.attach(info["session_id"], since="end") as viewer:
            head = Heard()
            head.take(await viewer.recv())
            await client.send(b"\0two\n")
            await client.send(b"\4")
            assert (await listen(viewer, heard=head)).told == (b"two\n", b"", [0], b"")


async def test_a_cursor_of_stdout_alone_shows_stderr_whole(world: World) -> None:
    async with world.open("sh", "-c", "printf abcdef; printf ghi >&2; cat", stdin="true") as client:
        info = (await output_until(client, b"ghi")).info
        async with world.attach(info["session_id"], since="4") as viewer:
            await client.send(b"\4")
            assert (await listen(viewer)).told == (b"ef", b"ghi", [0], b"")


@pytest.mark.parametrize("since", ["7,0", "0,4", "-1", "x", "1,2,3", "", "1.5", "0,", "end,,"])
async def test_what_is_no_cursor_is_refused(world: World, since: str) -> None:
    async with world.open("sh", "-c", "printf abcdef; printf ghi >&2; cat", stdin="true") as client:
        info = (await output_until(client, b"ghi")).info
        assert await refused(world, info["session_id"], since=since) == 400
        await client.send(b"\4")
        assert (await listen(client)).terminal == [0]


async def test_nobody_there(world: World) -> None:
    assert await refused(world, "999999") == 404
    assert (await world.ask("GET /exec/999999")).status == 404


async def test_the_old_way_to_name_a_session(world: World) -> None:
    async with world.open("sh", "-c", "echo one; cat", stdin="true") as client:
        info = (await output_until(client, b"one\n")).info
        async with world.open(id=info["session_id"], tty="true") as viewer:
            await output_until(viewer, b"one\n")
        await client.send(b"\4")
        await listen(client)


async def test_several_viewers_and_each_may_write(world: World) -> None:
    async with world.open("cat", stdin="true") as client:
        info = Heard()
        info.take(await client.recv())
        async with world.attach(info.info["session_id"]) as one, world.attach(info.info["session_id"]) as two:
            for number, each in enumerate((client, one, two)):
                await each.send(b"\0%d\n" % number)
            for each in (client, one, two):
                await output_until(each, b"2\n")
            listed = (await world.ask("GET /exec")).json["sessions"]
            assert [session["is_active"] for session in listed] == [True]
            await one.send(b"\4")
            for each in (client, one, two):
                assert (await listen(each)).terminal == [0]


async def test_an_end_of_input_that_a_viewer_sends_at_once_ends_nothing(world: World) -> None:
    """As one official client does without having been asked to; in a terminal it would be the user's ^D."""
    for query in ({"stdin": "true"}, {"tty": "true"}):
        async with world.open("cat", **query) as client:
            tty = "tty" in query
            info = Heard()
            info.take(await client.recv(), tty)
            async with world.attach(info.info["session_id"]) as viewer:
                await viewer.send(b"\4")
                await viewer.send(b"mine\n" if tty else b"\0mine\n")
                await output_until(viewer, b"mine", tty=tty)
                await viewer.send(b"\4")
                assert (await listen(viewer, tty=tty)).terminal == [0]


async def test_a_viewer_that_does_not_read_holds_up_nobody(world: World) -> None:
    size = 8 << 20
    async with world.open("sh", "-c", f"read x; head -c {size} /dev/zero; exit 4", stdin="true") as client:
        info = Heard()
        info.take(await client.recv())
        slow = await world.attach(info.info["session_id"], max_queue=1)
        await client.send(b"\0go\n")
        heard = await listen(client)
        assert (len(heard.stdout), heard.terminal) == (size, [4])
        late = await listen(slow)
        assert (len(late.stdout), late.terminal) == (size, [4])


async def test_its_creator_holds_it_back_and_leaves(world: World, tmp_path: Path) -> None:
    """Until he leaves: then it runs on, and who attaches has all of it."""
    done = tmp_path / "done"
    size = 16 << 20
    script = f"head -c {size} /dev/zero; touch {done}; read x < {world.gate().path}"
    client = await world.open("sh", "-c", script, max_queue=1, max_run_after_disconnect="0")
    info = Heard()
    info.take(await client.recv())
    (session,) = world.sessions
    assert await stalled(lambda: session.journal.end(1), size) < size
    assert not done.exists()
    client.transport.abort()
    await eventually(done.exists)
    async with world.attach(info.info["session_id"]) as viewer:
        seen = Heard()
        async with asyncio.timeout(20):
            while len(seen.stdout) < size:
                seen.take(await viewer.recv())


async def test_its_time_begins_when_the_last_viewer_leaves(world: World) -> None:
    async with world.open("sh", "-c", "echo on; exec sleep 600", max_run_after_disconnect="10ms") as client:
        info = (await output_until(client, b"on\n")).info
        async with world.attach(info["session_id"]) as viewer:
            await output_until(viewer, b"on\n")
            client.transport.abort()
            await asyncio.sleep(0.2)  # twenty times as long as it may run alone
            assert len(world.sessions) == 1
    await eventually(lambda: len(world.sessions) == 0)


async def test_one_that_ended_meanwhile_is_read_to_its_end(world: World) -> None:
    async with world.open("sh", "-c", "echo one; cat; echo two; exit 5", stdin="true") as client:
        info = (await output_until(client, b"one\n")).info
        client.transport.abort()
    session = info["session_id"]
    await eventually(lambda: next(iter(world.sessions), None) is not None)
    (await world.ask(f"POST /exec/{session}/kill?timeout=0s&signal=USR1"))
    await eventually(lambda: len(world.sessions) == 0)
    assert (await world.ask("GET /exec")).json == {"sessions": [], "count": 0}
    assert (await world.ask(f"GET /exec/{session}")).status == 404
    assert (await world.ask(f"POST /exec/{session}/kill")).status == 410
    async with world.attach(session) as viewer:
        assert (await listen(viewer)).told == (b"one\n", b"", [138], b"")
    async with world.attach(session, since="2") as viewer:
        assert (await listen(viewer)).told == (b"e\n", b"", [138], b"")


async def test_a_terminal_is_shown_from_a_line_on(world: World) -> None:
    script = "seq 1 40000; echo ready; read x; stty size; exit 6"
    async with world.open("sh", "-c", script, tty="true") as client:
        whole = await output_until(client, b"ready\r\n", tty=True)
        async with world.attach(whole.info["session_id"]) as viewer:
            await viewer.send('{"type": "resize", "rows": 33, "cols": 44}')
            seen = await output_until(viewer, b"ready\r\n", tty=True)
            at = seen.info["offsets"]["stdout"]
            assert 0 < at == whole.stdout.index(seen.stdout)
            assert whole.stdout[at - 1 : at] == b"\n"
            assert whole.stdout[at:] == seen.stdout
            await viewer.send(b"\r")
            heard = await listen(viewer, tty=True, heard=seen)
            assert heard.stdout.endswith(b"33 44\r\n")
            assert (heard.terminal, heard.close_code) == ([6], 4006)
        async with world.attach(whole.info["session_id"], since="0") as viewer:
            again = await listen(viewer, tty=True)
            assert again.stdout.startswith(whole.stdout)


async def test_what_is_not_kept_is_said(small: World) -> None:
    gate = small.gate()
    async with small.open("bash", "-c", f"seq -w 0 99999; read x < {gate.path}") as client:
        whole = await output_until(client, b"99999\n")
        async with small.attach(whole.info["session_id"], since="0") as viewer:
            said: list[object] = []
            seen = Heard()
            async with asyncio.timeout(20):
                while not seen.stdout.endswith(b"99999\n"):
                    message = await viewer.recv()
                    if isinstance(message, str) and "dropped" in message:
                        said.append(message)
                    else:
                        seen.take(message)
            (dropped,) = said
            kept = len(whole.stdout) - len(seen.stdout)
            assert f'"stream": "stdout", "start": 0, "end": {kept}' in str(dropped)
            assert whole.stdout[kept:] == seen.stdout
            assert 96 << 10 < len(seen.stdout) <= 128 << 10
        async with small.attach(whole.info["session_id"]) as viewer:
            rest = await output_until(viewer, b"99999\n")
            assert rest.info["offsets"]["stdout"] == kept
            assert rest.stdout == seen.stdout
        gate.open()
        await listen(client)


async def test_sessions_that_ended_make_room_first(small: World) -> None:
    gate = small.gate()
    async with small.open("sh", "-c", f"seq 100; read x < {gate.path}") as client:
        kept = await output_until(client, b"\n100\n")
        for _ in range(4):
            ended = await small.run("head", "-c", "60000", "/dev/zero")
            assert len(ended.stdout) == 60000
        assert await refused(small, "1") == 404
        async with small.attach(kept.info["session_id"]) as viewer:
            assert (await output_until(viewer, b"\n100\n")).stdout == kept.stdout
        gate.open()
        await listen(client)


async def test_of_many_that_ended_the_last_are_kept(world: World) -> None:
    first = (await world.run("echo", "first")).info["session_id"]
    last = ""
    for number in range(260):
        last = (await world.run("echo", str(number))).info["session_id"]
    async with world.attach(last) as viewer:
        assert (await listen(viewer)).stdout == b"259\n"
    assert await refused(world, first) == 404

"""Services as a client sees them: defined, started in order, started again, stopped, forgotten."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import termios
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ballpoint.agent.services.log import READERS_MAX
from ballpoint.agent.services.services import StoppedError
from ballpoint.core.errors import UnavailableError
from tests.agent.services.world import ServicesWorld, kinds, lines_of, next_event, next_of
from tests.agent.world import DEADLINE, alive, eventually
from tests.support.host import process_state

FOREVER = "exec sleep 1000"


async def test_a_service_is_defined_started_and_seen(world: ServicesWorld) -> None:
    said = await world.put("web", "sleep", "1000", env={"A": "b"}, dir="/tmp", needs=[], http_port=3000)
    assert kinds(said) == ["started", "complete"]
    path = f"{world.logs}/web.log"
    assert said[-1]["log_files"] == {"combined": path, "stdout": path, "stderr": path}
    assert all(isinstance(each["timestamp"], int) for each in said)
    answer = await world.call("GET", "/web")
    item = answer.json
    state = item.pop("state")
    assert item == {
        "name": "web", "cmd": "sleep", "args": ["1000"], "needs": [], "http_port": 3000, "env": {"A": "b"},
        "dir": "/tmp",
    }  # fmt: skip
    assert (state["name"], state["status"], state["restart_count"]) == ("web", "running", 0)
    assert state["started_at"] == "2026-01-01T00:00:00.000000Z"
    assert world.members("web") == [state["pid"]]
    assert (await world.call("GET")).json == [{**item, "state": state}]


async def test_what_it_finds_and_writes(world: ServicesWorld) -> None:
    said = await world.shell(
        "web", 'echo "$A $COLOR $PWD"; echo error >&2; exit 3', env={"A": "b"}, dir="/usr", duration="60s"
    )
    assert kinds(said) in (["started", "stdout", "stderr", "exit", "complete"],
                           ["started", "stderr", "stdout", "exit", "complete"])  # fmt: skip
    assert {each["data"] for each in said if "data" in each} == {"b blue /usr", "error"}
    assert said[-2]["exit_code"] == 3
    assert sorted(world.log("web")) == ["[stderr] error", "[stdout] b blue /usr"]


async def test_an_unchanged_definition_restarts_nothing(world: ServicesWorld) -> None:
    await world.put("web", "sleep", "1000")
    state = await world.state("web")
    assert kinds(await world.put("web", "sleep", "1000", duration="60s")) == ["complete"]
    assert await world.state("web") == state


async def test_another_definition_takes_the_place_of_the_former(world: ServicesWorld) -> None:
    await world.put("web", "sleep", "1000")
    former = await world.state("web")
    wire = await world.begun("PUT", "/web?duration=60s", {"cmd": "sleep", "args": ["2000"]})
    said = [await next_event(wire) for _ in range(3)]
    assert kinds(said) == ["stopping", "stopped", "started"]
    wire.close()
    state = await world.state("web")
    assert state["pid"] != former["pid"]
    assert not alive(former["pid"])
    assert (state["status"], state["restart_count"]) == ("running", 0)
    assert json.loads(world.file.read_text())["services"][0]["args"] == ["2000"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/none", None, 404),
        ("POST", "/none/start", None, 404),
        ("POST", "/none/stop", None, 404),
        ("POST", "/none/restart", None, 404),
        ("GET", "/none/logs", None, 404),
        ("DELETE", "/none", None, 404),
        ("POST", "/signal", {"name": "none", "signal": "TERM"}, 404),
        ("POST", "/signal", {"name": "web", "signal": "NONE"}, 400),
        ("POST", "/signal", {"signal": "TERM"}, 400),
        ("POST", "/signal", b"[]", 400),
        ("PUT", "/x", b"{", 400),
        ("PUT", "/x", {}, 400),
        ("PUT", "/X", {"cmd": "x"}, 400),
        ("PUT", "/signal", {"cmd": "x"}, 405),
        ("PUT", "/x", {"cmd": "x", "needs": ["none"]}, 400),
        ("PUT", "/web", {"cmd": "x", "needs": ["db"]}, 400),
        ("PUT", "/x", {"cmd": "x", "http_port": 1}, 409),
        ("PUT", "/x?duration=never", {"cmd": "x"}, 400),
        ("PUT", "/x?duration=9999h", {"cmd": "x"}, 400),
        ("PUT", "/x", b"x" * 70_000, 413),
        ("GET", "/web/logs?lines=-1", None, 400),
        ("GET", "/web/logs?lines=many", None, 400),
        ("POST", "/web/stop?timeout=x", None, 400),
        ("DELETE", "/web", None, 409),
        ("POST", "/web", None, 405),
        ("GET", "/web/nothing", None, 404),
    ],
)
async def test_what_is_refused_changes_nothing(
    world: ServicesWorld, method: str, path: str, body: Any, status: int
) -> None:
    await world.put("web", "sleep", "1000", http_port=80)
    await world.put("db", "sleep", "1000", needs=["web"])
    before, file = (await world.call("GET")).json, world.file.read_text()
    answer = await world.call(method, path, body)
    assert answer.status == status, answer.body
    assert {"error", "message"} <= answer.json.keys()
    assert (await world.call("GET")).json == before
    assert world.file.read_text() == file


async def test_the_refusal_of_a_circle_says_which(world: ServicesWorld) -> None:
    await world.put("a", "sleep", "1000")
    await world.put("b", "sleep", "1000", needs=["a"])
    answer = await world.call("PUT", "/a", {"cmd": "sleep", "needs": ["b"]})
    assert (answer.status, answer.json["error"]) == (400, "invalid")
    assert "a needs b needs a" in answer.json["message"]
    assert answer.json["hint"]


# ---- started again ----


async def test_whatever_ends_is_started_again_later_each_time(world: ServicesWorld) -> None:
    await world.shell("web", "exit 3")
    waits = []
    for count in range(8):
        state = await world.becomes("web", "failed")
        await eventually(lambda: world.clock.asleep)
        assert (state["restart_count"], state["error"]) == (count, "it exited with 3")
        assert "pid" not in state
        (wait,) = world.clock.asleep
        waits.append(wait)
        world.clock.advance(wait)
        while world.service("web").restarts == count:
            await asyncio.sleep(0.01)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


async def test_the_next_start_is_told(world: ServicesWorld) -> None:
    await world.shell("web", "exit 0")
    state = await world.becomes("web", "failed")
    assert state["next_restart_at"] == "2026-01-01T00:00:01.000000Z"
    assert state["error"] == "it exited with 0"


async def test_a_good_run_starts_the_count_of_waits_anew(world: ServicesWorld) -> None:
    await world.shell("web", "exit 1")
    await eventually(lambda: world.clock.asleep == [1])
    world.clock.advance(1)
    await eventually(lambda: world.clock.asleep == [2])
    world.clock.advance(2)
    await eventually(lambda: world.clock.asleep == [4])
    await world.shell("web", FOREVER)
    await world.becomes("web", "running")
    world.clock.advance(61)
    os.kill((await world.state("web"))["pid"], signal.SIGKILL)
    state = await world.becomes("web", "failed")
    assert state["error"] == "it was ended by SIGKILL"
    await eventually(lambda: world.clock.asleep == [1])


@pytest.mark.parametrize("name", ["TERM", "SIGKILL", "9"])
async def test_a_signal_that_ends_it_counts_as_a_crash(world: ServicesWorld, name: str) -> None:
    await world.put("web", "sleep", "1000")
    former = await world.state("web")
    answer = await world.call("POST", "/signal", {"name": "web", "signal": name})
    assert (answer.status, answer.body) == (204, b"")
    await eventually(lambda: world.clock.asleep == [1])
    world.clock.advance(1)
    state = await world.becomes("web", "running")
    assert state["restart_count"] == 1
    assert state["pid"] != former["pid"]


async def test_a_signal_reaches_its_group_and_nobody_where_it_does_not_run(world: ServicesWorld) -> None:
    wire = await world.begun(
        "PUT",
        "/web?duration=60s",
        {"cmd": "bash", "args": ["-c", "trap 'echo got it' USR1; echo on; while :; do sleep 0.01; done"]},
    )
    assert (await next_of(wire, "stdout"))["data"] == "on"
    assert (await world.call("POST", "/signal", {"name": "web", "signal": "USR1"})).status == 204
    assert (await next_of(wire, "stdout"))["data"] == "got it"
    wire.close()
    await world.events("POST", "/web/stop")
    assert (await world.call("POST", "/signal", {"name": "web", "signal": "USR1"})).status == 409


async def test_what_is_no_program_is_told_and_tried_again(world: ServicesWorld) -> None:
    said = await world.put("web", "no-such-program", duration="60s")
    assert said[-2]["type"] == "exit"
    assert said[-2]["exit_code"] == 127
    assert (await world.becomes("web", "failed"))["error"] == "it exited with 127"


async def test_what_cannot_be_started_is_told_and_tried_again(world: ServicesWorld) -> None:
    world.plain.refuses = "no room"
    said = await world.put("web", "sleep", "1000", duration="60s")
    assert kinds(said) == ["error", "complete"]
    assert said[0]["data"] == "no room"
    world.plain.refuses = ""
    await eventually(lambda: world.clock.asleep == [1])
    world.clock.advance(1)
    assert (await world.becomes("web", "running"))["restart_count"] == 1


async def test_a_start_does_not_wait_and_forgets_what_was(world: ServicesWorld) -> None:
    await world.shell("web", "exit 1")
    await eventually(lambda: world.clock.asleep == [1])
    world.clock.advance(1)
    await eventually(lambda: world.clock.asleep == [2])
    said = await world.events("POST", "/web/start?duration=60s")
    assert kinds(said) == ["started", "exit", "complete"]
    await eventually(lambda: world.clock.asleep == [1])
    assert (await world.state("web"))["restart_count"] == 0


# ---- stopped ----


async def test_a_stop_is_asked_for_told_and_stays(world: ServicesWorld) -> None:
    await world.shell("web", "trap 'echo bye; exit 5' TERM; echo on; while :; do sleep 0.01; done")
    await eventually(lambda: (world.logs / "web.log").exists() and "[stdout] on" in world.log("web"))
    pid = (await world.state("web"))["pid"]
    said = await world.events("POST", "/web/stop")
    said = [each for each in said if each["type"] != "stderr"]  # the shell's own words
    assert kinds(said) == ["stopping", "stdout", "stopped", "complete"]
    assert (said[1]["data"], said[2]["exit_code"]) == ("bye", 5)
    assert not alive(pid)
    assert await world.state("web") == {"name": "web", "status": "stopped", "restart_count": 0}
    assert (await world.call("POST", "/web/stop")).status == 409
    await world.next_start()
    await world.services.known()
    assert (await world.state("web"))["status"] == "stopped"
    said = await world.events("POST", "/web/start?duration=0")
    assert [each for each in kinds(said) if each != "stdout"] == ["started", "complete"]
    await world.next_start()
    await world.becomes("web", "running")


async def test_who_does_not_obey_is_killed_with_all_that_left_it(world: ServicesWorld) -> None:
    script = "trap '' TERM; setsid sh -c 'trap \"\" TERM; echo on; exec sleep 1000' & exec sleep 1000"
    await world.shell("web", script)
    await eventually(lambda: (world.logs / "web.log").exists() and "[stdout] on" in world.log("web"))
    members = world.members("web")
    assert len(members) == 2
    wire = await world.begun("POST", "/web/stop?timeout=7s")
    await next_of(wire, "stopping")
    await eventually(lambda: world.clock.asleep == [7])
    assert all(map(alive, members))
    world.clock.advance(7)
    assert (await next_of(wire, "stopped"))["exit_code"] == 128 + signal.SIGKILL
    await next_of(wire, "complete")
    wire.close()
    assert not any(map(alive, members))
    assert not world.cgroup.child("svc-web").exists()


async def test_what_a_crash_leaves_behind_ends_before_the_next_start(world: ServicesWorld) -> None:
    await world.shell("web", "setsid sleep 1000 & echo $!; exit 1")
    await eventually(lambda: world.clock.asleep == [1])
    assert not alive(int(world.log("web")[0].split()[1]))
    assert not world.cgroup.child("svc-web").exists()


async def test_a_stop_while_it_waits_to_be_started_again(world: ServicesWorld) -> None:
    await world.shell("web", "exit 1")
    await eventually(lambda: world.clock.asleep == [1])
    assert kinds(await world.events("POST", "/web/stop")) == ["stopped", "complete"]
    assert (await world.becomes("web", "stopped"))["restart_count"] == 0
    world.clock.advance(100)
    assert (await world.state("web"))["status"] == "stopped"


async def test_a_restart_ends_one_process_and_starts_another(world: ServicesWorld) -> None:
    await world.put("web", "sleep", "1000")
    former = (await world.state("web"))["pid"]
    wire = await world.begun("POST", "/web/restart?duration=60s")
    assert kinds([await next_event(wire) for _ in range(3)]) == ["stopping", "stopped", "started"]
    wire.close()
    state = await world.state("web")
    assert (state["status"], state["restart_count"]) == ("running", 0)
    assert state["pid"] != former
    await world.events("POST", "/web/stop")
    wire = await world.begun("POST", "/web/restart?duration=60s")
    assert (await next_event(wire))["type"] == "started"
    wire.close()


async def test_a_client_that_leaves_ends_nothing(world: ServicesWorld) -> None:
    wire = await world.begun("PUT", "/web?duration=60s", {"cmd": "sleep", "args": ["1000"]})
    assert (await next_event(wire))["type"] == "started"
    wire.close()
    assert (await world.state("web"))["status"] == "running"
    await eventually(lambda: not world.services._readers)


async def test_a_delete_ends_it_and_keeps_its_log(world: ServicesWorld) -> None:
    await world.shell("web", f"echo on; {FOREVER}")
    await eventually(lambda: (world.logs / "web.log").exists() and world.log("web"))
    pid = (await world.state("web"))["pid"]
    answer = await world.call("DELETE", "/web")
    assert (answer.status, answer.body) == (204, b"")
    assert not alive(pid)
    assert (await world.call("GET")).json == []
    assert (await world.call("GET", "/web")).status == 404
    assert world.log("web") == ["[stdout] on"]
    assert json.loads(world.file.read_text())["services"] == []


async def test_while_one_is_deleted_nothing_else_waits(world: ServicesWorld) -> None:
    await world.shell("web", "trap '' TERM; echo on; while :; do sleep 0.01; done")
    await eventually(lambda: (world.logs / "web.log").exists() and world.log("web"))
    deleting = asyncio.ensure_future(world.call("DELETE", "/web"))
    await world.becomes("web", "stopping")
    assert json.loads(world.file.read_text())["services"] == []
    for method, path, body in (
        ("PUT", "/web", {"cmd": "sleep"}),
        ("POST", "/web/start", None),
        ("POST", "/web/restart", None),
    ):
        answer = await world.call(method, path, body)
        assert (answer.status, "is being deleted" in answer.json["message"]) == (409, True)
    await world.put("other", "sleep", "1000", http_port=1)
    await world.next_agent()
    await eventually(lambda: world.clock.asleep == [10])
    world.clock.advance(10)
    await eventually(lambda: [each["name"] for each in world.services.listing()] == ["other"])
    deleting.cancel()


# ---- needs ----


async def test_all_start_in_the_order_of_their_needs(world: ServicesWorld) -> None:
    await world.put("a", "sleep", "1000")
    await world.put("b", "sleep", "1000", needs=["a"])
    await world.put("c", "sleep", "1000", needs=["b", "a"])
    started: list[str] = []
    plain = world.plain.spawn_in

    def spawn_in(spec: Any, procs: int) -> tuple[int, int]:
        started.append(os.readlink(f"/proc/self/fd/{procs}").split("/")[-2])
        return plain(spec, procs)

    world.plain.spawn_in = spawn_in  # type: ignore[method-assign]
    await world.next_start()
    for name in "abc":
        await world.becomes(name, "running")
    assert started == ["svc-a", "svc-b", "svc-c"]


async def test_who_needs_what_is_stopped_waits_and_says_so(world: ServicesWorld) -> None:
    await world.put("db", "sleep", "1000")
    await world.put("web", "sleep", "1000", needs=["db"])
    await world.events("POST", "/db/stop")
    assert (await world.state("web"))["status"] == "running"
    await world.next_start()
    state = await world.becomes("web", "starting")
    await eventually(lambda: world.service("web").error)
    assert (await world.state("web"))["error"] == "it waits for db, which is stopped"
    assert state["restart_count"] == 0
    await world.events("POST", "/db/start?duration=0")
    await world.becomes("web", "running")


async def test_a_start_starts_what_it_needs(world: ServicesWorld) -> None:
    await world.put("db", "sleep", "1000")
    await world.put("web", "sleep", "1000", needs=["db"])
    for name in ("web", "db"):
        await world.events("POST", f"/{name}/stop")
    await world.events("POST", "/web/start?duration=0")
    for name in ("web", "db"):
        await world.becomes(name, "running")
    assert [each["stopped"] for each in json.loads(world.file.read_text())["services"]] == [False, False]


# ---- the file ----


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"[]", b'{"version": 2, "services": []}', b'{"version": 1}', b"\xff\xfe", b"[" * 100_000,
        b'{"version": 1, "services": [{"name": "../x", "cmd": "x"}]}', b" " * (2 << 20),
        b'{"version": 1, "services": [{"name": "a", "cmd": "x", "needs": ["a"]}]}',
        b'{"version": 1, "services": [{"name": "a", "cmd": "x"}, {"name": "a", "cmd": "y"}]}',
        b'{"version": 1, "services": [5]}',
    ],
)  # fmt: skip
async def test_a_damaged_file_is_kept_aside(
    world: ServicesWorld, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    world.file.write_bytes(content)
    await world.next_start()
    assert (await world.call("GET")).json == []
    assert world.file.with_name("services.json.damaged").read_bytes() == content
    assert not world.file.exists()
    assert any("is no list of services" in record.getMessage() for record in caplog.records)
    await world.put("web", "sleep", "1000")


@pytest.mark.parametrize("kind", ["fifo", "directory", "loop"])
async def test_what_is_no_file_is_kept_aside(world: ServicesWorld, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(world.file)
    elif kind == "directory":
        world.file.mkdir()
    else:
        world.file.symlink_to(world.file)
    await world.services.close()
    world.services = world.agent()
    world.services.wake(True)
    await world.services.known()
    assert len(world.services) == 0
    assert not os.path.lexists(world.file)


async def test_a_disk_that_does_not_tell_is_asked_again(world: ServicesWorld) -> None:
    await world.put("web", "sleep", "1000")
    world.files.refuses = "no room"
    await world.services.close()
    world.end_processes()
    world.anchor.forget(list(world.anchor.fds))
    world.services = world.agent()
    world.services.wake(True)
    with pytest.raises(UnavailableError, match="cannot be read"):
        await world.services.known()
    world.files.refuses = ""
    await world.services.known()
    assert len(world.services) == 1


async def test_without_room_for_the_file_nothing_changes_but_a_stop_works(world: ServicesWorld) -> None:
    await world.put("web", "sleep", "1000")
    world.files.refuses = "no room"
    assert (await world.call("PUT", "/x", {"cmd": "sleep"})).status == 503
    assert (await world.call("DELETE", "/web")).status == 503
    assert (await world.state("web"))["status"] == "running"
    said = await world.events("POST", "/web/stop")
    assert kinds(said) == ["stopping", "stopped", "error", "complete"]
    assert "the disk does not know" in said[2]["data"]
    world.files.refuses = ""


# ---- the next agent ----


async def test_the_next_agent_goes_on_with_what_runs(world: ServicesWorld) -> None:
    await world.shell("web", 'echo on; read x < "$0"; echo later; exec sleep 1000'.replace('"$0"', world.gate().path))
    await world.shell("again", "exit 1")
    await world.put("stopped", "sleep", "1000")
    await world.events("POST", "/stopped/stop")
    await eventually(lambda: world.clock.asleep == [1])
    world.clock.advance(1)
    await eventually(lambda: world.clock.asleep == [2])
    before = {each["name"]: each for each in (await world.call("GET")).json}
    assert before["again"]["state"]["restart_count"] == 1
    await world.next_agent()
    after = {each["name"]: each for each in (await world.call("GET")).json}
    assert after == before
    world._gates[0].open()
    await eventually(lambda: world.log("web") == ["[stdout] on", "[stdout] later"])
    world.clock.advance(2)
    await eventually(lambda: world.service("again").restarts == 2)
    pid = before["web"]["state"]["pid"]
    os.kill(pid, signal.SIGKILL)
    await world.becomes("web", "failed")


async def test_what_ended_while_there_was_no_agent_is_started_again(world: ServicesWorld) -> None:
    await world.put("web", "sleep", "1000")
    pid = (await world.state("web"))["pid"]
    await world.services.close()
    os.kill(pid, signal.SIGKILL)
    world.services = world.agent()
    world.services.adopt()
    await eventually(lambda: world.service("web").status == "failed")
    await eventually(lambda: 1 in world.clock.asleep)
    assert world.members("web") == []
    world.clock.advance(1)
    await eventually(lambda: world.service("web").status == "running")
    assert world.service("web").restarts == 1


async def test_what_nobody_knows_of_ends_before_the_next_start(world: ServicesWorld) -> None:
    await world.put("web", "sleep", "1000")
    pid = (await world.state("web"))["pid"]
    await world.services.close()
    world.anchor.forget([name for name in world.anchor.fds if name != "services"])
    world.services = world.agent()
    world.services.adopt()
    await eventually(lambda: world.service("web").process is not None)
    assert not alive(pid)
    assert world.service("web").process.pid != pid


async def test_an_agent_that_was_killed_before_it_knew_reads_the_disk(world: ServicesWorld) -> None:
    await world.put("web", "sleep", "1000")
    await world.services.close()
    world.end_processes()
    world.anchor.forget(list(world.anchor.fds))
    world.services = world.agent()
    world.services.adopt()
    await world.services.known()
    await eventually(lambda: world.service("web").status == "running")


async def test_a_stop_that_was_under_way_comes_to_its_end(world: ServicesWorld) -> None:
    await world.shell("web", "trap '' TERM; echo on; while :; do sleep 0.01; done")
    await eventually(lambda: (world.logs / "web.log").exists() and world.log("web"))
    wire = await world.begun("POST", "/web/stop")
    await next_of(wire, "stopping")
    await eventually(lambda: world.clock.asleep)
    await world.next_agent()
    wire.close()
    await eventually(lambda: world.clock.asleep == [10])
    world.clock.advance(10)
    await eventually(lambda: world.service("web").status == "stopped")
    assert world.members("web") == []


# ---- logs ----


async def test_the_last_lines_and_what_follows(world: ServicesWorld) -> None:
    gate = world.gate()
    await world.shell("web", f"seq 1000; read x <{gate.path}; echo more; {FOREVER}")
    await eventually(lambda: (world.logs / "web.log").exists() and len(world.log("web")) == 1000)
    said = await world.events("GET", "/web/logs")
    assert [each["data"] for each in said[:-1]] == [str(n) for n in range(1, 1001)]
    said = await world.events("GET", "/web/logs?lines=3")
    assert [each["data"] for each in said[:-1]] == ["998", "999", "1000"]
    assert kinds(await world.events("GET", "/web/logs?lines=0")) == ["complete"]
    wire = await world.begun("GET", "/web/logs?lines=1&duration=60s")
    assert (await next_event(wire))["data"] == "1000"
    gate.open()
    assert (await next_event(wire))["data"] == "more"
    wire.close()


async def test_lines_of_any_length_and_any_bytes_are_told_in_pieces(world: ServicesWorld) -> None:
    script = r"printf 'x%.0s' {1..100000}; echo; printf '\001%.0s' {1..9000}; echo; printf 'a\377b\n'; printf 'end'"
    said = await world.shell("web", script, duration="60s")
    lines = [each["data"] for each in said if each["type"] == "stdout"]
    assert "".join(lines) == "x" * 100000 + "\x01" * 9000 + "a\ufffdbend"
    answer = await world.call("GET", "/web/logs")
    assert all(len(line) < 64 * 1024 for line in answer.body.splitlines())


async def test_no_character_is_cut_in_two(world: ServicesWorld) -> None:
    said = await world.shell("web", "printf 'x'; printf 'ä€😀%.0s' {1..5000}; echo", duration="60s")
    assert "".join(each["data"] for each in said if each["type"] == "stdout") == "x" + "ä€😀" * 5000


async def test_a_log_is_bounded_and_its_reader_misses_nothing(
    world: ServicesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ballpoint.agent.services.log.BYTES_MAX", 20_000)
    gate = world.gate()
    await world.shell(
        "web", f"read x <{gate.path}; for i in $(seq 40); do seq $i $((i + 9)); sleep 0.01; done; {FOREVER}"
    )
    wire = await world.begun("GET", "/web/logs?duration=60s")
    gate.open()
    said = [(await next_event(wire))["data"] for _ in range(400)]
    wire.close()
    assert said == [str(n) for i in range(1, 41) for n in range(i, i + 10)]
    kept = sorted(path.name for path in world.logs.iterdir())
    assert kept in (["web.log"], ["web.log", "web.log.1"])
    assert sum(path.stat().st_size for path in world.logs.iterdir()) <= 40_000


async def test_a_log_that_somebody_removes_begins_anew(world: ServicesWorld) -> None:
    gate = world.gate()
    await world.shell("web", f"echo one; read x <{gate.path}; echo two; {FOREVER}")
    await eventually(lambda: (world.logs / "web.log").exists() and world.log("web"))
    (world.logs / "web.log").unlink()
    gate.open()
    await eventually(lambda: (world.logs / "web.log").exists() and world.log("web") == ["[stdout] two"])


def has_taken_all(pid: int) -> bool:
    """Whether a process waits, and its pipes are empty."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed right now: none of its pipes, which stay
            if os.readlink(link).startswith("pipe:"):
                pipe = os.open(link, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    if fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)) != bytes(4):
                        return False
                finally:
                    os.close(pipe)
    return process_state(pid) == "S"


async def test_what_is_no_file_is_not_written_to_and_how_much_was_lost_is_told(world: ServicesWorld) -> None:
    world.logs.mkdir()
    os.mkfifo(world.logs / "web.log")
    gate = world.gate()
    service = {
        "cmd": "bash",
        "args": ["-c", f"echo one; echo two; touch {world.logs}/done; read x <{gate.path}; echo three; {FOREVER}"],
    }
    wire = await world.begun("PUT", "/web?duration=0", service)
    wire.close()
    await eventually(lambda: (world.logs / "done").exists())
    await eventually(lambda: world.plain.logs and has_taken_all(world.plain.logs[0]))
    (world.logs / "web.log").unlink()
    gate.open()
    await eventually(lambda: (world.logs / "web.log").exists() and len(world.log("web")) == 2)
    note, line = world.log("web")
    assert line == "[stdout] three"
    assert note == "[stderr] sprite: 2 lines (8 bytes) were dropped: Invalid argument"


async def test_a_writer_that_is_killed_has_a_successor_and_nothing_is_lost(world: ServicesWorld) -> None:
    gate = world.gate()
    await world.shell("web", f"echo one; read x <{gate.path}; echo two; {FOREVER}")
    await eventually(lambda: (world.logs / "web.log").exists() and world.log("web"))
    os.kill(world.plain.logs[0], signal.SIGKILL)
    await eventually(lambda: len(world.plain.logs) == 2)
    gate.open()
    await eventually(lambda: world.log("web") == ["[stdout] one", "[stdout] two"])
    state = await world.state("web")
    assert (state["status"], state["restart_count"]) == ("running", 0)


async def test_a_writer_goes_on_without_an_agent_and_ends_with_its_service(world: ServicesWorld) -> None:
    gate = world.gate()
    await world.shell("web", f"echo one; read x <{gate.path}; echo two; {FOREVER}")
    await eventually(lambda: (world.logs / "web.log").exists() and world.log("web"))
    await world.services.close()
    gate.open()
    await eventually(lambda: world.log("web") == ["[stdout] one", "[stdout] two"])
    world.services = world.agent()
    world.services.adopt()
    (writer,) = world.plain.logs
    world.service("web").stop(0)
    await world.service("web").over()
    assert not alive(writer)


async def test_a_client_that_reads_nothing_gets_all_of_it_later(world: ServicesWorld) -> None:
    await world.shell("web", f"seq 60000; {FOREVER}")
    await eventually(lambda: (world.logs / "web.log").exists() and len(world.log("web")) == 60000)
    wire = await world.begun("GET", "/web/logs")
    for number in range(1, 60001):
        assert (await next_event(wire))["data"] == str(number)
    assert (await next_event(wire))["type"] == "complete"
    wire.close()


async def test_so_many_logs_are_read_at_once(world: ServicesWorld) -> None:
    await world.put("web", "sleep", "1000")
    await eventually(lambda: not world.services._readers)  # the one of the call itself
    wires = [await world.begun("GET", "/web/logs?duration=60s") for _ in range(READERS_MAX)]
    answer = await world.call("GET", "/web/logs")
    assert (answer.status, answer.json["error"]) == (503, "unavailable")
    for wire in wires:
        wire.close()
    await eventually(lambda: not world.services._readers)
    lines_of(await world.call("GET", "/web/logs"))


# ---- the HTTP port ----


async def test_the_http_port_is_that_of_its_service(world: ServicesWorld) -> None:
    assert await world.services.http_port() == 8080
    await world.put("other", "sleep", "1000")
    assert await world.services.http_port() == 8080
    await world.put("web", "sleep", "1000", http_port=3000)
    assert await world.services.http_port() == 3000


async def test_a_request_starts_the_service_that_waits(world: ServicesWorld) -> None:
    gate = world.gate()
    await world.shell("web", f"test -e {world.folder}/ok || exit 1; {FOREVER}", http_port=3000)
    await eventually(lambda: world.clock.asleep == [1])
    (world.folder / "ok").touch()
    async with asyncio.timeout(DEADLINE):
        assert await world.services.http_port() == 3000
    assert (await world.state("web"))["status"] == "running"
    gate.open()


async def test_an_explicit_stop_wins(world: ServicesWorld) -> None:
    await world.put("web", "sleep", "1000", http_port=3000)
    await world.events("POST", "/web/stop")
    with pytest.raises(StoppedError):
        await world.services.http_port()
    assert (await world.state("web"))["status"] == "stopped"

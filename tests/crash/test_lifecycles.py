"""Sprites that are used, left alone, put to sleep and woken at random while anything is killed.

What the node says is what the kernel says, services run once, and nothing that was said to be written is lost.
"""

from __future__ import annotations

import json
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import WebSocketException

from ballpoint.core import ids
from ballpoint.host.cgroup import Cgroup
from tests.crash.test_random import EXITED_WELL, VICTIMS
from tests.inside.conftest import group_of
from tests.node.test_pauses import Freezes
from tests.support.host import traces
from tests.support.nodes import TestNode
from tests.support.raw import Cursors, watch
from tests.support.seeds import fresh_seed
from tests.support.waiting import eventually

pytestmark = [pytest.mark.node, pytest.mark.slow]

_SPRITES = 3
_STEPS, _SOAK_STEPS = 45, 3000
# So long a step takes at most, mostly.
_MOMENT_SECONDS = 0.6
_PORT = 3000

# Whoever writes goes on when who waited for it has lost it; it is done before the next one begins.
_ENTER = "mkdir -p files && cd files && exec 9> .lock && flock 9"

World = dict[str, str]


class Sprite:
    """A sprite, and what its client knows of it.

    Attributes:
        worlds: what its files may be; one world, unless a change was cut off.
        saved: the files of each checkpoint.
        status: as the node said last.
        sessions: commands that nobody watches, and the instance that each was begun in.
    """

    def __init__(self, node: TestNode, number: int) -> None:
        self.node = node
        self.name = f"t-{ids.new_instance_id()}"
        answer = node.api("POST", "/v1/sprites", json={"name": self.name, "url_settings": {"auth": "public"}})
        assert answer.status_code == 201, answer.text
        self.id: str = answer.json()["id"]
        self.worlds: list[World] = [{}]
        self.saved: dict[str, World] = {}
        self.sessions: dict[str, str] = {}
        self.status = ""
        self._next = 10_000 * (number + 1)
        service = {"cmd": "python3", "args": ["-m", "http.server", str(_PORT)], "http_port": _PORT}
        put = node.api("PUT", f"/v1/sprites/{self.name}/services/web?duration=0", json=service)
        assert put.status_code == 200, put.text
        assert self.rests_soon()

    # ---- what is asked: each says whether it was said to be done ----

    def ask(self, method: str, path: str = "", **arguments: Any) -> httpx2.Response | None:
        """None where whoever served it was killed, or was being started again."""
        try:
            answer = self.node.api(method, f"/v1/sprites/{self.name}{path}", **arguments)
        except httpx2.TransportError:
            return None
        if answer.status_code == 503:
            return None
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer

    def run(self, script: str) -> str | None:
        """What a script says that ends well; None where its end was not told."""
        answer = self.ask("POST", "/exec", params={"cmd": ["bash", "-c", script]})
        if answer is None or not answer.content.endswith(EXITED_WELL):
            return None
        return answer.content.removesuffix(EXITED_WELL).replace(b"\1", b"").decode()

    def executes(self) -> bool:
        return self.run("echo hi") == "hi\n"

    def writes(self, chance: random.Random) -> bool:
        self._next += 1
        name, content = f"f{chance.randrange(6)}", str(self._next)
        done = self.run(f"{_ENTER} && echo {content} > .new && sync .new && mv .new {name} && sync . && echo done")
        new = [{**each, name: content} for each in self.worlds]
        self.worlds = new if done == "done\n" else [*self.worlds, *new]
        return done == "done\n"

    def leaves_a_session(self) -> bool:
        self._next += 1
        cursors = Cursors()
        with suppress(WebSocketException, OSError):
            query = {"cmd": ["sleep", str(self._next)], "max_run_after_disconnect": "0"}
            with watch(self.node, self.name, None, cursors, **query) as begun:
                cursors.take(begun.recv(timeout=60))
        instance = self.instance()
        if not cursors.info or instance is None:
            return False
        self.sessions[str(self._next)] = instance
        return True

    def is_opened(self) -> bool:
        host = f"{self.name}-{self.node.org}.sprites.localhost:{self.node.url.rpartition(':')[2]}"
        try:
            answer = httpx2.get(self.node.url, headers={"Host": host}, timeout=60, verify=False)
        except httpx2.TransportError:
            return False
        assert answer.status_code in (200, 502, 503), answer.text
        return answer.status_code == 200

    def opens_soon(self) -> bool:
        """What was started with the sprite a moment ago may not listen yet."""
        eventually(self.is_opened, 90)
        return True

    def holds(self) -> bool:
        return self._task("-X PUT -d '{\"expire\": 3600}'")

    def lets_go(self) -> bool:
        return self._task("-X DELETE")

    def _task(self, what: str) -> bool:
        return self.run(f"curl -sS --unix-socket /.sprite/api.sock {what} http://sprite/v1/tasks/t") is not None

    def verb(self, verb: str, status: str) -> bool:
        answer = self.ask("POST", f"/{verb}")
        if answer is not None:
            assert answer.json()["status"] == status
        return answer is not None

    def rests_soon(self) -> bool:
        return self.ask("PUT", json={"idle_timeout": 0.2}) is not None

    def checkpoints(self) -> bool:
        (world,) = self.worlds
        answer = self.ask("POST", "/checkpoint")
        told = [] if answer is None else _lines(answer)
        if not told or told[-1]["type"] != "complete":
            return False
        self.saved[told[-1]["data"].split()[1]] = world
        return True

    def restores(self, chance: random.Random) -> bool:
        if not self.saved:
            return self.checkpoints()
        wanted = chance.choice([*self.saved])
        answer = self.ask("POST", f"/checkpoints/{wanted}/restore")
        told = [] if answer is None else _lines(answer)
        done = bool(told) and told[-1]["type"] == "complete"
        self.worlds = [self.saved[wanted]] if done else [*self.worlds, self.saved[wanted]]
        return done

    # ---- what is so ----

    def instance(self) -> str | None:
        """What runs it, as the node has noted on the host."""
        found = self._note()
        return None if found is None else found[0]

    def _note(self) -> tuple[str, dict[str, Any]] | None:
        for record in Path(f"/run/ballpoint/{self.node.id}/instances").glob("*/instance.json"):
            with suppress(FileNotFoundError):  # it ends right now
                note = json.loads(record.read_text())["note"]
                if note.get("sprite") == self.id:
                    return record.parent.name, note
        return None

    def wrong(self) -> str | None:
        """How what the node says differs from what is so; None where it does not. Wakes nothing."""
        said = _json(self.ask("GET"))
        listed = _json(self.ask_for_all())
        checked = _json(self.ask("GET", "/check"))
        active = _json(self.ask("GET", "/activity"))
        if not (said and listed and checked and active):
            return "no answer"
        status, health = said["status"], checked["status"]
        self.status = str(status)
        every = Counter({"running": 0, "warm": 0, "cold": 0} | Counter(each["status"] for each in listed["sprites"]))
        if {each: listed[each] for each in every} != every or status not in [
            each["status"] for each in listed["sprites"] if each["name"] == self.name
        ]:
            return f"{status}, but listed as {listed}"
        if health != ("healthy" if status == "running" else "hibernated"):
            return f"{status}, but {health}: {checked.get('reason')}"
        if active["status"] != status:
            return f"{status}, but active as {active}"
        events = self.ask("GET", "/events")
        told = [each for each in _lines(events) if each["kind"] in _STATE_OF] if events is not None else []
        if not told or _STATE_OF[told[-1]["kind"]] != status or not all(each["cause"] for each in told):
            return f"{status}, but the last of its events is {told[-1:]}"
        found = self._note()
        if status == "cold" or found is None:
            return None if status == "cold" and found is None else f"{status} in {found}"
        instance, note = found
        group = group_of(self.node, instance)
        inner = group.child("inner")
        frozen = "frozen 1" in (inner.v2 / "cgroup.events").read_text()
        if frozen != (status == "warm"):
            return f"{status}, but the kernel has frozen it: {frozen}"
        if "t" in note.get("tasks", {}) and (frozen or "task" not in [each["kind"] for each in active["reasons"]]):
            return f"it has a task, but is {status} and active as {active}"
        agents = _called(group.child("agent"), "agent")
        if len(agents) != 1:
            return f"{len(agents)} agents"
        programs = _commands(inner.child("svc-web"))
        if programs != [f"python3 -m http.server {_PORT}"]:
            return f"its service runs as {programs}"
        there = _commands(inner.child("main"))
        lost = [each for each, of in self.sessions.items() if of == instance and f"sleep {each}" not in there]
        return f"sessions {lost} have ended" if lost else None

    def ask_for_all(self) -> httpx2.Response | None:
        with suppress(httpx2.TransportError):
            answer = self.node.api("GET", "/v1/sprites")
            return answer if answer.status_code == 200 else None
        return None

    def is_true(self) -> bool:
        try:
            self.found = self.wrong()
        except (FileNotFoundError, ProcessLookupError, OSError) as error:
            self.found = f"it is being ended: {error}"
        return self.found is None

    def must_be_true(self) -> None:
        try:
            eventually(self.is_true, 90)
        except AssertionError as error:
            raise AssertionError(f"{self.name}: {self.found}") from error

    def look_inside(self) -> None:
        """Wake it: its files are what they must be, and its service is the one that the agent knows."""
        said: list[str] = []

        def read() -> bool:
            found = self.run(f"{_ENTER} && for each in f*; do [ -e $each ] && echo $each $(<$each); done; true")
            if found is None:
                return False
            said[:] = found.splitlines()
            return True

        eventually(read, 90)
        world = dict(line.split() for line in said)
        assert world in self.worlds, f"{self.name} has {world}, not one of {self.worlds}"
        self.worlds = [world]
        eventually(self._service_is_known, 90)

    def _service_is_known(self) -> bool:
        state = _json(self.ask("GET", "/services/web"))
        instance = self.instance()
        if not state or instance is None or state["state"]["status"] != "running":
            return False
        try:
            (pid,) = group_of(self.node, instance).child("inner").child("svc-web").pids()
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except (ValueError, OSError):
            return False
        numbers = next(line for line in lines if line.startswith("NSpid:")).split()
        return int(numbers[-1]) == state["state"]["pid"] and self.is_opened()


def _json(answer: httpx2.Response | None) -> Any:
    return None if answer is None else answer.json()


def _lines(answer: httpx2.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


def _called(group: Cgroup, name: str) -> list[int]:
    return [pid for pid in group.pids() if Path(f"/proc/{pid}/comm").read_text() == f"{name}\n"]


def _commands(group: Cgroup) -> list[str]:
    """The command lines of those in a group, whatever their interpreter is called in full."""
    found = []
    for pid in group.pids():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
        found.append(" ".join([Path(words[0]).name, *words[1:]]))
    return found


# What an event says that the sprite is from then on.
_STATE_OF = {
    "created": "running", "running": "running", "restarted": "running", "restored": "running", "warm": "warm",
    "cold": "cold", "stopped": "cold", "fenced": "cold",
}  # fmt: skip
Step = Callable[[Sprite, random.Random], bool]
_STEPS_KNOWN: dict[str, tuple[int, Step]] = {
    "exec": (2, lambda sprite, chance: sprite.executes()),
    "write": (6, lambda sprite, chance: sprite.writes(chance)),
    "session": (2, lambda sprite, chance: sprite.leaves_a_session()),
    "url": (2, lambda sprite, chance: sprite.opens_soon()),
    "hold": (2, lambda sprite, chance: sprite.holds()),
    "let go": (3, lambda sprite, chance: sprite.lets_go()),
    "sleep": (3, lambda sprite, chance: sprite.verb("sleep", "cold")),
    "wake": (2, lambda sprite, chance: sprite.verb("wake", "running")),
    "restart": (2, lambda sprite, chance: sprite.ask("POST", "/restart") is not None),
    "checkpoint": (1, lambda sprite, chance: sprite.checkpoints()),
    "restore": (1, lambda sprite, chance: sprite.restores(chance)),
}


def _wait_for_a_moment(node: TestNode, chance: random.Random) -> None:
    """Any moment of a step, or one in which a sprite is being frozen or ended, if there is one soon."""
    within, soon = chance.uniform(0.0, _MOMENT_SECONDS), chance.uniform(0.0, 0.02)
    if chance.random() < 0.5:
        with closing(Freezes(node)) as freezes:
            freezes.wait(2 * _MOMENT_SECONDS)
        within = soon
    threading.Event().wait(within)


@pytest.mark.timeout(900)
def test_what_a_node_says_is_so_whatever_is_killed(own_node: TestNode, soak: bool) -> None:
    seed = fresh_seed()
    chance = random.Random(seed)
    own_node.options += ["--cold-seconds", "3"]
    own_node.start()
    own_node.options += ["--listen", own_node.url.removeprefix("http://")]
    sprites = [Sprite(own_node, number) for number in range(_SPRITES)]
    seen: Counter[str] = Counter()
    names, weights = [*_STEPS_KNOWN], [weight for weight, _ in _STEPS_KNOWN.values()]
    with ThreadPoolExecutor(1) as threads:
        for _ in range(_SOAK_STEPS if soak else _STEPS):
            sprite, name = chance.choice(sprites), chance.choices(names, weights)[0]
            killed = chance.choice([*VICTIMS]) if chance.random() < 0.5 else None
            asked = threads.submit(_STEPS_KNOWN[name][1], sprite, random.Random(chance.random()))
            if killed is not None:
                _wait_for_a_moment(own_node, chance)
                VICTIMS[killed](own_node, chance)
            done = asked.result()
            sys.stdout.write(f"{sprite.name} {name}: {done}, killed: {killed}\n")
            assert done or killed is not None, f"{name} was not done"
            for each in sprites:
                each.must_be_true()
                seen[each.status] += 1
            if not done or chance.random() < 0.2:
                sprite.look_inside()
    sys.stdout.write(f"seen: {dict(seen)}\n")
    assert seen.keys() == {"running", "warm", "cold"}
    for sprite in sprites:
        sprite.look_inside()
        sprite.must_be_true()
        assert own_node.api("DELETE", f"/v1/sprites/{sprite.name}").status_code == 204
    assert own_node.terminate() == 0
    left = traces(own_node.id, own_node.data)
    assert left == dict.fromkeys(left, [])

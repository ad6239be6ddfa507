"""Services of a sprite of a real node: what they outlive, what they leave behind, and what is in their way."""

from __future__ import annotations

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.inside.conftest import Make, agent_of, group_of, instance_of, next_agent
from tests.inside.test_ports import handed
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually

pytestmark = [pytest.mark.node, pytest.mark.host]

FILE = "/.sprite/services.json"


class Services:
    """The services of one sprite."""

    def __init__(self, node: TestNode, sprite: Any) -> None:
        self.node = node
        self.sprite = sprite

    def ask(self, method: str, path: str = "", **arguments: Any) -> httpx2.Response:
        return self.node.api(method, f"/v1/sprites/{self.sprite.name}/services{path}", **arguments)

    def put(self, name: str, *argv: str, duration: str = "0", **more: Any) -> list[dict[str, Any]]:
        body = {"cmd": argv[0], "args": list(argv[1:]), **more}
        return events(self.ask("PUT", f"/{name}?duration={duration}", json=body))

    def shell(self, name: str, script: str, **more: Any) -> list[dict[str, Any]]:
        return self.put(name, "bash", "-c", script, **more)

    def post(self, path: str) -> list[dict[str, Any]]:
        return events(self.ask("POST", path))

    def item(self, name: str) -> dict[str, Any]:
        answer = self.ask("GET", f"/{name}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def state(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.item(name)["state"]
        return found

    def becomes(self, name: str, status: str) -> dict[str, Any]:
        eventually(lambda: self.state(name)["status"] == status)
        return self.state(name)

    def inside(self, script: str, user: str = "root") -> str:
        code, said = shell(self.sprite, script, user=user)
        assert code == 0, said
        return said.strip()

    def group(self, name: str) -> Any:
        return group_of(self.node, instance_of(self.node, self.sprite)).child("inner").child(f"svc-{name}")

    def log(self, name: str) -> list[str]:
        said = events(self.ask("GET", f"/{name}/logs"))
        return [line["data"] for line in said if line["type"] in ("stdout", "stderr")]


def events(answer: httpx2.Response) -> list[dict[str, Any]]:
    """The lines of an answer, which is whole."""
    assert answer.status_code == 200, answer.text
    found = [json.loads(line) for line in answer.text.splitlines()]
    assert found[-1]["type"] == "complete", found
    return found


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [each["type"] for each in found]


@pytest.fixture(scope="module")
def services(node: TestNode, make_sprite: Make) -> Services:
    return Services(node, make_sprite())


def test_a_service_runs_as_its_user_and_what_it_writes_is_on_the_disk(services: Services) -> None:
    said = services.shell("hello", "id -un; echo err >&2; exec sleep inf")
    assert kinds(said)[0] == "started"
    state = services.becomes("hello", "running")
    command = f"tr '\\0' ' ' </proc/{state['pid']}/cmdline"
    eventually(lambda: services.inside(command) == "sleep inf")
    eventually(lambda: services.log("hello") == ["sprite", "err"])
    lines = services.inside("cat /.sprite/logs/services/hello.log", user="sprite").splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["[stdout] sprite", "[stderr] err"]
    assert services.group("hello").pids()
    assert kinds(services.post("/hello/stop")) == ["stopping", "stopped", "complete"]
    assert not services.group("hello").exists()
    assert services.ask("DELETE", "/hello").status_code == 204


def test_what_has_left_its_session_ends_with_its_service(services: Services) -> None:
    services.shell("far", "setsid sleep 12345 & setsid setsid sleep 12345 & exec sleep 12345")
    eventually(lambda: len(services.group("far").pids()) == 3)
    services.post("/far/stop?timeout=0")
    assert services.inside("pgrep -f 'sleep 1234[5]' || echo none") == "none"
    services.ask("DELETE", "/far")


def test_v1_controllers_bound_services_as_all_else(services: Services) -> None:
    services.shell("bound", "cat /proc/self/cgroup; exec sleep inf")
    eventually(lambda: services.log("bound"))
    shown = {line.split(":")[1]: line.split(":")[2] for line in services.log("bound")}
    others = services.inside("cat /proc/self/cgroup").splitlines()
    for line in others:
        _, controllers, path = line.split(":")
        assert shown[controllers] == (path if controllers else "/svc-bound"), line
    services.ask("DELETE", "/bound")


@pytest.mark.parametrize("how", ["sleep", "restart", "reboot"])
def test_services_come_back_with_their_sprite_and_what_was_stopped_stays(
    node: TestNode, make_sprite: Make, how: str
) -> None:
    services = Services(node, make_sprite())
    services.shell("db", "echo $$ >/run/db.pid 2>/dev/null; exec sleep inf")
    services.shell("web", "exec sleep inf", needs=["db"])
    services.shell("off", "exec sleep inf")
    services.post("/off/stop")
    name = services.sprite.name
    former = services.state("web")["started_at"]
    if how == "reboot":
        shell(services.sprite, "sudo reboot; sleep 60")
    else:
        assert node.api("POST", f"/v1/sprites/{name}/{how}").status_code == 200
    services.becomes("db", "running")
    services.becomes("web", "running")
    assert services.state("web")["started_at"] > former
    assert services.state("off")["status"] == "stopped"
    for each in ("db", "web"):
        pid = services.state(each)["pid"]
        assert services.inside(f"cat /proc/{pid}/comm") == "sleep"
        assert len(services.group(each).pids()) == 1


def test_services_go_with_checkpoints_and_forks(node: TestNode, make_sprite: Make) -> None:
    services = Services(node, make_sprite())
    services.shell("one", "exec sleep inf")
    path = f"/v1/sprites/{services.sprite.name}"
    made = node.api("POST", f"{path}/checkpoint", json={}).text.splitlines()
    checkpoint = node.api("GET", f"{path}/checkpoints").json()[-1]["id"]
    assert json.loads(made[-1])["type"] == "complete"
    services.shell("two", "exec sleep inf")
    fork = f"{services.sprite.name}-fork"
    answer = node.api("POST", f"{path}/fork", json={"name": fork})
    assert answer.status_code == 201, answer.text
    try:
        forked = Services(node, node.client().get_sprite(fork))
        for each in ("one", "two"):
            forked.becomes(each, "running")
    finally:
        assert node.api("DELETE", f"/v1/sprites/{fork}").status_code == 204
    restored = node.api("POST", f"{path}/checkpoints/{checkpoint}/restore").text.splitlines()
    assert json.loads(restored[-1])["type"] == "complete", restored
    eventually(lambda: [each["name"] for each in services.ask("GET").json()] == ["one"])
    services.becomes("one", "running")


def test_an_agent_that_is_killed_ends_no_service(node: TestNode, services: Services) -> None:
    services.inside("mkfifo -m 666 /tmp/gate", user="sprite")
    services.shell("web", "echo on; read line </tmp/gate; echo later; exec sleep inf")
    services.shell("bad", "exit 1")
    eventually(lambda: services.state("bad")["restart_count"] >= 1)
    eventually(lambda: services.log("web") == ["on"])
    before = services.state("web")
    instance = instance_of(node, services.sprite)
    agent = agent_of(node, instance)
    os.kill(agent, signal.SIGKILL)
    next_agent(node, instance, agent)
    assert services.state("web") == before
    assert services.state("bad")["restart_count"] >= 1
    services.inside("echo >/tmp/gate", user="sprite")
    eventually(lambda: services.log("web") == ["on", "later"])
    services.inside(f"kill -9 {before['pid']}")
    eventually(lambda: services.state("web").get("error") == "it was ended by SIGKILL" or
               services.state("web")["restart_count"] == 1)  # fmt: skip
    for name in ("web", "bad"):
        assert services.ask("DELETE", f"/{name}").status_code == 204


def test_whenever_an_agent_is_killed_each_service_runs_once(node: TestNode, services: Services) -> None:
    names = ["a", "b", "c"]
    for name in names:
        services.shell(name, "sleep 1000 & exec sleep 2000")
    instance = instance_of(node, services.sprite)
    for round_ in range(6):
        agent = agent_of(node, instance)
        with ThreadPoolExecutor() as pool:
            for name in names:
                pool.submit(services.ask, "POST", f"/{name}/restart?duration=0")
            threading.Event().wait(0.003 * round_)  # another moment each time
            os.kill(agent, signal.SIGKILL)
            next_agent(node, instance, agent)
        for name in names:
            services.becomes(name, "running")
            eventually(lambda name=name: len(services.group(name).pids()) == 2)  # type: ignore[misc]
            inner = int(services.inside(f"cat /proc/{services.state(name)['pid']}/cmdline | tr -cd 0-9"))
            assert inner == 2000
    assert services.inside("pgrep -fc 'sleep 200[0]'") == str(len(names))
    assert services.inside("pgrep -fc 'sleep 100[0]'") == str(len(names))
    for name in names:
        assert services.ask("DELETE", f"/{name}").status_code == 204


def test_a_forged_file_is_kept_aside_and_a_good_one_is_taken(node: TestNode, make_sprite: Make) -> None:
    services = Services(node, make_sprite())
    services.inside(f'echo \'{{"version": 1, "services": [{{"name": "../up", "cmd": "x"}}]}}\' >{FILE}')
    restart = f"/v1/sprites/{services.sprite.name}/restart"
    assert node.api("POST", restart).status_code == 200
    assert services.ask("GET").json() == []
    assert "../up" in services.inside(f"cat {FILE}.damaged")
    services.inside(f"ln -s /dev/zero {FILE}")
    assert node.api("POST", restart).status_code == 200
    assert services.ask("GET").json() == []
    content = json.dumps({"version": 1, "services": [{"name": "web", "cmd": "sleep", "args": ["inf"]}]})
    services.inside(f"echo '{content}' >{FILE}")
    assert node.api("POST", restart).status_code == 200
    services.becomes("web", "running")
    log = node.api("GET", f"/v1/sprites/{services.sprite.name}/logs").text
    assert "is no list of services" in log


def test_a_group_that_somebody_inside_has_made_is_emptied_first(services: Services) -> None:
    services.inside(
        "mkdir -p /tmp/cg && mount -t cgroup2 none /tmp/cg && mkdir -p /tmp/cg/svc-mine/below || exit 1; "
        "(echo $BASHPID >/tmp/cg/svc-mine/below/cgroup.procs; exec setsid sleep 54321 >/dev/null 2>&1) & "
        "until grep -q . /tmp/cg/svc-mine/below/cgroup.procs; do sleep 0.05; done"
    )
    services.shell("mine", "exec sleep inf")
    services.becomes("mine", "running")
    assert len(services.group("mine").pids()) == 1
    assert services.inside("pgrep -f 'sleep 5432[1]' || echo none") == "none"
    services.inside("umount /tmp/cg")
    services.ask("DELETE", "/mine")


def test_the_socket_inside_has_the_same_verbs(services: Services) -> None:
    def ask(request: str) -> tuple[int, str]:
        said = services.inside(
            f"curl -sS --max-time 60 --unix-socket /.sprite/api.sock -w '\\n%{{http_code}}' {request}", user="sprite"
        )
        body, _, status = said.rpartition("\n")
        return int(status), body

    service = json.dumps({"cmd": "bash", "args": ["-c", "echo on; exec sleep inf"]})
    put = f"-X PUT http://sprite/v1/services/in?duration=0 -d '{service}'"
    status, body = ask(put)
    assert (status, kinds(list(map(json.loads, body.splitlines())))[-1]) == (200, "complete")
    status, body = ask("http://sprite/v1/services/in")
    assert (status, json.loads(body)["state"]["status"]) == (200, "running")
    assert json.loads(body) == services.item("in")
    status, body = ask("http://sprite/v1/services")
    assert (status, json.loads(body)) == (200, services.ask("GET").json())
    eventually(lambda: services.log("in") == ["on"])
    status, body = ask("http://sprite/v1/services/in/logs?lines=1")
    assert (status, json.loads(body.splitlines()[0])["data"]) == (200, "on")
    status, _ = ask("""-X POST http://sprite/v1/services/signal -d '{"name": "in", "signal": "HUP"}'""")
    assert status == 204
    assert ask("-X POST http://sprite/v1/services/in/stop")[0] == 200
    assert ask("-X POST http://sprite/v1/services/in/start?duration=0")[0] == 200
    assert ask("-X POST http://sprite/v1/services/in/restart?duration=0")[0] == 200
    assert ask("-X DELETE http://sprite/v1/services/in")[0] == 204
    assert ask("http://sprite/v1/services/in")[0] == 404
    assert ask("http://sprite/v1/servicesx")[0] == 404


def test_the_edge_is_handed_the_http_port(node: TestNode, services: Services) -> None:
    services.put("http", "python3", "-m", "http.server", "3210", "--bind", "127.0.0.1", http_port=3210)
    said, sock = handed(node, services.sprite, None, retry_seconds=30)
    assert said == {"ok": True, "port": 3210}
    assert sock is not None
    with sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.0 200 OK")
    services.post("/http/stop")
    said, sock = handed(node, services.sprite, None)
    assert (said["error"], sock) == ("stopped", None)
    assert services.ask("DELETE", "/http").status_code == 204
    said, sock = handed(node, services.sprite, None)
    assert (said["error"], sock) == ("refused", None)
    assert "8080" in said["message"]


def test_a_service_is_confined_as_every_command(services: Services) -> None:
    script = (
        "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp)' /proc/self/status; ulimit -a; "
        "ls -l /proc/self/ns | grep -o '[a-z_]*:.*'"
    )
    services.shell("same", f"{script}; echo end; exec sleep inf")
    eventually(lambda: services.log("same")[-1:] == ["end"])
    assert services.log("same")[:-1] == services.inside(script, user="sprite").splitlines()
    services.ask("DELETE", "/same")


def test_without_room_for_definitions_nothing_changes(node: TestNode, make_sprite: Make) -> None:
    services = Services(node, make_sprite())
    services.shell("web", "exec sleep inf")
    services.inside("mount -t tmpfs -o size=64k none /.sprite && head -c 1M /dev/zero >/.sprite/full || true")
    answer = services.ask("PUT", "/more", json={"cmd": "sleep"})
    assert (answer.status_code, answer.json()["code"]) == (507, "ENOSPC")
    assert [each["name"] for each in services.ask("GET").json()] == ["web"]
    said = services.post("/web/stop")
    assert kinds(said) == ["stopping", "stopped", "error", "complete"]
    services.inside("umount -l /.sprite")
    services.post("/web/start?duration=0")
    services.becomes("web", "running")


def test_a_full_disk_loses_lines_and_no_service(node: TestNode, make_sprite: Make) -> None:
    services = Services(node, make_sprite())
    services.inside("mkdir -p /.sprite/logs/services && mount -t tmpfs -o size=64k none /.sprite/logs/services")
    services.shell("web", "while :; do echo 0123456789012345678901234567890123456789; done")
    eventually(lambda: int(services.inside("df --output=avail /.sprite/logs/services | tail -1")) == 0)
    assert services.state("web")["status"] == "running"
    services.inside("cd /.sprite/logs/services && : >web.log")
    eventually(lambda: any("were dropped: No space left on device" in line for line in services.log("web")))
    assert services.state("web")["restart_count"] == 0


def test_a_node_that_is_killed_ends_no_service(own_node: TestNode) -> None:
    node = own_node.start()
    node.api("POST", "/v1/sprites", json={"name": "one"})
    services = Services(node, node.client().get_sprite("one"))
    services.shell("web", "exec sleep inf")
    before = services.state("web")
    node.kill()
    node.start()
    services.sprite = node.client().get_sprite("one")
    assert services.state("web") == before
    assert services.group("web").pids()

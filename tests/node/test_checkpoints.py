"""Checkpoints, restores and forks on a real node."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ballpoint.core import ids
from ballpoint.node.durable.checkpoints import AUTO_KEPT
from ballpoint.node.standby.spares import MOST as SPARES_MOST
from tests.crash.test_kill import inside
from tests.node.test_store_away import server_of
from tests.support.checkpoints import (
    checkpoint,
    completed,
    content,
    disk,
    events,
    fork,
    kinds,
    lines,
    listed,
    new_sprite,
    pool,
    post,
    restore,
    status,
    write,
)
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually

pytestmark = pytest.mark.node


@pytest.fixture
def sprite(node: TestNode) -> Iterator[Any]:
    made = new_sprite(node)
    yield made
    node.client().delete_sprite(made.name)


@pytest.fixture
def forks(node: TestNode) -> Iterator[list[Any]]:
    """Those that are put into it are destroyed."""
    made: list[Any] = []
    yield made
    for each in made:
        node.client().delete_sprite(each.name)


# ---- checkpoints ----


def test_checkpoints_are_made_listed_and_deleted(node: TestNode, sprite: Any) -> None:
    assert listed(node, sprite) == []
    write(sprite, "first")
    assert checkpoint(node, sprite, "the first") == "v0"
    assert checkpoint(node, sprite) == "v1"
    first, second = listed(node, sprite)
    assert (first["id"], first["comment"], first["is_auto"]) == ("v0", "the first", False)
    assert (second["id"], second["comment"], second["source_id"], second["history"]) == ("v1", "", "v0", ["v0"])
    assert first["create_time"] <= second["create_time"]
    path = f"/v1/sprites/{sprite.name}/checkpoints"
    assert node.api("GET", f"{path}/v1").json() == second
    assert node.api("DELETE", f"{path}/v0").status_code == 204
    assert [each["id"] for each in listed(node, sprite)] == ["v1"]
    assert checkpoint(node, sprite) == "v2"  # an id is never given again
    for method, which in (("GET", "v0"), ("DELETE", "v0"), ("POST", "v0/restore"), ("GET", "v9")):
        answer = node.api(method, f"{path}/{which}")
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found"), which
    assert kinds(node, sprite).count("checkpoint_deleted") == 1


def test_a_checkpoint_has_what_was_written_before_it_and_the_writer_goes_on(node: TestNode, sprite: Any) -> None:
    assert shell(sprite, "seq 1000000 > numbers; sleep 1000 > /dev/null 2>&1 & echo $! > pid")[0] == 0
    before = shell(sprite, "sha256sum numbers")
    checkpoint(node, sprite)
    assert shell(sprite, "kill -0 $(cat pid) && echo alive") == (0, "alive\n")
    assert shell(sprite, "rm numbers")[0] == 0
    restore(node, sprite, "v0")
    assert shell(sprite, "sha256sum numbers") == before


def test_a_cold_sprite_is_checkpointed_and_stays_cold(node: TestNode, sprite: Any) -> None:
    write(sprite, "asleep")
    assert post(node, sprite, "sleep").json()["status"] == "cold"
    checkpoint(node, sprite)
    assert status(node, sprite) == "cold"
    write(sprite, "awake")
    restore(node, sprite, "v0")
    assert content(sprite) == "asleep"


def test_a_checkpoint_of_nothing_is_refused(node: TestNode) -> None:
    name = f"t-{ids.new_instance_id()}"
    for verb in ("checkpoint", "fork", "sync", "checkpoints/v0/restore"):
        answer = node.api("POST", f"/v1/sprites/{name}/{verb}", json={"name": f"{name}-2"} if verb == "fork" else None)
        assert answer.status_code == 404, verb


def test_durable_is_what_the_store_has(node: TestNode, sprite: Any) -> None:
    write(sprite, "safe")
    checkpoint(node, sprite, params={"wait": "durable"})
    assert [each["durable"] for each in listed(node, sprite)] == [True]
    checkpoint(node, sprite)
    eventually(lambda: all(each["durable"] for each in listed(node, sprite)), 90)


def test_sync_brings_what_was_written_into_the_store(node: TestNode, sprite: Any) -> None:
    assert shell(sprite, "head -c 20000000 /dev/urandom > noise")[0] == 0
    answer = post(node, sprite, "sync")
    assert answer.status_code == 200
    told = answer.json()
    assert (told["place"], told["checkpoints"]) == ("local", 0)
    assert told["durable_at"] is not None
    assert told["bytes_stored"] >= 20000000  # noise cannot be compressed
    assert told["bytes_written"] >= 20000000
    assert told["size"] > told["bytes_written"]
    checkpoint(node, sprite)
    assert disk(node, sprite)["checkpoints"] == 1


# ---- restore ----


def test_restore_brings_files_back_and_ends_what_ran(node: TestNode, sprite: Any) -> None:
    write(sprite, "before")
    checkpoint(node, sprite)
    write(sprite, "after")
    assert shell(sprite, "sleep 1234 > /dev/null 2>&1 & true")[0] == 0
    told = restore(node, sprite, "v0")
    assert content(sprite) == "before"
    assert shell(sprite, "pgrep -x sleep || echo none") == (0, "none\n")
    assert status(node, sprite) == "running"
    eventually(lambda: kinds(node, sprite)[-1] == "restored")
    assert "v0" in events(node, sprite)[-1]["cause"]
    # What it was is kept, and shown to those who ask for it.
    assert [each["id"] for each in listed(node, sprite, auto=False)] == ["v0"]
    (auto,) = (each for each in listed(node, sprite) if each["is_auto"])
    assert any(auto["id"] in line["data"] for line in told)
    restore(node, sprite, auto["id"])
    assert content(sprite) == "after"


def test_the_checkpoint_that_the_disk_came_from_cannot_be_deleted(node: TestNode, sprite: Any) -> None:
    checkpoint(node, sprite)
    checkpoint(node, sprite)
    restore(node, sprite, "v0")
    path = f"/v1/sprites/{sprite.name}/checkpoints"
    answer = node.api("DELETE", f"{path}/v0")
    assert (answer.status_code, answer.json()["error"]) == (409, "in_use")
    assert node.api("GET", f"{path}/v0").status_code == 200
    assert node.api("DELETE", f"{path}/v1").status_code == 204
    restored = listed(node, sprite)
    assert restore(node, sprite, "v0")
    assert {each["id"] for each in restored} < {each["id"] for each in listed(node, sprite)}


def test_what_a_sprite_is_otherwise_stays_over_a_restore(node: TestNode) -> None:
    sprite = new_sprite(node, labels=["kept"], environment={"WHO": "me"})
    checkpoint(node, sprite)
    before = node.api("GET", f"/v1/sprites/{sprite.name}").json()
    restore(node, sprite, "v0")
    after = node.api("GET", f"/v1/sprites/{sprite.name}").json()
    moving = {"updated_at", "last_running_at"}
    assert {k: v for k, v in after.items() if k not in moving} == {k: v for k, v in before.items() if k not in moving}
    assert shell(sprite, "echo $WHO") == (0, "me\n")
    node.client().delete_sprite(sprite.name)


def test_a_restored_sprite_restarts_sleeps_and_is_saved_as_any(node: TestNode, sprite: Any) -> None:
    write(sprite, "one")
    checkpoint(node, sprite)
    write(sprite, "two")
    restore(node, sprite, "v0")
    write(sprite, "three")
    assert post(node, sprite, "restart").status_code == 200
    assert content(sprite) == "three"
    assert post(node, sprite, "sync").status_code == 200
    assert all(each["durable"] for each in listed(node, sprite))
    assert post(node, sprite, "sleep").status_code == 200
    assert content(sprite) == "three"


def test_automatic_checkpoints_are_pruned_and_restores_go_on(node: TestNode, sprite: Any) -> None:
    write(sprite, "kept")
    checkpoint(node, sprite)
    restore(node, sprite, "v0")
    oldest = next(each["id"] for each in listed(node, sprite) if each["is_auto"])
    restore(node, sprite, oldest)  # from now on it is in use
    made = [fork(node, sprite) for _ in range(AUTO_KEPT + 2)]  # each makes one
    try:
        eventually(lambda: post(node, sprite, "sync").status_code == 200)
        for each in made:
            assert post(node, each, "sync").status_code == 200
        last = fork(node, sprite)
        made.append(last)
        found = [each["id"] for each in listed(node, sprite)]
        assert oldest in found and "v0" in found
        assert len(found) <= AUTO_KEPT + 3  # those, and: v0, the one in use, the present one
        assert content(last) == "kept"
    finally:
        for each in made:
            node.client().delete_sprite(each.name)


def test_one_restore_at_a_time_and_the_api_answers_meanwhile(own_node: TestNode) -> None:
    node = own_node
    node.options += ["--pool", "0"]
    node.start()
    sprite = new_sprite(node)
    write(sprite, "before")
    checkpoint(node, sprite)
    write(sprite, "after")
    # One blank comes for the one that was taken. A restore waits for it, or for the zygote to make another.
    eventually(lambda: "ballpoint_blanks 1" in node.api("GET", "/metrics").text.splitlines())
    holding = [*node.processes("zygote"), *inside(node, "agent", claimed=False)]
    with ThreadPoolExecutor(4) as threads:
        for pid in holding:
            os.kill(pid, signal.SIGSTOP)
        try:
            restoring = [threads.submit(post, node, sprite, "checkpoints/v0/restore") for _ in range(4)]
            # All but one are refused; the one is held up.
            eventually(lambda: sum(each.done() for each in restoring) == 3)
            assert node.api("GET", f"/v1/sprites/{sprite.name}").status_code == 200
            assert [each["id"] for each in listed(node, sprite)] == ["v0"]
            assert content(sprite) == "after"
        finally:
            for pid in holding:
                os.kill(pid, signal.SIGCONT)
        answers = [each.result() for each in restoring]
    done = [answer for answer in answers if answer.status_code == 200]
    refused = [(answer.status_code, answer.json()["error"]) for answer in answers if answer not in done]
    assert refused == [(409, "restoring")] * 3
    completed(*done)
    assert content(sprite) == "before"


@pytest.mark.parametrize("wait", ["", "durable"])
def test_whoever_was_answered_may_restore_again_at_once(node: TestNode, sprite: Any, wait: str) -> None:
    write(sprite, "first")
    checkpoint(node, sprite, params={"wait": wait} if wait else {})
    for _ in range(5):
        restore(node, sprite, "v0")  # what the one before has replaced may still be running
    assert content(sprite) == "first"


def test_a_restore_whose_client_leaves_is_done(node: TestNode, sprite: Any) -> None:
    write(sprite, "before")
    checkpoint(node, sprite)
    write(sprite, "after")
    headers = {"Authorization": f"Bearer {node.token}"}
    path = f"{node.url}/v1/sprites/{sprite.name}/checkpoints/v0/restore"
    with httpx2.stream("POST", path, headers=headers, timeout=60.0) as answer:
        assert answer.status_code == 200
    eventually(lambda: kinds(node, sprite)[-1] == "restored")
    assert content(sprite) == "before"


class Writer:
    """Appends numbers to a file in a sprite for as long as its process lives."""

    def __init__(self, sprite: Any) -> None:
        self._sprite = sprite
        script = "i=0; while :; do i=$((i+1)); echo $i >> numbers; sync numbers; done"
        assert shell(sprite, f"nohup bash -c '{script}' > /dev/null 2>&1 & true")[0] == 0
        self.goes_on()

    def written(self) -> int:
        code, said = shell(self._sprite, "tail -n 1 numbers 2>/dev/null")
        return int(said) if code == 0 and said.strip() else 0

    def goes_on(self) -> None:
        before = self.written()
        eventually(lambda: self.written() > before)


def test_a_restore_that_fails_leaves_everything_as_it_was(own_node: TestNode) -> None:
    own_node.options = ["--pool", "1"]
    own_node.start()
    sprite = new_sprite(own_node)
    write(sprite, "before")
    checkpoint(own_node, sprite)
    write(sprite, "after")
    own_node.terminate()
    own_node.options = ["--pool", "0", "--reserve-mb", str(1 << 30)]  # so that there is no blank for it
    own_node.start()
    writer = Writer(sprite := own_node.client().sprite(sprite.name))
    known = listed(own_node, sprite)
    for _ in range(2):
        told = lines(post(own_node, sprite, "checkpoints/v0/restore"))
        assert told[-1]["type"] == "error" and "memory" in told[-1]["error"], told
        writer.goes_on()
    assert content(sprite) == "after"
    assert (status(own_node, sprite), listed(own_node, sprite)) == ("running", known)
    assert list((pool(own_node) / "staging").iterdir()) == []
    checkpoint(own_node, sprite)
    writer.goes_on()


# ---- forks ----


def test_a_fork_begins_as_the_checkpoint_or_the_present(node: TestNode, sprite: Any, forks: list[Any]) -> None:
    write(sprite, "then")
    checkpoint(node, sprite)
    write(sprite, "now")
    forks.append(fork(node, sprite, "v0"))
    forks.append(fork(node, sprite))
    assert [content(each) for each in forks] == ["then", "now"]
    assert [each["id"] for each in listed(node, sprite, auto=False)] == ["v0"]
    assert [listed(node, each) for each in forks] == [[], []]
    # They go their own ways.
    for each in forks:
        write(each, each.name)
    assert [content(each) for each in [sprite, *forks]] == ["now", *(each.name for each in forks)]
    forks.append(fork(node, forks[0]))
    assert content(forks[2]) == forks[0].name
    for each in forks:
        assert post(node, each, "sync").status_code == 200
    assert "forked from" in events(node, forks[0])[0]["cause"]


def test_a_fork_of_a_cold_sprite_leaves_that_cold(node: TestNode, sprite: Any, forks: list[Any]) -> None:
    write(sprite, "cold")
    assert post(node, sprite, "sleep").status_code == 200
    forks.append(fork(node, sprite))
    assert content(forks[0]) == "cold"
    assert status(node, sprite) == "cold"


def test_a_fork_has_environment_configuration_and_privileges_of_its_source(node: TestNode, forks: list[Any]) -> None:
    source = new_sprite(node, environment={"WHO": "me"}, config={"ram_mb": 512}, labels=["of the source"])
    forks.append(source)
    privileges = f"/v1/sprites/{source.name}/policy/privileges"
    assert node.api("POST", privileges, json={"noNewPrivileges": True}).status_code == 204
    forks.append(fork(node, source))
    assert shell(forks[1], "echo $WHO; grep NoNewPrivs /proc/self/status") == (0, "me\nNoNewPrivs:\t1\n")
    one, other = (node.api("GET", f"/v1/sprites/{each.name}").json() for each in forks)
    assert (other["config"], other["labels"]) == (one["config"], [])
    answers = [node.api("GET", f"/v1/sprites/{each.name}/policy/privileges").json() for each in forks]
    assert answers[0] == answers[1]


def test_a_fork_that_cannot_be_leaves_nothing(node: TestNode, sprite: Any, forks: list[Any]) -> None:
    forks.append(new_sprite(node))
    before = listed(node, sprite)
    volumes = len(node.api("GET", "/v1/sprites").json()["sprites"]) + min(3, SPARES_MOST)
    for body, code in (
        ({"name": forks[0].name}, 409),
        ({"name": f"t-{ids.new_instance_id()}", "checkpoint": "v7"}, 404),
        ({"name": "No name"}, 422),
    ):
        assert post(node, sprite, "fork", json=body).status_code == code, body
    assert listed(node, sprite) == before
    eventually(lambda: len(list((pool(node) / "volumes").iterdir())) == volumes)


def test_a_fork_outlives_its_source(node: TestNode, forks: list[Any]) -> None:
    source = new_sprite(node)
    assert shell(source, "echo kept > file; head -c 5000000 /dev/urandom > noise; sha256sum noise > sum")[0] == 0
    forks.append(fork(node, source))
    node.client().delete_sprite(source.name)  # before either is in the store
    assert content(forks[0]) == "kept"
    answer = post(node, forks[0], "sync")
    assert answer.status_code == 200, answer.text
    assert shell(forks[0], "sha256sum -c sum")[0] == 0
    checkpoint(node, forks[0], params={"wait": "durable"})


def test_a_checkpoint_that_a_fork_needs_stays_until_that_is_in_the_store(
    own_node: TestNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = own_node
    with server_of(node, tmp_path / "server", monkeypatch) as server:
        node.start()
        sprite = new_sprite(node)
        write(sprite, "shared")
        checkpoint(node, sprite, params={"wait": "durable"})
        path = f"/v1/sprites/{sprite.name}/checkpoints/v0"
        os.kill(server, signal.SIGSTOP)
        try:
            copy = fork(node, sprite, "v0")
            answer = node.api("DELETE", path)
            assert answer.status_code == 409 and "fork" in answer.json()["message"], answer.text
            assert [each["id"] for each in listed(node, sprite)] == ["v0"]
        finally:
            os.kill(server, signal.SIGCONT)
        assert post(node, copy, "sync").status_code == 200
        assert node.api("DELETE", path).status_code == 204
        assert post(node, sprite, "sync").status_code == 200
        assert post(node, copy, "sync").status_code == 200
        assert content(copy) == "shared"
        node.down()


def test_many_forks_at_once(node: TestNode, sprite: Any, forks: list[Any]) -> None:
    write(sprite, "shared")
    checkpoint(node, sprite)
    with ThreadPoolExecutor(20) as threads:
        forks += threads.map(lambda _: fork(node, sprite, "v0"), range(20))
        assert set(threads.map(content, forks)) == {"shared"}
    assert len({each.name for each in forks}) == 20


def test_destroying_while_checkpoints_are_made_leaves_nothing(node: TestNode) -> None:
    sprite = new_sprite(node)
    stop = threading.Event()

    def work() -> set[int]:
        found = set()
        while not stop.is_set():
            found.add(post(node, sprite, "checkpoint").status_code)
        return found

    with ThreadPoolExecutor(2) as threads:
        working = [threads.submit(work) for _ in range(2)]
        try:
            eventually(lambda: len(listed(node, sprite)) > 1)
            node.client().delete_sprite(sprite.name)
        finally:
            stop.set()
        assert all(each.result() <= {200, 404, 409} for each in working)
    assert node.api("GET", f"/v1/sprites/{sprite.name}").status_code == 404

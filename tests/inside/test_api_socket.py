"""/.sprite/api.sock: what code inside a sprite may ask of its node, and what it may not do to it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from ballpoint import __version__
from tests.inside.conftest import Make, agent_of, instance_of, next_agent
from tests.support.nodes import TestNode, shell

pytestmark = [pytest.mark.node, pytest.mark.host]

CURL = "curl -sS --max-time 60 --unix-socket /.sprite/api.sock"


@pytest.fixture(scope="module")
def sprite(make_sprite: Make) -> Iterator[Any]:
    yield make_sprite()


def ask(sprite: Any, request: str, *, user: str = "sprite") -> tuple[int, Any]:
    """Status and JSON of a request made inside."""
    code, said = shell(sprite, f"{CURL} -w '\\n%{{http_code}}' {request}", user=user)
    assert code == 0, said
    body, _, status = said.rpartition("\n")
    return int(status), json.loads(body) if body else None


@pytest.mark.parametrize("user", ["sprite", "root"])
def test_a_sprite_is_told_who_it_is(node: TestNode, sprite: Any, user: str) -> None:
    told = node.api("GET", f"/v1/sprites/{sprite.name}").json()
    status, info = ask(sprite, "http://sprite/v1/info", user=user)
    assert status == 200
    assert info == {
        "name": sprite.name,
        "id": told["id"],
        "org": told["organization"],
        "sprite_url": told["url"],
        "version": __version__,
        "image": told["version"],
    }


def test_the_socket_is_there_at_the_first_command(make_sprite: Make) -> None:
    assert shell(make_sprite(), "test -S /.sprite/api.sock && test -d /.sprite/checkpoints/") == (0, "")


def test_a_user_without_a_name_may_ask(sprite: Any) -> None:
    code, said = shell(sprite, f"setpriv --reuid 4321 --clear-groups {CURL} http://sprite/v1/info", user="root")
    assert (code, json.loads(said)["name"]) == (0, sprite.name)


@pytest.mark.parametrize(
    "request_",
    [
        "http://sprite/v1/sprites",
        "http://sprite/v1/sprites/{other}",
        "http://sprite/v1/organization",
        "http://sprite/v1/policy/privileges",
        "-X PUT -d '{{}}' http://sprite/v1/url",
        "http://sprite/v1/health",
        "http://sprite/docs",
        "http://sprite/",
        "--path-as-is http://sprite/v1/checkpoints/../../sprites",
        "--path-as-is http://sprite/v1/checkpoints/%2e%2e%2f{other}",
        "--path-as-is http://sprite/v1/checkpoints/..%2f..%2f{other}",
    ],
)
def test_nothing_else_is_there(sprite: Any, make_sprite: Make, request_: str) -> None:
    other = getattr(sprite, "other_name", None) or make_sprite().name
    sprite.other_name = other
    status, body = ask(sprite, request_.format(other=other))
    assert (status, body["error"]) == (404, "not_found")


def test_a_caller_that_is_named_inside_is_not_believed(sprite: Any) -> None:
    caller = '{"org_id": "x", "org": "x", "token_id": "x"}'
    status, info = ask(
        sprite, f"-H 'X-Ballpoint-Caller: {caller}' -H 'X-Request-Id: forged-by-me' http://sprite/v1/info"
    )
    assert (status, info["name"]) == (200, sprite.name)


def test_from_outside_there_is_no_info(node: TestNode) -> None:
    answer = node.api("GET", "/v1/info")
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


def test_an_agent_that_was_killed_is_followed_by_one_that_answers(node: TestNode, sprite: Any) -> None:
    instance = instance_of(node, sprite)
    agent = agent_of(node, instance)
    os.kill(agent, signal.SIGKILL)
    next_agent(node, instance, agent)
    assert ask(sprite, "http://sprite/v1/info")[0] == 200


def test_a_sprite_made_by_another_node_process_is_answered(own_node: TestNode) -> None:
    node = own_node.start()
    sprite = node.client().create_sprite("one")
    assert ask(sprite, "http://sprite/v1/info")[0] == 200
    node.terminate()
    node.start()
    assert ask(node.client().get_sprite("one"), "http://sprite/v1/info")[1]["name"] == "one"

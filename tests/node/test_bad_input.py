"""Bad input gets a documented status and error body, and changes nothing."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from urllib.parse import urlencode, urlsplit

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from ballpoint.core import ids
from ballpoint.registry.database import url_of
from ballpoint.registry.registry import Registry
from tests.support.nodes import TestNode, shell
from tests.support.raw import exec_websocket, raw_request
from tests.support.waiting import eventually

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def name(node: TestNode) -> Iterator[str]:
    made = f"t-{ids.new_instance_id()}"
    node.client().create_sprite(made)
    yield made
    node.client().delete_sprite(made)


def error_of(body: bytes) -> str:
    content = json.loads(body)
    assert isinstance(content["message"], str)
    assert "Traceback" not in content["message"]
    return str(content["error"])


@pytest.mark.parametrize(
    ("bad", "status"),
    [("", 422), ("UPPER", 422), ("-x", 422), ("x" * 64, 422), ("a.b", 422), ("api", 422), ("ü", 422), (7, 422)],
)
def test_bad_names(node: TestNode, bad: object, status: int) -> None:
    answer = node.api("POST", "/v1/sprites", json={"name": bad})
    assert answer.status_code == status
    error_of(answer.content)


def test_taken_name(node: TestNode, name: str) -> None:
    answer = node.api("POST", "/v1/sprites", json={"name": name})
    assert (answer.status_code, error_of(answer.content)) == (409, "sprite_exists")


@pytest.mark.parametrize("below", ["", "/exec", "/events", "/logs", "/restart", "/policy/privileges"])
def test_unknown_sprite(node: TestNode, below: str) -> None:
    method = "POST" if below == "/restart" else "GET"
    answer = node.api(method, f"/v1/sprites/nobody{below}")
    assert (answer.status_code, error_of(answer.content)) == (404, "sprite_not_found")


@pytest.mark.parametrize("token", ["", "Bearer", "Bearer nonsense", "Bearer a/b/c/d", "Basic eDp5"])
def test_no_good_token(node: TestNode, token: str) -> None:
    for path in ("/v1/sprites", "/v1/sprites/nobody", "/v1/sprites/nobody/exec"):
        answer = node.api("GET", path, headers={"Authorization": token})
        assert (answer.status_code, error_of(answer.content)) == (401, "unauthorized")


def test_a_token_of_the_right_id_with_a_wrong_value(node: TestNode) -> None:
    org, org_id, token_id, _ = node.token.split("/")
    answer = node.api("GET", "/v1/sprites", headers={"Authorization": f"Bearer {org}/{org_id}/{token_id}/wrong"})
    assert answer.status_code == 401


def test_malformed_json(node: TestNode) -> None:
    answer = node.api("POST", "/v1/sprites", content=b"{not json", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error_of(answer.content)


def test_commands_that_cannot_run(node: TestNode, name: str) -> None:
    assert exec_websocket(node, name, "no-such-command").terminal == [127]
    assert exec_websocket(node, name, "/etc/passwd").terminal == [126]
    missing = exec_websocket(node, name, "pwd", dir="/no/such/place")
    assert (missing.terminal, b"No such file or directory" in missing.stderr) == ([126], True)
    huge = exec_websocket(node, name, "true", env="X=" + "y" * 40000)
    assert huge.terminal == [0]


def test_an_enormous_argument_list(node: TestNode, name: str) -> None:
    query = urlencode([("cmd", "x" * 70000)])
    head = f"GET /v1/sprites/{name}/exec?{query} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {node.token}\r\n\r\n"
    assert raw_request(node, head.encode()).startswith(b"HTTP/1.1 431 ")


def test_a_deleted_user(node: TestNode) -> None:
    name = f"t-{ids.new_instance_id()}"
    sprite = node.client().create_sprite(name)
    assert shell(sprite, "sudo sed -i /^sprite:/d /etc/passwd")[0] == 0
    heard = exec_websocket(node, name, "true")
    assert (heard.terminal, b"no such user" in heard.stderr) == ([126], True)
    node.client().delete_sprite(name)


@pytest.mark.parametrize(
    "query",
    ["rows=0&tty=true", "cols=x&tty=true", "stdin=maybe", "env=novalue", "max_run_after_disconnect=soon", "cmd=a%00b"],
)
def test_bad_exec_parameters(node: TestNode, name: str, query: str) -> None:
    url = f"{node.url.replace('http', 'ws', 1)}/v1/sprites/{name}/exec?{query}"
    with pytest.raises(InvalidStatus) as refused:
        connect(url, additional_headers={"Authorization": f"Bearer {node.token}"}, proxy=None)
    assert refused.value.response.status_code == 400
    error_of(bytes(refused.value.response.body or b""))


def test_binary_garbage_on_the_socket(node: TestNode, name: str) -> None:
    parts = urlsplit(node.url)
    head = (
        f"GET /v1/sprites/{name}/exec?cmd=cat&stdin=true HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {node.token}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30) as connection:
        connection.sendall(head.encode() + b"\xff" * 5000)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert b" 101 " in answer
    assert b"\x88" in answer  # a close frame (RFC 6455 5.5.1)
    assert exec_websocket(node, name, "true").terminal == [0]


@pytest.mark.parametrize(
    "lines",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_ambiguous_framing(node: TestNode, lines: bytes) -> None:
    answer = raw_request(node, lines)
    assert answer.startswith(b"HTTP/1.1 400 ")
    error_of(answer.partition(b"\r\n\r\n")[2])


def test_a_client_that_vanishes_leaves_nothing(node: TestNode, name: str) -> None:
    url = f"{node.url.replace('http', 'ws', 1)}/v1/sprites/{name}/exec?cmd=sleep&cmd=8642&max_run_after_disconnect=1s"
    headers = {"Authorization": f"Bearer {node.token}"}
    with pytest.raises(ConnectionClosed), connect(url, additional_headers=headers, proxy=None) as connection:
        connection.recv(timeout=30)
        listed = node.api("GET", f"/v1/sprites/{name}/exec").json()["sessions"]
        assert "sleep 8642" in [each["command"] for each in listed]
        connection.socket.shutdown(socket.SHUT_RDWR)
        connection.recv(timeout=30)
    eventually(lambda: "sleep 8642" not in node.api("GET", f"/v1/sprites/{name}/exec").text)
    assert exec_websocket(node, name, "pgrep", "-f", "sleep 8642").terminal == [1]


def test_another_organization_sees_nothing(node: TestNode, name: str) -> None:
    async def make() -> tuple[str, str]:
        registry = await Registry.open(url_of(node.config.registry_file))
        try:
            info, text = await registry.create_token("rival", "test")
            return text, info.id
        finally:
            await registry.close()

    async def revoke(token_id: str) -> None:
        registry = await Registry.open(url_of(node.config.registry_file))
        try:
            assert await registry.revoke_token(token_id)
        finally:
            await registry.close()

    token, token_id = asyncio.run(make())
    rival = {"Authorization": f"Bearer {token}"}
    for method, below in (("GET", ""), ("DELETE", ""), ("GET", "/exec"), ("GET", "/events"), ("POST", "/restart")):
        assert node.api(method, f"/v1/sprites/{name}{below}", headers=rival).status_code == 404
    assert node.api("GET", "/v1/sprites", headers=rival).json()["sprites"] == []
    asyncio.run(revoke(token_id))
    assert node.api("GET", "/v1/sprites", headers=rival).status_code == 401

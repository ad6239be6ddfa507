"""Sprites' URLs of a real node: who may open one, log-ins, what wakes, and what passes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest

from ballpoint.core import ids
from ballpoint.registry.database import url_of
from ballpoint.registry.registry import Registry
from tests.edge.wires import Message, Wire, parse, post
from tests.edge.wires import get as head_of
from tests.node import web
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually

pytestmark = pytest.mark.node

T = TypeVar("T")
_SECONDS = 60.0
ORG = "acme"
HTML = "Accept: text/html,application/xhtml+xml"


def port_of(node: TestNode) -> int:
    return urlsplit(node.url).port or 0


def host_of(node: TestNode, name: str, org: str = ORG) -> str:
    return f"{name}-{org}.sprites.localhost:{port_of(node)}"


def connect(node: TestNode) -> Wire:
    wire = Wire(socket.create_connection(("127.0.0.1", port_of(node))))
    wire.sock.settimeout(_SECONDS)
    return wire


def ask(node: TestNode, host: str, *fields: str, target: str = "/", method: str = "GET", body: bytes = b"") -> Message:
    """The answer to one request."""
    more = [f"Content-Length: {len(body)}"] if body or method == "POST" else []
    with connect(node) as client:
        client.send(head_of(target, *fields, *more, method=method, host=host) + body)
        return client.response(method)


def bearer(token: str) -> str:
    return f"Authorization: Bearer {token}"


def registered(node: TestNode, work: Callable[[Registry], Coroutine[Any, Any, T]]) -> T:
    """What `work` does in the node's registry, from outside it."""

    async def run() -> T:
        registry = await Registry.open(url_of(node.config.registry_file))
        try:
            return await work(registry)
        finally:
            await registry.close()

    return asyncio.run(run())


def start_web(sprite: Any, port: int = 8080) -> None:
    program = base64.b64encode(Path(web.__file__).read_bytes()).decode()
    code, said = shell(
        sprite,
        f"echo {program} | base64 -d >$HOME/web.py; "
        f"setsid python3 $HOME/web.py {port} >/tmp/web.log 2>&1 </dev/null & "
        f"until (echo >/dev/tcp/127.0.0.1/{port}) 2>/dev/null; do sleep 0.05; done",
    )
    assert code == 0, said


@pytest.fixture(scope="module")
def rival(node: TestNode) -> str:
    """A token of another organization."""
    return registered(node, lambda registry: registry.create_token("rival", "urls"))[1]


@pytest.fixture(scope="module")
def private(node: TestNode) -> Iterator[str]:
    """The name of a sprite whose URL asks for a token, with a server."""
    yield from _made(node, "sprite")


@pytest.fixture(scope="module")
def public(node: TestNode) -> Iterator[str]:
    """The name of one that is open to everybody."""
    yield from _made(node, "public")


def _made(node: TestNode, auth: str) -> Iterator[str]:
    name = f"u-{ids.new_instance_id()}"
    client = node.client()
    start_web(client.create_sprite(name))
    assert node.api("PUT", f"/v1/sprites/{name}", json={"url_settings": {"auth": auth}}).status_code == 200
    yield name
    client.delete_sprite(name)


def log_in(node: TestNode, host: str, token: str, target: str = "/") -> tuple[str, Message]:
    """Log in as a browser does. Returns the field Cookie, and the last answer."""
    first = ask(node, host, HTML, target=target)
    assert first.status == 303, first.body
    page = urlsplit(first.get("location") or "")
    to = parse_qs(page.query)["to"][0]
    shown = ask(node, page.netloc, HTML, target=f"/?{page.query}")
    assert shown.status == 200
    answer = send_form(node, page.netloc, token, to)
    assert answer.status == 303, answer.body
    back = urlsplit(answer.get("location") or "")
    assert back.netloc == host
    done = ask(node, host, HTML, target=f"{back.path}?{back.query}")
    cookie = (done.get("set-cookie") or "").partition(";")[0]
    return f"Cookie: {cookie}", done


def send_form(node: TestNode, host: str, token: str, to: str, origin: str | None = None) -> Message:
    body = urlencode({"token": token, "to": to}).encode()
    fields = ["Content-Type: application/x-www-form-urlencoded", f"Origin: {origin or f'http://{host}'}"]
    return ask(node, host, *fields, method="POST", body=body)


def auth_host(node: TestNode) -> str:
    return f"auth.sprites.localhost:{port_of(node)}"


# ---- who may open it ----


def test_the_url_that_is_shown_is_the_one_that_works(node: TestNode, private: str) -> None:
    shown = node.api("GET", f"/v1/sprites/{private}").json()["url"]
    assert shown == f"http://{host_of(node, private)}"
    assert ask(node, urlsplit(shown).netloc, bearer(node.token)).status == 200


def test_a_public_url_asks_for_nothing(node: TestNode, public: str) -> None:
    assert ask(node, host_of(node, public)).status == 200
    assert ask(node, host_of(node, public), HTML).status == 200


def test_what_an_application_asks_for_itself_passes(node: TestNode, public: str) -> None:
    for field in ("Authorization: Basic eDp5", "Authorization: Bearer its-own", "Authorization: Bearer a/b/c/d"):
        answer = ask(node, host_of(node, public), field, "Cookie: ballpoint=x; its=own")
        assert field.encode() in answer.body
        assert b"\r\nCookie: its=own\r\n" in answer.body


def test_a_token_of_ours_never_reaches_a_server(node: TestNode, public: str, private: str, rival: str) -> None:
    for name, token in ((public, node.token), (public, rival), (private, node.token)):
        answer = ask(node, host_of(node, name), bearer(token), "X-Kept: 1")
        assert answer.status == 200
        assert b"X-Kept: 1" in answer.body
        assert token.encode() not in answer.body
        assert b"uthorization" not in answer.body


def test_without_a_log_in(node: TestNode, private: str) -> None:
    host = host_of(node, private)
    for fields in ([], ["Authorization: Bearer its-own"], ["Cookie: ballpoint=forged"], [HTML, "Sec-Fetch-Mode: cors"]):
        answer = ask(node, host, *fields)
        assert (answer.status, answer.get("www-authenticate")) == (401, "Bearer")
    assert ask(node, host, HTML, method="POST").status == 401
    assert ask(node, host, HTML, "Connection: Upgrade", "Upgrade: websocket").status == 401
    answer = ask(node, host, HTML, target="/a?b=c&d=%2F")
    wanted = quote(f"http://{host}/a?b=c&d=%2F", safe="")
    assert (answer.status, answer.get("location")) == (303, f"http://{auth_host(node)}/?to={wanted}")


def test_who_may_not_see_a_sprite_cannot_tell_whether_it_exists(node: TestNode, private: str, rival: str) -> None:
    def seen(name: str, org: str, *fields: str, method: str = "GET") -> tuple[int, bytes, list[tuple[str, str]]]:
        answer = ask(node, host_of(node, name, org), *fields, method=method)
        shown = [(key, value.replace(f"{name}-{org}", "X")) for key, value in answer.fields if key != "x-request-id"]
        return answer.status, re.sub(rb"request [0-9a-f]+", b"", answer.body), shown

    absent = "u-" + ids.new_instance_id()
    for fields in ([], [HTML], [bearer(rival)], [bearer(rival), HTML], [bearer("nonsense")], ["Cookie: ballpoint=x"]):
        for method in ("GET", "POST", "OPTIONS"):
            there = seen(private, ORG, *fields, method=method)
            assert there[0] in (303, 401, 404)
            assert there == seen(absent, ORG, *fields, method=method) == seen(absent, "nobody", *fields, method=method)
    # In the page to log in, too.
    for name in (private, absent):
        to = f"http://{host_of(node, name)}/"
        assert send_form(node, auth_host(node), rival, to).status == 404
        assert send_form(node, auth_host(node), "nonsense", to).status == 401


def test_a_name_that_no_sprite_can_have_is_nobodys(node: TestNode) -> None:
    for host in (
        "a.b.sprites.localhost",
        "_x.sprites.localhost",
        "-x.sprites.localhost",
        "x" * 64 + ".sprites.localhost",
    ):
        assert ask(node, host, target="/v1/sprites").status == 401
        assert ask(node, host, bearer(node.token), target="/v1/sprites").status == 404


def test_one_organization_reaches_nothing_of_another(node: TestNode, private: str, rival: str) -> None:
    host = host_of(node, private)
    assert ask(node, host, bearer(rival)).status == 404
    cookie, done = log_in(node, host, node.token)
    assert done.status == 303
    assert ask(node, host_of(node, private, "rival"), cookie).status == 401


def test_paths_of_the_api_are_the_sprites_own(node: TestNode, public: str) -> None:
    for target in ("/v1/sprites", f"/v1/sprites/{public}/exec?cmd=true", "/docs", "/metrics", "/v1/tls/ask?domain=x"):
        answer = ask(node, host_of(node, public), bearer(node.token), target=target)
        assert answer.body.startswith(f"GET {target} HTTP/1.1\r\n".encode())


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]:80", "localhost", "sprites.localhost", "api.sprites.localhost", "x.y"]
)
def test_other_hosts_are_the_apis(node: TestNode, host: str) -> None:
    assert ask(node, host, target="/v1/sprites").status == 401
    assert "sprites" in json.loads(ask(node, host, bearer(node.token), target="/v1/sprites").body)


def test_one_connection_serves_many_hosts_each_by_its_own_rules(node: TestNode, public: str, private: str) -> None:
    api = f"127.0.0.1:{port_of(node)}"
    plan = [
        (host_of(node, public), [], 200), (api, [], 401), (host_of(node, private), [], 401),
        (host_of(node, private), [bearer(node.token)], 200), (host_of(node, private), [], 401),
        (api, [bearer(node.token)], 200), (host_of(node, public).upper(), [], 200), (api, [], 401),
    ]  # fmt: skip
    with connect(node) as first, connect(node) as second:
        for client in (first, second):
            client.send(b"".join(head_of("/v1/sprites", *fields, host=host) for host, fields, _ in plan))
        for client in (first, second):
            assert [client.response().status for _ in plan] == [status for _, _, status in plan]


def test_a_request_hidden_in_a_body_stays_there(node: TestNode, public: str) -> None:
    hidden = head_of("/v1/sprites", bearer(node.token), host="127.0.0.1")
    with connect(node) as client:
        client.send(post("/x", hidden, host=host_of(node, public)) + head_of("/last", host=host_of(node, public)))
        assert client.response().body.endswith(hidden)
        assert parse(client.response().body).line == "GET /last HTTP/1.1"


# ---- logging in ----


def test_a_browser_logs_in_and_comes_where_it_wanted(node: TestNode, private: str) -> None:
    host = host_of(node, private)
    cookie, done = log_in(node, host, node.token, "/a//b?c=d")
    assert (done.status, done.get("location")) == (303, f"http://{host}/a//b?c=d")
    attributes = (done.get("set-cookie") or "").split("; ")[1:]
    assert set(attributes) == {"Path=/", "HttpOnly", "SameSite=Lax", "Max-Age=604800"}  # and no Domain
    assert re.fullmatch(r"Cookie: ballpoint=[A-Za-z0-9_-]{43}", cookie)
    answer = ask(node, host, HTML, f"{cookie}; its=own", "Authorization: Bearer its-own")
    assert answer.status == 200
    assert b"ballpoint" not in answer.body
    assert b"\r\nCookie: its=own\r\n" in answer.body
    assert b"\r\nAuthorization: Bearer its-own\r\n" in answer.body
    tossed = cookie.replace("Cookie: ", "Cookie: ballpoint=forged; ")
    assert ask(node, host, tossed).status == 200


def test_a_path_that_looks_like_a_host_leads_nowhere_else(node: TestNode, private: str) -> None:
    host = host_of(node, private)
    _, done = log_in(node, host, node.token, "//evil.example/x")
    assert done.get("location") == f"http://{host}//evil.example/x"


def test_a_code_is_good_once_and_at_its_host(node: TestNode, private: str, public: str) -> None:
    host = host_of(node, private)

    def code() -> str:
        answer = send_form(node, auth_host(node), node.token, f"http://{host}/x")
        return (answer.get("location") or "").removeprefix(f"http://{host}")

    def opens(at: str, target: str, method: str = "GET") -> bool:
        return ask(node, at, target=target, method=method).get("set-cookie") is not None

    target = code()
    assert not opens(host, target, "HEAD")
    assert opens(host, target)
    assert not opens(host, target)
    elsewhere = code()
    assert not opens(host_of(node, public), elsewhere)
    assert not opens(host, elsewhere)
    assert not opens(host, "/.ballpoint/log-in?code=")
    assert not opens(host, "/.ballpoint/log-in")


def test_a_log_in_is_good_for_one_sprite(node: TestNode, private: str) -> None:
    other = f"u-{ids.new_instance_id()}"
    node.client().create_sprite(other)
    cookie, _ = log_in(node, host_of(node, private), node.token)
    assert ask(node, host_of(node, private), cookie).status == 200
    assert ask(node, host_of(node, other), cookie).status == 401
    node.client().delete_sprite(other)


def test_a_log_in_dies_with_its_token_and_by_logging_out(node: TestNode, private: str) -> None:
    host = host_of(node, private)
    info, token = registered(node, lambda registry: registry.create_token(ORG, "short"))
    cookie, _ = log_in(node, host, token)
    assert ask(node, host, cookie).status == 200
    assert registered(node, lambda registry: registry.revoke_token(info.id))
    assert ask(node, host, cookie).status == 401

    cookie, _ = log_in(node, host, node.token)
    cross = ["Origin: http://evil.sprites.localhost", cookie]
    assert ask(node, host, *cross, method="POST", target="/.ballpoint/log-out").status == 403
    assert ask(node, host, cookie).status == 200
    out = ask(node, host, cookie, f"Origin: http://{host}", method="POST", target="/.ballpoint/log-out")
    assert out.status == 204
    assert "Max-Age=0" in (out.get("set-cookie") or "")
    assert ask(node, host, cookie).status == 401


def test_a_query_of_many_fields_is_one_without_a_code(node: TestNode, public: str) -> None:
    answer = ask(node, host_of(node, public), target=f"/.ballpoint/log-in?{'a&' * 100}code=x")
    assert (answer.status, answer.get("location")) == (303, f"http://{host_of(node, public)}/")


def test_our_paths_never_reach_a_server(node: TestNode, public: str) -> None:
    for target in ("/.ballpoint", "/.ballpoint/", "/.ballpoint/x", "/.ballpoint/log-out", "/.ballpoint?x"):
        assert ask(node, host_of(node, public), target=target).status == 404
    assert ask(node, host_of(node, public), target="/.ballpointed").status == 200


def test_the_page_to_log_in(node: TestNode, private: str) -> None:
    host = host_of(node, private)
    to = f'http://{host}/"><script>alert(1)</script>'
    answer = ask(node, auth_host(node), target=f"/?to={quote(to, safe='')}")
    assert answer.status == 200
    assert b"<script" not in answer.body
    policy = (answer.get("content-security-policy") or "").split("; ")
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert f"form-action 'self' http://{host}" in policy
    # Browsers say Origin: null of what a page of `no-referrer` sends, and that is what other sites' pages look like.
    assert (answer.get("referrer-policy"), answer.get("cache-control")) == ("same-origin", "no-store")
    assert b"Log in" in answer.body


@pytest.mark.parametrize(
    "to",
    [
        "", "/", "//evil.example", "http://evil.example/", "https://u-x-acme.sprites.localhost/", "javascript:alert(1)",
        "http://u-x-acme.sprites.localhost.evil.example/", "http://u-x-acme.sprites.localhost@evil.example/",
        "http://evil.example#.sprites.localhost/", "http://auth.sprites.localhost/", "http://api.sprites.localhost/",
    ],
)  # fmt: skip
def test_the_page_leads_to_sprites_only(node: TestNode, to: str) -> None:
    page = ask(node, auth_host(node), target=f"/?to={quote(to, safe='')}")
    assert page.status == 400
    assert b"<form" not in page.body
    answer = send_form(node, auth_host(node), node.token, to)
    assert (answer.status, answer.get("location")) == (400, None)


def test_another_sites_page_cannot_log_anybody_in(node: TestNode, private: str) -> None:
    to = f"http://{host_of(node, private)}/"
    for origin in ("http://evil.example", "null", f"http://{host_of(node, private)}", f"https://{auth_host(node)}"):
        answer = send_form(node, auth_host(node), node.token, to, origin)
        assert (answer.status, answer.get("location")) == (403, None)
    body = urlencode({"token": node.token, "to": to}).encode()
    assert ask(node, auth_host(node), method="POST", body=body).status == 403
    assert ask(node, auth_host(node), "Sec-Fetch-Site: same-site", method="POST", body=body).status == 403
    assert ask(node, auth_host(node), "Sec-Fetch-Site: same-origin", method="POST", body=body).status == 303


def test_the_page_is_at_its_own_host_only(node: TestNode) -> None:
    for target in ("/.ballpoint/log-in", "/%2eballpoint/log-in", "/.ballpoint/log-in?to=x"):
        assert ask(node, "127.0.0.1", bearer(node.token), target=target).status == 404
        assert ask(node, "127.0.0.1", target=target).status == 401
    for target in ("/v1/sprites", "/docs", "/x"):
        assert ask(node, auth_host(node), bearer(node.token), target=target).status == 404


# ---- pages of other hosts ----


@pytest.mark.parametrize(
    ("method", "fields", "passes"),
    [
        ("POST", ["Origin: http://{host}"], True),
        ("POST", ["Origin: HTTP://{host}"], True),
        ("POST", ["Origin: http://{host}", "Sec-Fetch-Site: same-origin"], True),
        ("POST", ["Sec-Fetch-Site: same-origin"], True),
        ("POST", ["Sec-Fetch-Site: none"], True),
        ("POST", [], False),
        ("POST", ["Origin: null"], False),
        ("POST", ["Origin: null", "Sec-Fetch-Site: same-origin"], True),
        ("POST", ["Origin: null", "Sec-Fetch-Site: none"], False),
        ("POST", ["Origin: null", "Sec-Fetch-Site: same-site"], False),
        ("POST", ["Origin: null", "Sec-Fetch-Site: cross-site"], False),
        ("POST", ["Origin: http://evil.example"], False),
        ("POST", ["Origin: https://{host}"], False),
        ("POST", ["Origin: http://{host}", "Sec-Fetch-Site: same-site"], False),
        ("POST", ["Sec-Fetch-Site: same-site"], False),
        ("POST", ["Sec-Fetch-Site: cross-site"], False),
        ("DELETE", ["Origin: http://other-acme.sprites.localhost"], False),
        ("PROPFIND", ["Sec-Fetch-Site: cross-site"], False),
        ("GET", ["Origin: http://evil.example", "Sec-Fetch-Site: cross-site"], True),
        ("OPTIONS", ["Origin: http://evil.example"], True),
        ("upgrade", ["Origin: http://{host}"], True),
        ("upgrade", ["Origin: http://evil.example"], False),
        ("upgrade", ["Origin: http://other-acme.sprites.localhost", "Sec-Fetch-Site: same-site"], False),
        ("upgrade", [], False),
    ],
)
def test_a_log_in_alone_is_not_enough_for_other_pages(
    node: TestNode, private: str, method: str, fields: list[str], passes: bool
) -> None:
    host = host_of(node, private)
    cookie, _ = log_in(node, host, node.token)
    sent = [each.format(host=host) for each in fields]
    target = "/"
    if method == "upgrade":
        sent += ["Connection: Upgrade", "Upgrade: websocket"]
        method, target = "GET", "/ws"
    with connect(node) as client:
        client.send(head_of(target, cookie, *sent, method=method, host=host))
        assert client.head().status in ((200, 101) if passes else (403,))
    with connect(node) as client:  # what only a program can send is enough
        client.send(head_of(target, bearer(node.token), cookie, *sent, method=method, host=host))
        assert client.head().status in (200, 101)


# ---- what passes ----


def test_a_web_socket(node: TestNode, private: str) -> None:
    with connect(node) as client:
        upgrade = ["Connection: Upgrade", "Upgrade: websocket", bearer(node.token)]
        client.send(head_of("/ws", *upgrade, host=host_of(node, private)))
        assert client.head().status == 101
        block = os.urandom(1 << 20)
        assert client.send(block).exactly(len(block)) == block
        client.finish()
        assert client.rest() == b""


def test_events_arrive_when_they_are_sent(node: TestNode, public: str) -> None:
    with connect(node) as client:
        client.send(head_of("/events", "Accept: text/event-stream", host=host_of(node, public)))
        assert client.head().status == 200
        assert client.until(b"the first\n\r\n")
        assert ask(node, host_of(node, public), target="/go").status == 200
        assert client.until(b"0\r\n\r\n") == b"11\r\ndata: the second\n\r\n0\r\n\r\n"


def test_large_bodies(node: TestNode, public: str, soak: bool) -> None:
    size = (1 << 30) if soak else (96 << 20)
    want = hashlib.sha256()
    with connect(node) as client:
        client.send(head_of("/take", f"Content-Length: {size}", method="POST", host=host_of(node, public)))
        for block in web.blocks(size):
            client.send(block)
            want.update(block)
        assert client.response().body == f"{want.hexdigest()} {size}".encode()
        client.send(head_of(f"/give?{size}", host=host_of(node, public))).head()
        got = hashlib.sha256()
        for _ in range(size >> 20):
            got.update(client.exactly(1 << 20))
    assert got.hexdigest() == want.hexdigest()


def test_a_chunked_body(node: TestNode, public: str) -> None:
    with connect(node) as client:
        client.send(head_of("/take", "Transfer-Encoding: chunked", method="POST", host=host_of(node, public)))
        for size in (1, 70_000, 3):
            client.send(b"%x\r\n" % size + b"x" * size + b"\r\n")
        answer = client.send(b"0\r\n\r\n").response()
    assert answer.body == f"{hashlib.sha256(b'x' * 70_004).hexdigest()} 70004".encode()


# ---- waking ----


def test_a_request_wakes_a_cold_sprite_and_says_what_is_missing(node: TestNode) -> None:
    name = f"u-{ids.new_instance_id()}"
    sprite = node.client().create_sprite(name)
    start_web(sprite)
    host, token = host_of(node, name), bearer(node.token)
    assert ask(node, host, token).status == 200
    assert node.api("POST", f"/v1/sprites/{name}/sleep").json()["status"] == "cold"
    assert ask(node, host).status == 401
    assert node.api("GET", f"/v1/sprites/{name}").json()["status"] == "cold"  # nobody woke it
    answer = ask(node, host, token)  # its server went with it
    assert (answer.status, json.loads(answer.body)["error"]) == (503, "nothing_listens")
    assert answer.get("retry-after")
    assert node.api("GET", f"/v1/sprites/{name}").json()["status"] == "running"
    events = [json.loads(line) for line in node.api("GET", f"/v1/sprites/{name}/events").text.splitlines()]
    token_id = node.token.split("/")[2]
    assert events[-1]["cause"] == f"opened by its URL with token {token_id}"
    node.client().delete_sprite(name)
    assert ask(node, host, token).status == 404


def test_a_server_that_is_just_starting_is_waited_for(node: TestNode) -> None:
    name = f"u-{ids.new_instance_id()}"
    sprite = node.client().create_sprite(name)
    start_web(sprite)

    def waited_for() -> bool:
        node.api("POST", f"/v1/sprites/{name}/sleep")
        with connect(node) as client:
            client.send(head_of("/", bearer(node.token), host=host_of(node, name)))
            eventually(lambda: node.api("GET", f"/v1/sprites/{name}").json()["status"] == "running")
            code, said = shell(sprite, "setsid python3 $HOME/web.py 8080 >/dev/null 2>&1 </dev/null &")
            assert code == 0, said
            answer = client.response()
        # A server that needs more than five seconds is not waited for.
        assert answer.status == 200 or json.loads(answer.body)["error"] == "nothing_listens"
        return answer.status == 200

    eventually(waited_for, 120)
    node.client().delete_sprite(name)


def test_a_sprite_without_a_server_says_so(own_node: TestNode) -> None:
    own_node.start()
    own_node.client().create_sprite("web")
    own_node.terminate()
    own_node.start()  # so it was not started just now
    answer = ask(own_node, host_of(own_node, "web"), bearer(own_node.token), HTML)
    assert answer.status == 502
    assert b"Nothing listens on port 8080" in answer.body


def test_short_hosts_while_there_is_one_organization_and_log_ins_outlive_the_node(own_node: TestNode) -> None:
    own_node.start()
    start_web(own_node.client().create_sprite("web"))
    cookie, _ = log_in(own_node, f"web.sprites.localhost:{port_of(own_node)}", own_node.token)
    own_node.terminate()
    own_node.start()
    host = f"web.sprites.localhost:{port_of(own_node)}"
    assert ask(own_node, host, cookie).status == 200
    registered(own_node, lambda registry: registry.create_token("rival", ""))
    assert ask(own_node, host, bearer(own_node.token)).status == 404
    assert ask(own_node, host_of(own_node, "web"), bearer(own_node.token)).status == 200


# ---- certificates ----


def test_a_proxy_may_ask_for_which_hosts_it_may_have_certificates(node: TestNode, private: str) -> None:
    def may(domain: str) -> int:
        answer = ask(node, f"127.0.0.1:{port_of(node)}", target=f"/v1/tls/ask?domain={quote(domain)}")
        assert answer.body == b""
        return answer.status

    for good in (f"{private}-acme", "auth", "api", "www"):
        assert may(f"{good}.sprites.localhost") == 200
    assert may("sprites.localhost") == may(f"{private}-acme.sprites.localhost".upper()) == 200
    for bad in ("nobody-acme.sprites.localhost", "x.y.sprites.localhost", "example.com", "127.0.0.1", "", "localhost"):
        assert may(bad) == 404


def test_settings_of_the_front_show_in_urls_and_cookies(own_node: TestNode) -> None:
    own_node.options += [
        "--domain", "sprites.example.com", "--front", "https", "--trusted-proxies", "203.0.113.1/32",
    ]  # fmt: skip
    own_node.start()
    sprite = own_node.client().create_sprite("web")
    start_web(sprite)
    assert own_node.api("GET", "/v1/sprites/web").json()["url"] == "https://web-acme.sprites.example.com"
    host = "web-acme.sprites.example.com"
    first = ask(own_node, host, HTML)
    assert first.get("location") == f"https://auth.sprites.example.com/?to={quote(f'https://{host}/', safe='')}"
    body = urlencode({"token": own_node.token, "to": f"https://{host}/"}).encode()
    answer = ask(
        own_node, "auth.sprites.example.com", "Origin: https://auth.sprites.example.com", method="POST", body=body
    )
    target = (answer.get("location") or "").removeprefix(f"https://{host}")
    done = ask(own_node, host, target=target)
    name, _, attributes = (done.get("set-cookie") or "").partition("=")
    assert name == "__Host-ballpoint"
    assert set(attributes.split("; ")[1:]) == {"Path=/", "HttpOnly", "SameSite=Lax", "Max-Age=604800", "Secure"}
    value = attributes.partition(";")[0]
    answer = ask(own_node, host, f"Cookie: {name}={value}", f"Origin: https://{host}", method="POST")
    assert answer.status == 200
    assert b"X-Forwarded-Proto: http\r\n" in answer.body  # this peer is not the proxy
    # Not to who is not the proxy.
    assert ask(own_node, "127.0.0.1", target="/v1/tls/ask?domain=auth.sprites.example.com").status == 401


def test_the_service_with_a_port_answers_also_from_cold(node: TestNode) -> None:
    name = f"t-{ids.new_instance_id()}"
    node.client().create_sprite(name)
    assert node.api("PUT", f"/v1/sprites/{name}", json={"url_settings": {"auth": "public"}}).status_code == 200
    program = (
        "import http.server as h, sys\n"
        "class P(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers(); self.wfile.write(b'the service')\n"
        "h.HTTPServer(('127.0.0.1', 9000), P).serve_forever()\n"
    )
    body = {"cmd": "python3", "args": ["-c", program], "http_port": 9000}
    made = node.api("PUT", f"/v1/sprites/{name}/services/web?duration=0s", json=body)
    assert made.status_code == 200, made.text
    eventually(lambda: ask(node, host_of(node, name)).body == b"the service")
    for _ in range(2):
        assert node.api("POST", f"/v1/sprites/{name}/sleep").json()["status"] == "cold"
        answer = ask(node, host_of(node, name))
        assert (answer.status, answer.body) == (200, b"the service")
    assert node.api("POST", f"/v1/sprites/{name}/services/web/stop").status_code == 200
    answer = ask(node, host_of(node, name))
    assert answer.status == 503
    assert b"stopped" in answer.body
    assert node.api("DELETE", f"/v1/sprites/{name}").status_code == 204

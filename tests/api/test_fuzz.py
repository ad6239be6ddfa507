"""No body makes the API fail, and what is accepted is what the node is asked for."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from unicodedata import category
from urllib.parse import quote, urlencode

import httpx2
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.api.guard import LOG_IN_PATH
from ballpoint.core.errors import InvalidError, UnauthorizedError
from ballpoint.core.hosts import Site
from ballpoint.core.ids import check_name

from .double import NodeDouble, app_of, caller_header
from .test_tasks import World

# Every code point, lone surrogates too: an escape in JSON can spell them.
TEXT = st.text(st.characters(exclude_categories=()))
# And whole numbers that are more than a float can hold.
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400) | TEXT
ANYTHING = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=12)
KEYS = st.sampled_from(
    ["name", "config", "environment", "url_settings", "labels", "clear_labels", "wait_for_capacity", "runtime",
     "ram_mb", "ramMB", "cpus", "auth", "private_access", "profile", "devices", "noNewPrivileges", "comment",
     "checkpoint", "memory", "limit_mb", "autoscale", "idle_timeout", "region", "storage_gb", "storageGB"]
)  # fmt: skip
NEAR = st.dictionaries(KEYS, ANYTHING | st.dictionaries(KEYS, ANYTHING) | st.lists(TEXT))
ROUTES = [
    ("POST", "/v1/sprites"),
    ("PUT", "/v1/sprites/web"),
    ("POST", "/v1/sprites/web/policy/privileges"),
    ("POST", "/v1/sprites/web/policy/resources"),
    ("POST", "/v1/sprites/web/checkpoint"),
    ("POST", "/v1/sprites/web/fork"),
]


class LogIns:
    """Lets in whoever says `good`."""

    site = Site("sprites.localhost", "http", 80)
    log_in_origin = site.log_in

    def wanted(self, to: str) -> str:
        read = self.site.read(to)
        if read is None:
            raise InvalidError("this is no URL of a sprite here")
        return self.site.origin(read[0])

    async def log_in(self, token: str, to: str) -> str:
        if token != "good":
            raise UnauthorizedError("the token is not valid")
        return f"{self.wanted(to)}/in"


NODE = NodeDouble()
APP = app_of(NODE, log_ins=LogIns())


def send(method: str, path: str, content: bytes, headers: dict[str, str] | None = None) -> httpx2.Response:
    async def once() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=APP)
        fields = headers or caller_header()
        async with httpx2.AsyncClient(transport=transport, base_url="http://node", headers=fields) as client:
            return await client.request(method, path, content=content)

    return asyncio.run(once())


def check(route: tuple[str, str], content: bytes) -> None:
    NODE.reset()
    NODE.put("web")
    answer = send(*route, content)
    assert answer.status_code in (200, 201, 204, 400, 404, 409, 422)
    if answer.status_code >= 400:
        body = answer.json()
        assert isinstance(body["error"], str)
        assert isinstance(body["message"], str)
        answer.content.decode()
        assert NODE.asked == [] or answer.status_code in (404, 409)


@given(st.sampled_from(ROUTES), ANYTHING | NEAR)
def test_any_json_is_accepted_or_refused(route: tuple[str, str], body: Any) -> None:
    check(route, json.dumps(body).encode())


@given(st.sampled_from(ROUTES), st.binary())
def test_any_bytes_are_accepted_or_refused(route: tuple[str, str], content: bytes) -> None:
    check(route, content)


@given(TEXT | st.text("a\t\n\r\x9b"), st.sampled_from(["", "?wait=durable"]))
def test_a_comment_that_is_accepted_is_what_the_checkpoint_has(comment: str, query: str) -> None:
    NODE.reset()
    NODE.put("web")
    answer = send("POST", f"/v1/sprites/web/checkpoint{query}", json.dumps({"comment": comment}).encode())
    if answer.status_code == 200:
        (made,) = NODE.checkpoints_of["o1", "web"]
        assert made.comment == comment
        assert made.durable is bool(query)
        assert all(category(each) != "Cc" or each in "\t\n" for each in comment)
        (listed,) = send("GET", "/v1/sprites/web/checkpoints", b"").json()
        assert listed["comment"] == comment
    else:
        assert answer.status_code == 422
        assert NODE.asked == []


@given(st.from_regex(r"[a-z0-9-]{1,50}", fullmatch=True), st.lists(st.text("abc", min_size=1)), st.booleans())
def test_what_is_accepted_is_what_is_asked(name: str, labels: list[str], wait: bool) -> None:
    NODE.reset()
    body = {"name": name, "labels": labels[:64], "wait_for_capacity": wait}
    answer = send("POST", "/v1/sprites", json.dumps(body).encode())
    if answer.status_code == 201:
        request = NODE.requests[0]
        assert check_name(request.name) == name
        assert set(request.labels) == set(labels[:64])
        assert request.wait_for_capacity is wait
    else:
        assert answer.status_code == 422
        assert NODE.asked == []


TASKS = World()
TASK = st.dictionaries(st.sampled_from(["name", "expire"]), ANYTHING)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["POST", "PUT", "GET", "DELETE"]),
            st.sampled_from(["", "/one"])
            | st.text(st.characters(exclude_categories=["Cs"])).map(lambda name: f"/{name}"),
            st.binary() | TASK.map(lambda said: json.dumps(said).encode()),
        ),
        max_size=5,
    )
)
def test_whatever_is_said_of_tasks_they_can_be_listed_behind_it(asked: list[tuple[str, str, bytes]]) -> None:
    TASKS.runtime.note = {"sprite": "s-one"}

    async def ask() -> None:
        for method, path, body in asked:
            status, said = await TASKS.ask(method, path, body)
            assert status in (200, 201, 204, 400, 404, 405, 409), said
            assert (await TASKS.ask("GET"))[0] == 200

    asyncio.run(ask())


HERE = "http://web-acme.sprites.localhost/"
FORM = st.binary() | st.lists(
    st.tuples(st.sampled_from(["to", "token", "x"]), st.sampled_from([HERE, "good"]) | TEXT), max_size=12
).map(lambda pairs: urlencode(pairs, errors="surrogatepass").encode())


@given(
    FORM, st.sampled_from([LogIns.log_in_origin, "null", HERE, None]), st.sampled_from(["same-origin", "none", None])
)
def test_any_form_logs_in_or_is_answered_with_the_page(form: bytes, origin: str | None, site: str | None) -> None:
    said = {"origin": origin, "sec-fetch-site": site}
    headers = {"X-Ballpoint-Caller": "{}", **{name: value for name, value in said.items() if value is not None}}
    for method, query in (("POST", ""), ("GET", f"?{quote(form, safe='=&%+')}")):
        answer = send(method, LOG_IN_PATH + query, form, headers)
        assert answer.status_code in (200, 303, 400, 401, 403)
        if answer.status_code == 303:
            assert (method, site == "none", origin in (None, LogIns.log_in_origin)) == ("POST", False, True)
            assert answer.headers["location"] == f"{HERE}in"
        else:
            assert answer.headers["content-type"] == "text/html; charset=utf-8"

"""Requests: where they go, what of them passes, and what comes back."""

from __future__ import annotations

import json
import threading

import pytest

from tests.edge.wires import Wire, get, parse, post
from tests.edge.world import TOKEN, World

# ---- where a request goes, and what of it passes ----


def test_the_node_is_asked_with_what_it_needs_to_decide(world: World) -> None:
    with world.connect() as client:
        client.send(get("/v1/x?cmd=a%20b", f"Authorization: Bearer {TOKEN}", method="DELETE")).response()
    assert world.questions == [
        {"method": "DELETE", "target": "/v1/x?cmd=a%20b", "host": "edge", "token": TOKEN, "peer": "127.0.0.1"}
    ]


@pytest.mark.parametrize("fields", [[], ["Authorization: Basic QWxhZGRpbg=="], ["Authorization: Bearer"]])
def test_without_a_bearer_token_the_node_is_asked_without_one(world: World, fields: list[str]) -> None:
    with world.connect() as client:
        client.send(get("/", *fields)).response()
    assert [question["token"] for question in world.questions] == [""]


def test_the_api_is_told_who_calls_and_only_by_the_edge(world: World) -> None:
    forged = ["X-Ballpoint-Caller: {}", "x-ballpoint-caller: {}", "X-BALLPOINT-Anything: 1"]
    with world.connect() as client:
        client.send(get("/", f"Authorization: Bearer {TOKEN}", *forged)).response()
    request = parse(world.api.seen.get())
    assert json.loads(request.get("x-ballpoint-caller") or "") == {"token": TOKEN}
    assert request.get("x-ballpoint-anything") is None


@pytest.mark.parametrize("target", ["/", "/agent/exec"])
def test_secrets_and_fields_of_one_connection_do_not_pass(world: World, target: str) -> None:
    gone = {
        "Authorization": f"Bearer {TOKEN}",
        "Cookie": "session=1",
        "Connection": "keep-alive, X-Private",
        "Keep-Alive": "timeout=5",
        "Proxy-Connection": "keep-alive",
        "TE": "trailers",
        "Trailer": "X-Sum",
        "X-Private": "1",
        "Upgrade": "websocket",
    }
    kept = {"X-First": "1", "Accept": "*/*", "X-Second": "tab\tand \xff"}
    fields = [f"{name}: {value}" for name, value in (gone | kept).items()]
    with world.connect() as client:
        answer = client.send(get(target, *fields)).response()
    assert answer.status == 200
    request = parse(answer.body)
    assert {name.lower() for name in gone} - {"connection"} & {name for name, _ in request.fields} == set()
    assert request.get("connection") == (None if target == "/" else "close")
    assert [pair for pair in request.fields if pair[0] in ("x-first", "accept", "x-second")] == [
        (name.lower(), value) for name, value in kept.items()
    ]
    assert TOKEN.encode() not in answer.body.replace(json.dumps(TOKEN).encode(), b"")


def test_an_agent_is_told_who_calls_before_the_request_with_its_own_target(world: World) -> None:
    with world.connect() as client:
        answer = client.send(get("/agent/exec?cmd=a", f"Authorization: Bearer {TOKEN}")).response()
    assert [json.loads(line) for line in world.agent.preambles] == [{"v": 1, "org": "acme"}]
    request = parse(answer.body)
    assert request.line == "GET /exec?cmd=a HTTP/1.1"
    assert request.get("x-ballpoint-caller") is None
    assert request.get("connection") == "close"


def test_a_request_has_one_id_of_the_edges_own(world: World) -> None:
    with world.connect() as client:
        answer = client.send(get("/", "X-Request-Id: forged")).response()
        again = client.send(get("/")).response()
    assert parse(answer.body).get("x-request-id") == answer.get("x-request-id") != "forged"
    assert again.get("x-request-id") != answer.get("x-request-id")


def test_absolute_form_for_this_host_is_passed_in_origin_form(world: World) -> None:
    with world.connect() as client:
        answer = client.send(get("http://EDGE/a?b")).response()
        assert parse(answer.body).line == "GET /a?b HTTP/1.1"
        answer = client.send(get("http://edge")).response()
        assert parse(answer.body).line == "GET / HTTP/1.1"


# ---- one connection, many requests ----


def test_every_request_on_a_connection_is_routed_and_authorized_anew(world: World) -> None:
    tokens = [TOKEN, "", "another"]
    with world.connect() as client:
        for token in tokens:
            answer = client.send(get("/", f"Authorization: Bearer {token}")).response()
            assert json.loads(parse(answer.body).get("x-ballpoint-caller") or "") == {"token": token}
        assert client.send(get("/refuse")).response().status == 401
        assert client.send(get("/agent/exec")).response().status == 200
    assert [question["token"] for question in world.questions] == [*tokens, "", ""]


def test_pipelined_requests_are_answered_in_order(world: World) -> None:
    targets = ["/1", "/agent/2", "/3", "/refuse", "/5"]
    with world.connect() as client:
        client.send(b"".join(get(target) for target in targets) + post("/6", b"x" * 100_000) + get("/7"))
        answers = [client.response() for _ in range(7)]
    lines = [parse(answer.body).line for answer in answers if answer.status == 200]
    assert lines == ["GET /1 HTTP/1.1", "GET /2 HTTP/1.1", "GET /3 HTTP/1.1", "GET /5 HTTP/1.1"] + [
        "POST /6 HTTP/1.1",
        "GET /7 HTTP/1.1",
    ]
    assert [answer.status for answer in answers] == [200, 200, 200, 401, 200, 200, 200]


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_request_may_come_in_pieces(world: World, size: int) -> None:
    data = b"\r\n" + post("/a", b"hello") + b"\r\n" + get("/b")
    with world.connect() as client:
        client.sock.setsockopt(6, 1, 1)  # TCP_NODELAY
        for at in range(0, len(data), size):
            client.send(data[at : at + size])
        assert client.response().body.endswith(b"\r\n\r\nhello")
        assert client.response().status == 200


def test_connection_close_is_obeyed(world: World) -> None:
    with world.connect() as client:
        answer = client.send(get("/", "Connection: close")).response()
        assert answer.get("connection") == "close"
        assert client.rest() == b""


# ---- bodies ----


@pytest.mark.parametrize("target", ["/", "/agent/exec"])
@pytest.mark.parametrize("size", [0, 1, 65_536, 5_000_000])
def test_a_body_with_a_length_passes_whole(world: World, target: str, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"z" * (size % 256)
    with world.connect() as client:
        sending = threading.Thread(target=client.send, args=[post(target, body)])
        sending.start()
        answer = client.response()
        sending.join()
        assert answer.body.partition(b"\r\n\r\n")[2] == body
        assert client.send(get("/")).response().status == 200


@pytest.mark.parametrize("target", ["/", "/agent/exec"])
def test_a_chunked_body_passes_byte_for_byte(world: World, target: str) -> None:
    raw = b"5\r\nhello\r\n00a\r\n0123456789\r\nF\r\nabcdefghijklmno\r\n" + b"1\r\n\n\r\n" * 1000 + b"0\r\n\r\n"
    with world.connect() as client:
        client.send(get(target, "Transfer-Encoding: Chunked", method="POST") + raw)
        answer = client.response()
        assert answer.body.partition(b"\r\n\r\n")[2] == raw
        assert parse(answer.body).get("transfer-encoding") == "chunked"
        assert client.send(get("/")).response().status == 200


def test_bodies_stream_both_ways_at_once(world: World) -> None:
    def shout(connection: Wire) -> None:
        connection.head()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while (size := int(connection.until(b"\r\n"), 16)) > 0:
            connection.send(b"%x\r\n%s" % (size, connection.exactly(size + 2).upper()))
        connection.send(b"0\r\n\r\n")
        connection.rest()

    world.agent.handler = shout
    with world.connect() as client:
        client.send(get("/agent/exec", "Transfer-Encoding: chunked", method="POST"))
        assert client.head().status == 200
        for word in (b"one", b"two", b"three"):
            client.send(b"%x\r\n%s\r\n" % (len(word), word))
            assert client.until(b"\r\n") == b"%x\r\n" % len(word)
            assert client.until(b"\r\n") == word.upper() + b"\r\n"
        client.send(b"0\r\n\r\n")
        assert client.until(b"\r\n\r\n") == b"0\r\n\r\n"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_body_that_is_waited_for_is_asked_for(world: World, version: str) -> None:
    head = get("/", "Content-Length: 5", "Expect: 100-continue", method="POST", version=version)
    with world.connect() as client:
        client.send(head)
        if version == "1.1":
            assert client.head().line == "HTTP/1.1 100 Continue"
        answer = client.send(b"hello").response()
        assert answer.status == 200  # HTTP/1.0 knows no interim response
        assert answer.body.endswith(b"\r\n\r\nhello")
        assert parse(answer.body).get("expect") is None


def test_a_refused_body_is_not_asked_for(world: World) -> None:
    with world.connect() as client:
        client.send(get("/refuse", "Content-Length: 5", "Expect: 100-continue", method="POST"))
        answer = client.response()
        assert (answer.status, answer.get("connection")) == (401, "close")
        assert client.rest() == b""


def test_an_answer_before_the_end_of_the_body_arrives(world: World) -> None:
    def refuse(connection: Wire) -> None:
        world.api.seen.put(connection.head().raw)
        connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")

    world.api.handler = refuse
    with world.connect() as client:
        client.send(get("/", "Content-Length: 100000000", method="POST"))
        client.send(b"x" * 1000)
        answer = client.response()
        assert (answer.status, answer.body, answer.get("connection")) == (413, b"no", "close")
        assert client.rest() == b""


@pytest.mark.parametrize("target", ["/refuse", "/early"])
def test_an_early_answer_reaches_a_client_that_sends_its_whole_body_first(world: World, target: str) -> None:
    def refuse(connection: Wire) -> None:
        connection.head()
        connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")

    world.api.handler = refuse
    for _ in range(50):  # the answer comes before, after, or while the edge finds that its server has gone
        with world.connect() as client:
            client.send(post(target, b"x" * 1_000_000))
            assert client.response().status == (401 if target == "/refuse" else 413)


# ---- responses ----


def test_chunks_of_a_response_stay_as_they_are(world: World) -> None:
    raw = b"3\r\n\x01ab\r\n2\r\n\x02c\r\n2\r\n\x03\x00\r\n0\r\n\r\n"
    world.agent.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Of-Agent: 1\r\n\r\n" + raw)
    with world.connect() as client:
        answer = client.send(get("/agent/exec", method="POST")).response()
        assert answer.chunks == [b"\x01ab", b"\x02c", b"\x03\x00"]
        assert (answer.get("x-of-agent"), answer.get("connection")) == ("1", "keep-alive")
        assert client.send(get("/")).response().status == 200


def test_a_response_without_a_length_ends_with_the_connection(world: World) -> None:
    world.agent.answer(b"HTTP/1.1 200 OK\r\n\r\nuntil the end", close=True)
    with world.connect() as client:
        answer = client.send(get("/agent/exec")).response()
    assert (answer.body, answer.get("connection")) == (b"until the end", "close")


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("HEAD", b"200 OK\r\nContent-Length: 5"),
        ("HEAD", b"200 OK\r\nTransfer-Encoding: chunked"),
        ("HEAD", b"200 OK"),
        ("GET", b"204 No Content"),
        ("GET", b"304 Not Modified\r\nContent-Length: 5"),
    ],
)
def test_a_response_without_a_body_leaves_the_connection_usable(world: World, method: str, head: bytes) -> None:
    world.api.answer(b"HTTP/1.1 " + head + b"\r\n\r\n")
    with world.connect() as client:
        for _ in range(2):
            answer = client.send(get("/", method=method)).response(method)
            assert (answer.status, answer.get("connection")) == (int(head[:3]), "keep-alive")
    assert world.api.seen.qsize() == 2


def test_interim_responses_stay_between_us_and_the_server(world: World) -> None:
    world.api.answer(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 None\r\n\r\n"
    )
    with world.connect() as client:
        assert client.send(get("/")).response().status == 204


def test_responses_carry_our_version_and_an_id_and_drop_what_is_the_servers(world: World) -> None:
    world.api.answer(
        b"HTTP/1.1 200 Fine By Me\r\nContent-Length: 0\r\nSprite-Version: theirs\r\nX-Request-Id: theirs\r\n"
        b"Keep-Alive: timeout=5\r\nX-Private: 1\r\nConnection: keep-alive, X-Private\r\n"
        b"Set-Cookie: a\r\nSet-Cookie: b\r\n\r\n"
    )
    with world.connect() as client:
        answers = [client.send(get(target)).response() for target in ("/", "/refuse")]
        answers.append(client.send(b"nonsense\r\n\r\n").response())
    assert answers[0].line == "HTTP/1.1 200 Fine By Me"
    assert answers[0].all("set-cookie") == ["a", "b"]
    assert answers[0].get("keep-alive") is answers[0].get("x-private") is None
    for answer in answers:
        assert (answer.get("sprite-version") or "").startswith("v0.0.1-rc")
    ids = [answer.get("x-request-id") for answer in answers]
    assert None not in ids
    assert "theirs" not in ids
    assert len(set(ids)) == len(ids)


def test_a_refusal_has_the_contracts_shape_and_leaves_the_connection_usable(world: World) -> None:
    with world.connect() as client:
        answer = client.send(get("/refuse")).response()
        assert (answer.status, answer.get("content-type")) == (401, "application/json")
        assert json.loads(answer.body) == {"error": "unauthorized", "message": "no", "hint": "log in"}
        assert answer.get("www-authenticate") == "Bearer"
        assert client.send(get("/")).response().status == 200


def test_a_refusal_of_a_head_request_has_no_body(world: World) -> None:
    with world.connect() as client:
        assert client.send(get("/refuse", method="HEAD")).response("HEAD").status == 401
        assert client.send(get("/")).response().status == 200


# ---- HTTP/1.0 ----


def test_http_1_0_is_served_and_closed(world: World) -> None:
    with world.connect() as client:
        answer = client.send(b"GET / HTTP/1.0\r\n\r\n").response()
        assert (answer.status, answer.get("connection")) == (200, "close")
        assert parse(answer.body).get("host") == "localhost"
        assert client.rest() == b""


def test_http_1_0_may_keep_its_connection(world: World) -> None:
    with world.connect() as client:
        for _ in range(2):
            answer = client.send(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").response()
            assert (answer.status, answer.get("connection")) == (200, "keep-alive")


def test_http_1_0_gets_a_chunked_response_without_chunks(world: World) -> None:
    world.api.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")
    with world.connect() as client:
        answer = client.send(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").response()
    assert (answer.get("transfer-encoding"), answer.get("connection")) == (None, "close")
    assert answer.body == b"hello world"


def test_a_response_that_is_cut_is_reset_where_only_its_end_frames_it(world: World) -> None:
    world.api.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", close=True)
    with world.connect() as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            while client.sock.recv(65_536):
                pass

"""The configurations of Caddy in docs/tls.md, as they stand there, before a real node."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from tests.edge.wires import Message, Wire
from tests.edge.wires import get as head_of
from tests.node.test_urls import HTML, bearer, port_of, start_web
from tests.support.nodes import TestNode, shell
from tests.support.ports import free_port
from tests.support.waiting import eventually

pytestmark = pytest.mark.node

_PAGE = (Path(__file__).parents[2] / "docs" / "tls.md").read_text()
PUBLIC, LOCAL = re.findall(r"```caddyfile\n(.*?)```", _PAGE, re.DOTALL)
_CADDY = Path(sys.executable).parent / "caddy"
_SECONDS = 60.0
_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID, openssl-verification-options(1)


class Caddy:
    """A Caddy with a configuration of the page before a node."""

    def __init__(self, text: str, place: Path, node: TestNode, port: int) -> None:
        self.port = port
        text = text.replace("127.0.0.1:7070", f"127.0.0.1:{port_of(node)}").replace("8443", str(port))
        if "https_port" not in text:
            # The public authority cannot be asked here, and the usual ports may be somebody's.
            own = f"\thttps_port {port}\n\tauto_https disable_redirects\n\tskip_install_trust\n\tlocal_certs\n"
            text = text.replace("{\n", "{\n" + own, 1)
        assert "admin" not in text
        text = text.replace("{\n", "{\n\tadmin off\n", 1)
        file = place / "Caddyfile"
        file.write_text(text)
        environment = {**os.environ, "HOME": str(place), "XDG_DATA_HOME": str(place), "XDG_CONFIG_HOME": str(place)}
        self.log = place / "caddy.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [_CADDY, "run", "--config", file, "--adapter", "caddyfile"], env=environment, stderr=log
            )
        self.root = place / "caddy" / "pki" / "authorities" / "local" / "root.crt"
        eventually(lambda: self.root.exists() and b"serving initial configuration" in self.log.read_bytes())

    def connect(self, host: str) -> Wire:
        context = ssl.create_default_context(cafile=self.root)
        connected: list[Wire] = []

        def valid() -> bool:
            sock = socket.create_connection(("127.0.0.1", self.port), timeout=_SECONDS)
            try:
                connected.append(Wire(context.wrap_socket(sock, server_hostname=host)))
            except ssl.SSLCertVerificationError as error:
                # A certificate is made for a host's first client and holds from that very second. Caddy reads the
                # exact clock, OpenSSL time(2), which is behind by up to a tick: a second may have begun for one only.
                if error.verify_code != _NOT_YET_VALID:
                    raise
            return bool(connected)

        eventually(valid)
        return connected[0]

    def ask(self, host: str, *fields: str, target: str = "/", method: str = "GET", body: bytes = b"") -> Message:
        more = [f"Content-Length: {len(body)}"] if body else []
        with self.connect(host) as client:
            authority = f"{host}:{self.port}"
            client.send(head_of(target, *fields, *more, method=method, host=authority) + body)
            return client.response(method)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(_SECONDS)


@pytest.fixture(params=[PUBLIC, LOCAL], ids=["public", "local"])
def caddy(request: pytest.FixtureRequest, own_node: TestNode, tmp_path: Path) -> Iterator[Caddy]:
    port = free_port()
    own_node.options += ["--front", f"https:{port}"]
    own_node.start()
    place = tmp_path / "caddy"
    place.mkdir()
    made = Caddy(request.param, place, own_node, port)
    try:
        yield made
    finally:
        made.close()


def test_urls_over_tls(caddy: Caddy, own_node: TestNode) -> None:
    token = bearer(own_node.token)
    sprite = own_node.client().create_sprite("web")
    start_web(sprite)
    shown = own_node.api("GET", "/v1/sprites/web").json()["url"]
    host = "web-acme.sprites.localhost"
    assert shown == f"https://{host}:{caddy.port}"

    # The control API, and a program.
    assert caddy.ask("api.sprites.localhost", token, target="/v1/sprites/web").status == 200
    answer = caddy.ask(host, token, "X-Forwarded-For: 6.6.6.6")
    assert b"\r\nX-Forwarded-Proto: https\r\n" in answer.body
    assert b"\r\nX-Forwarded-For: 127.0.0.1\r\n" in answer.body
    assert f"\r\nX-Forwarded-Host: {host}:{caddy.port}\r\n".encode() in answer.body
    assert b"6.6.6.6" not in answer.body
    assert own_node.token.encode() not in answer.body

    # A browser.
    first = caddy.ask(host, HTML, target="/a?b")
    page = urlsplit(first.get("location") or "")
    assert (first.status, page.netloc) == (303, f"auth.sprites.localhost:{caddy.port}")
    auth = "auth.sprites.localhost"
    assert caddy.ask(auth, HTML, target=f"/?{page.query}").status == 200
    form = urlencode({"token": own_node.token, "to": parse_qs(page.query)["to"][0]}).encode()
    given = caddy.ask(auth, f"Origin: https://{page.netloc}", method="POST", body=form)
    back = urlsplit(given.get("location") or "")
    assert back.netloc == f"{host}:{caddy.port}"
    done = caddy.ask(host, target=f"{back.path}?{back.query}")
    assert done.get("location") == f"{shown}/a?b"
    cookie = done.get("set-cookie") or ""
    assert re.fullmatch(r"__Host-ballpoint=[\w-]{43}; Path=/; Max-Age=604800; HttpOnly; SameSite=Lax; Secure", cookie)
    pair = f"Cookie: {cookie.partition(';')[0]}"
    assert caddy.ask(host, pair, f"Origin: {shown}", method="POST", body=b"x").status == 200
    assert caddy.ask(host, pair, "Origin: https://evil.example", method="POST", body=b"x").status == 403

    # Streams.
    with caddy.connect(host) as client:
        upgrade = ["Connection: Upgrade", "Upgrade: websocket", pair, f"Origin: {shown}"]
        client.send(head_of("/ws", *upgrade, host=f"{host}:{caddy.port}"))
        assert client.head().status == 101
        assert client.send(b"hello").exactly(5) == b"hello"
    with caddy.connect(host) as client:
        client.send(head_of("/events", token, host=f"{host}:{caddy.port}")).head()
        assert client.until(b"the first\n\r\n")
        assert caddy.ask(host, token, target="/go").status == 200
        assert client.until(b"0\r\n\r\n")
    with caddy.connect("api.sprites.localhost") as client:
        target = "/v1/sprites/web/exec?cmd=sh&cmd=-c&cmd=echo+first%3B+read+x%3C/tmp/fifo%3B+echo+second"
        assert shell(sprite, "mkfifo -m 666 /tmp/fifo")[0] == 0
        client.send(head_of(target, token, method="POST", host="api.sprites.localhost")).head()
        assert b"first\n" in client.until(b"first\n")  # before the command has ended
        assert shell(sprite, "echo >/tmp/fifo")[0] == 0
        assert client.until(b"second\n")


def test_no_certificate_is_made_for_a_host_of_nobody(caddy: Caddy, own_node: TestNode) -> None:
    own_node.client().create_sprite("web")
    assert caddy.ask("web-acme.sprites.localhost", bearer(own_node.token)).status == 503
    made = set(caddy.root.parents[3].rglob("*.key"))
    for host in ("nobody-acme.sprites.localhost", "x.y.sprites.localhost", "evil.example"):
        with pytest.raises(ssl.SSLError):
            caddy.connect(host)
    assert set(caddy.root.parents[3].rglob("*.key")) == made

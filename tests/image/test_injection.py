"""What a node adds: certificates that every TLS client inside trusts, and package sources."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ballpoint.core.errors import InvalidError
from ballpoint.image.injection import apply, certificates_of_host, host_injection
from ballpoint.image.mirrors import SOURCES

from .machine import Machine

FETCH = {
    "curl": ["curl", "--silent", "--show-error", "--fail"],
    "node": ["node", "-e", "fetch(process.argv[1]).then(r => r.text()).then(t => process.stdout.write(t))"],
    "python": [
        "python3",
        "-c",
        "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode(), end='')",
    ],
    "pip": [
        "python3",
        "-c",
        "import sys; from pip._vendor import requests as r; print(r.get(sys.argv[1]).text, end='')",
    ],
}


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


class QuietServer(HTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that does not trust the certificate hangs up."""


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a certificate nobody knows, for `localhost`, and its key."""
    place = tmp_path_factory.mktemp("private")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost", "-keyout", place / "key.pem", "-out", place / "cert.pem",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return place


@pytest.fixture
def url(private: Path) -> Iterator[str]:
    """Of a TLS server with that certificate."""
    server = QuietServer(("127.0.0.1", 0), Hello)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(private / "cert.pem", private / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://localhost:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize("client", sorted(FETCH))
def test_every_client_trusts_what_the_node_trusts(client: str, slim: Machine, private: Path, url: str) -> None:
    assert slim.attempt(*FETCH[client], url).stdout != "hello"
    injection = host_injection(private / "cert.pem")
    apply(injection, slim.root)
    slim.environment = injection.environment
    assert slim.run(*FETCH[client], url) == "hello"


@pytest.mark.host
@pytest.mark.slow
def test_what_is_written(slim: Machine, private: Path) -> None:
    mirror = "http://mirror.example/debian"
    injection = host_injection(private / "cert.pem", mirror)
    apply(injection, slim.root)
    assert (slim.root / "etc/.ballpoint-injection").read_text() == injection.digest + "\n"
    written = slim.root / "usr/local/share/ca-certificates/ballpoint-0.crt"
    assert written.read_bytes() == (private / "cert.pem").read_bytes()
    uris = [line.split()[0].strip("'") for line in slim.run("apt-get", "update", "--print-uris").splitlines()]
    assert {uri for uri in uris if uri.endswith("/InRelease")} == {
        f"{mirror}/dists/trixie/InRelease",
        f"{mirror}/dists/trixie-updates/InRelease",
    }
    assert all(uri.startswith(mirror) for uri in uris)
    slim.run("su", "-", "sprite", "-c", f"cat {' '.join(injection.files)}")


def test_the_digest_is_of_everything(private: Path, tmp_path: Path) -> None:
    bundle = private / "cert.pem"
    twice = tmp_path / "twice.pem"
    twice.write_bytes(bundle.read_bytes() * 2)
    same = host_injection(bundle)
    assert host_injection(bundle) == same
    assert host_injection(twice) == same
    assert host_injection(bundle, "http://mirror.example/debian").digest != same.digest


def test_a_node_without_certificates_changes_no_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ballpoint.image.injection.certificates_of_host", lambda: ())
    injection = host_injection(None)
    assert injection.certificates == ()
    assert injection.environment == {}


def test_a_mirror_is_for_sprites_too(private: Path) -> None:
    text = host_injection(private / "cert.pem", "http://mirror.example/debian/").files[SOURCES].decode()
    assert "URIs: http://mirror.example/debian\n" in text
    assert text.count("URIs:") == 1


def test_certificates_of_the_administrator(private: Path, tmp_path: Path) -> None:
    pem = (private / "cert.pem").read_bytes()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.crt").write_bytes(b"a comment\n" + pem + b"\n" + pem)
    (tmp_path / "b.crt").write_bytes(b"")
    (tmp_path / "c.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nnot looked at\n-----END CERTIFICATE-----\n")
    assert certificates_of_host(tmp_path) == (pem,)


@pytest.mark.parametrize(
    "content", [None, b"", b"\0\xff", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_bundle_without_a_good_certificate(tmp_path: Path, content: bytes | None) -> None:
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_bytes(content)
    with pytest.raises(InvalidError) as caught:
        host_injection(bundle)
    assert str(bundle) in str(caught.value)

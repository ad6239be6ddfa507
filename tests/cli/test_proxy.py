"""`ballpoint proxy`, and the ports that exec brings along, as a user meets them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.cli.client import proxy
from ballpoint.core import ids
from ballpoint.core.errors import InvalidError
from tests.cli.command import COMMAND, DEADLINE, Terminal, ballpoint
from tests.support.ports import free_port

pytestmark = pytest.mark.node

# Listens on its own localhost only; answers in capitals, once the client has said all it has to say.
SHOUTER = r"""
import socket, sys, threading
def shout(connection):
    with connection:
        said = b""
        while data := connection.recv(65536):
            said += data
        connection.sendall(said.upper())
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    print("listening", flush=True)
    while True:
        threading.Thread(target=shout, args=(listener.accept()[0],)).start()
"""
# Answers at once, for clients that end both directions at a time.
GREETER = SHOUTER.replace("while data :=", "if data :=")
SHOUTS, GREETS, NOBODY = 6001, 6002, 6009


@pytest.fixture(scope="module")
def sprite(home: Path) -> Iterator[str]:
    name = f"t-{ids.new_instance_id()}"
    assert ballpoint(home, "create", name, "--skip-console").returncode == 0
    for program, port in ((SHOUTER, SHOUTS), (GREETER, GREETS)):
        start = f'setsid python3 -c "$0" {port} >/tmp/{port} 2>&1 </dev/null & '
        start += f"until grep -q listening /tmp/{port}; do sleep 0.1; done"
        assert ballpoint(home, "-s", name, "exec", "--", "sh", "-c", start, program).returncode == 0
    yield name
    assert ballpoint(home, "destroy", name, "--force").returncode == 0


@contextmanager
def command(home: Path, *arguments: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on; killed if it does so after the test."""
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=home,
        env={**os.environ, "HOME": str(home)}, **more,
    ) as made:  # fmt: skip
        try:
            yield made
        finally:
            made.kill()


def ask(port: int, what: bytes, address: str = "127.0.0.1") -> bytes:
    """The answer to `what`, after which nothing more is said."""
    with socket.create_connection((address, port), timeout=DEADLINE) as sock:
        sock.sendall(what)
        sock.shutdown(socket.SHUT_WR)
        said = b""
        while data := sock.recv(1 << 16):
            said += data
        return said


def test_ports_are_forwarded_until_it_is_interrupted(home: Path, sprite: str) -> None:
    same, other = free_port(), free_port()
    with command(home, "-s", sprite, "proxy", f"{other}:{SHOUTS}", f"0:{SHOUTS}", f"{same}") as running:
        assert running.stdout is not None and running.stderr is not None
        assert running.stdout.readline() == f"127.0.0.1:{other} -> {sprite}:{SHOUTS}\n"
        found = re.fullmatch(rf"127\.0\.0\.1:(\d+) -> {sprite}:{SHOUTS}\n", running.stdout.readline())
        assert found is not None
        assert running.stdout.readline() == f"127.0.0.1:{same} -> {sprite}:{same}\n"
        data = os.urandom(5 << 20)
        for local, address in ((other, "127.0.0.1"), (int(found[1]), "127.0.0.1"), (other, "::1")):
            assert ask(local, data, address) == data.upper()
        # A port nobody listens on: whoever connected is cut off, and the user is told why.
        with pytest.raises(ConnectionResetError):
            ask(same, b"x")
        assert running.stderr.readline() == f"ballpoint: port {same}: nobody listens on port {same}\n"
        assert ask(other, b"still") == b"STILL"
        with socket.create_connection(("127.0.0.1", other)):  # that one is there does not keep it from ending
            running.send_signal(signal.SIGINT)
            assert running.wait(DEADLINE) == 0
        assert (running.stdout.read(), running.stderr.read()) == ("", "")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", other))


def test_many_connections_at_once_are_apart(home: Path, sprite: str) -> None:
    with command(home, "proxy", "-s", sprite, f"0:{SHOUTS}") as running:
        assert running.stdout is not None
        port = int(running.stdout.readline().split(" ")[0].rpartition(":")[2])
        open_ = [socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) for _ in range(20)]
        for number, sock in enumerate(open_):
            sock.sendall(b"number %d" % number)
            sock.shutdown(socket.SHUT_WR)
        for number, sock in reversed(list(enumerate(open_))):
            with sock:
                assert sock.recv(100) == b"NUMBER %d" % number


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name ports"),
        (["x"], "'x' is neither PORT nor LOCAL:REMOTE"),
        (["80:0"], "neither"),
        (["0"], "neither"),
        (["65536"], "neither"),
        (["80", "-W", ":80"], "name ports"),
        (["-W", "80"], "not [HOST]:PORT"),
        (["-W", ":0"], "not [HOST]:PORT"),
    ],
)
def test_what_is_no_port_is_said(home: Path, arguments: list[str], says: str) -> None:
    done = ballpoint(home, "-s", "any", "proxy", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr


def test_a_port_that_is_taken_and_a_sprite_that_is_not_there_are_said(home: Path, sprite: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = ballpoint(home, "-s", sprite, "proxy", str(port))
        assert done.returncode == 1
        assert f"cannot listen on port {port}" in done.stderr and f"{port + 1}:{port}" in done.stderr
    assert "no sprite" in ballpoint(home, "-s", "nosuch", "proxy", "8080").stderr


@pytest.mark.parametrize("target", [f":{SHOUTS}", f"localhost:{SHOUTS}", f"127.0.0.1:{SHOUTS}"])
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_one_connection_on_standard_streams(home: Path, sprite: str, tmp_path: Path, target: str, kind: str) -> None:
    data = os.urandom(1 << 20)
    file = tmp_path / "input"
    file.write_bytes(data)
    arguments = [*COMMAND, "-s", sprite, "proxy", "-W", target]
    environment = {**os.environ, "HOME": str(home)}
    with file.open("rb") as source:
        given: dict[str, Any] = {"input": data} if kind == "pipe" else {"stdin": source}
        done = subprocess.run(arguments, capture_output=True, timeout=DEADLINE, cwd=home, env=environment, **given)
    assert (done.returncode, done.stdout, done.stderr) == (0, data.upper(), b"")


def test_a_connection_that_fails_on_standard_streams_is_said(home: Path, sprite: str) -> None:
    done = ballpoint(home, "-s", sprite, "proxy", "--stdio", f":{NOBODY}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"ballpoint: nobody listens on port {NOBODY}\n"
    assert (
        "neither localhost nor an IP address" in ballpoint(home, "-s", sprite, "proxy", "-W", "example.com:80").stderr
    )


# ---- ports of a command ----


def until_forwarded(terminal: Terminal, port: int, sprite: str) -> int:
    """Where it says that `port` is."""
    found = terminal.expect_match(rb"port %d of %s is at 127\.0\.0\.1:(\d+)\r" % (port, sprite.encode()))
    return int(found[1])


def test_a_command_brings_its_ports_along(home: Path, sprite: str) -> None:
    port = free_port()
    terminal = Terminal(home, "-s", sprite, "exec", "--", "python3", "-c", GREETER, str(port))
    assert until_forwarded(terminal, port, sprite) == port
    assert ask(port, b"hello") == b"HELLO"
    assert ballpoint(home, "-s", sprite, "exec", "pkill", "-f", f" {port}$").returncode == 0
    assert terminal.end() == 128 + signal.SIGTERM
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_where_its_port_is_taken_another_serves(home: Path, sprite: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        terminal = Terminal(home, "-s", sprite, "console")
        terminal.type(b"python3 -c 'import http.server as h; h.test(port=%d, bind=\"127.0.0.1\")'\r" % port)
        local = until_forwarded(terminal, port, sprite)
        assert local != port
        assert ask(local, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 501 ")
        terminal.type(b"\x03")
        terminal.type(b"exit 0\r")
        assert terminal.end() == 0


# Serves one client, after it has stopped to listen.
ONE = r"""
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
connection, _ = listener.accept()
listener.close()
print("closed", flush=True)
connection.sendall(connection.recv(100).upper())
connection.recv(100)
"""


def test_a_server_that_listens_no_more_still_serves(home: Path, sprite: str) -> None:
    port = free_port()
    terminal = Terminal(home, "-s", sprite, "exec", "--", "python3", "-c", ONE, str(port))
    assert until_forwarded(terminal, port, sprite) == port
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as sock:
        terminal.expect(b"closed")
        refused = False
        while not refused:  # until the command has been told that the port was closed
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                refused = True
        sock.sendall(b"hello")
        assert sock.recv(100) == b"HELLO"
    assert terminal.end() == 0


@pytest.mark.parametrize("flags", [["--no-port-forward"], []])
def test_a_script_is_told_nothing_and_may_refuse(home: Path, sprite: str, flags: list[str]) -> None:
    """Standard error is the command's alone where it is no terminal."""
    port = free_port()
    with command(
        home, "-s", sprite, "exec", *flags, "--", "python3", "-c", GREETER, str(port), stdin=subprocess.DEVNULL
    ) as running:
        assert running.stdout is not None and running.stderr is not None
        assert running.stdout.readline() == "listening\n"
        # Announced or not: a port that is opened later has been announced after it.
        with command(home, "-s", sprite, "--debug", "exec", "--", "python3", "-c", GREETER, str(free_port())) as later:
            assert later.stderr is not None
            while "is at 127.0.0.1" not in later.stderr.readline():
                pass
        if flags:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
        else:
            assert ask(port, b"hello") == b"HELLO"
        assert ballpoint(home, "-s", sprite, "exec", "pkill", "-f", f" {port}$").returncode == 0
        assert running.wait(DEADLINE) == 128 + signal.SIGTERM
        assert running.stderr.read() == ""


@given(st.text() | st.from_regex(r"[0-9]{0,6}(:[0-9]{0,6})?", fullmatch=True))
def test_whatever_is_named_is_a_pair_of_ports_or_refused(text: str) -> None:
    try:
        local, remote = proxy.parse_pair(text)
    except InvalidError:
        return
    assert 0 <= local <= 65535 and 1 <= remote <= 65535
    assert {int(each) for each in text.split(":")} == {local, remote}


@given(st.text() | st.from_regex(r"(\[?[a-z0-9.:]*\]?)?:[0-9]{0,6}", fullmatch=True))
def test_whatever_is_named_for_streams_is_an_address_or_refused(text: str) -> None:
    try:
        host, port = proxy.parse_stdio(text)
    except InvalidError:
        return
    assert host and not set(host) & set("[]") and 1 <= port <= 65535
    assert text.endswith(f":{port}") or int(text.rpartition(":")[2]) == port


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":22", ("localhost", 22)),
        ("localhost:22", ("localhost", 22)),
        ("[::1]:22", ("::1", 22)),
        ("10.1.2.3:22", ("10.1.2.3", 22)),
    ],
)
def test_an_address_for_streams(text: str, expected: tuple[str, int]) -> None:
    assert proxy.parse_stdio(text) == expected

"""A container that has ended: its agent reads no request any more, so that its own end tells who sent one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from ballpoint.core import ids, wire
from ballpoint.core.peer import connect
from tests.agent.world import DEADLINE, PREAMBLE, post_head
from tests.crash.test_kill import inside, kill
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually


def client(path: Path) -> socket.socket:
    """A connection to an agent, after its preamble."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE)
    sock.connect(str(path))
    sock.sendall(PREAMBLE)
    return sock


def read_to_the_end(sock: socket.socket) -> bytes:
    answer = b""
    while data := sock.recv(1 << 16):
        answer += data
    return answer


def test_what_was_read_goes_on_and_what_was_not_is_reset(tmp_path: Path) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))  # an anchor keeps a copy, too
        path = tmp_path / "agent.sock"
        listener.bind(str(path))
        listener.listen(8)
        agent = subprocess.Popen(
            [sys.executable, "-m", "tests.agent.leaving_agent", str(listener.fileno()), str(tmp_path)],
            pass_fds=[listener.fileno()], stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        stack.enter_context(agent)
        stack.callback(agent.kill)
        assert agent.stdout is not None
        assert agent.stdout.readline() == "serves\n"

        def begin(sent: bytes) -> socket.socket:
            sock = stack.enter_context(closing(client(path)))
            sock.sendall(sent)
            return sock

        request = post_head(["touch", str(tmp_path / "ran")], {})
        unread = [(begin(request[:part]), request[part:]) for part in (0, 1, len(request) - 1)]
        command = ["sh", "-c", "echo begun; read word; echo $word"]
        running = begin(post_head(command, {"stdin": "true"}, "Content-Length: 5"))
        heard = b""
        while b"begun" not in heard:  # it was accepted last: so the others were, too
            heard += running.recv(1 << 16)

        agent.send_signal(signal.SIGTERM)
        assert agent.stdout.readline() == "left\n"
        unread.append((begin(b""), request))
        for sock, rest in unread:
            sock.sendall(rest)
        running.sendall(b"word\n")
        assert read_to_the_end(running).endswith(b"\1word\n\r\n2\r\n\3\0\r\n0\r\n\r\n")
        agent.kill()
        agent.wait()
        listener.close()
        for sock, _ in unread:
            with pytest.raises(ConnectionResetError):
                read_to_the_end(sock)
    assert not (tmp_path / "ran").exists()


@pytest.mark.node
def test_the_node_hears_of_it_only_after_the_last_request_was_read(own_node: TestNode) -> None:
    own_node.start()
    sprite = own_node.client().create_sprite(f"t-{ids.new_instance_id()}")
    (place,) = [
        record.parent
        for record in Path(f"/run/ballpoint/{own_node.id}/instances").glob("*/instance.json")
        if '"sprite"' in record.read_text()
    ]
    (init,) = inside(own_node, "init", "inner/main")
    (daemon,) = own_node.processes("node")
    with closing(client(place / "http.sock")) as late, closing(client(place / "http.sock")) as later:
        later.sendall(post_head(["true"], {}))
        assert read_to_the_end(later)  # so that both were accepted
        os.kill(daemon, signal.SIGSTOP)  # between what it hears of the container's end and what it does then
        try:
            kill(init)
            eventually(lambda: phase(place) == "dead")
            late.sendall(post_head(["true"], {}))
            assert phase(place) == "dead"  # an agent that read requests would have read this one first
        finally:
            os.kill(daemon, signal.SIGCONT)
        with pytest.raises(ConnectionResetError):
            read_to_the_end(late)
    assert shell(sprite, "echo again") == (0, "again\n")


def phase(place: Path) -> str:
    """What the agent of an instance says of itself to a node that asks."""
    with closing(connect(place / "control.sock")) as sock:
        sock.setblocking(True)
        wire.send(sock, {"id": 1, "op": "hello"})
        message, fds = wire.receive(sock)
    for fd in fds:
        os.close(fd)
    return str(message["ok"]["phase"])

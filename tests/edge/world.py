"""What an edge stands between: clients, a node that says where requests go, and servers that answer them.

The edge itself is the real process. The node and the servers are threads of the test, so that tests decide every byte.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from ballpoint.core import hosts, peer, wire
from ballpoint.core.config import NodeConfig
from ballpoint.host.changes import Changes
from tests.edge.wires import EndedError, Message, Wire

Route = Callable[[dict[str, Any]], dict[str, Any]]
Handler = Callable[[Wire], None]

TOKEN = "acme/o1/t1/secret-of-the-client"
_STOP_SECONDS = 30.0


class Listener:
    """Accepts connections in a thread and serves each in one of its own."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.accepted = 0
        self._open: set[socket.socket] = set()
        self._serving: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # shut down
                return
            with self._lock:
                self.accepted += 1
                self._open.add(sock)
                thread = threading.Thread(target=self._serve_one, args=[sock])
                self._serving.append(thread)
                thread.start()

    def _serve_one(self, sock: socket.socket) -> None:
        try:
            with suppress(OSError, EndedError):
                self.serve(sock)
        finally:
            with self._lock:
                self._open.discard(sock)
                sock.close()

    def serve(self, sock: socket.socket) -> None:
        raise NotImplementedError

    def drop(self) -> None:
        """End every connection, and wait until nobody serves one."""
        with self._lock:
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            serving, self._serving = self._serving, []
        for thread in serving:
            thread.join()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        self.drop()


class Node(Listener):
    """The node's side of the routing socket: `route` answers each question, `questions` are what was asked.

    Attributes:
        notices: what it was told, in order.
    """

    def __init__(self, path: Path, route: Route, questions: list[dict[str, Any]], uid: int) -> None:
        self._route = route
        self._questions = questions
        self.notices: list[dict[str, Any]] = []
        listener = peer.listen(path, mode=0o600)
        os.chown(path, uid, uid)
        listener.setblocking(True)
        super().__init__(listener)

    def serve(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        while True:
            message, _ = wire.receive(sock)
            if not message:
                return
            if "id" not in message:
                self.notices.append(message)
                continue
            number = message.pop("id")
            assert message.pop("op") == "route"
            self._questions.append(message)
            wire.send(sock, {"id": number, **self._route(message)})


class Server(Listener):
    """The control API, or an agent: `handler` serves a connection; `seen` holds each request's exact bytes."""

    def __init__(self, listener: socket.socket, *, preamble: bool = False) -> None:
        self.seen: queue.Queue[bytes] = queue.Queue()
        self.preambles: list[bytes] = []
        self._preamble = preamble
        self.handler: Handler = self.echo
        super().__init__(listener)

    def serve(self, sock: socket.socket) -> None:
        connection = Wire(sock)
        if self._preamble:
            self.preambles.append(connection.until(b"\n"))
        self.handler(connection)

    def request(self, connection: Wire) -> Message:
        """The next request of a connection, noted in `seen`."""
        message, raw = connection.request()
        self.seen.put(raw)
        return message

    def echo(self, connection: Wire) -> None:
        """Answer every request with the exact bytes it came in."""
        while True:
            message, raw = connection.request()
            self.seen.put(raw)
            body = b"" if message.line.startswith("HEAD ") else raw
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(raw) + body)
            if message.get("connection") == "close":
                return

    def answer(self, data: bytes, *, close: bool = False) -> None:
        """From now on answer every request with `data`."""

        def handle(connection: Wire) -> None:
            while True:
                self.request(connection)
                connection.send(data)
                if close:
                    return

        self.handler = handle


class Agent(Listener):
    """An agent as far as it hands over connections to ports of its sprite: `give` answers what was `asked`."""

    def __init__(self, path: Path, uid: int, server: socket.socket) -> None:
        self.path = path
        self._server = server
        self.asked: list[dict[str, Any]] = []
        self.give: Callable[[socket.socket], None] = self.connect
        super().__init__(unix_listener(path, uid))

    def serve(self, sock: socket.socket) -> None:
        self.asked.append(json.loads(Wire(sock).until(b"\n")))
        self.give(sock)

    def to_server(self) -> socket.socket:
        """A new connection to the server in the sprite."""
        return socket.create_connection(self._server.getsockname())

    def connect(self, sock: socket.socket) -> None:
        """Hand over a connection, as an agent does."""
        with self.to_server() as made:
            socket.send_fds(sock, [b'{"ok": true}\n'], [made.fileno()])

    def refuse(self, reason: str) -> None:
        """From now on answer that there is none, and at which port, as an agent does."""

        def refused(sock: socket.socket) -> None:
            answer = {"error": reason, "port": self.asked[-1]["connect"]["port"], "message": "<its word>"}
            sock.sendall(json.dumps(answer).encode() + b"\n")

        self.give = refused


def unix_listener(path: Path, uid: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    os.chown(path, uid, uid)
    listener.listen(64)
    return listener


class Edge:
    """A real edge process.

    Args:
        settings: constants of ballpoint.edge's modules that a test cannot wait for, as module.name -> value.
        uid: the identity it takes.
        descriptors: soft and hard limit of those it may have open.
    """

    def __init__(
        self,
        run: Path,
        *,
        settings: dict[str, Any] | None = None,
        uid: int = 0,
        descriptors: tuple[int, int] | None = None,
    ) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address = listener.getsockname()
        self.log = run / f"edge-{self.address[1]}.log"
        lines = ["import ballpoint.edge.__main__ as edge"]
        for name, value in (settings or {}).items():
            module, _, constant = name.rpartition(".")
            lines.append(f"import ballpoint.edge.{module}")
            lines.append(f"assert hasattr(ballpoint.edge.{module}, {constant!r})")
            lines.append(f"ballpoint.edge.{module}.{constant} = {value!r}")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-c", "\n".join([*lines, "edge.main()"]), f"--listen-fd={listener.fileno()}",
                    f"--run={run}", f"--uid={uid}",
                ],
                pass_fds=[listener.fileno()], stderr=log,
                preexec_fn=descriptors and (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, descriptors)),
            )  # fmt: skip
        listener.close()

    def noted(self, target: str) -> list[int]:
        """The statuses that its log has of requests for a target."""
        return [int(words[6]) for line in self.log.read_text().splitlines() if (words := line.split())[5:6] == [target]]

    def connect(self) -> Wire:
        return Wire(socket.create_connection(self.address))

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def connections(self) -> int:
        """How many sockets it holds."""
        links = Path(f"/proc/{self.process.pid}/fd")
        found = 0
        for each in os.listdir(links):
            with suppress(FileNotFoundError):
                found += os.readlink(links / each).startswith("socket:")
        return found

    def terminate(self) -> int:
        """SIGTERM, and its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_STOP_SECONDS)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(_STOP_SECONDS)


class World:
    """One node with its servers, and edges in front of them."""

    def __init__(self, uid: int = 0) -> None:
        # A unix socket's path is short (108 bytes), and an edge's identity must reach it.
        self._directory = tempfile.TemporaryDirectory(prefix="edge-")
        self.run = Path(self._directory.name)
        self.run.chmod(0o755)
        self.uid = uid
        self.questions: list[dict[str, Any]] = []
        self.route: Route = self.default_route
        self.node: Node | None = None
        self.start_node()
        self.configure()
        self.api = Server(unix_listener(self.run / "api.sock", uid))
        self.agent_path = self.run / "agent.sock"
        self.agent = Server(unix_listener(self.agent_path, uid), preamble=True)
        inside = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.web = Server(inside)
        self.sprite = Agent(self.run / "sprite.sock", uid, inside)
        self.port = 8080
        self.token_is_ours = False
        self.retry_seconds = 0.0
        self.lasts = 0.0
        self.registry_changes = Changes(self.run / "registry.db-changes", counts=True)
        self.instance_changes = Changes(self.run / "changes", counts=True)
        self._edges: list[Edge] = []
        # Tests count what it asks and whom it connects to; these times are of edges of their own.
        self.edge = self.start_edge({
            "holds._LINGER_SECONDS": 10, "server._IDLE_API_SECONDS": 10, "server._IDLE_SPRITE_SECONDS": 10,
        })  # fmt: skip

    def default_route(self, question: dict[str, Any]) -> dict[str, Any]:
        """`/agent/...` is the agent's, `/refuse` nobody's, and everything else the control API's.

        What is asked of a host below the domain is a sprite's, and so is `/sprite/...`.
        """
        target = question["target"]
        kind = hosts.place(question["host"], "sprites.localhost").kind
        if target.startswith("/sprite/") or (kind == "sprite" and target != "/refuse"):
            connect = {"port": self.port, "retry_seconds": self.retry_seconds}
            answer: dict[str, Any] = {"to": "sprite", "socket": str(self.sprite.path), "token": self.token_is_ours}
            if self.lasts:
                answer |= {"lasts": self.lasts, "lease": len(self.questions)}
            return {"ok": {**answer, "preamble": {"v": 1, "org": "acme", "connect": connect}}}
        if target.startswith("/agent/"):
            return {
                "ok": {
                    "to": "agent",
                    "socket": str(self.agent_path),
                    "target": target.removeprefix("/agent"),
                    "preamble": {"v": 1, "org": "acme"},
                }
            }
        if target.startswith("/refuse"):
            refusal = {"status": 401, "error": "unauthorized", "message": "no", "hint": "log in"}
            return {"ok": {"refuse": {**refusal, "headers": {"WWW-Authenticate": "Bearer"}}}}
        return {"ok": {"to": "api", "caller": {"token": question["token"]}}}

    def server_of(self, target: str) -> Server:
        """The server that `default_route` names."""
        return {"agent": self.agent, "sprite": self.web}.get(target.split("/")[1], self.api)

    def configure(self, **settings: Any) -> None:
        """What the edges that are started from now on find the node's settings to be."""
        config = NodeConfig(data=self.run, **settings)
        (self.run / "config.json").write_bytes(msgspec.json.encode(config, enc_hook=str))

    def start_node(self) -> None:
        self.node = Node(self.run / "route.sock", lambda question: self.route(question), self.questions, self.uid)

    def stop_node(self) -> None:
        if self.node is not None:
            self.node.close()
            self.node = None

    def start_edge(self, settings: dict[str, Any] | None = None, *, descriptors: tuple[int, int] | None = None) -> Edge:
        edge = Edge(self.run, settings=settings, uid=self.uid, descriptors=descriptors)
        self._edges.append(edge)
        return edge

    def connect(self) -> Wire:
        return self.edge.connect()

    def reset(self) -> None:
        """As good as new, for the next test."""
        while len(self._edges) > 1:
            self._edges.pop().close()
        if self.node is None:
            self.start_node()
        self.configure()
        self.route = self.default_route
        self.sprite.drop()
        self.sprite.accepted = 0
        self.sprite.asked.clear()
        self.sprite.give = self.sprite.connect
        self.token_is_ours, self.retry_seconds, self.lasts = False, 0.0, 0.0
        self.instance_changes.change()  # nothing is remembered of the test before
        self.port += 1  # what the edge has kept of the test before is another's
        for server in (self.api, self.agent, self.web):
            server.drop()
            server.accepted = 0
            server.handler = server.echo
            server.seen = queue.Queue()
            server.preambles.clear()
        self.questions.clear()

    def close(self) -> None:
        for edge in self._edges:
            edge.close()
        self.api.close()
        self.agent.close()
        self.sprite.close()
        self.web.close()
        self.stop_node()
        self.registry_changes.close()
        self.instance_changes.close()
        self._directory.cleanup()

"""Real nodes for tests: `ballpoint serve` in a process of its own, on an empty directory and a free port."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from sprites import SpritesClient

from ballpoint.core import ids
from ballpoint.core.config import DEFAULT_CACHE, NodeConfig, load_config
from ballpoint.image.uses import Uses
from tests.support.ports import free_port

CACHE = Path(os.environ.get("BALLPOINT_TEST_CACHE", DEFAULT_CACHE))
_READY_SECONDS = 240.0
_STOP_SECONDS = 60.0


@dataclass
class TestNode:
    """A node under test. `start` after `kill` or `terminate` is its next life on the same data."""

    __test__ = False

    data: Path
    options: list[str] = field(default_factory=list)
    org: str = "acme"
    program: tuple[str, ...] = (sys.executable, "-m", "ballpoint.cli")
    cache: Path = CACHE
    process: subprocess.Popen[str] | None = None
    url: str = ""
    clients: list[SpritesClient] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        self.token = f"{self.org}/{ids.new_instance_id()}/{ids.new_instance_id()}/{ids.new_secret()}"
        self.token_file = self.data.parent / "token"
        self.token_file.write_text(self.token)
        self.log = self.data.parent / "node.log"

    @property
    def config(self) -> NodeConfig:
        return load_config(None, data=self.data, cache=self.cache)

    @property
    def id(self) -> str:
        return self.config.node_id

    def start(self) -> TestNode:
        """Start it and wait until it says that it serves."""
        command = [
            *self.program, "serve", "--data", str(self.data), "--cache", str(self.cache),
            "--image", "slim", "--listen", f"127.0.0.1:{free_port()}", "--token-file", str(self.token_file),
            "--pool", "3", "--pool-gb", "20", "--idle-seconds", "0", "--edges", "1", *self.options,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        assert self.process.stdout is not None
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        line = self.process.stdout.readline() if poll.poll(_READY_SECONDS * 1000) else ""
        assert "serving on" in line, f"the node did not start: {self.log.read_text()[-4000:]}"
        self.url = line.split()[-1]
        return self

    def terminate(self) -> int:
        """SIGTERM, as an operator would. Running sprites go on running."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL of the supervisor."""
        assert self.process is not None
        self.process.kill()
        self.wait()

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        assert self.process is not None
        status = self.process.wait(timeout=_STOP_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return status

    def down(self) -> str:
        """Stop it with its sprites, whatever state it is in. Returns what the command said."""
        while self.clients:
            self.clients.pop().close()
        command = [*self.program, "down", "--data", str(self.data)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_STOP_SECONDS, check=False)
        if self.process is not None:
            self.wait()
        assert done.returncode == 0, done.stderr + self.log.read_text()[-4000:]
        Uses(self.cache).forget(self.id)  # its data goes with the test
        return done.stdout

    def client(self, token: str | None = None) -> SpritesClient:
        """The official SDK, pointed at this node; closed with it."""
        made = SpritesClient(token=token or self.token, base_url=self.url, timeout=60.0)
        self.clients.append(made)
        return made

    def processes(self, name: str) -> list[int]:
        """Pids of the supervisor's children called `name` (node, zygote, edge)."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = []
        for pid in children:
            with suppress(FileNotFoundError, ProcessLookupError):  # it ends right now
                if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                    found.append(int(pid))
        return found

    def api(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        """A plain request with this node's token, which gives up after a minute unless `timeout` says otherwise."""
        headers = {"Authorization": f"Bearer {self.token}", **arguments.pop("headers", {})}
        # To read the certificates of this host's authorities takes twenty times as long as a request without TLS.
        defaults = {"timeout": 60.0, "verify": self.url.startswith("https:")}
        return httpx2.request(method, self.url + path, headers=headers, **{**defaults, **arguments})


def shell(sprite: Any, script: str, *, user: str = "sprite", timeout: float = 120.0) -> tuple[int, str]:
    """Run a bash script in a sprite. Returns its exit code and its output, both streams together."""
    argv = ["bash", "-c", script] if user == "sprite" else ["sudo", "-E", "bash", "-c", script]
    done = sprite.run(*argv, capture_output=True, timeout=timeout)
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")

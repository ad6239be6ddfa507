"""The README's demonstration, with the node restarted in the middle."""

from __future__ import annotations

import functools
import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from examples.real_work import work

from tests.support.nodes import TestNode

pytestmark = [pytest.mark.node, pytest.mark.slow]

# RFC 2544's range is no private one, so a sprite may go there; it is put on the host for the test alone.
ADDRESS = "198.18.77.1"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[str]:
    """URL of a git repository served by this machine."""
    source, bare = tmp_path / "source", tmp_path / "project.git"
    source.mkdir()
    (source / "Makefile").write_text("run:\n\t@echo git and make: $$(uname -s)\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-C", str(source)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    subprocess.run(["git", "clone", "-q", "--bare", str(source), str(bare)], check=True)
    subprocess.run(["git", "-C", str(bare), "update-server-info"], check=True)
    subprocess.run(["ip", "addr", "add", f"{ADDRESS}/32", "dev", "lo"], check=True)
    server = http.server.ThreadingHTTPServer((ADDRESS, 0), functools.partial(_Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{ADDRESS}:{server.server_port}/project.git"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        subprocess.run(["ip", "addr", "del", f"{ADDRESS}/32", "dev", "lo"], check=True)


def test_real_work(own_node: TestNode, repository: str) -> None:
    own_node.options += ["--egress-allow", f"{ADDRESS}/32"]
    own_node.start()
    said: list[str] = []

    def restart() -> None:
        own_node.terminate()
        own_node.options += ["--listen", own_node.url.removeprefix("http://")]
        own_node.start()

    work(own_node.client(), repository, restart, said.append)
    text = "".join(said)
    assert "apt works" in text
    assert "pip: 1.0 billion" in text
    assert "npm: 007" in text
    assert "git and make: Linux" in text
    assert own_node.api("GET", "/v1/sprites").json()["sprites"] == []

"""The log of a node that nothing else keeps one of: bounded while it runs, and never deaf to a crash."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ballpoint.host import logfile
from ballpoint.node.supervisor import LOG_BYTES
from tests.support.nodes import TestNode
from tests.support.waiting import eventually

pytestmark = [pytest.mark.node, pytest.mark.slow]


def test_a_log_is_bounded_while_its_node_runs(own_node: TestNode, tmp_path: Path) -> None:
    log = tmp_path / "bounded.log"
    own_node.options = ["--log-file", str(log)]
    own_node.start()
    eventually(lambda: "is ready" in log.read_text())

    with log.open("ab") as stream:
        stream.write(b"a line\n" * (LOG_BYTES // len(b"a line\n") + 1))
    eventually(lambda: log.stat().st_size < LOG_BYTES, seconds=120)
    kept = logfile.previous(log).read_text()
    assert "is ready" in kept and "a line\n" in kept
    assert {path.stat().st_mode & 0o777 for path in (log, logfile.previous(log))} == {logfile.MODE}

    # A child that was there before writes its last words, and the supervisor what it makes of them.
    (pid,) = own_node.processes("node")
    os.kill(pid, signal.SIGABRT)
    eventually(lambda: "starting it again" in log.read_text() and "is ready" in log.read_text(), seconds=120)


def test_a_crash_is_told_in_the_log(own_node: TestNode, tmp_path: Path) -> None:
    """Python's own traceback, of a node process that meets what nobody foresaw."""
    log = tmp_path / "bounded.log"
    own_node.options = ["--log-file", str(log)]
    own_node.start()
    (own_node.config.run / "config.json").write_bytes(b"nonsense")
    (pid,) = own_node.processes("node")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: "Traceback (most recent call last)" in log.read_text(), seconds=120)

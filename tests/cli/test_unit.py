"""The systemd unit of a node."""

from __future__ import annotations

import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

from ballpoint.cli.host.unit import unit_text
from ballpoint.host import process

_DEADLINE = 60


def test_the_unit_leaves_sprites_alone() -> None:
    unit = RawConfigParser()
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(unit_text(Path("/etc/node.toml")))
    service = unit["Service"]
    assert service["ExecStart"] == f"{sys.executable} -m ballpoint.cli serve --config /etc/node.toml"
    assert (service["KillMode"], service["OOMPolicy"]) == ("process", "continue")
    assert (service["Delegate"], service["TasksMax"], service["Restart"]) == ("yes", "infinity", "on-failure")


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """Where systemd's tools are installed, as they are on every host that would use it."""
    file = tmp_path / "ballpoint.service"
    file.write_text(unit_text(Path("/etc/node.toml")))
    if process.which("systemd-analyze") is None:
        assert not Path("/run/systemd/system").exists()
        return
    done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, timeout=_DEADLINE)
    assert (done.returncode, [line for line in done.stderr.splitlines() if file.name in line]) == (0, [])

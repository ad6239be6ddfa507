"""The systemd unit of a node."""

from __future__ import annotations

import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

from ballpoint.cli.host.unit import has_unit, unit_text
from ballpoint.core.config import NodeConfig
from ballpoint.host import process

_DEADLINE = 60
_NODE = NodeConfig(data=Path("/srv/one"))


def test_the_unit_leaves_sprites_alone() -> None:
    unit = RawConfigParser()
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(unit_text(_NODE))
    service = unit["Service"]
    assert service["ExecStart"] == f"{sys.executable} -m ballpoint.cli serve --config /srv/one/node.toml"
    assert service["EnvironmentFile"] == "-/srv/one/store.env"
    assert service["Type"] == "notify"
    assert (service["KillMode"], service["OOMPolicy"]) == ("process", "continue")
    assert (service["Delegate"], service["TasksMax"], service["Restart"]) == ("yes", "infinity", "on-failure")


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """Where systemd's tools are installed, as they are on every host that would use it."""
    file = tmp_path / "ballpoint.service"
    file.write_text(unit_text(_NODE))
    if process.which("systemd-analyze") is None:
        assert not Path("/run/systemd/system").exists()
        return
    done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, timeout=_DEADLINE)
    assert (done.returncode, [line for line in done.stderr.splitlines() if file.name in line]) == (0, [])


def test_a_unit_is_known_by_its_node(tmp_path: Path) -> None:
    """So that `down` of one node does not stop another's."""
    file = tmp_path / "ballpoint.service"
    assert not has_unit(_NODE, file)
    file.write_text(unit_text(_NODE))
    assert has_unit(_NODE, file)
    assert not has_unit(NodeConfig(data=Path("/srv/on")), file)
    assert not has_unit(NodeConfig(data=Path("/one")), file)

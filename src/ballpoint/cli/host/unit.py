"""The systemd unit of a node that starts with the host."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

from ballpoint.core.config import NodeConfig
from ballpoint.core.errors import UnavailableError
from ballpoint.host import process
from ballpoint.host.files import write_atomically

UNIT = "ballpoint.service"
UNIT_FILE = Path("/etc/systemd/system") / UNIT
_SECONDS = 120.0


def unit_text(config_file: Path) -> str:
    """The unit, running the interpreter this program runs with."""
    template = (resources.files("ballpoint.cli.host") / UNIT).read_text()
    command = f"{sys.executable} -m ballpoint.cli serve --config {config_file}"
    return template.replace("@COMMAND@", command)


def install_unit(config: NodeConfig, config_file: Path) -> None:
    """Write, enable and start the unit.

    Raises:
        UnavailableError: this host does not run systemd.
    """
    if not Path("/run/systemd/system").is_dir():
        raise UnavailableError("this host does not run systemd", hint="leave out --system")
    write_atomically(UNIT_FILE, unit_text(config_file).encode())
    process.run(["systemctl", "daemon-reload"], timeout=_SECONDS)
    process.run(["systemctl", "enable", "--now", UNIT], timeout=_SECONDS)


def stop_unit() -> bool:
    """Stop the unit. Returns whether there is one."""
    if not UNIT_FILE.exists() or process.which("systemctl") is None:
        return False
    process.run(["systemctl", "stop", UNIT], timeout=_SECONDS)
    return True


def remove_unit() -> bool:
    """Stop and remove the unit. Returns whether there was one."""
    if not UNIT_FILE.exists():
        return False
    if process.which("systemctl") is not None:
        process.run(["systemctl", "disable", "--now", UNIT], timeout=_SECONDS)
    UNIT_FILE.unlink()
    return True

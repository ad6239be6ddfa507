"""The systemd unit of a node that starts with the host."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

from ballpoint.core.config import NodeConfig
from ballpoint.core.errors import ConflictError, UnavailableError
from ballpoint.host import process
from ballpoint.host.files import write_atomically

UNIT = "ballpoint.service"
UNIT_FILE = Path("/etc/systemd/system") / UNIT
_SECONDS = 120.0


def config_file(config: NodeConfig) -> Path:
    """Where the settings of a node that `up` starts are."""
    return config.data.absolute() / "node.toml"


def admin_token_file(config: NodeConfig) -> Path:
    """Where the administrator's token of a node that `up` starts is."""
    return config.data / "admin.token"


def environment_file(config: NodeConfig) -> Path:
    """Where a node's unit finds the credentials of its store: written by the operator, if at all."""
    return config.data.absolute() / "store.env"


def unit_text(config: NodeConfig) -> str:
    """The unit, running the interpreter this program runs with."""
    template = (resources.files("ballpoint.cli.host") / UNIT).read_text()
    command = f"{sys.executable} -m ballpoint.cli {_arguments(config)}"
    return template.replace("@COMMAND@", command).replace("@ENVIRONMENT@", str(environment_file(config)))


def _arguments(config: NodeConfig) -> str:
    return f"serve --config {config_file(config)}"


def install_unit(config: NodeConfig) -> None:
    """Write, enable and start the unit; returns when the node is ready.

    Raises:
        UnavailableError: this host does not run systemd, or the node does not become ready.
        ConflictError: the unit is another node's.
    """
    if not Path("/run/systemd/system").is_dir():
        raise UnavailableError("this host does not run systemd", hint="leave out --system")
    if UNIT_FILE.exists() and not has_unit(config):
        raise ConflictError(f"{UNIT_FILE} starts another node", hint="ballpoint uninstall --data DIRECTORY of that one")
    write_atomically(UNIT_FILE, unit_text(config).encode())
    process.run(["systemctl", "daemon-reload"], timeout=_SECONDS)
    try:
        process.run(["systemctl", "enable", "--now", UNIT], timeout=_SECONDS)
    except process.CommandFailedError as error:
        raise UnavailableError("the node did not start", hint=f"its log: journalctl -u {UNIT}") from error


def has_unit(config: NodeConfig, file: Path = UNIT_FILE) -> bool:
    """Whether the host's unit is there, and this node's."""
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        return False
    return any(line.startswith("ExecStart=") and line.endswith(f" {_arguments(config)}") for line in lines)


def stop_unit(config: NodeConfig) -> bool:
    """Stop the node's unit. Returns whether it has one."""
    if not has_unit(config) or process.which("systemctl") is None:
        return False
    process.run(["systemctl", "stop", UNIT], timeout=_SECONDS)
    return True


def remove_unit(config: NodeConfig) -> bool:
    """Stop and remove the node's unit. Returns whether it had one."""
    if not has_unit(config):
        return False
    if process.which("systemctl") is not None:
        process.run(["systemctl", "disable", "--now", UNIT], timeout=_SECONDS)
    UNIT_FILE.unlink()
    return True

"""IPv4 forwarding, shared by the nodes of a host: on while one of them runs, then as it was found.

Kept in `<run root>/forwarding`, which goes at a reboot as the settings do: `found.json` (the settings before the first
node) and an empty file per node. A lock orders the nodes. A crash at any point is mended by the next `hold` or `drop`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ballpoint.host import files
from ballpoint.host.sysctl import set_sysctl, sysctl

_FORWARD = "net/ipv4/ip_forward"
# Writing ip_forward also sets these (Documentation/networking/ip-sysctl.rst), so they are put back one by one.
_REDIRECTS = "net/ipv4/conf/all/accept_redirects"
_LINKS = Path("/proc/sys/net/ipv4/conf")


def hold(node_id: str, root: Path) -> None:
    """Turn forwarding on for `node_id`. Idempotent."""
    with _locked(root) as directory:
        found = directory / "found.json"
        if not found.exists():
            files.write_atomically(found, json.dumps(_settings()).encode())
        (directory / node_id).touch()
        # Writing the value that is there already would still put the other settings back to their defaults.
        if sysctl(_FORWARD) != "1":
            set_sysctl(_FORWARD, "1")


def drop(node_id: str, root: Path) -> bool:
    """End what `hold` began; the last node puts the settings back. Returns False where `node_id` held nothing."""
    with _locked(root) as directory:
        held = (directory / node_id).exists()
        (directory / node_id).unlink(missing_ok=True)
        found = directory / "found.json"
        if found.exists() and not [path for path in directory.iterdir() if path.name not in ("found.json", "lock")]:
            settings: dict[str, str] = json.loads(found.read_bytes())
            if settings[_FORWARD] != "1":
                for name, value in settings.items():
                    set_sysctl(name, value)
            found.unlink()
        return held


def _settings() -> dict[str, str]:
    """ip_forward first: writing it changes the others."""
    links = sorted(f"net/ipv4/conf/{path.name}/forwarding" for path in _LINKS.iterdir() if path.name != "all")
    values = {name: sysctl(name) for name in (_FORWARD, _REDIRECTS, *links)}
    return {name: value for name, value in values.items() if value is not None}


@contextmanager
def _locked(root: Path) -> Iterator[Path]:
    directory = root / "forwarding"
    directory.mkdir(parents=True, exist_ok=True)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory
    finally:
        os.close(lock)

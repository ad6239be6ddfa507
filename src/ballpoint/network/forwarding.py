"""IPv4 forwarding, shared by the nodes of a host: on while one of them runs, then as it was found."""

from __future__ import annotations

from pathlib import Path

from ballpoint.host import held
from ballpoint.host.sysctl import set_sysctl, sysctl

DIRECTORY = "forwarding"  # below the run root
_FORWARD = "net/ipv4/ip_forward"
# Writing ip_forward also sets these (Documentation/networking/ip-sysctl.rst), so they are put back one by one.
_REDIRECTS = "net/ipv4/conf/all/accept_redirects"
_LINKS = Path("/proc/sys/net/ipv4/conf")


def hold(node_id: str, root: Path) -> None:
    """Turn forwarding on for `node_id`. Idempotent."""
    held.hold(root / DIRECTORY, node_id, _settings, _turn_on)


def drop(node_id: str, root: Path) -> bool:
    """End what `hold` began; the last node puts the settings back. Returns False where `node_id` held nothing."""
    return held.drop(root / DIRECTORY, node_id, _put_back)


def _turn_on() -> None:
    # Writing the value that is there already would still put the other settings back to their defaults.
    if sysctl(_FORWARD) != "1":
        set_sysctl(_FORWARD, "1")


def _put_back(settings: dict[str, str]) -> None:
    if settings[_FORWARD] != "1":
        for name, value in settings.items():
            set_sysctl(name, value)


def _settings() -> dict[str, str]:
    """ip_forward first: writing it changes the others."""
    links = sorted(f"net/ipv4/conf/{path.name}/forwarding" for path in _LINKS.iterdir() if path.name != "all")
    values = {name: sysctl(name) for name in (_FORWARD, _REDIRECTS, *links)}
    return {name: value for name, value in values.items() if value is not None}

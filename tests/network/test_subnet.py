"""The check that nobody else uses the instances' addresses, while other nodes of the host are at work."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Network
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ballpoint.core.errors import ConflictError
from ballpoint.host import netlink
from ballpoint.host.netlink import Netlink
from ballpoint.network.network import Network
from ballpoint.network.rules import LINK_PREFIX

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("root")]

# RFC 2544: of nobody's network.
SUBNET, ADDRESS = IPv4Network("198.18.32.0/24"), "198.18.32.7/32"


@pytest.fixture(params=[f"{LINK_PREFIX}0badcafe", "foreign0"])
def link(request: pytest.FixtureRequest) -> Iterator[str]:
    name = str(request.param)
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
    try:
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        subprocess.run(["ip", "route", "add", ADDRESS, "dev", name], check=True)
        yield name
    finally:
        subprocess.run(["ip", "link", "del", name], check=True)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_link_that_comes_or_goes_meanwhile_is_known(link: str, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is missing from the list taken before the routes (it has come since) or after (it has gone since)."""
    listed, calls = netlink.links, []

    def links(kernel: Netlink) -> list[Any]:
        calls.append(moment)
        missing = len(calls) == (1 if moment == "before" else 2)
        return [each for each in listed(kernel) if not (missing and each.name == link)]

    monkeypatch.setattr(netlink, "links", links)
    network = cast(Network, SimpleNamespace(_subnet=SUBNET))
    with Netlink() as kernel:
        if link.startswith(LINK_PREFIX):
            Network._check_subnet(network, kernel)
        else:
            with pytest.raises(ConflictError, match=f"routes {ADDRESS} to {link}, which overlaps"):
                Network._check_subnet(network, kernel)

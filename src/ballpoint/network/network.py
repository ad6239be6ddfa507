"""The network of a node: a link, an address and a place in the ruleset for each instance.

An instance with slot n has the n-th address of the host-wide subnet as a /32. Its default gateway is the node's own
address (a slot too, on `lo`), reached over the link alone: neighbours are stated for good on both sides, so nothing but
IPv4 has to pass, and nothing else does.
"""

from __future__ import annotations

import errno
import re
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from ballpoint.core.config import RUN_ROOT
from ballpoint.core.errors import ConflictError, InternalError, InvalidError, UnavailableError
from ballpoint.host import conntrack, netlink, nft, slots
from ballpoint.host.netlink import LinkWatch, Netlink
from ballpoint.host.slots import Slot
from ballpoint.host.sysctl import set_sysctl
from ballpoint.network import forwarding, rules

# Room for a build with hundreds of downloads; 64 instances that fill theirs leave a default host table untouched.
CONNECTIONS_PER_INSTANCE = 4096

_LINK = re.compile(re.escape(rules.LINK_PREFIX) + r"([0-9a-f]{8})")
_INSIDE = "eth0"
_NODE = "node"

# net.ipv4.conf.<link>: a router that believes nobody. The source check is made by the ruleset, too.
_INET = {
    netlink.DEVCONF_FORWARDING: 1,
    netlink.DEVCONF_PROXY_ARP: 0,
    netlink.DEVCONF_ACCEPT_REDIRECTS: 0,
    netlink.DEVCONF_SEND_REDIRECTS: 0,
    netlink.DEVCONF_RP_FILTER: 1,
    netlink.DEVCONF_ACCEPT_SOURCE_ROUTE: 0,
}


class Network:
    """The links, addresses and rules of one node. Its methods block for short and may be called from any thread.

    A crash leaves everything in force: instances keep their network, and what no instance has is closed. The next
    `start` finds it by the node's id.

    Args:
        node_id: six hexadecimal digits.
        subnet: addresses of the instances of the whole host, at least one per slot.
        egress_allow: networks to reach although they are blocked. One that contains an address of the host opens the
            host's ports at that address.
        dns: HOST[:PORT] of the resolver that is asked; not used here, the node's `Resolver` gets it.
        root: directory of what the nodes of a host share.
        connections: tracked connections that one instance may have.

    Raises:
        InvalidError: a network is not one, or the subnet is too small.
    """

    def __init__(
        self,
        node_id: str,
        *,
        subnet: str,
        egress_allow: Sequence[str],
        dns: str | None = None,
        root: Path = RUN_ROOT,
        connections: int = CONNECTIONS_PER_INSTANCE,
    ) -> None:
        self.dns = dns
        self._node_id = node_id
        self._subnet = _network(subnet)
        self._allowed = [_network(cidr) for cidr in egress_allow]
        self._root = root
        self._connections = connections
        self._table = rules.table(node_id)
        self._group = rules.group(node_id)
        self._addresses: dict[str, IPv4Address] = {}
        self._lock = threading.Lock()
        self._mending = threading.Lock()
        self._shape = b""
        self._closed = False
        # Who may have begun flows that no set knows of any more.
        self._unnoted: set[IPv4Address] = set()
        if self._subnet.num_addresses < slots.COUNT:
            raise InvalidError(
                f"the subnet {subnet} has fewer than {slots.COUNT} addresses", hint="use a /21 or a larger one"
            )
        self._gateway: IPv4Address | None = None

    @property
    def gateway(self) -> IPv4Address:
        """The node's own address: gateway and DNS server of its instances. Known once started."""
        if self._gateway is None:
            raise InternalError("the network has not been started")
        return self._gateway

    def address(self, slot: Slot) -> IPv4Address:
        """The address of the instance with `slot`."""
        return self._subnet[slot.number]

    def start(self) -> None:
        """Make or take over the node's address and rules, and turn forwarding on. Idempotent.

        Instances whose link is still there keep their network without a gap; elements of others are dropped.

        Raises:
            ConflictError: the host routes a part of the subnet elsewhere.
            UnavailableError: every slot is taken, or nft(8) is missing.
            InternalError: the kernel refused.
        """
        with Netlink() as kernel:
            self._check_subnet(kernel)
            slot = self._node_slot() or slots.acquire(f"{self._node_id}/{_NODE}", self._root)
            self._gateway = self.address(slot)
            alive = {link.number: link.name for link in netlink.links(kernel) if link.group == self._group}
            routed = {
                alive[route.link]: str(route.destination.network_address)
                for route in netlink.routes(kernel)
                if route.link in alive
            }
            kernel.change(netlink.add_address(_loopback(), self._gateway, replace=True))
        known: dict[str, str] = {}
        for link, address, _ in nft.elements(self._table, rules.SOURCES):
            if link in alive.values():
                known[link] = address
            else:
                self._forget(IPv4Address(address))
        # Somebody may have removed the table while no node ran: then routes tell who is connected.
        self._unnoted |= {IPv4Address(address) for link, address in routed.items() if link not in known}
        known = {**routed, **known}
        self._addresses = {link.removeprefix(rules.LINK_PREFIX): IPv4Address(ip) for link, ip in known.items()}
        with self._mending:
            self._apply(self._sources())
            self._shape = nft.shape(self._table, rules.LOOSE)
        forwarding.hold(self._node_id, self._root)

    def add(self, instance_id: str, slot: Slot, netns: int) -> None:
        """Connect an instance: a link `bp<instance id>` here, and in its namespace `eth0`, configured and up.

        The rules come first, the link last: no packet passes unjudged. A crash half-way leaves an element without a
        link, which the next `start` drops, or a link that dies with its namespace.

        Args:
            instance_id: eight hexadecimal digits.
            slot: the instance's own.
            netns: descriptor of its network namespace; stays the caller's.

        Raises:
            ConflictError: the instance is connected already.
            UnavailableError: the rules are gone (the ruleset was flushed), and cannot be put back; nothing is left.
            InternalError: the kernel refused; nothing is left.
        """
        address, link = self.address(slot), rules.LINK_PREFIX + instance_id
        with self._lock:
            if instance_id in self._addresses:
                raise ConflictError(f"instance {instance_id} is connected already")
            self._addresses[instance_id] = address
        with ExitStack() as undo:
            undo.callback(self._addresses.pop, instance_id)
            key = rules.source_key(link, address, _mac(address))
            self._add_source(key)
            undo.callback(nft.delete_element, self._table, rules.SOURCES, key)
            try:
                self._connect(link, address, netns)
            except OSError as error:
                raise InternalError(f"cannot connect instance {instance_id}: {error}") from error
            undo.pop_all()

    def watch(self) -> nft.TableWatch:
        """Hears of what others do to the rules of a started network. The caller's, and of its network namespace."""
        return nft.TableWatch(self._table, rules.LOOSE)

    def mend(self) -> bool:
        """Put the rules back where somebody changed or removed them, and open links that `close` took down.

        Connected instances stay connected, with their flows. Returns whether the rules were not as they should be.

        Raises:
            UnavailableError, CommandFailedError: nft(8) is missing, or refused; nothing was changed.
            InternalError: the kernel refused.
        """
        with self._mending:
            broken = nft.shape(self._table, rules.LOOSE) != self._shape
            if broken:
                # The new table counts from here on; what was begun before is known to nobody.
                self._unnoted |= set(self._addresses.values())
                self._apply(self._sources())
            self._closed = False
            self._open_links()
        return broken

    def close(self) -> None:
        """Take the links of all instances down, for when nothing else keeps their packets; `mend` opens them again.

        Until then no instance is connected: `add` refuses, also where it had begun.
        """
        self._closed = True
        with Netlink() as kernel:
            _delete(kernel, netlink.set_group_down(self._group))

    def remove(self, instance_id: str) -> bool:
        """Disconnect an instance: nothing passes its link any more, and its flows are forgotten.

        The link itself dies with the namespace. Returns False where neither `add` nor `start` knew the instance. Waits
        8-24 ms for the kernel, and as long again where the instance used the network.
        """
        with self._lock:
            address = self._addresses.pop(instance_id, None)
        if address is None:
            return False
        key = rules.source_key(rules.LINK_PREFIX + instance_id, address, _mac(address))
        removed = nft.delete_element(self._table, rules.SOURCES, key)
        self._forget(address)
        return removed

    def instances(self) -> set[str]:
        """Ids of the instances that have a link or an element of this node on the host."""
        with Netlink() as kernel:
            names = {link.name for link in netlink.links(kernel) if link.group == self._group}
        names |= {source[0] for source in nft.elements(self._table, rules.SOURCES)}
        return {match[1] for name in names if (match := _LINK.fullmatch(name))}

    def stop(self, *, keep: bool) -> None:
        """Give back what the node holds. Idempotent; needs no `start` before.

        Args:
            keep: leave everything in force while an instance is connected; False disconnects them all.
        """
        sources = nft.elements(self._table, rules.SOURCES)
        # Somebody may just have taken the table away, and nobody has put it back yet; whoever has not started does not
        # know who is connected.
        if keep and (sources or self._addresses or (self._gateway is None and self.instances())):
            return
        with Netlink() as kernel:
            _delete(kernel, netlink.delete_group(self._group))
            for _, address, _ in sources:
                self._forget(IPv4Address(address))
            nft.delete_table(self._table)
            if slot := self._node_slot():
                _delete(kernel, netlink.delete_address(_loopback(), self.address(slot)))
                slots.release(slot.number, f"{self._node_id}/{_NODE}", self._root)
        forwarding.drop(self._node_id, self._root)
        self._addresses.clear()
        self._gateway = None

    def _sources(self) -> list[tuple[str, str, str]]:
        """The elements that connected instances have, as (link, address, MAC)."""
        with self._lock:
            connected = list(self._addresses.items())
        return [(rules.LINK_PREFIX + instance, str(ip), _mac(ip).hex(":")) for instance, ip in connected]

    def _apply(self, sources: Sequence[Sequence[str]]) -> None:
        nft.apply(
            rules.ruleset(
                self._node_id,
                gateway=self.gateway,
                subnet=self._subnet,
                allowed=self._allowed,
                connections=self._connections,
                sources=sources,
            )
        )

    def _add_source(self, key: bytes) -> None:
        """Once more where the table was just taken away: whoever watches it may not have heard of it yet."""
        try:
            nft.add_elements(self._table, rules.SOURCES, [key])
        except OSError:
            self.mend()
            try:
                nft.add_elements(self._table, rules.SOURCES, [key])
            except OSError as error:
                raise UnavailableError(
                    f"the node's nftables table {self._table} does not stay: {error}",
                    hint="look for what flushes the host's nftables ruleset",
                ) from error

    def _open_links(self) -> None:
        """Taking a link down empties its routes and neighbours."""
        with Netlink() as kernel:
            for link in netlink.links(kernel):
                address = self._addresses.get(link.name.removeprefix(rules.LINK_PREFIX))
                if link.group == self._group and not link.flags & netlink.IFF_UP and address is not None:
                    kernel.change(*self._configured(link.number, address))

    def _configured(self, link: int, address: IPv4Address) -> list[netlink.Message]:
        return [
            # Switching ARP off empties the link's table of neighbours, so this one comes first.
            netlink.set_up(link, arp=False, inet=_INET),
            netlink.add_neighbour(link, address, _mac(address)),
            netlink.add_host_route(link, address, self.gateway),
        ]

    def _connect(self, link: str, address: IPv4Address, netns: int) -> None:
        gateway, mac, gateway_mac = self.gateway, _mac(address), _mac(self.gateway)
        with ExitStack() as undo, Netlink() as kernel, LinkWatch() as watch:
            kernel.change(netlink.add_veth(link, gateway_mac, self._group, peer=_INSIDE, peer_mac=mac, netns=netns))
            undo.callback(_delete_link, link)
            set_sysctl(f"net/ipv6/conf/{link}/disable_ipv6", "1")
            index = socket.if_nametoindex(link)
            kernel.change(*self._configured(index, address))
            with netlink.inside(netns), Netlink() as within:
                set_sysctl(f"net/ipv6/conf/{_INSIDE}/disable_ipv6", "1")
                inner = socket.if_nametoindex(_INSIDE)
                within.change(
                    netlink.set_up(_loopback()),
                    netlink.set_up(inner),
                    netlink.add_address(inner, address),
                    netlink.add_neighbour(inner, gateway, gateway_mac),
                    netlink.add_default_route(inner, gateway),
                )
            watch.wait(index)
            # Looked at when the link is up: `close` says so first, and then takes down those that are.
            if self._closed:
                raise UnavailableError(
                    "the node's firewall rules are not in force, and cannot be put back",
                    hint="look for what changes the host's nftables ruleset",
                )
            undo.pop_all()

    def _forget(self, address: IPv4Address) -> None:
        """End the flows `address` began, so that the slot's next owner gets no answer meant for this one.

        The ruleset notes who ever began one; looking through the host's connection table is kept for those. Flows the
        host began need no care: what still belongs to one is let through to the host's own socket, and no further.
        """
        noted = nft.delete_element(self._table, rules.CONNECTIONS, nft.key(address.packed))
        if noted or address in self._unnoted:
            self._unnoted.discard(address)
            conntrack.cut(address)

    def _node_slot(self) -> Slot | None:
        owner = f"{self._node_id}/{_NODE}"
        numbers = [number for number, name in slots.owned_by(owner, self._root).items() if name == owner]
        return slots.slot(numbers[0]) if numbers else None

    def _check_subnet(self, kernel: Netlink) -> None:
        # Other nodes of this host make and remove links meanwhile: one that a route goes by is in one of the two lists.
        names = {link.number: link.name for link in netlink.links(kernel)}
        routes = netlink.routes(kernel)
        names.update({link.number: link.name for link in netlink.links(kernel)})
        for route in routes:
            name = names.get(route.link, "nowhere")
            if name.startswith(rules.LINK_PREFIX) or route.destination.prefixlen == 0:
                continue
            if route.destination.overlaps(self._subnet):
                raise ConflictError(
                    f"this host routes {route.destination} to {name}, which overlaps the instances' {self._subnet}",
                    hint="choose a free network with --subnet",
                )


def _network(cidr: str) -> IPv4Network:
    try:
        return IPv4Network(cidr)
    except ValueError as error:
        raise InvalidError(f"{cidr!r} is not an IPv4 network: {error}", hint="for example 10.1.2.0/24") from error


def _mac(address: IPv4Address) -> bytes:
    """The hardware address that goes with `address`: locally administered, unicast (IEEE 802, U/L bit)."""
    return b"\x02\x62" + address.packed


def _loopback() -> int:
    return socket.if_nametoindex("lo")


def _delete(kernel: Netlink, message: netlink.Message) -> None:
    try:
        kernel.change(message)
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.EADDRNOTAVAIL):
            raise


def _delete_link(link: str) -> None:
    with Netlink() as kernel:
        _delete(kernel, netlink.delete_link(link))

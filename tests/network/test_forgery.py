"""Packets that lie, and connections that would take what is another's."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address

import pytest

from ballpoint.host import slots

from .world import (
    REMOTE_ADDRESS,
    A,
    B,
    World,
    address_of,
    drain,
    sentinel,
)

pytestmark = pytest.mark.host


def test_forged_addresses_are_dropped(world: World) -> None:
    network = world.start(world.network())
    instance, other = world.connect(network, A), world.connect(network, B)
    # Distributions loosen the kernel's own check on new links; the rules do without it.
    world.host.sh(f"sysctl -qw net.ipv4.conf.bp{A}.rp_filter=0 net.ipv4.conf.all.rp_filter=0")
    for forged in (address_of(other), "203.0.113.9"):
        instance.sh(f"ip address add {forged}/32 dev lo")
        with world.remote.udp(port=9000) as server, instance.udp(forged) as liar, instance.udp() as client:
            liar.sendto(b"forged", (REMOTE_ADDRESS, 9000))
            client.connect((REMOTE_ADDRESS, 9000))
            instance.run(client.send, b"true")
            assert server.recv(100) == b"true"
            assert drain(server) == []
        instance.sh(f"ip address delete {forged}/32 dev lo")


def test_a_forged_hardware_address_is_dropped(world: World) -> None:
    network = world.start(world.network())
    instance = world.connect(network, A)
    own = instance.sh("ip -o link show dev eth0").split("link/ether ")[1].split()[0]
    gateway = instance.sh("ip neigh show dev eth0").split("lladdr ")[1].split()[0]
    with world.remote.udp(port=9000) as server, instance.udp() as client:
        for mac in ("02:00:00:00:00:01", own):
            # The kernel forgets neighbours when its own address changes.
            instance.sh(f"ip link set dev eth0 address {mac}; ip neigh add {network.gateway} lladdr {gateway} dev eth0")
            client.sendto(mac.encode(), (REMOTE_ADDRESS, 9000))
        assert server.recv(100) == own.encode()
        assert drain(server) == []


def test_nothing_but_ipv4_passes(world: World) -> None:
    network = world.start(world.network())
    instance = world.connect(network, A)
    link = f"bp{A}"
    assert world.host.sh(f"cat /proc/sys/net/ipv6/conf/{link}/disable_ipv6").strip() == "1"
    assert "inet6" not in instance.sh("ip address show dev eth0")
    # Even where both sides have it on again and the host routes it, the rules stop it.
    world.host.sh(
        f"sysctl -qw net.ipv6.conf.{link}.disable_ipv6=0 net.ipv6.conf.all.forwarding=1\n"
        f"ip address add fe80::1/64 dev {link} nodad\n"
        "ip address add 2001:db8::1/64 dev wan nodad"
    )
    world.remote.sh("ip address add 2001:db8::2/64 dev wan nodad")
    gateway_mac = instance.sh("ip neigh show dev eth0").split("lladdr ")[1].split()[0]
    instance.sh(
        "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0\n"
        "ip address add fe80::2/64 dev eth0 nodad; ip address add 2001:db8:1::2/64 dev eth0 nodad\n"
        f"ip neigh replace fe80::1 lladdr {gateway_mac} dev eth0; ip -6 route add default via fe80::1 dev eth0"
    )
    with (
        world.host.run(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM) as near,
        world.remote.run(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM) as far,
        instance.run(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM) as client,
    ):
        near.bind(("::", 9000))
        far.bind(("::", 9000))
        for address in ("2001:db8::1", "2001:db8::2"):
            client.sendto(b"six", (address, 9000))
        client.sendto(b"six", ("fe80::1", 9000, 0, instance.run(socket.if_nametoindex, "eth0")))
        with world.host.run(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM) as host:
            host.sendto(b"host", ("2001:db8::2", 9000))
        far.settimeout(30)
        assert far.recv(100) == b"host"
        sentinel(world, network, instance)
        assert drain(near) == drain(far) == []


def test_an_instance_cannot_teach_the_host_neighbours(world: World) -> None:
    network = world.start(world.network())
    instance = world.connect(network, A)
    before = world.host.sh(f"ip neigh show dev bp{A}")
    assert "PERMANENT" in before
    mac = bytes.fromhex("020000000001")
    for claimed in (network.gateway, IPv4Address(REMOTE_ADDRESS), network.address(slots.slot(77))):
        # RFC 826: Ethernet, IPv4, request; the same sender and target announces an address.
        arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, claimed.packed, bytes(6), network.gateway.packed)
        frame = b"\xff" * 6 + mac + b"\x08\x06" + arp
        with instance.run(socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as raw:
            instance.run(raw.bind, ("eth0", 0))
            raw.send(frame)
    sentinel(world, network, instance)
    assert world.host.sh(f"ip neigh show dev bp{A}") == before


@pytest.mark.parametrize("to_the_node", [False, True])
def test_one_instances_connections_do_not_take_anothers(world: World, to_the_node: bool) -> None:
    cap = 20
    network = world.start(world.network(connections=cap))
    greedy, modest = world.connect(network, A), world.connect(network, B)
    target = (str(network.gateway), 53) if to_the_node else (REMOTE_ADDRESS, 9000)
    with (world.host if to_the_node else world.remote).udp(*target) as server, modest.udp() as client:
        for _ in range(3 * cap):
            with greedy.udp() as one:
                one.sendto(b"greedy", target)
        client.sendto(b"modest", target)
        arrived: list[bytes] = []
        # Processors have queues of their own, so the last one sent is not always the last to arrive.
        while b"modest" not in arrived or arrived.count(b"greedy") < cap:
            arrived.append(server.recv(100))
        assert (arrived + drain(server)).count(b"greedy") == cap

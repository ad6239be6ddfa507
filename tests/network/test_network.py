"""A node's network, with real packets between network namespaces.

A packet that must not arrive is followed by one that must, on the same way: when that one is there, the first is not
late but lost.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from ipaddress import IPv4Address
from pathlib import Path

import dns.message
import dns.query
import dns.rrset
import pytest

from ballpoint.core.errors import ConflictError, InternalError, InvalidError, UnavailableError
from ballpoint.host import nft, slots
from ballpoint.network import rules
from ballpoint.network.network import Network
from ballpoint.network.probe import forward_policy_problem
from ballpoint.network.resolver import Resolver

from .world import (
    HOST_ADDRESS,
    PRIVATE_ADDRESSES,
    REMOTE_ADDRESS,
    SUBNET,
    Machine,
    World,
    drain,
)

pytestmark = pytest.mark.host

A, B = "aaaaaaaa", "bbbbbbbb"


def address_of(machine: Machine) -> str:
    """The IPv4 address of an instance's eth0."""
    return machine.sh("ip -4 -o address show dev eth0").split()[3].removesuffix("/32")


def _sentinel(world: World, network: Network, instance: Machine) -> None:
    """Returns when a packet of `instance` sent now has reached the host."""
    with world.host.udp(str(network.gateway), 53) as server, instance.udp() as client:
        client.sendto(b"sentinel", (str(network.gateway), 53))
        assert server.recv(100) == b"sentinel"


def test_an_instance_reaches_the_world_by_the_hosts_address(world: World) -> None:
    network = world.start(world.network())
    instance = world.connect(network, A)
    with world.remote.udp(port=9000) as server, instance.udp() as client:
        client.sendto(b"question", (REMOTE_ADDRESS, 9000))
        data, source = server.recvfrom(100)
        assert (data, source[0]) == (b"question", HOST_ADDRESS)
        server.sendto(b"answer", source)
        assert client.recv(100) == b"answer"


def test_tcp_works_and_fits_a_narrow_way(world: World) -> None:
    network = world.start(world.network())
    world.host.sh("ip link set wan mtu 1300")
    instance = world.connect(network, A)
    with world.remote.run(socket.create_server, ("0.0.0.0", 9000)) as server:
        server.settimeout(30)
        with instance.run(socket.create_connection, (REMOTE_ADDRESS, 9000), 30) as client:
            accepted, _ = server.accept()
            with accepted:
                # 40 bytes are the headers of IPv4 and TCP; the kernel says what it may send at a time.
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1300 - 40
                client.sendall(b"x" * 100_000)
                client.shutdown(socket.SHUT_WR)
                assert sum(len(part) for part in iter(lambda: accepted.recv(65536), b"")) == 100_000


def test_private_ranges_are_closed(world: World) -> None:
    network = world.start(world.network())
    instance = world.connect(network, A)
    with world.remote.udp(port=9000) as server, instance.udp() as client:
        for address in (*PRIVATE_ADDRESSES, "127.0.0.1", "0.0.0.0", "224.0.0.1", "240.0.0.1", "10.213.255.255"):
            try:
                client.sendto(address.encode(), (address, 9000))
            except OSError:
                continue  # The instance's own kernel refuses some of them.
        client.sendto(b"allowed", (REMOTE_ADDRESS, 9000))
        assert server.recv(100) == b"allowed"
        assert drain(server) == []


def test_an_exception_opens_its_range_and_no_other(world: World) -> None:
    network = world.start(world.network(allow=("10.9.9.0/24",)))
    instance = world.connect(network, A)
    with world.remote.udp(port=9000) as server, instance.udp() as client:
        for address in ("192.168.9.9", "10.9.9.9"):
            client.sendto(address.encode(), (address, 9000))
        assert server.recv(100) == b"10.9.9.9"
        assert drain(server) == []


def test_a_list_that_was_tightened_ends_live_flows(world: World) -> None:
    instance = world.connect(world.start(world.network(allow=("10.9.9.9/32",))), A)
    with world.remote.udp("10.9.9.9", 9000) as private, instance.udp() as client:
        client.sendto(b"before", ("10.9.9.9", 9000))
        data, source = private.recvfrom(100)
        private.sendto(b"answer", source)
        assert (data, client.recv(100)) == (b"before", b"answer")
        world.start(world.network())
        client.sendto(b"after", ("10.9.9.9", 9000))
        with world.remote.udp(REMOTE_ADDRESS, 9000) as server:
            client.sendto(b"allowed", (REMOTE_ADDRESS, 9000))
            assert server.recv(100) == b"allowed"
        assert drain(private) == []


def test_a_hosts_own_dnat_is_no_way_around(world: World) -> None:
    instance = world.connect(world.start(world.network()), A)
    world.host.sh(
        "nft 'table ip other { chain pre { type nat hook prerouting priority -100; "
        "ip daddr 203.0.113.5 dnat to 10.9.9.9; ip daddr 169.254.169.254 dnat to 198.51.100.2; "
        "ip daddr 203.0.113.6 dnat to 198.51.100.2; ip daddr 203.0.113.7 dnat to 198.51.100.1; }; }'"
    )
    with world.remote.udp(port=9000) as server, world.host.udp(port=9000) as own, instance.udp() as client:
        for address in ("203.0.113.5", "169.254.169.254", "203.0.113.7", "203.0.113.6"):
            client.sendto(address.encode(), (address, 9000))
        assert server.recv(100) == b"203.0.113.6"
        assert drain(server) == drain(own) == []


def test_the_hosts_ports_are_closed_but_dns(world: World) -> None:
    network = world.start(world.network())
    instance = world.connect(network, A)
    gateway = str(network.gateway)
    with world.host.udp(port=9000) as port, world.host.udp(gateway, 53) as server, instance.udp() as client:
        for address in (HOST_ADDRESS, gateway, "127.0.0.1"):
            client.sendto(b"port", (address, 9000))
        client.sendto(b"dns", (HOST_ADDRESS, 53))
        client.sendto(b"dns", (gateway, 53))
        data, source = server.recvfrom(100)
        assert (data, source[0]) == (b"dns", address_of(instance))
        server.sendto(b"answer", source)
        assert client.recv(100) == b"answer"
        assert drain(port) == drain(server) == []


def test_an_address_the_host_gets_later_is_closed_too(world: World) -> None:
    network = world.start(world.network())
    instance = world.connect(network, A)
    world.host.sh("ip address add 203.0.113.77/32 dev lo")
    with world.host.udp(port=9000) as port, instance.udp() as client:
        client.sendto(b"port", ("203.0.113.77", 9000))
        _sentinel(world, network, instance)
        assert drain(port) == []


def test_a_service_of_the_host_is_opened_by_its_address(world: World) -> None:
    network = world.start(world.network(allow=(f"{HOST_ADDRESS}/32",)))
    instance = world.connect(network, A)
    with world.host.udp(port=9000) as server, instance.udp() as client:
        client.sendto(b"gateway", (str(network.gateway), 9000))
        client.sendto(b"mirror", (HOST_ADDRESS, 9000))
        assert server.recv(100) == b"mirror"
        assert drain(server) == []


@pytest.mark.parametrize("other_subnet", [SUBNET, "10.214.0.0/16"])
def test_no_exception_opens_other_instances_or_the_nodes(world: World, other_subnet: str) -> None:
    everything = ("0.0.0.0/0",)
    one = world.start(world.network("000001", allow=everything))
    two = world.start(world.network("000002", allow=everything, subnet=other_subnet))
    asking, neighbour, foreign = world.connect(one, A), world.connect(one, B), world.connect(two, "cccccccc")
    with asking.udp() as client, world.host.udp() as host, world.host.udp(port=9000) as port:
        for other in (neighbour, foreign):
            with other.udp(port=9000) as server:
                client.sendto(b"instance", (address_of(other), 9000))
                host.sendto(b"host", (address_of(other), 9000))
                assert server.recv(100) == b"host"
                assert drain(server) == []
        for address in (str(one.gateway), str(two.gateway), "224.0.0.1"):
            client.sendto(b"node", (address, 9000))
        client.sendto(b"mirror", (HOST_ADDRESS, 9000))
        assert port.recv(100) == b"mirror"
        assert drain(port) == []


def test_the_gateway_answers_echo(world: World) -> None:
    network = world.start(world.network())
    instance = world.connect(network, A)
    instance.sh("sysctl -qw net.ipv4.ping_group_range='0 0'")
    with instance.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as ping:
        ping.settimeout(30)
        # RFC 792: type 8 asks, type 0 answers; the kernel fills in the checksum.
        ping.sendto(struct.pack("!BBHHH", 8, 0, 0, 0, 1) + b"hello", (str(network.gateway), 0))
        answer = ping.recv(100)
        assert (answer[0], answer[8:]) == (0, b"hello")


def test_a_packet_of_no_connection_does_not_leave_unmasked(world: World) -> None:
    instance = world.connect(world.start(world.network()), A)
    # SYN and FIN together belong to no connection, so address translation would pass over it.
    segment = struct.pack("!HHIIBBHHH", 4000, 9000, 1, 0, 5 << 4, 0x03, 1024, 0, 0)
    with world.remote.run(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as seen:
        with instance.run(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
            raw.sendto(segment, (REMOTE_ADDRESS, 0))
        with world.remote.udp(port=9000) as server, instance.udp() as client:
            client.sendto(b"whole", (REMOTE_ADDRESS, 9000))
            assert server.recv(100) == b"whole"
        assert drain(seen) == []


def test_the_host_reaches_an_instance_and_nobody_else_does(world: World) -> None:
    network = world.start(world.network())
    instance = world.connect(network, A)
    address = address_of(instance)
    world.remote.sh(f"ip route add {SUBNET} via {HOST_ADDRESS}")
    with instance.udp(port=9000) as server, world.remote.udp() as outside, world.host.udp() as host:
        outside.sendto(b"outside", (address, 9000))
        outside.sendto(b"outside", (str(network.gateway), 53))
        host.sendto(b"host", (address, 9000))
        data, source = server.recvfrom(100)
        assert data == b"host"
        server.sendto(b"answer", source)
        assert host.recv(100) == b"answer"
    with instance.run(socket.create_server, ("0.0.0.0", 9000)):
        world.host.run(socket.create_connection, (address, 9000), 30).close()


def test_the_first_packet_arrives(world: World) -> None:
    network = world.start(world.network())

    def connect_and_send(instance: Machine, instance_id: str, client: socket.socket) -> None:
        slot = slots.acquire(f"test/{instance_id}", world.root)
        network.add(instance_id, slot, instance.netns)
        client.sendto(b"first", (str(network.address(slot)), 9000))

    with world.host.udp() as client:
        for number in range(30):
            instance = world.machine()
            with instance.udp(port=9000) as server:
                world.host.run(connect_and_send, instance, f"{number:08x}", client)
                assert server.recv(100) == b"first"


def test_the_nodes_dns_is_not_open_to_the_outside(world: World) -> None:
    network = world.start(world.network())
    world.remote.sh(f"ip route add {SUBNET} via {HOST_ADDRESS}")
    with world.host.udp(port=53) as everywhere, world.remote.udp() as outside:
        outside.sendto(b"gateway", (str(network.gateway), 53))
        outside.sendto(b"host", (HOST_ADDRESS, 53))
        assert everywhere.recv(100) == b"host"
        assert drain(everywhere) == []


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
        _sentinel(world, network, instance)
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
    _sentinel(world, network, instance)
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
        arrived = [server.recv(100)]
        while arrived[-1] != b"modest":
            arrived.append(server.recv(100))
        assert arrived.count(b"greedy") == cap


def test_dns_is_answered_by_the_resolver_which_asks_the_next_server_where_one_is_gone(world: World) -> None:
    network = world.start(world.network())
    instance = world.connect(network, A)
    resolv_conf = world.root / "resolv.conf"
    resolv_conf.write_text(f"nameserver {HOST_ADDRESS}\nnameserver {REMOTE_ADDRESS}\n")

    def answer_one(server: socket.socket) -> None:
        data, source = server.recvfrom(2048)
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        answer.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "192.0.2.9"))
        server.sendto(answer.to_wire(), source)

    async def scenario() -> dns.message.Message:
        resolver = Resolver(resolv_conf=resolv_conf)
        await resolver.start(str(network.gateway))
        query = dns.message.make_query("example.org.", "A")
        asked = instance.submit(dns.query.udp, query, str(network.gateway), timeout=30)
        try:
            return await asyncio.wrap_future(asked)
        finally:
            await resolver.close()

    with world.remote.udp(port=53) as server:
        upstream = world.remote.submit(answer_one, server)
        answer = world.host.run(asyncio.run, scenario())
        upstream.result(30)
    assert [str(item) for item in answer.answer[0]] == ["192.0.2.9"]


def test_a_flood_of_questions_from_one_instance_leaves_the_others_theirs(world: World) -> None:
    network = world.start(world.network())
    greedy, modest = world.connect(network, A), world.connect(network, B)
    gateway = (str(network.gateway), 53)
    with world.host.udp(*gateway) as server, greedy.udp() as flood, modest.udp() as client:
        server.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE: only the rules may drop here
        for _ in range(20_000):
            flood.sendto(b"greedy", gateway)
        client.sendto(b"modest", gateway)
        arrived = [server.recv(100)]
        while arrived[-1] != b"modest":
            arrived.append(server.recv(100))
        assert len(arrived) < 20_000


def assert_heir_gets_nothing(world: World, second: Machine, server: socket.socket, source: tuple[str, int]) -> None:
    """What the server answers to the first who had the slot does not reach the second."""
    with second.udp(port=4000) as heir, world.host.udp() as host:
        server.sendto(b"for the first", source)
        world.remote.sh(f"ip neigh show {HOST_ADDRESS}")
        host.sendto(b"host", (address_of(second), 4000))
        assert heir.recv(100) == b"host"
        assert drain(heir) == []


def test_who_gets_a_used_slot_gets_none_of_its_flows(world: World) -> None:
    network = world.start(world.network())
    slot = slots.acquire("test/one", world.root)
    first = world.connect(network, A, slot)
    with world.remote.udp(port=9000) as server:
        with first.udp(port=4000) as client:
            client.sendto(b"hello", (REMOTE_ADDRESS, 9000))
            _, source = server.recvfrom(100)
        assert world.host.run(network.remove, A)
        assert not world.host.run(network.remove, A)
        assert_heir_gets_nothing(world, world.connect(network, B, slot), server, source)


def test_a_removed_instance_is_cut_off(world: World) -> None:
    network = world.start(world.network())
    instance, other = world.connect(network, A), world.connect(network, B)
    with world.remote.udp(port=9000) as server, instance.udp() as client, other.udp() as second:
        client.sendto(b"before", (REMOTE_ADDRESS, 9000))
        assert server.recv(100) == b"before"
        assert world.host.run(network.remove, A)
        client.sendto(b"after", (REMOTE_ADDRESS, 9000))
        second.sendto(b"other", (REMOTE_ADDRESS, 9000))
        assert server.recv(100) == b"other"
        assert drain(server) == []


def test_starting_again_after_a_crash_changes_nothing_and_cuts_nothing(world: World) -> None:
    network = world.start(world.network())
    instance, _ = world.connect(network, A), world.connect(network, B)
    with world.remote.udp(port=9000) as server, instance.udp() as client:
        client.sendto(b"before", (REMOTE_ADDRESS, 9000))
        _, source = server.recvfrom(100)
        world.host.sh(f"ip link delete bp{B}")
        for again in (network, world.network(), world.network()):
            state = world.state().replace(f"bp{B}", "")
            world.start(again)
            assert again.gateway == network.gateway
            assert world.host.run(again.instances) == {A}
            server.sendto(b"answer", source)
            assert client.recv(100) == b"answer"
        assert world.state() == state
        assert world.host.run(again.remove, A), "what an earlier process connected can be removed"
        assert world.host.run(again.instances) == {A}, "until its namespace is gone, the link is there"


def test_stopping_leaves_the_host_as_it_was_found(world: World) -> None:
    world.host.sh(
        "sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.wan.forwarding=1"
    )
    before = world.state()
    network = world.start(world.network())
    instance = world.connect(network, A)
    with world.remote.udp(port=9000) as server, instance.udp() as client:
        client.sendto(b"hello", (REMOTE_ADDRESS, 9000))
        assert server.recv(100) == b"hello"
    # A process that never started the node can stop it, and a second time.
    for stopped in (world.network(), network, network):
        world.host.run(stopped.stop, keep=False)
        assert world.state() == before
        assert slots.owned_by("0a1b2c/", world.root) == {}


def test_stopping_leaves_running_instances_their_network(world: World) -> None:
    before = world.state()
    network = world.start(world.network())
    instance = world.connect(network, A)
    world.host.run(network.stop, keep=True)
    with world.remote.udp(port=9000) as server, instance.udp() as client:
        client.sendto(b"private", ("10.9.9.9", 9000))
        client.sendto(b"still here", (REMOTE_ADDRESS, 9000))
        assert server.recv(100) == b"still here"
    assert world.host.run(network.remove, A)
    world.host.run(network.stop, keep=True)
    world.host.sh(f"ip link show bp{A} >/dev/null 2>&1 && ip link delete bp{A} || true")
    assert world.state() == before, "with no instance connected, nothing is kept"


def test_forwarding_goes_off_with_the_last_node(world: World) -> None:
    world.host.sh("sysctl -qw net.ipv4.ip_forward=0")
    one, two = (world.start(world.network(node)) for node in ("000001", "000002"))
    world.host.run(one.stop, keep=False)
    assert world.host.sh("sysctl -n net.ipv4.ip_forward").strip() == "1"
    world.host.run(two.stop, keep=False)
    assert world.host.sh("sysctl -n net.ipv4.ip_forward").strip() == "0"


def test_forwarding_that_was_on_stays_on(world: World) -> None:
    world.host.sh("sysctl -qw net.ipv4.ip_forward=1")
    network = world.start(world.network())
    world.host.run(network.stop, keep=False)
    assert world.host.sh("sysctl -n net.ipv4.ip_forward").strip() == "1"


def test_two_nodes_stop_apart(world: World) -> None:
    one, two = (world.start(world.network(node)) for node in ("000001", "000002"))
    world.connect(one, A)
    other = world.connect(two, B)
    world.host.run(one.stop, keep=False)
    assert world.host.run(one.instances) == set()
    assert world.host.run(two.instances) == {B}
    with world.remote.udp(port=9000) as server, other.udp() as client:
        client.sendto(b"hello", (REMOTE_ADDRESS, 9000))
        assert server.recv(100) == b"hello"


def test_connecting_twice_is_refused_and_harms_nothing(world: World) -> None:
    network = world.start(world.network())
    instance = world.connect(network, A)
    state = world.state()
    with pytest.raises(ConflictError):
        world.host.run(network.add, A, slots.slot(500), instance.netns)
    assert world.state() == state


def test_a_link_that_is_in_the_way_stays(world: World) -> None:
    network = world.start(world.network())
    world.host.sh(f"ip link add bp{A} type veth peer name other")
    state = world.state()
    with pytest.raises(InternalError, match="exists"):
        world.connect(network, A)
    assert world.state() == state


def test_nothing_is_connected_before_the_start(world: World) -> None:
    state = world.state()
    with pytest.raises(UnavailableError):
        world.connect(world.network(), A)
    assert world.state() == state


def test_a_namespace_that_is_none_leaves_nothing_behind(world: World, tmp_path: Path) -> None:
    network = world.start(world.network())
    state = world.state()
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(InternalError, match=A):
            world.host.run(network.add, A, slots.slot(5), fd)
    finally:
        os.close(fd)
    assert world.state() == state
    world.connect(network, A)


def test_a_namespace_that_has_an_eth0_leaves_nothing_behind(world: World) -> None:
    network = world.start(world.network())
    taken = world.machine()
    taken.sh("ip link add eth0 type veth peer name other")
    state = world.state()
    with pytest.raises(InternalError, match="exists"):
        world.host.run(network.add, A, slots.slot(5), taken.netns)
    assert world.state() == state


@pytest.mark.parametrize(
    "harm",
    [
        "flush ruleset",
        "delete table inet {table}",
        "flush table inet {table}",
        "flush set inet {table} blocked",
        "add element inet {table} allowed {{ 10.0.0.0/8 }}",
        "insert rule inet {table} ingress accept",
    ],
)
def test_whoever_changes_the_rules_is_noticed_and_they_are_put_back(world: World, harm: str) -> None:
    network = world.start(world.network())
    instance = world.connect(network, A)
    with world.remote.udp(port=9000) as server, instance.udp() as client, world.host.run(network.watch) as watch:
        world.host.sh("nft '" + harm.format(table=rules.table("0a1b2c")) + "'")
        assert "nft (process " in told(watch)
        assert world.host.run(network.mend)
        assert not world.host.run(network.mend)
        client.sendto(b"question", (REMOTE_ADDRESS, 9000))
        data, source = server.recvfrom(100)
        assert (data, source[0]) == (b"question", HOST_ADDRESS)
        with world.remote.udp(PRIVATE_ADDRESSES[0], 9001) as private:
            client.sendto(b"private", (PRIVATE_ADDRESSES[0], 9001))
            client.sendto(b"later", (REMOTE_ADDRESS, 9000))
            assert server.recv(100) == b"later"
            assert drain(private) == []


def told(watch: nft.TableWatch) -> str:
    """The first author the watch names; everything that is read before is of others' tables."""
    while (who := watch.read()) is None:
        pass
    return who


def test_what_the_network_itself_and_other_tables_do_is_no_harm(world: World) -> None:
    network = world.start(world.network())
    with world.host.run(network.watch) as watch:
        world.connect(network, A)
        world.host.run(network.remove, A)
        world.host.sh("nft add table inet others; nft delete table inet others")
        world.host.sh(f"nft flush table inet {rules.table('0a1b2c')}")
        assert "nft (process " in told(watch)
        before = world.host.run(network.mend)
    assert before


def test_an_instance_that_comes_after_a_flush_finds_the_walls_back(world: World) -> None:
    network = world.start(world.network())
    other = world.connect(network, A)
    world.host.sh("nft flush ruleset")
    instance = world.connect(network, B)
    with world.remote.udp(port=9000) as server:
        for machine in (instance, other):
            with machine.udp() as client:
                client.sendto(b"question", (REMOTE_ADDRESS, 9000))
                data, source = server.recvfrom(100)
                assert (data, source[0]) == (b"question", HOST_ADDRESS)


def test_links_that_were_taken_down_let_nothing_pass_and_come_back(world: World) -> None:
    network = world.start(world.network())
    instance = world.connect(network, A)
    world.host.run(network.close)
    world.host.sh("nft flush ruleset")
    with world.host.udp(port=9000) as service, world.remote.udp(port=9000) as server, instance.udp() as client:
        client.sendto(b"lost", (HOST_ADDRESS, 9000))
        assert world.host.run(network.mend)
        for data in iter(lambda: sent(client, server), b"question"):
            assert data == b""  # the link's other end is told of its coming up some time after
        assert drain(service) == []


def sent(client: socket.socket, server: socket.socket) -> bytes:
    client.sendto(b"question", (REMOTE_ADDRESS, 9000))
    server.settimeout(1)
    try:
        return server.recv(100)
    except TimeoutError:
        return b""


def test_who_gets_a_slot_after_a_flush_gets_none_of_its_flows(world: World) -> None:
    """The set that knew who began flows is gone with the table."""
    network = world.start(world.network())
    slot = slots.acquire("test/one", world.root)
    first = world.connect(network, A, slot)
    with world.remote.udp(port=9000) as server:
        with first.udp(port=4000) as client:
            client.sendto(b"hello", (REMOTE_ADDRESS, 9000))
            _, source = server.recvfrom(100)
        world.host.sh("nft flush ruleset")
        assert world.host.run(network.mend)
        assert world.host.run(network.remove, A)
        assert_heir_gets_nothing(world, world.connect(network, B, slot), server, source)


def test_a_start_after_a_flush_finds_who_is_connected(world: World) -> None:
    instance = world.connect(world.start(world.network()), A)
    world.host.sh("nft flush ruleset")
    network = world.start(world.network())
    with world.remote.udp(port=9000) as server, instance.udp() as client:
        client.sendto(b"question", (REMOTE_ADDRESS, 9000))
        data, source = server.recvfrom(100)
        assert (data, source[0]) == (b"question", HOST_ADDRESS)
    assert world.host.run(network.remove, A)


def test_a_subnet_that_is_used_is_refused(world: World) -> None:
    world.host.sh("ip route add 10.213.7.0/24 dev wan")
    before = world.state()
    with pytest.raises(ConflictError, match=r"10\.213\.7\.0/24 to wan"):
        world.start(world.network())
    assert world.state() == before


@pytest.mark.parametrize("subnet", ["10.0.0.0/22", "10.0.0.1/16", "fd00::/64", "home"])
def test_a_bad_subnet_is_refused(subnet: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidError):
        Network("0a1b2c", subnet=subnet, egress_allow=(), root=tmp_path)


def test_many_instances_are_told_apart(world: World) -> None:
    network = world.start(world.network())
    ids = {f"{number:08x}" for number in range(50)}
    instances = {instance_id: world.connect(network, instance_id) for instance_id in ids}
    assert world.host.run(network.instances) == ids
    assert len({address_of(instance) for instance in instances.values()}) == len(ids)


def test_a_firewall_that_drops_by_default_is_told_until_it_is_mended(world: World) -> None:
    world.start(world.network())
    assert world.host.run(forward_policy_problem) is None
    for hook, chain in (("forward", "FORWARD"), ("input", "INPUT")):
        world.host.sh(
            f"nft 'table ip filter {{ chain DOCKER-USER {{ }}; chain {chain} {{ "
            f"type filter hook {hook} priority filter; policy drop; jump DOCKER-USER; }}; }}'"
        )
        problem = world.host.run(forward_policy_problem)
        assert problem is not None and chain in problem
        world.host.sh("nft add rule ip filter DOCKER-USER iifname 'bp*' accept")
        assert world.host.run(forward_policy_problem) is None
        world.host.sh("nft delete table ip filter")

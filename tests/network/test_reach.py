"""What an instance reaches and what it does not, with real packets between network namespaces.

A packet that must not arrive is followed by one that must, on the same way: when that one is there, the first is not
late but lost.
"""

from __future__ import annotations

import asyncio
import socket
import struct

import dns.message
import dns.query
import dns.rrset
import pytest

from ballpoint.host import slots
from ballpoint.network.resolver import Resolver

from .world import (
    HOST_ADDRESS,
    PRIVATE_ADDRESSES,
    REMOTE_ADDRESS,
    SUBNET,
    A,
    B,
    Machine,
    World,
    address_of,
    drain,
    sentinel,
)

pytestmark = pytest.mark.host


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
        sentinel(world, network, instance)
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

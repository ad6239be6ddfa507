"""Instances and networks come, go, and come back after a crash."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ballpoint.core.errors import ConflictError, InternalError, InvalidError, UnavailableError
from ballpoint.host import nft, slots
from ballpoint.network import rules
from ballpoint.network.network import Network

from .world import (
    REMOTE_ADDRESS,
    A,
    B,
    World,
    address_of,
    assert_heir_gets_nothing,
    drain,
)

pytestmark = pytest.mark.host


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


@pytest.mark.parametrize("started", [True, False])
def test_running_instances_keep_their_network_where_the_rules_were_just_removed(world: World, started: bool) -> None:
    """The node that stops does not put them back any more; the next one does, from what the kernel still has.

    As one that could not start stops.
    """
    network = world.start(world.network())
    gateway = network.gateway
    instance = world.connect(network, A)
    rules_before = world.host.run(nft.shape, rules.table("0a1b2c"), rules.LOOSE)
    world.host.sh("nft flush ruleset")
    world.host.run((network if started else world.network()).stop, keep=True)
    slots.acquire("another/node", world.root)
    again = world.start(world.network())
    assert again.gateway == gateway
    assert world.host.run(again.instances) == {A}
    assert world.host.run(nft.shape, rules.table("0a1b2c"), rules.LOOSE) == rules_before
    with world.remote.udp(port=9000) as server, instance.udp() as client:
        client.sendto(b"private", ("10.9.9.9", 9000))
        client.sendto(b"still here", (REMOTE_ADDRESS, 9000))
        assert server.recv(100) == b"still here"
    world.host.run(again.stop, keep=False)


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

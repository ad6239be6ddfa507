"""Somebody else changes the host's firewall, its rules or its links."""

from __future__ import annotations

import socket

import pytest

from ballpoint.core.errors import UnavailableError
from ballpoint.host import nft, slots
from ballpoint.network import rules
from ballpoint.network.probe import forward_policy_problem

from .world import (
    HOST_ADDRESS,
    PRIVATE_ADDRESSES,
    REMOTE_ADDRESS,
    A,
    B,
    World,
    assert_heir_gets_nothing,
    drain,
)

pytestmark = pytest.mark.host


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


def test_nothing_is_connected_while_links_are_taken_down(world: World) -> None:
    """Also what was being connected: its link would be open, without rules, and nobody would take it down."""
    network = world.start(world.network())
    world.connect(network, A)
    world.host.run(network.close)
    state = world.state()
    with pytest.raises(UnavailableError):
        world.connect(network, B)
    assert world.state() == state
    world.host.run(network.mend)
    world.connect(network, B)


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

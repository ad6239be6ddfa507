"""Machines for the network's tests: a network namespace each, with a thread that lives in it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import ParamSpec, TypeVar

from ballpoint.host import process, slots
from ballpoint.host.namespaces import CLONE_NEWNET, unshare
from ballpoint.host.netlink import LinkWatch
from ballpoint.host.slots import Slot
from ballpoint.network.network import Network

P = ParamSpec("P")
T = TypeVar("T")

HOST_ADDRESS = "198.51.100.1"
REMOTE_ADDRESS = "198.51.100.2"
# Of the remote machine, too; the host routes there.
PRIVATE_ADDRESSES = ("10.9.9.9", "100.64.0.9", "169.254.169.254", "172.16.0.9", "192.168.9.9")
SUBNET = "10.213.0.0/16"
# Two instances.
A, B = "aaaaaaaa", "bbbbbbbb"
# For what must happen. Seconds.
_DEADLINE = 30


class Machine:
    """A network namespace and a thread in it: what `run` is given sees only that network."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, initializer=unshare, initargs=(CLONE_NEWNET,))
        self.netns = self.run(os.open, "/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.sh("ip link set lo up")

    def submit(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> Future[T]:
        return self._thread.submit(work, *arguments, **named)

    def run(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        return self.submit(work, *arguments, **named).result(60)

    def sh(self, script: str) -> str:
        return self.run(process.run, ["sh", "-euc", script], timeout=30)

    def udp(self, address: str = "0.0.0.0", port: int = 0) -> socket.socket:
        """A datagram socket of this machine; its reads have a deadline."""
        opened = self.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        opened.settimeout(_DEADLINE)
        opened.bind((address, port))
        return opened

    def close(self) -> None:
        self._thread.shutdown()
        os.close(self.netns)


def drain(opened: socket.socket) -> list[bytes]:
    """The datagrams that have come in."""
    found = []
    opened.settimeout(0)
    while True:
        try:
            found.append(opened.recv(2048))
        except BlockingIOError:
            opened.settimeout(_DEADLINE)
            return found


class World:
    """A host, a machine it reaches over its uplink, and the instances the tests connect to it."""

    def __init__(self, root: Path, machines: ExitStack) -> None:
        self.root = root
        self._machines = machines
        self.host = self.machine()
        self.remote = self.machine()
        watches = [(machine, machine.run(LinkWatch)) for machine in (self.host, self.remote)]
        self.host.sh(
            # Where the numbers of both ends are the same, the kernel takes a second to notice that they are up.
            f"ip link add wan index 100 type veth peer name wan netns /proc/{os.getpid()}/fd/{self.remote.netns}\n"
            f"ip address add {HOST_ADDRESS}/24 dev wan\n"
            "ip link set wan addrgenmode none up\n"
            "ip route add default via " + REMOTE_ADDRESS + " dev wan onlink"
        )
        self.remote.sh(
            f"ip address add {REMOTE_ADDRESS}/24 dev wan\nip link set wan up\n"
            + "\n".join(f"ip address add {address}/32 dev lo" for address in PRIVATE_ADDRESSES)
        )
        for machine, watch in watches:
            with watch:
                watch.wait(machine.run(socket.if_nametoindex, "wan"))

    def machine(self) -> Machine:
        made = Machine()
        self._machines.callback(made.close)
        return made

    def network(
        self,
        node_id: str = "0a1b2c",
        *,
        allow: tuple[str, ...] = (),
        connections: int = 4096,
        subnet: str = SUBNET,
    ) -> Network:
        return Network(node_id, subnet=subnet, egress_allow=allow, root=self.root, connections=connections)

    def start(self, network: Network) -> Network:
        self.host.run(network.start)
        return network

    def connect(self, network: Network, instance_id: str, slot: Slot | None = None) -> Machine:
        """A new machine connected to `network` as instance `instance_id`."""
        made = self.machine()
        taken = slot or slots.acquire(f"test/{instance_id}", self.root)
        self.host.run(network.add, instance_id, taken, made.netns)
        return made

    def state(self) -> str:
        """Everything of the host that a network may change."""
        return self.host.sh(
            "ip address; ip route show table all; ip neigh show nud permanent; nft list ruleset; "
            "sysctl net.ipv4.ip_forward; sysctl -a -r '^net[.]ipv[46][.]conf' 2>&1"
        )


def address_of(machine: Machine) -> str:
    """The IPv4 address of an instance's eth0."""
    return machine.sh("ip -4 -o address show dev eth0").split()[3].removesuffix("/32")


def sentinel(world: World, network: Network, instance: Machine) -> None:
    """Returns when a packet of `instance` sent now has reached the host."""
    with world.host.udp(str(network.gateway), 53) as server, instance.udp() as client:
        client.sendto(b"sentinel", (str(network.gateway), 53))
        assert server.recv(100) == b"sentinel"


def assert_heir_gets_nothing(world: World, second: Machine, server: socket.socket, source: tuple[str, int]) -> None:
    """What the server answers to the first who had the slot does not reach the second."""
    with second.udp(port=4000) as heir, world.host.udp() as host:
        server.sendto(b"for the first", source)
        world.remote.sh(f"ip neigh show {HOST_ADDRESS}")
        host.sendto(b"host", (address_of(second), 4000))
        assert heir.recv(100) == b"host"
        assert drain(heir) == []

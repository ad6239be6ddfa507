"""rtnetlink(7): links, addresses, routes and neighbours, several changes in one send.

Layouts are those of netlink(7) and of include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,neighbour}.h, in the host's
byte order unless a field says otherwise. A change is a `Message` made by one of the functions below and carried out by
`Netlink.change`, in order.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from types import TracebackType
from typing import NamedTuple

from ballpoint.host.namespaces import CLONE_NEWNET, setns

NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_HEADER = struct.Struct("=IHHII")  # length type flags sequence port
_NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_DELADDR = 20, 21
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_RTM_NEWNEIGH = 28

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_OPERSTATE, _IFLA_LINKINFO, _IFLA_AF_SPEC = 1, 3, 16, 18, 26
_IFLA_GROUP, _IFLA_NET_NS_FD = 27, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFLA_INET_CONF = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_TABLE = 1, 4, 5, 7, 15
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT = 0x80

_RTMGRP_LINK = 1
_IF_OPER_UP = 6
# SO_RCVBUFFORCE (asm-generic/socket.h), and room for some hundred notices: other links of the host cause them, too.
_SO_RCVBUFFORCE = 33
_NOTICES = 1 << 20

IFF_UP = 0x1
_IFF_NOARP = 0x80
_RTPROT_STATIC = 4
_RTN_UNICAST = 1
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK = 0, 253
_RT_TABLE_MAIN = 254
_RTNH_F_ONLINK = 4

# Members of IPV4_DEVCONF_* (include/uapi/linux/ip.h), the sysctls net.ipv4.conf.<link>.*
DEVCONF_FORWARDING = 1
DEVCONF_PROXY_ARP = 3
DEVCONF_ACCEPT_REDIRECTS = 4
DEVCONF_SEND_REDIRECTS = 6
DEVCONF_RP_FILTER = 8
DEVCONF_ACCEPT_SOURCE_ROUTE = 9

# The kernel answers at once; the deadline only keeps a defect from hanging a thread. Seconds.
_DEADLINE = 10.0
_RECEIVE = 1 << 18


class Message(NamedTuple):
    """One request: its type, its NLM_F_* flags, what follows the header, and words for the error's text."""

    kind: int
    flags: int
    body: bytes
    what: str


class Link(NamedTuple):
    """A network device: its number, name, IFF_* flags and group (0 where nobody set one)."""

    number: int
    name: str
    flags: int
    group: int


class Route(NamedTuple):
    """An IPv4 route of the main table: where to, and the number of the device it leaves by (0 for none)."""

    destination: IPv4Network
    link: int


def attribute(kind: int, data: bytes) -> bytes:
    """A netlink attribute, padded to four bytes."""
    return struct.pack("=HH", len(data) + 4, kind) + data + bytes(-len(data) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds `attributes`."""
    return attribute(kind | _NLA_F_NESTED, b"".join(attributes))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The (kind, payload) pairs of a run of attributes; a damaged rest ends it."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4 or length > len(data):
            return
        yield kind & _NLA_TYPE_MASK, data[4:length]
        data = data[(length + 3) & ~3 :]


class Netlink:
    """A netlink socket of the calling thread's network namespace. Used by one thread; a context manager.

    Args:
        protocol: NETLINK_ROUTE or NETLINK_NETFILTER.
        groups: bits of the multicast groups whose notices `notices` gives.
    """

    def __init__(self, protocol: int = socket.NETLINK_ROUTE, *, groups: int = 0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        if groups:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _NOTICES)
            self._socket.bind((0, groups))
        self._socket.settimeout(_DEADLINE)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """The socket's descriptor, to wait until there is something to read."""
        return self._socket.fileno()

    def change(self, *messages: Message) -> None:
        """Carry out `messages` in order. Those before a failing one, and those after it, are done.

        Raises:
            OSError: the first failure; `strerror` has the kernel's own words where it gave any.
        """
        self._send(messages, NLM_F_ACK)
        pending = len(messages)
        first = self._sequence - pending + 1
        failure: OSError | None = None
        while pending:
            for kind, flags, sequence, body in self._receive():
                if kind == _NLMSG_ERROR and sequence >= first:
                    pending -= 1
                    failure = failure or _error(flags, body, messages[sequence - first].what)
        if failure is not None:
            raise failure

    def transact(self, begin: Message, change: Message, end: Message) -> None:
        """Carry out a batch that the kernel applies whole or not at all, and that asks for one acknowledgement.

        Raises:
            OSError: nothing was applied.
        """
        self._send((begin, change._replace(flags=change.flags | NLM_F_ACK), end), 0)
        while True:
            for kind, flags, sequence, body in self._receive():
                if kind == _NLMSG_ERROR and sequence > self._sequence - 3:
                    if failure := _error(flags, body, change.what):
                        raise failure
                    return

    def ask(self, message: Message) -> bytes:
        """The body of the kernel's one answer to `message`.

        Raises:
            OSError: it has none.
        """
        self._send((message,), 0)
        while True:
            for kind, flags, sequence, body in self._receive():
                if sequence == self._sequence:
                    if kind == _NLMSG_ERROR and (failure := _error(flags, body, message.what)):
                        raise failure
                    return body

    def dump(self, message: Message) -> list[bytes]:
        """The bodies of everything the kernel lists for `message`.

        Raises:
            OSError: it refused.
        """
        self._send((message,), NLM_F_DUMP)
        found: list[bytes] = []
        while True:
            for kind, flags, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    if failure := _error(flags, body, message.what):
                        raise failure
                    return found
                found.append(body)

    def notices(self) -> list[tuple[int, bytes]]:
        """The next notices, as (type, body); waits for one.

        Raises:
            TimeoutError: none came in time.
            OSError: ENOBUFS where some were lost.
        """
        return [(kind, body) for kind, _, _, body in self._receive()]

    def _send(self, messages: Sequence[Message], flags: int) -> None:
        batch = bytearray()
        for message in messages:
            self._sequence += 1
            length = _HEADER.size + len(message.body)
            batch += _HEADER.pack(length, message.kind, message.flags | flags | NLM_F_REQUEST, self._sequence, 0)
            batch += message.body + bytes(-length % 4)
        self._socket.sendto(batch, (0, 0))

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        data = self._socket.recv(_RECEIVE)
        while len(data) >= _HEADER.size:
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data)
            yield kind, flags, sequence, data[_HEADER.size : length]
            data = data[(length + 3) & ~3 :]


class LinkWatch:
    """Tells when a link can send, from the kernel's notices since it was made. A context manager.

    A veth whose other end comes up later drops what it is given until the kernel has noticed, some time after.
    """

    def __init__(self) -> None:
        self._netlink = Netlink(groups=_RTMGRP_LINK)

    def __enter__(self) -> LinkWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._netlink.close()

    def wait(self, link: int) -> None:
        """Return once a notice has said that `link` is operational (RFC 2863 ifOperStatus up).

        Raises:
            TimeoutError: none came in time.
        """
        while True:
            for kind, body in self._netlink.notices():
                if kind != _RTM_NEWLINK or struct.unpack_from("=BxHi", body)[2] != link:
                    continue
                if dict(attributes(body[16:])).get(_IFLA_OPERSTATE) == bytes([_IF_OPER_UP]):
                    return


def _error(flags: int, body: bytes, what: str) -> OSError | None:
    """The failure an NLMSG_ERROR or NLMSG_DONE tells of, or None where it tells of success."""
    code = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
    if code <= 0:
        return None
    words = os.strerror(code)
    if flags & _NLM_F_ACK_TLVS:
        # struct nlmsgerr: the error, then the header of the failed request (NETLINK_CAP_ACK cuts its body off).
        for kind, data in attributes(body[4 + _HEADER.size :]):
            if kind == _NLMSGERR_ATTR_MSG:
                words = f"{words}: {data.rstrip(bytes(1)).decode(errors='replace')}"
    return OSError(code, words, what)


@contextmanager
def inside(netns: int) -> Iterator[None]:
    """The calling thread, and no other, is in the network namespace behind `netns`, and at the end back in its own."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(netns, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(own, CLONE_NEWNET)
    finally:
        os.close(own)


def add_veth(name: str, mac: bytes, group: int, *, peer: str, peer_mac: bytes, netns: int) -> Message:
    """Make a veth pair: `name` here, in device group `group`, and `peer` in the namespace behind `netns`; both down.

    The addresses are given, and so count as set by user space: udev's MACAddressPolicy leaves such links alone.
    """
    other = _ifinfo() + _name(peer) + attribute(_IFLA_ADDRESS, peer_mac) + _u32(_IFLA_NET_NS_FD, netns)
    body = (
        _ifinfo()
        + _name(name)
        + attribute(_IFLA_ADDRESS, mac)
        + _u32(_IFLA_GROUP, group)
        + nested(
            _IFLA_LINKINFO,
            attribute(_IFLA_INFO_KIND, b"veth"),
            nested(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, other)),
        )
    )
    return Message(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"add veth {name}")


def set_up(link: int, *, arp: bool = True, inet: Mapping[int, int] | None = None) -> Message:
    """Bring `link` up.

    Args:
        arp: False makes it deaf and mute for ARP (IFF_NOARP); True leaves that as it is.
        inet: DEVCONF_* values to set.
    """
    flags = IFF_UP if arp else IFF_UP | _IFF_NOARP
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, link, flags, flags)
    if inet:
        values = [_u32(number, value) for number, value in inet.items()]
        body += nested(_IFLA_AF_SPEC, nested(socket.AF_INET, nested(_IFLA_INET_CONF, *values)))
    return Message(_RTM_NEWLINK, 0, body, f"set link {link} up")


def set_group_down(group: int) -> Message:
    """Take every link of the device group `group` down at once. ENODEV where there is none."""
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, IFF_UP) + _u32(_IFLA_GROUP, group)
    return Message(_RTM_NEWLINK, 0, body, f"take the links of group {group:#x} down")


def delete_group(group: int) -> Message:
    """Delete every link of the device group `group` at once. ENODEV where there is none."""
    return Message(_RTM_DELLINK, 0, _ifinfo() + _u32(_IFLA_GROUP, group), f"delete the links of group {group:#x}")


def delete_link(name: str) -> Message:
    """Delete the link `name`. Takes 16-24 ms for a veth: the kernel waits for its readers. ENODEV where it is gone."""
    return Message(_RTM_DELLINK, 0, _ifinfo() + _name(name), f"delete link {name}")


def add_address(link: int, address: IPv4Address, *, replace: bool = False) -> Message:
    """Give `link` the address `address`/32. EEXIST where it has it, unless `replace`."""
    flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL)
    return Message(_RTM_NEWADDR, flags, _ifaddr(link, address), f"add address {address}")


def delete_address(link: int, address: IPv4Address) -> Message:
    """Take `address`/32 from `link`. EADDRNOTAVAIL where it has it not."""
    return Message(_RTM_DELADDR, 0, _ifaddr(link, address), f"delete address {address}")


def add_neighbour(link: int, address: IPv4Address, mac: bytes) -> Message:
    """State for good that `address` is at `mac` behind `link`; replaces what was known of it."""
    body = struct.pack("=BxHiHBB", socket.AF_INET, 0, link, _NUD_PERMANENT, 0, 0)
    body += attribute(_NDA_DST, address.packed) + attribute(_NDA_LLADDR, mac)
    return Message(_RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, f"add neighbour {address}")


def add_host_route(link: int, address: IPv4Address, source: IPv4Address) -> Message:
    """Route `address`/32 to `link`; this host's own packets to it come from `source`. Replaces an older one."""
    body = _rtmsg(32, _RT_SCOPE_LINK, 0) + attribute(_RTA_DST, address.packed)
    body += _u32(_RTA_OIF, link) + attribute(_RTA_PREFSRC, source.packed)
    return Message(_RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, f"add route to {address}")


def add_default_route(link: int, gateway: IPv4Address) -> Message:
    """Route everything by `gateway`, taken to be behind `link` although no route says so (onlink)."""
    body = _rtmsg(0, _RT_SCOPE_UNIVERSE, _RTNH_F_ONLINK) + _u32(_RTA_OIF, link)
    body += attribute(_RTA_GATEWAY, gateway.packed)
    return Message(_RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, f"add default route by {gateway}")


def links(netlink: Netlink) -> list[Link]:
    """The links of the namespace."""
    found = []
    for body in netlink.dump(Message(_RTM_GETLINK, 0, _ifinfo(), "list links")):
        _, _, index, flags, _ = struct.unpack_from("=BxHiII", body)
        values = dict(attributes(body[16:]))
        name = values[_IFLA_IFNAME].rstrip(b"\0").decode(errors="surrogateescape")
        found.append(Link(index, name, flags, int(struct.unpack("=I", values.get(_IFLA_GROUP, bytes(4)))[0])))
    return found


def routes(netlink: Netlink) -> list[Route]:
    """The IPv4 routes of the main table."""
    found = []
    for body in netlink.dump(
        Message(_RTM_GETROUTE, 0, struct.pack("=BBBBBBBBI", socket.AF_INET, *[0] * 8), "list routes")
    ):
        _, bits, _, _, table = struct.unpack_from("=BBBBB", body)
        values = dict(attributes(body[12:]))
        if int(struct.unpack("=I", values.get(_RTA_TABLE, struct.pack("=I", table)))[0]) == _RT_TABLE_MAIN:
            network = IPv4Network((values.get(_RTA_DST, bytes(4)), bits))
            found.append(Route(network, int(struct.unpack("=I", values.get(_RTA_OIF, bytes(4)))[0])))
    return found


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _name(name: str) -> bytes:
    return attribute(_IFLA_IFNAME, name.encode() + b"\0")


def _ifinfo() -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0)


def _ifaddr(link: int, address: IPv4Address) -> bytes:
    body = struct.pack("=BBBBI", socket.AF_INET, 32, 0, _RT_SCOPE_UNIVERSE, link)
    return body + attribute(_IFA_LOCAL, address.packed) + attribute(_IFA_ADDRESS, address.packed)


def _rtmsg(bits: int, scope: int, flags: int) -> bytes:
    # struct rtmsg: family dst_len src_len tos table protocol scope type flags
    return struct.pack(
        "=BBBBBBBBI", socket.AF_INET, bits, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, scope, _RTN_UNICAST, flags
    )

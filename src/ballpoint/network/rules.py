"""The nftables ruleset of a node: one inet table, fixed chains, and a set with one element per instance.

A node's links form a device group from the moment they exist, so a packet is known to come from an instance of this
node before any element names it; what no element allows is dropped. Other tables of the host are never touched: their
verdicts are theirs, and a drop of ours is final beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network

from ballpoint.host import nft

# Ranges that no instance reaches: an explicit list, because libraries disagree about what "private" means.
# From RFC 6890: this network, private, shared, loopback, link-local (clouds' metadata); and all from multicast on.
BLOCKED = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/3",
)

SOURCES = "sources"
CONNECTIONS = "connections"
QUESTIONS = "questions"
# Sets whose elements come and go; those of all others stay as they were made.
LOOSE = (SOURCES, CONNECTIONS, QUESTIONS)
LINK_PREFIX = "bp"
# What one instance may ask of the node's DNS server, which answers some thousands a second for all of them.
_QUESTION_RATE = "300/second burst 600 packets"
# Device groups are 32-bit numbers, 0 being everyone's; ours are 0x42 and the node's 24-bit id.
_GROUP_FIRST = 0x42000000


def table(node_id: str) -> str:
    """Name of the node's table."""
    return f"ballpoint_{node_id}"


def group(node_id: str) -> int:
    """Device group of the node's links."""
    return _GROUP_FIRST | int(node_id, 16)


def source_key(link: str, address: IPv4Address, mac: bytes) -> bytes:
    """The element of the set `sources` that lets packets of `address` and `mac` in from `link`."""
    return nft.key(link.encode().ljust(16, b"\0"), address.packed, mac)


def ruleset(
    node_id: str,
    *,
    gateway: IPv4Address,
    subnet: IPv4Network,
    allowed: Sequence[IPv4Network],
    connections: int,
    sources: Sequence[Sequence[str]],
) -> str:
    """A script for nft(8) that replaces the node's table, whole, by its rules as they are now.

    Args:
        gateway: the node's address; DNS and echo reach it, nothing else.
        subnet: addresses of all instances of all nodes, none of which reaches another.
        allowed: exceptions from `BLOCKED` and from the host's own addresses; never from `subnet`.
        connections: tracked connections that one instance may have.
        sources: elements carried over, as (link, address, MAC).
    """
    name = table(node_id)
    mine = f"{group(node_id):#x}"
    return f"""
add table inet {name}
delete table inet {name}
table inet {name} {{
    set {SOURCES} {{
        type ifname . ipv4_addr . ether_addr
        {_elements(f'"{link}" . {address} . {mac}' for link, address, mac in sources)}
    }}
    set blocked {{
        type ipv4_addr
        flags interval
        auto-merge
        {_elements(BLOCKED)}
    }}
    set allowed {{
        type ipv4_addr
        flags interval
        auto-merge
        {_elements(str(network) for network in allowed)}
    }}
    set {CONNECTIONS} {{
        type ipv4_addr
        size 65536
        flags dynamic
    }}
    set {QUESTIONS} {{
        type ipv4_addr
        size 65536
        flags dynamic
    }}

    # Before defragmentation (-400) and connection tracking (-200): a forged packet costs the host nothing.
    chain ingress {{
        type filter hook prerouting priority -450; policy accept
        iifgroup {mine} jump source
        ip daddr {gateway} iifgroup != {mine} iifname != "lo" drop
    }}
    chain source {{
        meta nfproto != ipv4 drop
        iifname . ip saddr . ether saddr != @{SOURCES} drop
    }}

    # Judged by the address that was asked for, and again, below, by the one that the host's own DNAT made of it.
    chain asked {{
        type filter hook prerouting priority mangle; policy accept
        iifgroup {mine} jump egress
    }}
    chain local {{
        type filter hook input priority filter; policy accept
        iifgroup {mine} jump egress
        iifgroup {mine} jump cap
        iifgroup {mine} udp dport 53 add @{QUESTIONS} {{ ip saddr limit rate over {_QUESTION_RATE} }} drop
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept
        iifgroup {mine} jump egress
        iifgroup {mine} jump cap
        iifgroup {mine} tcp flags syn tcp option maxseg size set rt mtu
        oifgroup {mine} ct direction reply ct state established,related accept
        oifgroup {mine} drop
    }}

    # What an instance sends as the asking side is judged packet by packet, so a tightened list ends live flows too.
    chain egress {{
        ct direction reply ct state established,related accept
        ct state invalid drop
        ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 return
        ip daddr {gateway} icmp type echo-request return
        ip daddr {subnet} drop
        fib daddr type != {{ unicast, local }} drop
        ip daddr @allowed return
        fib daddr type local drop
        ip daddr @blocked drop
    }}
    chain cap {{
        ct state new add @{CONNECTIONS} {{ ip saddr ct count over {connections} }} drop
    }}

    chain leave {{
        type nat hook postrouting priority srcnat; policy accept
        iifgroup {mine} masquerade
    }}
}}
"""


def _elements(elements: Iterable[str]) -> str:
    listed = ", ".join(elements)
    return f"elements = {{ {listed} }}" if listed else ""

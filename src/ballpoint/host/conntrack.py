"""The kernel's connection table: end the flows of one address.

Formats: include/uapi/linux/netfilter/nfnetlink_conntrack.h; the filter of a dump is there since kernel 5.8.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Address

from ballpoint.host.netlink import NETLINK_NETFILTER, Message, Netlink, attribute, attributes, nested
from ballpoint.host.nft import nfgenmsg

_NFNL_SUBSYS_CTNETLINK = 1
_GET = _NFNL_SUBSYS_CTNETLINK << 8 | 1
_DELETE = _NFNL_SUBSYS_CTNETLINK << 8 | 2
_CTA_TUPLE_ORIG, _CTA_ID, _CTA_FILTER = 1, 12, 25
_CTA_TUPLE_IP, _CTA_IP_V4_SRC = 1, 1
_CTA_FILTER_ORIG_FLAGS, _CTA_FILTER_REPLY_FLAGS = 1, 2
_CTA_FILTER_F_CTA_IP_SRC = 1


def cut(address: IPv4Address) -> int:
    """Forget every flow that `address` began. Returns how many.

    The filter runs in the kernel, which walks its whole table: 16 ms for a quarter million buckets.
    """
    source = nested(_CTA_TUPLE_IP, attribute(_CTA_IP_V4_SRC, address.packed))
    flags = (
        attribute(_CTA_FILTER_ORIG_FLAGS, struct.pack("=I", _CTA_FILTER_F_CTA_IP_SRC)),
        attribute(_CTA_FILTER_REPLY_FLAGS, struct.pack("=I", 0)),
    )
    body = nfgenmsg(socket.AF_INET) + nested(_CTA_TUPLE_ORIG, source) + nested(_CTA_FILTER, *flags)
    with Netlink(NETLINK_NETFILTER) as netlink:
        flows = netlink.dump(Message(_GET, 0, body, f"list the connections of {address}"))
        return sum(_delete(netlink, flow) for flow in flows)


def _delete(netlink: Netlink, flow: bytes) -> bool:
    # After struct nfgenmsg, which is four bytes long. The id keeps a new flow of the same ends from being meant.
    values = dict(attributes(flow[4:]))
    body = nfgenmsg(socket.AF_INET) + nested(_CTA_TUPLE_ORIG, values[_CTA_TUPLE_ORIG])
    body += attribute(_CTA_ID, values[_CTA_ID])
    try:
        netlink.change(Message(_DELETE, 0, body, "delete a connection"))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True

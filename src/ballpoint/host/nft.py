"""nftables: whole rulesets by nft(8), single set elements straight to the kernel.

A set element costs 0.01 ms this way and a millisecond as a child process. Formats: include/uapi/linux/netfilter/
nfnetlink.h and nf_tables.h; integers inside attributes are big-endian there.
"""

from __future__ import annotations

import errno
import json
import socket
import struct
from collections.abc import Collection, Iterable, Sequence
from types import TracebackType
from typing import Any

from ballpoint.host import process
from ballpoint.host.netlink import NETLINK_NETFILTER, NLM_F_CREATE, Message, Netlink, attribute, attributes, nested

_NFPROTO_INET = 1
_NFNL_SUBSYS_NFTABLES = 10
_NFNL_MSG_BATCH_BEGIN, _NFNL_MSG_BATCH_END = 0x10, 0x11
_NFT_MSG_NEWSETELEM, _NFT_MSG_GETSETELEM, _NFT_MSG_DELSETELEM = 12, 13, 14
_NFTA_SET_ELEM_LIST_TABLE, _NFTA_SET_ELEM_LIST_SET, _NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
# Multicast group NFNLGRP_NFTABLES, as a bit of nl_groups.
_NFTABLES_GROUP = 1 << (7 - 1)
_NFT_MSG_NEWGEN = 15
# Attribute 1 of tables, chains, rules, sets and elements is the table's name; attribute 2 of elements is the set's.
_NFTA_TABLE, _NFTA_SET = 1, 2
_NFTA_GEN_PROC_PID, _NFTA_GEN_PROC_NAME = 2, 3
_NFTA_LIST_ELEM, _NFTA_SET_ELEM_KEY, _NFTA_DATA_VALUE = 1, 1, 1

# nft lists a large ruleset in well under a second; a host that takes longer is stuck. Seconds.
_DEADLINE = 20.0


def nfgenmsg(family: int, resource: int = 0) -> bytes:
    """struct nfgenmsg, the head of every netfilter message: family, version 0, big-endian resource number."""
    return struct.pack(">BBH", family, 0, resource)


def apply(script: str) -> None:
    """Carry out `script`, in nft's own language, as one transaction.

    Raises:
        CommandFailedError: nothing was changed; `output` says what nft did not like.
        UnavailableError: there is no nft(8).
    """
    process.run(["nft", "-f", "-"], stdin=script.encode(), timeout=_DEADLINE)


def ruleset(*what: str) -> list[dict[str, Any]]:
    """What `nft -j list <what>` shows, without the metainfo; empty where the named table or set is not there."""
    try:
        output = process.run(["nft", "-j", "list", *what], timeout=_DEADLINE)
    except process.CommandFailedError as error:
        if "No such file or directory" in error.output:
            return []
        raise
    return [item for item in json.loads(output)["nftables"] if "metainfo" not in item]


def elements(table: str, name: str) -> list[tuple[str, ...]]:
    """The elements of set `name` of the inet table `table`, each as the parts of its (concatenated) key."""
    found: list[tuple[str, ...]] = []
    for item in ruleset("set", "inet", table, name):
        for element in item.get("set", {}).get("elem", []):
            found.append(tuple(element["concat"]) if isinstance(element, dict) else (str(element),))
    return found


def shape(table: str, loose: Collection[str]) -> bytes:
    """What the inet table `table` consists of, to be compared; empty where it is not there.

    Args:
        loose: sets whose elements do not count.
    """
    items = ruleset("table", "inet", table)
    for item in items:
        for content in item.values():
            content.pop("handle", None)
            if content.get("name") in loose:
                content.pop("elem", None)
    return json.dumps(items, sort_keys=True).encode() if items else b""


class TableWatch:
    """Hears of changes that anybody makes to an inet table of the calling thread's network. A context manager.

    Args:
        loose: sets of the table whose elements come and go; of those nothing is told.
    """

    def __init__(self, table: str, loose: Collection[str]) -> None:
        self._table = table.encode()
        self._loose = frozenset(name.encode() for name in loose)
        self._changed = False
        self._netlink = Netlink(NETLINK_NETFILTER, groups=_NFTABLES_GROUP)

    def __enter__(self) -> TableWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._netlink.close()

    def fileno(self) -> int:
        """Readable when `read` has something to read."""
        return self._netlink.fileno()

    def read(self) -> str | None:
        """Read the next notices. Returns who has changed the table, as "nft (process 123)"; None where nobody has.

        Raises:
            TimeoutError: there was nothing to read for long.
        """
        who = None
        try:
            notices = self._netlink.notices()
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return "something"  # more was changed than could be told
        for kind, body in notices:
            if kind >> 8 != _NFNL_SUBSYS_NFTABLES:
                continue
            values = {number: data.rstrip(b"\0") for number, data in attributes(body[4:])}
            # What belongs to one transaction ends with its author.
            if kind & 0xFF == _NFT_MSG_NEWGEN:
                if self._changed:
                    who = _author(dict(attributes(body[4:])))
                self._changed = False
            elif values.get(_NFTA_TABLE) == self._table:
                element = kind & 0xFF in (_NFT_MSG_NEWSETELEM, _NFT_MSG_DELSETELEM)
                self._changed |= not (element and values.get(_NFTA_SET) in self._loose)
        return who


def _author(values: dict[int, bytes]) -> str:
    name = values.get(_NFTA_GEN_PROC_NAME, b"something").rstrip(b"\0").decode(errors="replace")
    return f"{name} (process {int.from_bytes(values.get(_NFTA_GEN_PROC_PID, b''), 'big')})"


def delete_table(table: str) -> bool:
    """Delete the inet table `table`. Returns whether there was one."""
    try:
        apply(f"delete table inet {table}")
    except process.CommandFailedError as error:
        if "No such file or directory" in error.output:
            return False
        raise
    return True


def key(*parts: bytes) -> bytes:
    """The key of a concatenation: each part padded to four bytes, as the kernel's registers are."""
    return b"".join(part + bytes(-len(part) % 4) for part in parts)


def add_elements(table: str, name: str, keys: Sequence[bytes]) -> None:
    """Put `keys` into set `name` of the inet table `table`; those it has already stay.

    Raises:
        OSError: nothing was changed; ENOENT where there is no such table or set.
    """
    _change(_message(_NFT_MSG_NEWSETELEM, NLM_F_CREATE, table, name, keys))


def has_element(table: str, name: str, element: bytes) -> bool:
    """Whether set `name` of the inet table `table` is there and holds `element`."""
    with Netlink(NETLINK_NETFILTER) as netlink:
        try:
            netlink.ask(_message(_NFT_MSG_GETSETELEM, 0, table, name, [element]))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
    return True


def delete_element(table: str, name: str, element: bytes) -> bool:
    """Take `element` out of set `name` of the inet table `table`. Returns whether it was there.

    Takes 8-24 ms: the kernel waits for the set's readers, and other changes of rules wait behind it. One that is not
    there is told without that wait.
    """
    if not has_element(table, name, element):
        return False
    try:
        _change(_message(_NFT_MSG_DELSETELEM, 0, table, name, [element]))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def _message(kind: int, flags: int, table: str, name: str, keys: Iterable[bytes]) -> Message:
    listed = [nested(_NFTA_LIST_ELEM, nested(_NFTA_SET_ELEM_KEY, attribute(_NFTA_DATA_VALUE, key))) for key in keys]
    body = (
        nfgenmsg(_NFPROTO_INET)
        + attribute(_NFTA_SET_ELEM_LIST_TABLE, table.encode() + b"\0")
        + attribute(_NFTA_SET_ELEM_LIST_SET, name.encode() + b"\0")
        + nested(_NFTA_SET_ELEM_LIST_ELEMENTS, *listed)
    )
    return Message(_NFNL_SUBSYS_NFTABLES << 8 | kind, flags, body, f"nft set {table} {name}")


def _change(change: Message) -> None:
    batch = nfgenmsg(socket.AF_UNSPEC, _NFNL_SUBSYS_NFTABLES)
    with Netlink(NETLINK_NETFILTER) as netlink:
        netlink.transact(
            Message(_NFNL_MSG_BATCH_BEGIN, 0, batch, change.what),
            change,
            Message(_NFNL_MSG_BATCH_END, 0, batch, change.what),
        )

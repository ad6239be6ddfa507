"""The sockets that listen, as the kernel tells; and answers that are none."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.host.sockdiag import NETLINK_SOCK_DIAG, Listening, SockDiag, parse


@pytest.fixture
def netlink() -> Iterator[socket.socket]:
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, NETLINK_SOCK_DIAG) as made:
        yield made


def listed(diag: SockDiag, family: int) -> list[Listening]:
    found: list[Listening] = []
    diag.ask(family)
    ended = False
    while not ended:
        part, ended = diag.receive()
        found += part
    return found


@pytest.mark.parametrize(
    ("family", "address"),
    [
        (socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0"),
        (socket.AF_INET6, "::1"),
        (socket.AF_INET6, "::"),
    ],
)
def test_a_listener_is_listed_while_it_listens(netlink: socket.socket, family: int, address: str) -> None:
    diag = SockDiag(netlink)
    with socket.socket(family) as sock:
        sock.bind((address, 0))
        port, inode = sock.getsockname()[1], os.fstat(sock.fileno()).st_ino
        expected = Listening(socket.inet_pton(family, address), port, os.getuid(), inode)
        assert expected not in listed(diag, family)  # it is bound, no more
        sock.listen()
        assert expected in listed(diag, family)
        with socket.create_connection((address, port)):  # neither end of a connection is one
            assert [each.inode for each in listed(diag, family) if each.port == port] == [inode]
    assert expected not in listed(diag, family)


def test_many_are_listed_in_several_parts(netlink: socket.socket) -> None:
    diag = SockDiag(netlink)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(900)]
    try:
        wanted = {os.fstat(sock.fileno()).st_ino for sock in sockets}
        parts, ended = 0, False
        found: set[int] = set()
        diag.ask(socket.AF_INET)
        while not ended:
            part, ended = diag.receive()
            parts += 1
            found |= {each.inode for each in part}
        assert wanted <= found
        assert parts > 1
    finally:
        for sock in sockets:
            sock.close()


def test_what_does_not_come_from_the_kernel_is_not_believed(netlink: socket.socket) -> None:
    """Who has CAP_NET_ADMIN may send to any netlink socket of the namespace."""
    diag = SockDiag(netlink)
    netlink.bind((0, 0))
    forged = packet(1, 20, message(socket.AF_INET, 10, 4242, bytes([6, 6, 6, 6]), 0, 666)) + packet(1, 3, bytes(4))
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, NETLINK_SOCK_DIAG) as attacker:
        attacker.sendto(forged, (netlink.getsockname()[0], 0))
    assert parse(forged, 1) == ([Listening(bytes([6, 6, 6, 6]), 4242, 0, 666)], True)
    assert 666 not in [each.inode for each in listed(diag, socket.AF_INET)]


def packet(sequence: int, kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 2, sequence, 0) + body + bytes(-len(body) % 4)


def message(family: int, state: int, port: int, address: bytes, uid: int, inode: int) -> bytes:
    sockid = struct.pack("!HH", port, 0) + address.ljust(16, b"\0") + bytes(16 + 4 + 8)
    return struct.pack("=BBBB", family, state, 0, 0) + sockid + struct.pack("=IIIII", 0, 0, 0, uid, inode)


def test_a_refusal_is_raised() -> None:
    with pytest.raises(FileNotFoundError):
        parse(packet(7, 2, struct.pack("=i", -2) + bytes(16)), 7)
    assert parse(packet(6, 2, struct.pack("=i", -2) + bytes(16)), 7) == ([], False)


@given(st.integers(0, 1 << 32), st.binary(max_size=400))
def test_garbage_is_read_to_its_end(sequence: int, data: bytes) -> None:
    try:
        parse(data, sequence)
    except OSError:
        pass


@given(
    st.lists(
        st.tuples(
            st.sampled_from([(2, 4), (10, 16), (7, 4)]), st.sampled_from([10, 1, 0]), st.integers(0, 65535),
            st.binary(min_size=16, max_size=16), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1),
            st.binary(max_size=9), st.sampled_from([3, 3, 3, 4]),
        )
    ),
    st.integers(min_value=0),
)  # fmt: skip
def test_what_listens_is_what_was_told_before_the_cut(
    sent: list[tuple[tuple[int, int], int, int, bytes, int, int, bytes, int]], cut: int
) -> None:
    data, expected, whole = b"", [], []
    for (family, size), state, port, address, uid, inode, attributes, sequence in sent:
        data += packet(sequence, 20, message(family, state, port, address[:size], uid, inode) + attributes)
        if sequence == 3 and state == 10 and family != 7:
            expected.append(Listening(address[:size], port, uid, inode))
        whole.append((len(data), len(expected)))
    assert parse(data + packet(3, 3, bytes(4)), 3) == (expected, True)
    cut %= len(data) + 1
    told, ended = parse(data[:cut], 3)
    assert not ended
    least = max((count for end, count in whole if end <= cut), default=0)
    assert told[:least] == expected[:least] and told == expected[: len(told)]

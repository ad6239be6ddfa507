"""The anchor itself, as its agents use it: one after the other, on the same socket."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator

import pytest

from ballpoint.agent.anchor import Anchor
from ballpoint.core.errors import InternalError
from ballpoint.runtime.container.programs import ensure_programs
from tests.support.nodes import CACHE


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    """The agents' end of the socket to a running anchor."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    high = socket.socket(fileno=fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 200))  # dup2 to itself would close it
    program = str(ensure_programs(CACHE) / "anchor")
    pid = os.posix_spawn(
        program,
        ["anchor"],
        {},
        file_actions=[(os.POSIX_SPAWN_DUP2, high.fileno(), 3)],
    )
    for each in (high, theirs):
        each.close()
    ours.settimeout(20)
    yield ours
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    ours.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def same(fd: int | None, other: int) -> bool:
    """Whether two descriptors are of one pipe; closes the first."""
    assert fd is not None
    try:
        return os.fstat(fd).st_ino == os.fstat(other).st_ino
    finally:
        os.close(fd)


def test_what_is_kept_comes_back_until_it_is_forgotten(sock: socket.socket, pipe: tuple[int, int]) -> None:
    anchor = Anchor(sock)
    null = os.open(os.devnull, os.O_RDONLY)
    anchor.keep({"null": null, "read": pipe[0], "write": null})
    anchor.keep({"write": pipe[1]})
    os.close(null)
    assert sorted(anchor.names()) == ["null", "read", "write"]
    assert same(anchor.get("write"), pipe[1])
    anchor.forget(["null", "unknown", "read"])
    assert (anchor.names(), anchor.get("read")) == (["write"], None)
    assert "write" in anchor
    assert "read" not in anchor


def test_many_at_once(sock: socket.socket, pipe: tuple[int, int]) -> None:
    anchor = Anchor(sock)
    names = [f"{number}".rjust(63, "-") for number in range(200)]
    anchor.keep(dict.fromkeys(names, pipe[0]))
    assert sorted(anchor.names()) == sorted(names)
    anchor.forget(names[1:])
    assert anchor.names() == names[:1]


def test_what_was_sent_is_done_whatever_becomes_of_the_sender(sock: socket.socket, pipe: tuple[int, int]) -> None:
    Anchor(sock).keep({"gone": pipe[0]})
    if (child := os.fork()) == 0:  # an agent that is killed with answers outstanding
        try:
            anchor = Anchor(sock)
            for number in range(100):
                anchor.keep({f"n{number}": pipe[0]})
                anchor._send(b"Ggone", [])
                anchor._send(b"L", [])
            anchor.forget(["gone"])
        finally:
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    after = Anchor(sock)
    assert set(after.names()) == {f"n{number}" for number in range(100)}
    assert same(after.get("n99"), pipe[0])


def test_what_has_no_room_is_refused_whole(sock: socket.socket, pipe: tuple[int, int]) -> None:
    anchor = Anchor(sock)
    anchor.keep({f"n{number}": pipe[0] for number in range(anchor._room - 1)})
    with pytest.raises(InternalError):
        anchor.keep({"a": pipe[0], "b": pipe[0]})
    anchor.keep({"a": pipe[0], "n0": pipe[0]})
    with pytest.raises(InternalError):
        anchor.keep({"b": pipe[0]})
    assert len(anchor.names()) == anchor._room
    anchor.forget(["n0"])
    anchor.keep({"b": pipe[0]})
    assert {"a", "b"} <= set(anchor.names())


@pytest.mark.parametrize(
    "packet",
    [b"P", b"P\n", b"Pno-newline", b"P" + b"x" * 64 + b"\n", b"D", b"Dno-newline", b"D\n\n", b"Q", b"x" * 9000],
)
def test_nonsense_is_dropped_with_its_descriptors(sock: socket.socket, pipe: tuple[int, int], packet: bytes) -> None:
    anchor = Anchor(sock)
    anchor.keep({"read": pipe[0]})
    read, write = os.pipe()
    anchor._send(packet, [write, write])
    os.close(write)
    assert Anchor(sock).names() == ["read"]
    assert os.read(read, 1) == b""  # nobody holds the other end any more
    os.close(read)


def test_no_more_names_than_descriptors_are_taken(sock: socket.socket, pipe: tuple[int, int]) -> None:
    anchor = Anchor(sock)
    anchor._send(b"Pa\nb\nc\n", [pipe[0], pipe[0]])
    assert Anchor(sock).names() == ["a", "b"]


def test_a_name_that_is_too_long_is_refused(sock: socket.socket, pipe: tuple[int, int]) -> None:
    anchor = Anchor(sock)
    with pytest.raises(InternalError, match="too long"):
        anchor.keep({"x" * 64: pipe[0]})
    assert anchor.names() == []

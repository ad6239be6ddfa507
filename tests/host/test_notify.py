"""Waiting for a daemon's word that it is ready."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from ballpoint.host import notify, process

# For what must happen. Seconds.
_DEADLINE = 60.0


def daemon(listener: notify.Listener, script: str) -> process.Child:
    """A child that runs `script` and then waits for its end."""
    program = f"import signal, sys\nfrom ballpoint.host import notify\n{script}\nsignal.pause()"
    return process.start([sys.executable, "-c", program], env={notify.VARIABLE: listener.address})


@pytest.mark.parametrize(
    ("script", "seconds", "ready"),
    [("notify.tell_ready()", _DEADLINE, True), ("sys.exit(0)", _DEADLINE, False), ("", 0.2, False)],
)
def test_a_daemon_is_waited_for(script: str, seconds: float, ready: bool) -> None:
    with notify.Listener() as listener:
        child = daemon(listener, script)
        try:
            assert listener.wait(child, seconds) is ready
        finally:
            child.kill()
            child.wait()
    assert not os.path.lexists(listener.address)


def test_other_words_are_passed_over() -> None:
    """systemd's protocol knows many, and one datagram may carry several."""
    with notify.Listener() as listener, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        child = daemon(listener, "")
        try:
            sender.sendto(b"STATUS=READY=1 soon", listener.address)
            assert not listener.wait(child, 0.2)
            sender.sendto(b"STATUS=serving\nREADY=1\n", listener.address)
            assert listener.wait(child, _DEADLINE)
        finally:
            child.kill()
            child.wait()


def test_nobody_need_ask_nor_be_there_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(notify.VARIABLE, raising=False)
    assert not notify.tell_ready()
    with notify.Listener() as listener:
        monkeypatch.setenv(notify.VARIABLE, listener.address)
        assert notify.tell_ready()
    assert not notify.tell_ready()


def test_an_abstract_address_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """As systemd gives one to containers: @ stands for the NUL byte."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("")  # unix(7): the kernel chooses
        name = listener.getsockname()
        monkeypatch.setenv(notify.VARIABLE, f"@{name[1:].decode()}")
        assert notify.tell_ready()
        assert listener.recv(100) == b"READY=1"

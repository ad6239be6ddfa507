"""The `ballpoint` command as a process of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

# For what must happen. Seconds.
DEADLINE = 120
COMMAND = [sys.executable, "-m", "ballpoint.cli"]
# A command and its children see a copy of the host's /etc: what they write to it is gone with them.
_SETTINGS = """
mount -t tmpfs none /mnt
mkdir /mnt/upper /mnt/work
mount -t overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work none /etc
exec "$@"
"""
OWN_SETTINGS = ["unshare", "--mount", "sh", "-euc", _SETTINGS, "sh"]
ROWS, COLUMNS = 33, 101


def ballpoint(
    home: Path, *arguments: str, inside: list[str] | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run it in the directory `home` as a user whose home that is, without a terminal.

    Args:
        inside: command that runs it.
        more: environment.
    """
    return subprocess.run(
        [*(inside or []), *COMMAND, *arguments], capture_output=True, text=True, timeout=DEADLINE,
        stdin=subprocess.DEVNULL, env={**os.environ, "HOME": str(home), **more}, cwd=home,
    )  # fmt: skip


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, home: Path, *arguments: str, inside: list[str] | None = None, **more: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        environment = {**os.environ, "HOME": str(home), "TERM": "xterm", **more}
        self._child = subprocess.Popen(
            [*(inside or []), *COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, cwd=home, env=environment,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.said = b""

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._child.send_signal(signal.SIGWINCH)  # its session has no controlling terminal that would send it

    def expect(self, wanted: bytes) -> None:
        """Read on until it has said `wanted`."""
        self.expect_match(re.escape(wanted))

    def expect_match(self, pattern: bytes) -> re.Match[bytes]:
        """Read on until what it has said matches `pattern` somewhere."""
        while (found := re.search(pattern, self.said)) is None:
            ready, _, _ = select.select([self._master], [], [], DEADLINE)
            assert ready, self.said
            try:
                self.said += os.read(self._master, 65536)
            except OSError as error:  # EIO: it has ended
                raise AssertionError(self.said) from error
        return found

    def end(self) -> int:
        """Its exit code."""
        try:
            while select.select([self._master], [], [], DEADLINE)[0]:
                self.said += os.read(self._master, 65536)
        except OSError:  # EIO: nobody has the other side any more
            pass
        os.close(self._master)
        return self._child.wait(DEADLINE)

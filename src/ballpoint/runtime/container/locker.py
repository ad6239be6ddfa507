"""Mounts whose flags nobody inside can clear: the node's side of the locker helper."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

from ballpoint.core.errors import InternalError
from ballpoint.host import mount, process

_SECONDS = 10.0


class Locker:
    """Owns the shared directory and the helper process; a dead helper is started again at the next use.

    Must be made in the mount namespace it will be used from. Calls may come from any thread.
    """

    def __init__(self, directory: Path, program: Path) -> None:
        """`directory` is an empty directory that a shared tmpfs is mounted on."""
        self._directory = directory
        self._program = program
        self._lock = threading.Lock()
        self._child: process.Child | None = None
        self._sock: socket.socket | None = None
        self._count = 0
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        mount.umount2(directory, mount.MNT_DETACH)
        mount.mount_at(directory, "tmpfs", {"mode": "755", "size": "1m"})
        mount.mount("none", directory, flags=mount.MS_SHARED)

    def lock(self, fd: int) -> int:
        """A detached copy, with its flags locked, of the mount `fd` that `staging.hold` returned. The caller owns both.

        Raises:
            InternalError: the helper failed twice.
        """
        with self._lock:
            try:
                return self._locked(fd)
            except (OSError, InternalError):
                self._stop()
                return self._locked(fd)

    def close(self) -> None:
        """End the helper and unmount the directory. Idempotent."""
        with self._lock:
            self._stop()
            mount.umount2(self._directory, mount.MNT_DETACH)

    def _locked(self, fd: int) -> int:
        sock = self._sock or self._start()
        self._count += 1
        place = self._directory / f"m{self._count}"
        place.mkdir()
        # The copy is attached, not `fd`: that one stays as it is, and with its owner.
        copy = mount.open_tree("", fd)
        try:
            mount.move_mount(copy, place)
            sock.send(place.name.encode())
            reply, fds, _, _ = socket.recv_fds(sock, 64, 1)
        finally:
            os.close(copy)
            mount.umount2(place, mount.MNT_DETACH)
            place.rmdir()
        if reply != b"F":
            raise InternalError(f"the locker answered {reply!r}")
        os.set_inheritable(fds[0], False)
        return fds[0]

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.settimeout(_SECONDS)
            # By path relative to its working directory, so that no directory above needs to let strangers through.
            self._child = process.start([str(self._program)], stdin=theirs.fileno(), cwd=self._directory)
        if ours.recv(1) != b"R":
            ours.close()
            raise InternalError("the locker did not start")
        self._sock = ours
        return ours

    def _stop(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._child is not None:
            self._child.send_signal(signal.SIGKILL)
            self._child.wait()
            self._child = None

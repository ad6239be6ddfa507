"""A network between a command and its node that a test can cut."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress
from urllib.parse import urlsplit

from ballpoint.core.errors import InvalidError


class Relay:
    """Passes connections on to the node at `url`, at an address of its own.

    Attributes:
        url: where it is.
        accepted: how many connections it has passed on.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.hostname is None or parts.port is None:
            raise InvalidError(url)
        self._target = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.accepted = 0
        self._open: set[socket.socket] = set()
        self._broken = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def cut(self) -> None:
        """End every connection, without a word."""
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def break_down(self) -> None:
        """End every connection; new ones are ended at once until it is mended."""
        self._broken.set()
        self.cut()

    def mend(self) -> None:
        self._broken.clear()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        self.cut()
        for thread in self._threads[1:]:
            thread.join()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._broken.is_set():
                near.close()
                continue
            self._threads.append(threading.Thread(target=self._pass_on, args=[near]))
            self._threads[-1].start()

    def _pass_on(self, near: socket.socket) -> None:
        with near, socket.create_connection(self._target) as far:
            with self._lock:
                self._open |= {near, far}
                self.accepted += 1
            try:
                other = {near: far, far: near}
                while True:
                    for each in select.select([near, far], [], [])[0]:
                        data = each.recv(65536)
                        if not data:
                            return
                        other[each].sendall(data)
            except OSError:
                pass
            finally:
                with self._lock:
                    self._open -= {near, far}

"""One end of a `core.wire` connection in an event loop: calls with deadlines, served requests, notices."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from ballpoint.core import wire
from ballpoint.core.errors import BallpointError, InternalError, InvalidError, UnavailableError

log = logging.getLogger(__name__)

# Answers a request: (message, its descriptors) -> (result, descriptors to send). Received descriptors are closed by the
# connection afterwards; sent ones too, so both sides hand over copies they can do without.
Serve = Callable[[dict[str, Any], list[int]], Awaitable[tuple[Any, Sequence[int]]]]

_MAX_QUEUED = 1024
_MAX_WORDS = 1024


class Peer:
    """A connected SOCK_SEQPACKET socket, used by one event loop.

    Args:
        sock: the socket; owned from here on.
        serve: answers the other side's requests; None refuses them.
        on_notice: is told of messages that ask for nothing.
        on_close: is called once when the connection has ended, whoever ended it.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        serve: Serve | None = None,
        on_notice: Callable[[dict[str, Any]], None] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._serve = serve
        self._on_notice = on_notice
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, asyncio.Future[tuple[Any, list[int]]]] = {}
        self._late: dict[int, Callable[[Any], None]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._queue: deque[tuple[dict[str, Any], list[int]]] = deque()
        self._next = 0
        self.closed = False
        self._loop.add_reader(sock, self._readable)

    async def call(
        self,
        op: str,
        *,
        seconds: float,
        fds: Sequence[int] = (),
        on_late: Callable[[Any], None] | None = None,
        **arguments: Any,
    ) -> tuple[Any, list[int]]:
        """Ask the other side and wait for its answer.

        Args:
            op: what is asked; `arguments` go with it.
            seconds: how long to wait.
            fds: copies of them are sent; the caller keeps its own.
            on_late: is given a result that comes after that time, to undo what the other side did for it.

        Returns:
            The result and the descriptors that came with it, which the caller owns.

        Raises:
            UnavailableError: the connection has ended, or no answer came in time.
            InternalError: the other side failed; its words are in the message.
        """
        if self.closed:
            raise UnavailableError(f"the connection for {op} has ended")
        self._next += 1
        number = self._next
        future: asyncio.Future[tuple[Any, list[int]]] = self._loop.create_future()
        self._calls[number] = future
        try:
            self._send({"id": number, "op": op, **arguments}, [os.dup(fd) for fd in fds])
            why = f"no answer to {op} within {seconds:g} s"
            deadline = self._loop.call_later(seconds, self._give_up, number, why, on_late)
            try:
                return await future
            finally:
                deadline.cancel()
        finally:
            del self._calls[number]

    def notify(self, message: dict[str, Any]) -> None:
        """Send a notice; one that finds the connection ended is dropped, as its reader is gone."""
        if not self.closed:
            self._send(message, [])

    def close(self) -> None:
        """End the connection; pending calls fail. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for _, fds in self._queue:
            _close_all(fds)
        self._queue.clear()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(UnavailableError("the connection has ended"))
        self._late.clear()
        for task in self._serving:
            task.cancel()
        if self._on_close is not None:
            self._on_close()

    def _send(self, message: dict[str, Any], fds: list[int]) -> None:
        """Send now or queue; `fds` are closed once sent."""
        self._queue.append((message, fds))
        if len(self._queue) > _MAX_QUEUED:
            self.close()
        else:
            self._flush()

    def _flush(self) -> None:
        while self._queue:
            message, fds = self._queue[0]
            try:
                wire.send(self._sock, message, fds)
            except BlockingIOError:
                self._loop.add_writer(self._sock, self._flush)
                return
            except OSError:
                self.close()
                return
            except Exception:  # it cannot be sent, now or later, and must not keep back what comes after it
                self._queue.popleft()
                _close_all(fds)
                raise
            self._queue.popleft()
            _close_all(fds)
        self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            message, fds = wire.receive(self._sock)
        except BlockingIOError:
            return
        except (OSError, InvalidError) as error:
            log.warning("connection ended: %s", error)
            self.close()
            return
        if not message:
            self.close()
        elif "id" in message and type(message["id"]) is not int:
            _close_all(fds)
            log.warning("connection ended: a message's id is no number")
            self.close()
        elif "op" in message and "id" in message:
            task = self._loop.create_task(self._answer(message, fds))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        elif "id" in message:
            self._settle(message, fds)
        else:
            _close_all(fds)
            if self._on_notice is not None:
                self._on_notice(message)

    def _give_up(self, number: int, why: str, on_late: Callable[[Any], None] | None) -> None:
        future = self._calls[number]
        if not future.done():
            future.set_exception(UnavailableError(why))
            if on_late is not None:
                self._late[number] = on_late

    def _settle(self, message: dict[str, Any], fds: list[int]) -> None:
        future = self._calls.get(message["id"])
        if future is None or future.done():
            _close_all(fds)  # its caller gave up
            on_late = self._late.pop(message["id"], None)
            if on_late is not None and "error" not in message:
                on_late(message.get("ok"))
        elif "error" in message:
            _close_all(fds)
            future.set_exception(InternalError(words(message["error"])))
        else:
            future.set_result((message.get("ok"), fds))

    async def _answer(self, message: dict[str, Any], fds: list[int]) -> None:
        reply: dict[str, Any] = {"id": message["id"]}
        answer: Sequence[int] = ()
        try:
            if self._serve is None:
                raise InvalidError("this side answers nothing")
            reply["ok"], answer = await self._serve(message, fds)
        except BallpointError as error:
            reply["error"] = str(error)
        except Exception as error:  # noqa: BLE001 - told to the caller, and logged here
            log.exception("request %s failed", message.get("op"))
            reply["error"] = f"{type(error).__name__}: {error}"
        finally:
            _close_all(fds)
        if self.closed:
            _close_all(answer)
        else:
            self._send(reply, list(answer))


def words(said: object) -> str:
    """What another side gave as a reason, as a text that every log and database takes: bounded, and of characters."""
    text = said if isinstance(said, str) else "it gave no reason"
    return text[:_MAX_WORDS].encode("utf-8", "replace").decode()


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def listen(path: Path, *, mode: int) -> socket.socket:
    """A listening SOCK_SEQPACKET socket at `path`, instead of a former one; only `mode` may connect."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    bind_path(sock, path, mode)
    sock.listen(64)
    sock.setblocking(False)
    return sock


def bind_path(sock: socket.socket, path: Path, mode: int) -> None:
    """Bind unix socket `sock` to `path`, removing a former one, with permission `mode` from the first moment."""
    path.unlink(missing_ok=True)
    os.fchmod(sock.fileno(), mode)  # unix(7): bind gives the new file the socket's own mode, less the umask
    sock.bind(str(path))
    path.chmod(mode)


def connect(path: Path) -> socket.socket:
    """A SOCK_SEQPACKET connection to `path`, made at once or not at all.

    Raises:
        OSError: nobody listens, or whoever does has stopped accepting and its backlog is full (BlockingIOError).
    """
    # A blocking connect(2) would wait for ever for a process that is stopped.
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        raise
    return sock

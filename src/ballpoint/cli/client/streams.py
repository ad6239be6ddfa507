"""This process's own streams, without a thread: one that waits for input would outlive the command."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Generator

import click

from ballpoint.core.errors import UnavailableError

# What a shell shows for a command whose reader has gone: 128 and SIGPIPE.
_NOBODY_READS = 141


def write(fd: int, data: bytes) -> None:
    """Write all of `data`.

    Raises:
        click.exceptions.Exit: nobody reads it. UnavailableError: it cannot be written.
    """
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except BrokenPipeError as error:
        raise click.exceptions.Exit(_NOBODY_READS) from error
    except OSError as error:
        raise UnavailableError(f"cannot write the command's output: {error.strerror}") from error


async def read(fd: int, size: int) -> bytes:
    """What comes next, empty at the end."""
    loop = asyncio.get_running_loop()
    there: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        if not there.done():
            there.set_result(None)

    try:
        loop.add_reader(fd, ready)
    except PermissionError:  # a plain file: always readable, and not to be waited for (epoll_ctl(2))
        return os.read(fd, size)
    try:
        await there
    finally:
        loop.remove_reader(fd)
    return os.read(fd, size)


def pieces(size: int) -> Generator[bytes]:
    """What comes on standard input, in pieces of at most `size` bytes, until its end.

    Ctrl+C ends the wait for it whenever it comes: Python looks for signals before it reads, and one that comes between
    that look and the read would be heard of with the next byte only.
    """
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    former = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    try:
        while True:
            ready, _, _ = select.select([0, woken], [], [])
            if woken in ready:
                os.read(woken, size)
            elif data := os.read(0, size):
                yield data
            else:
                return
    finally:
        signal.set_wakeup_fd(former)
        os.close(woken)
        os.close(wakes)

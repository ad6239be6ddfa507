"""One run of a service: its process, the group it lives in, and who writes its log."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ballpoint.agent.ports.owners import owner
from ballpoint.agent.services.group import Group
from ballpoint.agent.services.log import start_writer
from ballpoint.agent.spawn_types import ProcessSpec, ServiceSpawner, SpawnError

log = logging.getLogger("agent.services")

# What a log's writer may take to write what is left, once nobody writes to it any more.
_WRITTEN_SECONDS = 5.0
# Somebody inside who ends writers again and again does not keep the agent busy.
_WRITER_PAUSE_SECONDS = 1.0


class Process:
    """A process of a service. Its numbers are worth nothing without its pidfd.

    Attributes:
        key: under which the anchor keeps its descriptors.
        pid: as the agent numbers it. inner_pid: as it is numbered in the sprite.
        ended: its wait status, once it has ended.
        on_change: told that `descriptors` are others.
    """

    def __init__(
        self,
        spawner: ServiceSpawner,
        group: Group,
        key: str,
        log_path: str,
        pid: int,
        pidfd: int,
        pipes: tuple[int, int],
        writer: tuple[int, int] | None,
    ) -> None:
        self._spawner = spawner
        self._group = group
        self.key = key
        self._log_path = log_path
        self.pid = pid
        self._pidfd = pidfd
        self._pipes = pipes
        self._writer = writer
        self.on_change: Callable[[], None] | None = None
        self._written = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self.inner_pid = owner(pid, Path("/proc")).pid or pid
        self._loop.add_reader(pidfd, self._exited)
        if writer is not None:
            self._loop.add_reader(writer[1], self._writer_ended)
        else:
            self._written.set()

    @classmethod
    def start(cls, spawner: ServiceSpawner, group: Group, key: str, log_path: str, command: ProcessSpec) -> Process:
        """Start one; the streams of `command` do not matter.

        Raises:
            SpawnError: it cannot be started.
        """
        given: list[int] = []
        pipes: list[int] = []
        try:
            null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            given.append(null)
            for _ in range(2):
                ours, theirs = os.pipe2(os.O_CLOEXEC)
                pipes.append(ours)
                given.append(theirs)
            _, stdout, stderr = given
            spec = ProcessSpec(command.argv, command.path, command.env, command.cwd, null, stdout, stderr)
            # First: somebody may be waiting for what it serves, and what it says waits in the pipes.
            pid, pidfd = spawner.spawn_in(spec, group.procs)
            try:
                writer = start_writer(spawner, log_path, pipes[0], pipes[1])
            except BaseException:
                _abandon(spawner, pid, pidfd)
                group.kill()
                raise
        except BaseException as error:
            for fd in pipes:
                os.close(fd)
            if isinstance(error, OSError):
                raise SpawnError(126, f"cannot start a process: {error.strerror}") from error
            raise
        finally:
            for fd in given:
                os.close(fd)
        return cls(spawner, group, key, log_path, pid, pidfd, (pipes[0], pipes[1]), writer)

    def descriptors(self) -> dict[str, int]:
        """What the next agent needs of it, by the names the anchor keeps it under."""
        found = {f"{self.key}.p": self._pidfd, f"{self.key}.1": self._pipes[0], f"{self.key}.2": self._pipes[1]}
        if self._writer is not None:
            found[f"{self.key}.w"] = self._writer[1]
        return found

    def note(self) -> dict[str, Any]:
        """What else it needs."""
        return {"key": self.key, "pid": self.pid, "writer": self._writer[0] if self._writer is not None else 0}

    def signal(self, number: int) -> bool:
        """Signal its process group, and itself where it leads none yet. Returns whether it was there."""
        try:
            signal.pidfd_send_signal(self._pidfd, 0)
        except (ProcessLookupError, OSError):
            return False
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
        return True

    def kill(self) -> None:
        """End it with all that it has begun, now."""
        self._group.kill()
        if self._pidfd >= 0:  # it may not have joined its group yet
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def finish(self) -> None:
        """Once it has ended: end what it left behind, and wait until its log has its last words, but not for ever."""
        await self._group.end()
        with suppress(TimeoutError):
            async with asyncio.timeout(_WRITTEN_SECONDS):
                await self._written.wait()
        self._group.remove()
        self.close()

    def close(self) -> None:
        """Let go of it. Idempotent."""
        for fd in self._pipes:
            if fd >= 0:
                os.close(fd)
        self._pipes = (-1, -1)

    def leave(self) -> None:
        """Let go of all descriptors, of one that lives on for the next agent (tests)."""
        self._group.close()
        self.close()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._writer is not None:
            self._loop.remove_reader(self._writer[1])
            os.close(self._writer[1])
            self._writer = None

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        status = self._spawner.wait(self.pid, self._pidfd)
        self._spawner.reap(self.pid)
        os.close(self._pidfd)
        self._pidfd = -1
        self.ended.set_result(status)

    def _writer_ended(self) -> None:
        """Its work is done, or somebody has ended it: then another goes on where it was, so that nothing waits."""
        assert self._writer is not None
        pid, pidfd = self._writer
        self._loop.remove_reader(pidfd)
        status = self._spawner.wait(pid, pidfd)
        self._spawner.reap(pid)
        os.close(pidfd)
        self._writer = None
        if status == 0 or self._pipes[0] < 0:
            self._written.set()
            return
        log.warning("the writer of %s has ended (%d); another goes on", self._log_path, status)
        self._loop.call_later(_WRITER_PAUSE_SECONDS, self._write_again)

    def _write_again(self) -> None:
        if self._pipes[0] < 0:
            self._written.set()
            return
        try:
            self._writer = start_writer(self._spawner, self._log_path, *self._pipes)
        except (OSError, SpawnError) as error:
            log.warning("%s is written no more: %s", self._log_path, error)
            self._written.set()
            return
        self._loop.add_reader(self._writer[1], self._writer_ended)
        if self.on_change is not None:
            self.on_change()


def _abandon(spawner: ServiceSpawner, pid: int, pidfd: int) -> None:
    """End a process that is of no use, and wait for it in the background."""
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(pidfd)
        spawner.reap(pid)
        os.close(pidfd)

    loop.add_reader(pidfd, ended)
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)

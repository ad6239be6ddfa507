"""All services of one sprite: read from its disk at its start, kept there, handed on from agent to agent."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ballpoint.agent import notes
from ballpoint.agent.anchor import Anchor
from ballpoint.agent.ports.handover import DEFAULT_HTTP_PORT
from ballpoint.agent.services.definition import (
    Definition,
    all_needs,
    check_all,
    needed_by,
    no_such,
    parse_definition,
    start_order,
)
from ballpoint.agent.services.disk import Disk
from ballpoint.agent.services.group import Group
from ballpoint.agent.services.log import DIRECTORY, Reader, path_of
from ballpoint.agent.services.process import Process
from ballpoint.agent.services.service import Service
from ballpoint.agent.spawn_types import ProcessSpec, ServiceSpawner, SpawnError
from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import BallpointError, ConflictError, InternalError, UnavailableError
from ballpoint.core.tasks import Tasks

log = logging.getLogger("agent.services")

# A request by the sprite's URL waits so long for its service to be started.
_HTTP_START_SECONDS = 20.0
_STOP_SECONDS = 10.0
_NOTE = "services"
_KEPT = re.compile(r"(v[0-9]+)\.([p12w])")


class StoppedError(ConflictError):
    """The service was stopped by somebody, and stays so."""


@dataclass(frozen=True)
class Change:
    """What a PUT would do, once it is known that it may.

    Attributes:
        former: of that name; None where there is none.
        needless: it is defined so already, and runs.
    """

    definition: Definition
    former: Service | None
    needless: bool


class Services:
    """The services of one sprite. Verbs are asked one at a time: whoever asks holds `turn`.

    Args:
        groups: descriptor of the directory that their control groups are made in, borrowed.
        anchor: None keeps nothing for a next agent.
        environment: what a process of this sprite finds.
        ending: says whether the sprite is being stopped: what ends then is not to be started again.
        log_directory: inside.
    """

    def __init__(
        self,
        spawner: ServiceSpawner,
        disk: Disk,
        groups: int,
        anchor: Anchor | None,
        environment: Callable[[], dict[str, str]],
        *,
        ending: Callable[[], bool] = lambda: False,
        clock: Clock = SYSTEM_CLOCK,
        log_directory: str = DIRECTORY,
    ) -> None:
        self._spawner = spawner
        self._disk = disk
        self._groups = groups
        self._anchor = anchor
        self._environment = environment
        self._ending = ending
        self._clock = clock
        self._log_directory = log_directory
        self._services: dict[str, Service] = {}
        self._numbers = itertools.count(round(clock.now().timestamp() * 1000))
        self._readers: set[Reader] = set()
        self._loading: asyncio.Task[None] | None = None
        self._known = False
        self._trouble = ""
        self._closed = False
        self.tasks = Tasks()
        self.turn = asyncio.Lock()

    # ---- where they come from ----

    def wake(self, there_are: bool) -> None:
        """The sprite starts. `there_are` says whether its disk may have any: else nothing at all is done."""
        self._known = not there_are
        if there_are:
            self._loading = self.tasks.start(self._load(), "services of the disk")

    def adopt(self) -> None:
        """Go on with what an earlier agent had."""
        assert self._anchor is not None
        fd = self._anchor.get(_NOTE)
        kept: dict[str, dict[str, int]] = {}
        for name in self._anchor.names():
            if (match := _KEPT.fullmatch(name)) is not None and (copy := self._anchor.get(name)) is not None:
                kept.setdefault(match[1], {})[match[2]] = copy
        if fd is None:
            self._drop(kept)
            self.wake(True)
            return
        self._known = True
        noted = notes.read(fd)["services"]
        for note in noted:
            definition = parse_definition(note["definition"]["name"], note["definition"])
            self._add(definition, stopped=note["stopped"])
        for note in noted:
            service = self._services[note["definition"]["name"]]
            process = None
            if note["process"] is not None:
                process = self._process_of(service, note["process"], kept.pop(note["process"]["key"], {}))
            service.go_on(note, process)
            if service.leaving:
                self.tasks.start(self._forget(service), f"forget {service.name}")
        self._drop(kept)

    def _process_of(self, service: Service, note: Mapping[str, Any], fds: dict[str, int]) -> Process | None:
        """A process that an earlier agent started; None where not all of it was kept."""
        if not {"p", "1", "2"} <= fds.keys():
            for fd in fds.values():
                os.close(fd)
            return None
        writer = (int(note["writer"]), fds["w"]) if "w" in fds else None
        try:
            group = self._group(service.name)
        except OSError as error:
            log.warning("the group of service %s is lost: %s", service.name, error)
            for fd in fds.values():
                os.close(fd)
            return None
        pipes = fds["1"], fds["2"]
        key, pid = str(note["key"]), int(note["pid"])
        process = Process(self._spawner, group, key, self.log_path(service.name), pid, fds["p"], pipes, writer)
        process.on_change = lambda: self._deposit(process)
        return process

    def _drop(self, kept: dict[str, dict[str, int]]) -> None:
        """Forget what belongs to nothing that is known; whoever still lives there ends with the group's next start."""
        assert self._anchor is not None
        for fds in kept.values():
            for fd in fds.values():
                os.close(fd)
        self._anchor.forget([f"{key}.{short}" for key, fds in kept.items() for short in fds])

    async def _load(self) -> None:
        try:
            found = await self._disk.load()
        except BallpointError as error:
            log.warning("the services on the disk cannot be read: %s", error)
            self._trouble = error.message
            return
        if self._known:
            return
        self._known = True
        for name in start_order({name: definition for name, (definition, _) in found.items()}):
            definition, stopped = found[name]
            self._add(definition, stopped=stopped)
        for service in list(self._services.values()):
            service.resume()
        self._keep()

    async def known(self) -> None:
        """Wait until it is known which there are.

        Raises:
            UnavailableError: the disk does not tell; it is asked again by the next who waits.
        """
        if self._known:
            return
        if self._loading is None or self._loading.done():
            self._loading = self.tasks.start(self._load(), "services of the disk")
        await asyncio.wait([self._loading])
        if not self._known:
            raise UnavailableError(f"the services on the disk cannot be read: {self._trouble}", hint="try again")

    async def close(self) -> None:
        """End all that this object does; what runs goes on (tests)."""
        self._closed = True
        await self.tasks.close()
        for service in self._services.values():
            if service.process is not None:
                service.process.leave()
        for reader in list(self._readers):
            reader.close()

    # ---- looking ----

    def __len__(self) -> int:
        return len(self._services)

    def get(self, name: str) -> Service:
        """Raises NotFoundError."""
        found = self._services.get(name)
        if found is None:
            raise no_such(name)
        return found

    def listing(self) -> list[dict[str, Any]]:
        return [self._services[name].view() for name in sorted(self._services)]

    def log_path(self, name: str) -> str:
        return path_of(name, self._log_directory)

    def read_log(self, name: str, lines: int | None) -> Reader:
        """As `Reader`."""
        return Reader(self._spawner, self._readers, self.log_path(name), lines)

    # ---- verbs: their caller holds `turn` ----

    def check(self, definition: Definition) -> Change:
        """What a PUT of `definition` would do.

        Raises:
            InvalidError, ConflictError: it is not possible.
        """
        former = self._services.get(definition.name)
        if former is not None:
            _not_leaving(former)
        check_all({**self._definitions(), definition.name: definition})
        runs = former is not None and not former.stopped and former.status in ("running", "starting")
        return Change(definition, former, runs and former is not None and former.definition == definition)

    async def save_change(self, change: Change) -> None:
        """Write what `put` will do to the disk."""
        wanted = {change.definition.name, *self._stopped_needs(change.definition)}
        await self._save({**self._definitions(), change.definition.name: change.definition}, wanted=wanted)

    def put(self, change: Change) -> Service:
        """Define a service and start it with what it needs; restart one that was another."""
        name = change.definition.name
        for needed in self._stopped_needs(change.definition):
            self._services[needed].start()
        if change.former is None:
            service = self._add(change.definition, stopped=False)
            service.start()
        else:
            service = change.former
            was = service.definition
            service.definition = change.definition
            if was != change.definition and service.process is not None:
                service.restart(_STOP_SECONDS)
            else:
                service.start()
        log.info("service %s is defined", name)
        self.changed(service)
        return service

    async def save_start(self, service: Service) -> None:
        """Write to the disk that a service and what it needs are not stopped, where they were.

        Raises:
            ConflictError: it is being deleted.
        """
        _not_leaving(service)
        wanted = {service.name, *self._stopped_needs(service.definition)}
        if any(self._services[name].stopped for name in wanted):
            await self._save(self._definitions(), wanted=wanted)

    def start(self, service: Service) -> None:
        """Start a service with what it needs."""
        for needed in self._stopped_needs(service.definition):
            self._services[needed].start()
        service.start()

    async def save_stop(self, service: Service) -> None:
        """Write to the disk that a service is stopped."""
        if not service.stopped:
            await self._save(self._definitions(), unwanted={service.name})

    async def delete(self, service: Service) -> None:
        """Begin to stop a service and to forget it, which it is once it is `over`; its log stays.

        Raises:
            ConflictError: others need it.
        """
        if service.leaving:
            return
        others = needed_by(self._definitions(), service.name)
        if others:
            raise ConflictError(
                f"the service {service.name!r} is needed by {', '.join(others)}", hint="delete those first"
            )
        definitions = self._definitions()
        del definitions[service.name]
        await self._save(definitions)
        service.leaving = True
        service.stop(_STOP_SECONDS)
        self.tasks.start(self._forget(service), f"forget {service.name}")

    async def _forget(self, service: Service) -> None:
        await service.over()
        if self._services.get(service.name) is service:
            del self._services[service.name]
            self._keep()
            log.info("service %s is deleted", service.name)

    async def http_port(self) -> int:
        """Where what comes by the sprite's URL goes: to the service that has an HTTP port, which is started first.

        Raises:
            StoppedError: somebody has stopped it.
            UnavailableError: it does not start, or it is not known whether there is one.
        """
        await self.known()
        for service in self._services.values():
            if service.definition.http_port is not None and not service.leaving:
                await self._running(service)
                return service.definition.http_port
        return DEFAULT_HTTP_PORT

    async def _running(self, service: Service) -> None:
        if service.stopped:
            raise StoppedError(f"the service {service.name!r} was stopped", hint="start it")
        if service.status == "running":
            return
        if service.status != "stopping":
            service.start()
        there = asyncio.Event()
        service.listeners.add(listener := lambda happened: there.set() if happened.kind == "started" else None)
        try:
            async with asyncio.timeout(_HTTP_START_SECONDS):
                await there.wait()
        except TimeoutError as error:
            reason = service.error or service.status
            raise UnavailableError(f"the service {service.name!r} does not start: {reason}") from error
        finally:
            service.listeners.discard(listener)

    # ---- Others ----

    def waits_for(self, needs: tuple[str, ...]) -> str:
        for name in needs:
            needed = self._services.get(name)
            if needed is None:
                return f"it waits for {name}, which is no service"
            if needed.status != "running":
                return f"it waits for {name}, which is {needed.status}"
        return ""

    async def start_process(self, service: Service) -> Process:
        definition = service.definition
        group = self._group(service.name)
        try:
            await group.end()  # what an agent that was killed had begun and could not tell of
            process = self._start_in(group, service.name, definition)
        except BaseException:
            group.remove()
            raise
        process.on_change = lambda: self._deposit(process)
        try:
            self._deposit(process)
        except InternalError:
            process.kill()
            log.warning("more runs in this sprite than the agent can keep")
        return process

    def _start_in(self, group: Group, name: str, definition: Definition) -> Process:
        if self._ending():
            raise SpawnError(126, "the sprite is being stopped")
        spec = ProcessSpec(
            argv=(definition.cmd, *definition.args),
            path=None,
            env={**self._environment(), **definition.env},
            cwd=definition.dir,
            stdin=-1,
            stdout=-1,
            stderr=-1,
        )
        return Process.start(self._spawner, group, f"v{next(self._numbers)}", self.log_path(name), spec)

    def _deposit(self, process: Process) -> None:
        if self._anchor is not None and not self._closed:
            self._anchor.keep(process.descriptors())

    def process_over(self, process: Process) -> None:
        if self._anchor is not None and not self._closed:
            self._anchor.forget([f"{process.key}.{short}" for short in "p12w"])

    def changed(self, service: Service) -> None:
        if self._closed:
            return
        for each in self._services.values():
            if each is not service:
                each.hurry()
        self._keep()

    def _keep(self) -> None:
        """Deposit what the next agent needs to know."""
        if self._anchor is None or self._closed:
            return
        fd = notes.write({"services": [service.note() for service in self._services.values()]})
        try:
            self._anchor.keep({_NOTE: fd})
        finally:
            os.close(fd)

    # ---- helpers ----

    def _add(self, definition: Definition, *, stopped: bool) -> Service:
        service = Service(self, self.tasks, self._clock, definition, stopped=stopped)
        self._services[definition.name] = service
        return service

    def _group(self, name: str) -> Group:
        return Group(self._groups, f"svc-{name}")

    def _definitions(self) -> dict[str, Definition]:
        return {name: service.definition for name, service in self._services.items() if not service.leaving}

    def _stopped_needs(self, definition: Definition) -> list[str]:
        """What it needs and somebody has stopped, in the order of their start."""
        definitions = {**self._definitions(), definition.name: definition}
        needs = all_needs(definitions, definition.name)
        return [name for name in needs if self._services[name].stopped]

    async def _save(
        self,
        definitions: dict[str, Definition],
        *,
        wanted: set[str] | frozenset[str] = frozenset(),
        unwanted: set[str] | frozenset[str] = frozenset(),
    ) -> None:
        stopped = {
            name: name in unwanted or (name not in wanted and name in self._services and self._services[name].stopped)
            for name in definitions
        }
        await self._disk.save({name: (each, stopped[name]) for name, each in definitions.items()})


def _not_leaving(service: Service) -> None:
    if service.leaving:
        raise ConflictError(f"the service {service.name!r} is being deleted", hint="try again once it is gone")

"""The routes below /services (contract 2.5)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl, unquote

from ballpoint.agent.files.errors import FileError, error_body
from ballpoint.agent.server import Connection, Handler, Request, Routes
from ballpoint.agent.services.definition import check_name, no_such, parse_definition
from ballpoint.agent.services.service import Happened, Service
from ballpoint.agent.services.services import Services
from ballpoint.agent.services.stream import Stream
from ballpoint.agent.sessions.frames import parsed_object, signal_number
from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.duration import parse_duration
from ballpoint.core.errors import BallpointError, ConflictError, InvalidError, UnavailableError

log = logging.getLogger("agent.services")

_BODY_MAX = 64 * 1024
_WATCH_SECONDS, _START_SECONDS, _STOP_SECONDS = 5.0, 5.0, 10.0
_WATCH_MOST, _STOP_MOST, _LOGS_MOST = 3600.0, 600.0, 86400.0
# What a killed process may take to end before the stop says so: it waits for a disk.
_END_SECONDS = 20.0
_LINES_MOST = 1_000_000
_RETRY_AFTER_SECONDS = 2

Work = Callable[["_Asked"], Awaitable[None]]


class ServiceRoutes:
    """Serves one sprite's services."""

    def __init__(self, services: Services, clock: Clock = SYSTEM_CLOCK) -> None:
        self._services = services
        self._clock = clock

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", "/services", self._route(self._list))
        routes.add("POST", "/services/signal", self._route(self._signal))
        routes.add("GET", "/services/*", self._route(self._get))
        routes.add("PUT", "/services/*", self._route(self._put))
        routes.add("DELETE", "/services/*", self._route(self._delete))
        routes.add("POST", "/services/*/start", self._route(self._start))
        routes.add("POST", "/services/*/stop", self._route(self._stop))
        routes.add("POST", "/services/*/restart", self._route(self._restart))
        routes.add("GET", "/services/*/logs", self._route(self._logs))

    def _route(self, work: Work) -> Callable[[Connection, Request], Handler]:
        def route(connection: Connection, request: Request) -> Handler:
            return _Asked(self._services, self._clock, connection, request, work)

        return route

    async def _list(self, asked: _Asked) -> None:
        asked.respond(200, self._services.listing())

    async def _get(self, asked: _Asked) -> None:
        asked.respond(200, asked.service.view())

    async def _put(self, asked: _Asked) -> None:
        services = self._services
        name = check_name(asked.name)
        said = parsed_object(asked.body)
        if said is None:
            raise InvalidError("the body is no JSON object", hint='for example {"cmd": "python3", "args": ["app.py"]}')
        definition = parse_definition(name, said)
        seconds = asked.seconds("duration", _WATCH_SECONDS, _WATCH_MOST)
        async with services.turn:
            change = services.check(definition)
            if change.needless:
                asked.stream.begin()
                await asked.stream.end()
                return
            await services.save_change(change)
            if change.former is not None:
                asked.stream.watch(change.former)
            await asked.begin_reading(0)
            service = services.put(change)
            if change.former is None:
                asked.stream.watch(service)
        await self._follow(asked, service, seconds)

    async def _start(self, asked: _Asked) -> None:
        services, service = self._services, asked.service
        seconds = asked.seconds("duration", _WATCH_SECONDS, _WATCH_MOST)
        async with services.turn:
            _still(services, service)
            await services.save_start(service)
            asked.stream.watch(service)
            await asked.begin_reading(0)
            services.start(service)
        await self._follow(asked, service, seconds)

    async def _restart(self, asked: _Asked) -> None:
        services, service = self._services, asked.service
        seconds = asked.seconds("duration", _WATCH_SECONDS, _WATCH_MOST)
        async with services.turn:
            _still(services, service)
            await services.save_start(service)
            asked.stream.watch(service)
            await asked.begin_reading(0)
            services.start(service)
            if service.process is not None:
                service.restart(_STOP_SECONDS)
        await self._follow(asked, service, seconds)

    async def _follow(self, asked: _Asked, service: Service, seconds: float) -> None:
        """Say what becomes of a service for a time, and until it was started; less where it ends."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        happened: Happened | None = None
        if service.status != "running":
            happened = await asked.stream.until({"started", "exit", "error"}, max(seconds, _START_SECONDS))
        if happened is None or happened.kind == "started":
            await asked.stream.until({"exit", "error"}, max(0.0, due - loop.time()))
        waits = service.status == "starting" and service.error
        await asked.stream.end(ConflictError(f"it is not started yet: {service.error}") if waits else None)

    async def _stop(self, asked: _Asked) -> None:
        services, service = self._services, asked.service
        seconds = asked.seconds("timeout", _STOP_SECONDS, _STOP_MOST)
        async with services.turn:
            _still(services, service)
            if service.status == "stopped":
                raise ConflictError(f"the service {service.name!r} does not run", hint="start it")
            unsaved: BallpointError | None = None
            try:
                await services.save_stop(service)
            except BallpointError as error:  # a full disk shall not keep it running
                unsaved = error
            asked.stream.watch(service)
            await asked.begin_reading(0)
            ran = service.process is not None and service.status != "failed"
            service.stop(seconds)
        failure: BallpointError | None = None
        if not ran:
            await asked.stream.say(Happened("stopped"))
        elif await asked.stream.until({"stopped", "exit"}, seconds + _END_SECONDS) is None:
            failure = UnavailableError(
                f"processes of the service {service.name!r} do not end", hint="restart the sprite"
            )
        if unsaved is not None:
            failure = failure or UnavailableError(
                f"it is stopped, but the disk does not know: {unsaved.message}", hint="it starts with the sprite again"
            )
        await asked.stream.end(failure)

    async def _signal(self, asked: _Asked) -> None:
        said = parsed_object(asked.body)
        if said is None or not isinstance(said.get("name"), str):
            raise InvalidError("the body names no service", hint='for example {"name": "web", "signal": "HUP"}')
        number = signal_number(said.get("signal"))
        if number is None:
            raise InvalidError(f"there is no signal {str(said.get('signal'))[:32]!r}", hint="for example TERM or HUP")
        service = self._services.get(said["name"])
        if not service.signal(number):
            raise ConflictError(f"the service {service.name!r} does not run", hint="start it")
        asked.respond_nothing()

    async def _delete(self, asked: _Asked) -> None:
        async with self._services.turn:
            service = asked.service
            await self._services.delete(service)
        try:
            async with asyncio.timeout(_STOP_SECONDS + _END_SECONDS):
                await service.over()
        except TimeoutError as error:
            raise UnavailableError(
                f"processes of the service {service.name!r} do not end", hint="restart the sprite"
            ) from error
        asked.respond_nothing()

    async def _logs(self, asked: _Asked) -> None:
        asked.service  # noqa: B018 - or there is none
        seconds = asked.seconds("duration", 0.0, _LOGS_MOST)
        lines = asked.query.get("lines")
        if lines is not None and (not lines.isascii() or not lines.isdigit() or int(lines[:9]) > _LINES_MOST):
            raise InvalidError(f"lines is a number from 0 to {_LINES_MOST}")
        await asked.begin_reading(None if lines is None else int(lines))
        if seconds:
            await asked.stream.until(set(), seconds)
        await asked.stream.end()


def _still(services: Services, service: Service) -> None:
    """It may have been deleted while its turn was waited for."""
    if services.get(service.name) is not service:
        raise no_such(service.name)


class _Asked:
    """One request: its body is collected, then it is worked on, whether or not its client waits."""

    def __init__(self, services: Services, clock: Clock, connection: Connection, request: Request, work: Work) -> None:
        self._services = services
        self._connection = connection
        self._work = work
        segments = request.target.partition("?")[0].split("/")
        self.name = unquote(segments[2]) if len(segments) > 2 else ""
        self._query = request.query
        self.query: dict[str, str] = {}
        self.body = b""
        self._refused = False
        self.stream = Stream(connection, clock, services.log_path(self.name))

    @property
    def service(self) -> Service:
        """The one that the path names. Raises NotFoundError."""
        return self._services.get(self.name)

    def seconds(self, name: str, default: float, most: float) -> float:
        """A time of the query. Raises InvalidError."""
        text = self.query.get(name, "")
        if not text:
            return default
        seconds = parse_duration(text)
        if seconds > most:
            raise InvalidError(f"{name} is at most {most:g} s")
        return seconds

    async def begin_reading(self, lines: int | None) -> None:
        """Begin the answer with what the service has written and writes. Raises UnavailableError."""
        reader = self._services.read_log(self.name, lines)
        self.stream.begin()
        await self.stream.read(reader)

    def respond(self, status: int, body: Any) -> None:
        if not self.stream.gone:
            self._connection.respond(status, body)

    def respond_nothing(self) -> None:
        if not self.stream.gone:
            self._connection.start_response(204, {"connection": "close"})
            self._connection.close()

    # ---- server.Handler ----

    def data(self, data: bytes) -> None:
        if self._refused:
            return
        self.body += data
        if len(self.body) > _BODY_MAX:
            self._refused = True
            self._connection.respond(413, {"error": "too_large", "message": f"at most {_BODY_MAX} bytes"})

    def end(self) -> None:
        if not self._refused:
            self._services.tasks.start(self._answer(), f"services {self.name[:80]}")

    def writable(self) -> None:
        self.stream.writable()

    def lost(self) -> None:
        self.stream.lost()

    async def _answer(self) -> None:
        try:
            self.query = dict(reversed(_fields(self._query)))
            await self._services.known()
            await self._work(self)
        except BallpointError as error:
            if self.stream.begun:
                await self.stream.end(error)
            else:
                self._refuse(error)
        except BaseException:
            if not self.stream.gone:
                self._connection.abort()
            raise
        finally:
            self.stream.close()

    def _refuse(self, error: BallpointError) -> None:
        if self.stream.gone:
            return
        fields = {}
        body: dict[str, Any] = {"error": error.code, "message": error.message}
        if isinstance(error, FileError):
            body = error_body(error, error.path)
        if error.hint:
            body["hint"] = error.hint
        if error.status == UnavailableError.status:
            body["retry_after_seconds"] = _RETRY_AFTER_SECONDS
            fields["retry-after"] = str(_RETRY_AFTER_SECONDS)
        self._connection.respond(error.status, body, headers=fields)


def _fields(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, max_num_fields=100)
    except ValueError as error:
        raise InvalidError("the query has too many fields") from error

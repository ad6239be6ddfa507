"""exec and console: a command in a sprite, with this process's streams and its exit code."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode, urlsplit

import click

from ballpoint.cli.client import streams
from ballpoint.cli.client.forward import Forwards
from ballpoint.cli.client.http import Api, api, error_of, no_answer, sprite_name, sprite_path
from ballpoint.core.errors import InvalidError, UnavailableError

_STDIN, _STDOUT, _STDERR, _EXIT, _EOF = 0, 1, 2, 3, 4
_READ = 64 * 1024
_DETACH = b"\x1c"  # Ctrl+\
_TERMINAL_VARIABLES = ("TERM", "COLORTERM", "LANG", "LC_ALL")
_SHELL = ("bash", "-l")
# Run in the sprite with a destination and its mode: there is the old file or the whole new one, also while it is used.
_RECEIVE = """set -e
directory=$(dirname -- "$1")
mkdir -p -- "$directory"
new=$(mktemp -- "$directory/.XXXXXX")
trap 'rm -f -- "$new"' EXIT
cat >"$new"
chmod "$2" "$new"
mv -f -- "$new" "$1"
"""
log = logging.getLogger(__name__)


no_port_forward = click.option(
    "--no-port-forward", is_flag=True, help="Forward none of the ports that the command opens."
)


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("--dir", "directory", help="Working directory.")
@click.option("--tty", "-t", "terminal", is_flag=True, help="Give it a terminal.")
@click.option("--env", "environment", multiple=True, metavar="K=V[,K=V]", help="Variables.")
@click.option("--http-post", is_flag=True, help="Use a plain HTTP request instead of a WebSocket.")
@click.option("--file", "files", multiple=True, metavar="SRC:DEST", help="Put a file there before the command runs.")
@no_port_forward
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def exec_(
    ctx: click.Context,
    directory: str | None,
    terminal: bool,
    environment: tuple[str, ...],
    http_post: bool,
    files: tuple[str, ...],
    no_port_forward: bool,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND in a sprite; its exit code becomes this one's."""
    node, name = api(ctx), sprite_name(ctx, None)
    variables = parse_environment(environment)
    if http_post and terminal:
        raise InvalidError("exec over HTTP has no terminal", hint="leave out --http-post or --tty")
    for source, destination in map(_file_pair, files):
        _push(node, name, source, destination, directory)
    if http_post:
        body = None if sys.stdin.isatty() else sys.stdin.buffer
        return _post(node, name, _query(command, directory, variables, None), body)
    return run(
        node, name, command, directory=directory, environment=variables, terminal=terminal, forward=not no_port_forward
    )


@click.command()
@no_port_forward
@click.argument("name", required=False)
@click.pass_context
def console(ctx: click.Context, no_port_forward: bool, name: str | None) -> int:
    """Open a shell in a sprite. Ctrl+\\ leaves it running."""
    node, wanted = api(ctx), sprite_name(ctx, name)
    if not sys.stdin.isatty():
        raise InvalidError("a console needs a terminal", hint=f"ballpoint -s {wanted} exec -- COMMAND runs one command")
    return open_console(node, wanted, forward=not no_port_forward)


def open_console(node: Api, name: str, *, forward: bool = True) -> int:
    """A login shell of `name` on this terminal. Returns its exit code."""
    return run(node, name, _SHELL, directory=None, environment={}, terminal=True, forward=forward)


def parse_environment(pairs: tuple[str, ...]) -> dict[str, str]:
    """`K=V,K=V` options as variables."""
    variables = {}
    for pair in (part for given in pairs for part in given.split(",") if part):
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise InvalidError(f"{pair!r} is not NAME=VALUE", hint="for example --env PORT=8080")
        variables[key] = value
    return variables


def run(
    node: Api,
    name: str,
    command: tuple[str, ...],
    *,
    directory: str | None,
    environment: dict[str, str],
    terminal: bool,
    forward: bool = True,
) -> int:
    """Run `command` over the WebSocket, joined to this process's streams.

    Args:
        forward: the ports it opens are there on this machine's loopback, too.
    """
    if terminal:
        environment = {**{key: os.environ[key] for key in _TERMINAL_VARIABLES if key in os.environ}, **environment}
    query = _query(command, directory, environment, shutil.get_terminal_size() if terminal else None)
    forwards = Forwards(node, name, _notice) if forward else None
    with _raw_terminal(terminal and sys.stdin.isatty()):
        return asyncio.run(_WebSocketExec(node, sprite_path(name, "/exec") + "?" + query, terminal, forwards).run())


def _notice(text: str) -> None:
    """Show a line to a person; a script's standard error is the command's alone."""
    log.info("%s", text)
    if sys.stderr.isatty():
        with suppress(OSError):
            os.write(2, f"\r{text}\r\n".encode())


def _query(
    command: tuple[str, ...], directory: str | None, environment: dict[str, str], size: os.terminal_size | None
) -> str:
    fields: list[tuple[str, str]] = [("cmd", word) for word in command]
    fields += [("env", f"{key}={value}") for key, value in environment.items()]
    fields.append(("stdin", "true"))
    if directory:
        fields.append(("dir", directory))
    if size is not None:
        fields += [("tty", "true"), ("rows", str(size.lines)), ("cols", str(size.columns))]
    return urlencode(fields, quote_via=quote, errors="surrogateescape")


@contextmanager
def _raw_terminal(wanted: bool) -> Iterator[None]:
    """Every key goes to the sprite; the terminal is put back whatever happens."""
    if not wanted:
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead is the sprite's, too
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


class _WebSocketExec:
    def __init__(self, node: Api, target: str, terminal: bool, forwards: Forwards | None) -> None:
        self._selected = node.selection
        self._url = node.selection.url.replace("http", "ws", 1) + target
        self._path = target.partition("?")[0]
        self._headers = {"Authorization": f"Bearer {node.selection.token}"}
        self._terminal = terminal
        self._forwards = forwards
        self._input: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._detached = False

    async def run(self) -> int:
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

        try:
            async with connect(
                self._url, additional_headers=self._headers, max_size=None, compression=None, proxy=None
            ) as socket:
                log.info("WebSocket %s: open", self._path)
                sender = asyncio.get_running_loop().create_task(self._send(socket))
                try:
                    return await self._receive(socket)
                finally:
                    sender.cancel()
                    if self._forwards is not None:
                        await self._forwards.close()
        except InvalidStatus as error:
            raise error_of(error.response.status_code, bytes(error.response.body or b"")) from error
        except ConnectionClosed as error:
            if self._detached:
                return 0
            raise _cut() from error
        except (OSError, WebSocketException) as error:
            raise no_answer(self._selected, error) from error

    async def _receive(self, socket: Any) -> int:
        while True:
            message = await socket.recv()
            if isinstance(message, str):
                said = json.loads(message)
                if said.get("type") == "exit" and self._terminal:
                    return int(said["exit_code"])
                if self._forwards is not None:
                    await self._forwards.told(said)
            elif self._terminal:
                streams.write(1, message)
            elif message[:1] == bytes((_EXIT,)):
                return int(message[1])
            elif message[:1] in (bytes((_STDOUT,)), bytes((_STDERR,))):
                streams.write(message[0], message[1:])

    async def _send(self, socket: Any) -> None:
        """Pass input on. A thread that waits for it would outlive the command, so the loop does."""
        loop = asyncio.get_running_loop()
        if self._terminal:
            loop.add_signal_handler(signal.SIGWINCH, self._input.put_nowait, None)
        while True:
            data = await self._next_input(loop)
            if data is None:
                size = shutil.get_terminal_size()
                await socket.send(json.dumps({"type": "resize", "rows": size.lines, "cols": size.columns}))
            elif self._terminal and data.endswith(_DETACH):
                self._detached = True
                await socket.close()
                return
            elif self._terminal:
                await socket.send(data or b"\x04")
            elif data:
                await socket.send(bytes((_STDIN,)) + data)
            else:
                await socket.send(bytes((_EOF,)))
            if not data and data is not None:
                return

    async def _next_input(self, loop: asyncio.AbstractEventLoop) -> bytes | None:
        """What comes next on standard input, empty at its end; None where the window has changed its size."""
        if self._input.empty():
            try:
                loop.add_reader(0, self._read_input, loop)
            except PermissionError:  # a plain file: always readable, and not to be waited for (epoll_ctl(2))
                return os.read(0, _READ)
        return await self._input.get()

    def _read_input(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(0)
        self._input.put_nowait(os.read(0, _READ))


def _file_pair(text: str) -> tuple[Path, str]:
    source, colon, destination = text.rpartition(":")
    if not source or not colon or not destination:
        raise InvalidError(f"{text!r} is not SRC:DEST", hint="for example --file build.sh:/tmp/build.sh")
    return Path(source), destination


def _push(node: Api, name: str, source: Path, destination: str, directory: str | None) -> None:
    """Copy a file into the sprite, with its permissions, making the directories above it."""
    command = ("sh", "-c", _RECEIVE, "sh", destination)
    try:
        with source.open("rb") as file:
            mode = f"{os.fstat(file.fileno()).st_mode & 0o777:o}"
            code = _post(node, name, _query((*command, mode), directory, {}, None), file)
    except FileNotFoundError as error:
        raise InvalidError(f"there is no file {source}") from error
    except OSError as error:
        raise InvalidError(f"cannot read {source}: {error.strerror}") from error
    if code != 0:
        raise InvalidError(f"{destination} was not written", hint="what the sprite said about it is above")


def _post(node: Api, name: str, query: str, body: BinaryIO | None) -> int:
    """Exec over HTTP: one frame in each chunk, whose edges only a raw reader sees."""
    parts = urlsplit(node.selection.url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port)
    headers = {"Authorization": f"Bearer {node.selection.token}"}
    target = (
        sprite_path(name, "/exec") + "?" + (query if body is not None else query.replace("stdin=true", "stdin=false"))
    )
    try:
        connection.request("POST", target, body=body, headers=headers, encode_chunked=body is not None)
        response = connection.getresponse()
        log.info("POST %s: %d", sprite_path(name, "/exec"), response.status)  # its query may hold secrets
        if response.status >= 400:
            raise error_of(response.status, response.read())
        while size := int(response.fp.readline().strip() or b"0", 16):
            frame = response.fp.read(size)
            response.fp.readline()
            if frame[0] == _EXIT:
                return int(frame[1])
            streams.write(frame[0], frame[1:])
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise no_answer(node.selection, error) from error
    finally:
        connection.close()
    raise _cut()


def _cut() -> UnavailableError:
    return UnavailableError("the connection ended before the command did", hint="ballpoint events says what happened")

"""exec and console: a command in a sprite, with this process's streams and its exit code."""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import sys
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urlencode, urlsplit

import click

from ballpoint.cli.client import complete, streams
from ballpoint.cli.client.forward import Forwards
from ballpoint.cli.client.http import Api, api, error_of, no_answer, sprite_name, sprite_path
from ballpoint.cli.client.joined import Joined, cut
from ballpoint.cli.client.terminal import RawTerminal, notice, window
from ballpoint.core.errors import InvalidError

_EXIT = 3
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
@click.option(
    "--max-run-after-disconnect",
    "keep",
    metavar="DURATION",
    help="How long it runs on without a client, such as 5m; 0 for ever [10s, with a terminal for ever].",
)
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
    keep: str | None,
    no_port_forward: bool,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND in a sprite; its exit code becomes this one's.

    A connection that breaks is made anew, without a gap in what COMMAND writes, unless it was given input: how much of
    that has arrived nobody knows.
    """
    node, name = api(ctx), sprite_name(ctx, None)
    variables = parse_environment(environment)
    if http_post and terminal:
        raise InvalidError("exec over HTTP has no terminal", hint="leave out --http-post or --tty")
    for source, destination in map(_file_pair, files):
        _push(node, name, source, destination, directory)
    if http_post:
        body = None if sys.stdin.isatty() else sys.stdin.buffer
        return _post(node, name, _query(command, directory, variables, None, keep), body)
    return run(
        node,
        name,
        command,
        directory=directory,
        environment=variables,
        terminal=terminal,
        forward=not no_port_forward,
        keep=keep,
    )


@click.command()
@no_port_forward
@click.argument("name", required=False, shell_complete=complete.sprites)
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
    keep: str | None = None,
) -> int:
    """Run `command` over the WebSocket, joined to this process's streams.

    Args:
        keep: how long it runs on where its client is gone, None as the node has it.
        forward: the ports it opens are there on this machine's loopback, too.
    """
    if terminal:
        environment = {**{key: os.environ[key] for key in _TERMINAL_VARIABLES if key in os.environ}, **environment}
    query = _query(command, directory, environment, window() if terminal else None, keep)
    forwards = Forwards(node, name, notice) if forward else None
    with RawTerminal() as keys:
        if terminal:
            keys.enter()
        return asyncio.run(Joined(node, name, terminal=keys, forwards=forwards, query=query).run())


def _query(
    command: tuple[str, ...],
    directory: str | None,
    environment: dict[str, str],
    size: os.terminal_size | None,
    keep: str | None = None,
) -> str:
    fields: list[tuple[str, str]] = [("cmd", word) for word in command]
    fields += [("env", f"{key}={value}") for key, value in environment.items()]
    fields.append(("stdin", "true"))
    if directory:
        fields.append(("dir", directory))
    if keep is not None:
        fields.append(("max_run_after_disconnect", keep))
    if size is not None:
        fields += [("tty", "true"), ("rows", str(size.lines)), ("cols", str(size.columns))]
    return urlencode(fields, quote_via=quote, errors="surrogateescape")


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
    raise cut()

"""proxy: ports of a sprite on this machine, or one connection on this process's streams."""

from __future__ import annotations

import asyncio
import re
import signal
from functools import partial

import click

from ballpoint.cli.client import streams
from ballpoint.cli.client.forward import LOOPBACK, READ, Listener, join, tunnel
from ballpoint.cli.client.http import Api, api, sprite_name, sprite_path
from ballpoint.core.errors import BallpointError, ConflictError, InvalidError

_LOCALHOST = "localhost"
_PORT_MOST = 65535
_STDIO = re.compile(r"(?:\[(?P<inner>[^\]]*)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})")


@click.command()
@click.option("--stdio", "-W", metavar="[HOST]:PORT", help="Join standard input and output to that port instead.")
@click.option("--sprite", "-s", "named", help="Sprite whose ports they are.")
@click.argument("ports", nargs=-1, metavar="PORT | LOCAL:REMOTE ...")
@click.pass_context
def proxy(ctx: click.Context, stdio: str | None, named: str | None, ports: tuple[str, ...]) -> None:
    """Forward ports of this machine's loopback to those of a sprite, until Ctrl+C.

    What listens only on the sprite's localhost is reached, too. A LOCAL port of 0 is any that is free.
    """
    if (stdio is None) == (not ports):
        raise InvalidError("name ports, or one with --stdio", hint="for example ballpoint proxy 8080 3000:80")
    node, name = api(ctx), sprite_name(ctx, named)
    if stdio is not None:
        host, port = parse_stdio(stdio)
        asyncio.run(_stdio(node, name, host, port))
        return
    pairs = [parse_pair(each) for each in ports]
    node.call("GET", sprite_path(name))  # a name that is wrong is told now, and not to who connects
    asyncio.run(_listen(node, name, pairs))


def parse_pair(text: str) -> tuple[int, int]:
    """Local and remote port of `PORT` or `LOCAL:REMOTE`.

    Raises:
        InvalidError: it is neither.
    """
    local, colon, remote = text.partition(":")
    numbers = [_number(each) for each in ((local, remote) if colon else (local, local))]
    if numbers[0] is None or not numbers[1]:
        raise InvalidError(f"{text!r} is neither PORT nor LOCAL:REMOTE", hint="for example 8080, or 3000:80")
    return numbers[0], numbers[1]


def parse_stdio(text: str) -> tuple[str, int]:
    """Host and port of `[HOST]:PORT`. An IPv6 address is in brackets.

    Raises:
        InvalidError: it is something else.
    """
    found = _STDIO.fullmatch(text)
    port = _number(found["port"]) if found is not None else None
    if found is None or not port:
        raise InvalidError(f"{text!r} is not [HOST]:PORT", hint="for example :22, or localhost:22")
    return found["inner"] or found["host"] or _LOCALHOST, port


def _number(text: str) -> int | None:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else -1
    return number if 0 <= number <= _PORT_MOST else None


async def _stdio(node: Api, name: str, host: str, port: int) -> None:
    async def write(data: bytes) -> None:
        streams.write(1, data)

    async with tunnel(node, name, host, port) as opened:
        await join(opened, lambda: streams.read(0, READ), write)


async def _listen(node: Api, name: str, pairs: list[tuple[int, int]]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    listeners: list[Listener] = []
    try:
        for local, remote in pairs:
            listener = Listener(node, name, _LOCALHOST, remote, partial(_say, remote))
            listeners.append(listener)
            try:
                await listener.start(local)
            except OSError as error:
                raise ConflictError(
                    f"cannot listen on port {local}: {error.strerror}", hint=f"choose another: {local + 1}:{remote}"
                ) from error
            click.echo(f"{LOOPBACK[0]}:{listener.local} -> {name}:{remote}")
        await stop.wait()
    finally:
        for listener in listeners:
            await listener.close()


def _say(port: int, error: BallpointError) -> None:
    click.echo(f"ballpoint: port {port}: {error.message}", err=True)

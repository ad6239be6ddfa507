"""sessions list, attach, kill: what runs in a sprite, whoever began it."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any
from urllib.parse import quote

import click

from ballpoint.cli import columns
from ballpoint.cli.client import complete
from ballpoint.cli.client.exec_command import no_port_forward
from ballpoint.cli.client.forward import Forwards
from ballpoint.cli.client.http import api, sprite_name, sprite_path
from ballpoint.cli.client.joined import Joined
from ballpoint.cli.client.terminal import RawTerminal, notice
from ballpoint.core.errors import BallpointError, InvalidError, UnavailableError

_SINCE = re.compile(r"end|[0-9]+(,[0-9]+)?")


@click.group()
def sessions() -> None:
    """What runs in a sprite, whoever began it."""


@sessions.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List the sessions that run."""
    found = api(ctx).call("GET", sprite_path(sprite_name(ctx, None), "/exec"))["sessions"]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    columns.show(
        ("ID", "TERMINAL", "WATCHED", "CREATED", "COMMAND"),
        [
            (
                each["id"],
                _yes(each["tty"]),
                _yes(each["is_active"]),
                columns.moment(each["created"]),
                columns.printable(each["command"]),
            )
            for each in found
        ],
    )


@click.command()
@click.argument("id_", metavar="ID", shell_complete=complete.sessions)
@click.option(
    "--since", metavar="N[,M]", help="Begin at this byte of stdout, and of stderr; `end`: with what comes from now on."
)
@no_port_forward
@click.pass_context
def attach(ctx: click.Context, id_: str, since: str | None, no_port_forward: bool) -> int:
    """Join a session: what it wrote and writes, its input, its exit code. Ctrl+\\ leaves one with a terminal running.

    Left out, --since shows all that is kept of it, and of a terminal the end. A connection that breaks is made anew.
    """
    if since is not None and not _SINCE.fullmatch(since):
        raise InvalidError(
            f"{since!r} is not a place in a session's output", hint="for example 0, 1000, 1000,20 or end"
        )
    node, name = api(ctx), sprite_name(ctx, None)
    forwards = None if no_port_forward else Forwards(node, name, notice)
    with RawTerminal() as terminal:
        return asyncio.run(Joined(node, name, terminal=terminal, forwards=forwards, session=id_, since=since).run())


sessions.add_command(attach)


@sessions.command()
@click.argument("id_", metavar="ID", shell_complete=complete.sessions)
@click.option("--signal", default="TERM", show_default=True, help="Sent first, to its whole process group.")
@click.option(
    "--timeout",
    default="10s",
    show_default=True,
    metavar="DURATION",
    help="After that it is killed with all its processes; 0 sends the signal and waits for nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print NDJSON.")
@click.pass_context
def kill(ctx: click.Context, id_: str, signal: str, timeout: str, as_json: bool) -> None:
    """End a session, and say how that went."""
    path = sprite_path(sprite_name(ctx, None), f"/exec/{quote(id_, safe='')}/kill")
    last: dict[str, Any] = {}
    for last in api(ctx).lines("POST", path, params={"signal": signal, "timeout": timeout}):
        if as_json:
            click.echo(json.dumps(last))
        elif last.get("message") and last["type"] != "error":
            click.echo(last["message"])
    if last.get("type") == "error":
        raise BallpointError(str(last.get("message")))
    if last.get("type") != "complete":
        raise UnavailableError("the connection ended before the session did", hint="ballpoint sessions list")


def _yes(value: bool) -> str:
    return "yes" if value else "no"

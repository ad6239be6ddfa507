"""checkpoint, restore, fork, sync."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import click

from ballpoint.cli import columns
from ballpoint.cli.client import complete
from ballpoint.cli.client.http import Api, api, sprite_name, sprite_path
from ballpoint.cli.client.progress import waiting
from ballpoint.core.errors import BallpointError, InvalidError, UnavailableError


@click.group()
def checkpoint() -> None:
    """States of a sprite's disk that are kept."""


@checkpoint.command()
@click.option("--comment", default="", help="What it is for.")
@click.option("--wait", is_flag=True, help="Return once the store has it, too.")
@click.pass_context
def create(ctx: click.Context, comment: str, wait: bool) -> None:
    """Keep the disk's present state, and go on writing it."""
    node, name = api(ctx), sprite_name(ctx, None)
    _follow(
        node,
        sprite_path(name, "/checkpoint"),
        json={"comment": comment},
        params={"wait": "durable"} if wait else {},
    )


@checkpoint.command("list")
@click.option(
    "--history",
    metavar="ID",
    default="",
    shell_complete=complete.checkpoints,
    help="Only this one and those that came from it.",
)
@click.option("--include-auto", is_flag=True, help="Automatic ones, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_(ctx: click.Context, history: str, include_auto: bool, as_json: bool) -> None:
    """List the checkpoints, oldest first."""
    query = {"history": history, "includeAuto": json.dumps(include_auto)}
    found = api(ctx).call("GET", sprite_path(sprite_name(ctx, None), "/checkpoints"), params=query)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    columns.show(
        ("ID", "CREATED", "DURABLE", "COMMENT"),
        [(each["id"], columns.moment(each["create_time"]), _yes(each["durable"]), _line(each)) for each in found],
    )


@checkpoint.command()
@click.argument("id_", metavar="ID", shell_complete=complete.checkpoints)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def info(ctx: click.Context, id_: str, as_json: bool) -> None:
    """Show a checkpoint."""
    found = api(ctx).call("GET", _path(ctx, id_))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    shown = {
        "id": found["id"],
        "created": found["create_time"],
        "comment": _line(found),
        "automatic": _yes(found["is_auto"]),
        "durable": _yes(found["durable"]),
        "came from": found["source_id"] or "",
        "history": ", ".join(found["history"]),
    }
    if found["health"]:
        shown["trouble"] = found["health"]
    columns.facts(shown)


@checkpoint.command()
@click.argument("id_", metavar="ID", shell_complete=complete.checkpoints)
@click.pass_context
def delete(ctx: click.Context, id_: str) -> None:
    """Drop a checkpoint, except the one that the disk came from last."""
    api(ctx).call("DELETE", _path(ctx, id_))
    click.echo(f"deleted {id_}")


@click.command()
@click.argument("id_", metavar="ID", shell_complete=complete.checkpoints)
@click.pass_context
def restore(ctx: click.Context, id_: str) -> None:
    """Give a sprite the disk of a checkpoint, and start it afresh over it.

    The disk it has until then is kept in an automatic checkpoint.
    """
    node, path = api(ctx), _path(ctx, id_)
    _follow(node, f"{path}/restore")


checkpoint.add_command(restore)


@click.command()
@click.argument("source", metavar="SPRITE[@CHECKPOINT]", shell_complete=complete.sprites)
@click.argument("name", metavar="NEW-NAME")
@click.pass_context
def fork(ctx: click.Context, source: str, name: str) -> None:
    """Make a sprite whose disk begins as another's: as it is now, or as a checkpoint of it."""
    of, at, id_ = source.partition("@")
    if at and not id_:
        raise InvalidError(f"{source!r} names no checkpoint", hint=f"{source}v0, or {of} for its present state")
    body = {"name": name, "checkpoint": id_ or None}
    node, path = api(ctx), sprite_path(sprite_name(ctx, of), "/fork")
    with waiting(f"forking {name}"):
        made = node.call("POST", path, json=body)
    click.echo(f"forked {made['name']} from {source}")


@click.command()
@click.argument("name", required=False, shell_complete=complete.sprites)
@click.pass_context
def sync(ctx: click.Context, name: str | None) -> None:
    """Wait until the store has everything that was written to a sprite's disk."""
    wanted = sprite_name(ctx, name)
    # How long it may take is the node's to say.
    with waiting(f"the store takes what {wanted} has written"):
        api(ctx).call("POST", sprite_path(wanted, "/sync"), timeout=None)
    click.echo(f"synced {wanted}")


def _follow(node: Api, path: str, **arguments: Any) -> None:
    """Do what takes its time: its steps go to standard error, how it went to standard output.

    Raises:
        BallpointError: it failed, or was broken off.
    """
    with waiting("beginning") as say:
        for step in node.lines("POST", path, **arguments):
            if step["type"] == "complete":
                result = step["data"]
                break
            if step["type"] == "error":
                raise BallpointError(step["error"], hint=step.get("hint"))
            click.echo(step["data"], err=True)
            say(step["data"])
        else:
            raise UnavailableError(
                "the connection ended before the node said how it went", hint="ballpoint events says what happened"
            )
    click.echo(result)


def _path(ctx: click.Context, id_: str) -> str:
    return sprite_path(sprite_name(ctx, None), f"/checkpoints/{quote(id_, safe='')}")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _line(found: dict[str, Any]) -> str:
    """A comment in one line."""
    return columns.printable(" ".join(found["comment"].split()))

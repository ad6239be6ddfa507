"""create, list, info, use, restart, sleep, wake, events, logs, destroy."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from ballpoint.cli import columns
from ballpoint.cli.client import complete, settings
from ballpoint.cli.client.exec_command import open_console, parse_environment
from ballpoint.cli.client.http import api, sprite_name, sprite_path
from ballpoint.cli.client.names import new_name
from ballpoint.cli.client.progress import waiting
from ballpoint.core.errors import InvalidError, UnavailableError

_PAGE = 50


@click.command()
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--skip-console", is_flag=True, help="Do not open a console in it.")
@click.option("--label", "labels", multiple=True, help="A label; repeat for more.")
@click.option("--env", "environment", multiple=True, metavar="K=V[,K=V]", help="Variables of every command in it.")
@click.option("--json", "as_json", is_flag=True, help="Print the sprite as JSON and open no console.")
@click.pass_context
def create(
    ctx: click.Context,
    name: str | None,
    skip_console: bool,
    labels: tuple[str, ...],
    environment: tuple[str, ...],
    as_json: bool,
) -> int:
    """Make a sprite and open its console."""
    node = api(ctx)
    wanted = name or ctx.obj["sprite"] or new_name()
    body: dict[str, Any] = {"name": wanted, "labels": list(labels), "environment": parse_environment(environment)}
    with waiting(f"creating {wanted}"):
        sprite = node.call("POST", "/v1/sprites", json=body)
    if as_json:
        click.echo(json.dumps(sprite, indent=2))
        return 0
    click.echo(f"created {sprite['name']}")
    if skip_console or not sys.stdin.isatty():
        return 0
    return open_console(node, sprite["name"])


@click.command("list")
@click.option("--prefix", default="", help="Only names that begin so.")
@click.option("-w", "--watch", is_flag=True, help="Go on: a line for each that changes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch NDJSON, as the node says it.")
@click.pass_context
def list_(ctx: click.Context, prefix: str, watch: bool, as_json: bool) -> None:
    """List the sprites."""
    if watch:
        _watch(ctx, prefix, as_json)
        return
    node, found, token = api(ctx), [], None
    while True:
        query: dict[str, Any] = {"prefix": prefix, "max_results": _PAGE}
        if token:
            query["continuation_token"] = token
        page = node.call("GET", "/v1/sprites", params=query)
        found += page["sprites"]
        token = page["next_continuation_token"]
        if not page["has_more"]:
            break
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    columns.show(
        ("NAME", "STATUS", "CREATED", "LABELS"),
        [(each["name"], _status(each), columns.moment(each["created_at"]), ",".join(each["labels"])) for each in found],
    )


def _watch(ctx: click.Context, prefix: str, as_json: bool) -> None:
    """Every sprite as it is, then each change, until the node or the user ends it."""
    accept = {"Accept": "application/x-ndjson"}
    for line in api(ctx).lines("GET", "/v1/sprites", params={"prefix": prefix}, headers=accept):
        if as_json:
            click.echo(json.dumps(line))
        elif line.get("type") != "heartbeat":
            status = "removed" if line.get("type") == "removed" else _status(line)
            click.echo(f"{columns.moment(line['timestamp'])}  {status:<8}  {line['name']}")
    raise UnavailableError("the node watches no longer", hint="ballpoint list -w begins anew")


def _status(sprite: dict[str, Any]) -> str:
    return "degraded" if sprite.get("health") == "degraded" else str(sprite["status"])


@click.command()
@click.argument("name", required=False, shell_complete=complete.sprites)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def info(ctx: click.Context, name: str | None, as_json: bool) -> None:
    """Show a sprite, where its disk is, and how far the store is behind it."""
    node, wanted = api(ctx), sprite_name(ctx, name)
    sprite = node.call("GET", sprite_path(wanted))
    disk = node.call("GET", sprite_path(wanted, "/disk"))
    if as_json:
        click.echo(json.dumps({**sprite, "disk": disk}, indent=2))
        return
    shown = {
        "name": sprite["name"],
        "id": sprite["id"],
        "organization": sprite["organization"],
        "status": _status(sprite),
    }
    if sprite.get("health_reason"):
        shown["trouble"] = sprite["health_reason"]
    shown["url"] = sprite["url"]
    shown["created"] = sprite["created_at"]
    shown["image"] = (sprite.get("version") or "")[:16]
    if sprite["labels"]:
        shown["labels"] = ", ".join(sprite["labels"])
    lag = disk["lag_seconds"]
    shown["disk"] = disk["place"]
    shown["written"] = f"{columns.size(disk['bytes_written'])} of {columns.size(disk['size'])}"
    shown["stored"] = columns.size(disk["bytes_stored"])
    shown["checkpoints"] = str(disk["checkpoints"])
    shown["durability lag"] = "none" if lag is None else f"{lag:.1f} s"
    shown["durable state of"] = columns.moment(disk["durable_at"] or "")
    columns.facts(shown)


@click.command()
@click.argument("name", required=False, shell_complete=complete.sprites)
@click.option("--unset", is_flag=True, help="Select none.")
@click.pass_context
def use(ctx: click.Context, name: str | None, unset: bool) -> None:
    """Select a sprite for this directory (writes .sprite), or show which one is."""
    if unset:
        removed = settings.use_no_sprite()
        selected = settings.selected_sprite()
        if selected:
            click.echo(f"{selected} stays selected here, by {settings.sprite_file()}")
        else:
            click.echo("no sprite is selected here any more" if removed else "no sprite was selected here")
        return
    if name is None:
        click.echo(settings.selected_sprite() or "no sprite is selected here")
        return
    node = api(ctx)
    node.call("GET", sprite_path(name))
    settings.use_sprite(node.selection.org, name)
    click.echo(f"{name} is selected in this directory")


@click.command()
@click.argument("name", required=False, shell_complete=complete.sprites)
@click.pass_context
def restart(ctx: click.Context, name: str | None) -> None:
    """Give a sprite a fresh instance over its disk, also when it no longer answers."""
    wanted = sprite_name(ctx, name)
    with waiting(f"restarting {wanted}"):
        api(ctx).call("POST", sprite_path(wanted, "/restart"))
    click.echo(f"restarted {wanted}")


@click.command()
@click.argument("name", required=False, shell_complete=complete.sprites)
@click.pass_context
def sleep(ctx: click.Context, name: str | None) -> None:
    """Stop a sprite and keep its disk; the next command in it starts it again."""
    wanted = sprite_name(ctx, name)
    with waiting(f"putting to sleep {wanted}"):
        api(ctx).call("POST", sprite_path(wanted, "/sleep"))
    click.echo(f"put {wanted} to sleep")


@click.command()
@click.argument("name", required=False, shell_complete=complete.sprites)
@click.pass_context
def wake(ctx: click.Context, name: str | None) -> None:
    """Start a sprite from its disk where it does not run."""
    wanted = sprite_name(ctx, name)
    with waiting(f"waking {wanted}"):
        api(ctx).call("POST", sprite_path(wanted, "/wake"))
    click.echo(f"woke {wanted}")


@click.command()
@click.argument("name", required=False, shell_complete=complete.sprites)
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on.")
@click.option("--json", "as_json", is_flag=True, help="Print NDJSON.")
@click.pass_context
def events(ctx: click.Context, name: str | None, follow: bool, as_json: bool) -> None:
    """Show what happened to a sprite, and why."""
    query = {"follow": "true"} if follow else {}
    for event in api(ctx).lines("GET", sprite_path(sprite_name(ctx, name), "/events"), params=query):
        if as_json:
            click.echo(json.dumps(event))
        else:
            click.echo(f"{columns.moment(event['time'])}  {event['kind']:<14}  {event['cause']}")


@click.command()
@click.argument("name", required=False, shell_complete=complete.sprites)
@click.pass_context
def logs(ctx: click.Context, name: str | None) -> None:
    """Show the log of a sprite's agent and container."""
    click.echo(api(ctx).call("GET", sprite_path(sprite_name(ctx, name), "/logs")) or "", nl=False)


@click.command()
@click.argument("name", required=False, shell_complete=complete.sprites)
@click.option("--force", is_flag=True, help="Do not ask.")
@click.pass_context
def destroy(ctx: click.Context, name: str | None, force: bool) -> int:
    """Remove a sprite and its disk."""
    wanted = sprite_name(ctx, name)
    if not force:
        if not sys.stdin.isatty():
            raise InvalidError("destroy asks first, and nobody is there to answer", hint="destroy --force does not ask")
        if not click.confirm(f"Destroy {wanted} and everything on its disk?"):
            click.echo(f"{wanted} stays")
            return 1
    api(ctx).call("DELETE", sprite_path(wanted))
    click.echo(f"destroyed {wanted}")
    return 0

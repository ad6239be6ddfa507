"""activity, check, set, upgrade: how a sprite is, and how it shall be."""

from __future__ import annotations

import json
from typing import Any

import click

from ballpoint.cli import columns
from ballpoint.cli.client import complete
from ballpoint.cli.client.http import api, sprite_name, sprite_path
from ballpoint.cli.client.progress import waiting
from ballpoint.core.errors import InvalidError

_name = click.argument("name", required=False, shell_complete=complete.sprites)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_WELL = ("healthy", "hibernated")


@click.command()
@_name
@_json
@click.pass_context
def activity(ctx: click.Context, name: str | None, as_json: bool) -> None:
    """Show why a sprite is awake, or how long it will be."""
    found = api(ctx).call("GET", sprite_path(sprite_name(ctx, name), "/activity"))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    shown = {"status": found["status"]}
    for number, reason in enumerate(found["reasons"]):
        shown["kept awake by" if number == 0 else f"and by {number}"] = _reason(reason)
    if found["idle_seconds"] is not None:
        shown["idle for"] = _seconds(found["idle_seconds"])
    if found["sleeps_in"] is not None:
        shown["sleeps in"] = _seconds(found["sleeps_in"])
    shown["idle timeout"] = "none" if found["idle_timeout"] is None else _seconds(found["idle_timeout"])
    columns.facts(shown)


def _reason(reason: dict[str, Any]) -> str:
    since = f", since {columns.moment(reason['since'])}" if reason.get("since") else ""
    return f"{reason['kind']}: {reason['what']}{since}"


def _seconds(number: float) -> str:
    return f"{number:.0f} s"


@click.command()
@_name
@_json
@click.pass_context
def check(ctx: click.Context, name: str | None, as_json: bool) -> int:
    """Show whether a sprite's agent and disk answer now. The exit code is 1 where they do not."""
    found = api(ctx).call("GET", sprite_path(sprite_name(ctx, name), "/check"))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        shown = {"sprite": found["sprite_name"], "status": found["status"]}
        if found.get("reason"):
            shown["reason"] = found["reason"]
        shown["answered in"] = found.get("elapsed") or ""
        columns.facts(shown)
    return 0 if found["status"] in _WELL else 1


@click.command("set")
@_name
@click.option(
    "--idle-timeout", metavar="DURATION", help="How long it may be idle, such as 5m; 0 for ever; default: as the node."
)
@click.option("--label", "labels", multiple=True, help="A label, in place of all it has; repeat for more.")
@click.option("--no-labels", is_flag=True, help="Take all its labels.")
@_json
@click.pass_context
def set_(
    ctx: click.Context,
    name: str | None,
    idle_timeout: str | None,
    labels: tuple[str, ...],
    no_labels: bool,
    as_json: bool,
) -> None:
    """Change a sprite's settings. What is left out stays as it is."""
    body: dict[str, Any] = {}
    if idle_timeout is not None:
        body["idle_timeout"] = idle_timeout
    if labels and no_labels:
        raise InvalidError("--label and --no-labels contradict each other", hint="leave one out")
    if labels or no_labels:
        body["labels"] = list(labels)
    if not body:
        raise InvalidError("nothing is to be changed", hint="for example --idle-timeout 5m, or --label web")
    sprite = api(ctx).call("PUT", sprite_path(sprite_name(ctx, name)), json=body)
    click.echo(json.dumps(sprite, indent=2) if as_json else f"changed {sprite['name']}")


@click.command()
@_name
@click.pass_context
def upgrade(ctx: click.Context, name: str | None) -> None:
    """Start a sprite afresh from what is installed on its node now. Its disk stays."""
    wanted = sprite_name(ctx, name)
    with waiting(f"upgrading {wanted}"):
        api(ctx).call("POST", sprite_path(wanted, "/upgrade"), timeout=None)
    click.echo(f"upgraded {wanted}")

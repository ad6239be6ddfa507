"""org auth, org list, logout: the nodes and organizations that this user is logged in to."""

from __future__ import annotations

import json

import click

from ballpoint.cli import columns
from ballpoint.cli.client import settings
from ballpoint.cli.client.login import login
from ballpoint.core.errors import NotFoundError


@click.group()
def org() -> None:
    """The nodes and organizations that you are logged in to. `ballpoint login` adds one."""


org.add_command(login, "auth")


@org.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List them, without their tokens."""
    found = settings.known()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    columns.show(
        ("ORGANIZATION", "API", "ALIAS", "SELECTED"),
        [
            (str(each["name"]), str(each["url"]), str(each["alias"] or ""), "yes" if each["selected"] else "no")
            for each in found
        ],
    )


@click.command()
@click.pass_context
def logout(ctx: click.Context) -> None:
    """Forget the token of the selected organization, or that of -o. It stays valid until `ballpoint token revoke`."""
    selected = settings.select(ctx.obj["org"])
    if not settings.forget(selected.token):
        raise NotFoundError(
            f"no token of {selected.org} at {selected.url} is remembered", hint="SPRITE_TOKEN may hold one: unset it"
        )
    click.echo(f"logged out of {selected.org} at {selected.url}")


org.add_command(logout)

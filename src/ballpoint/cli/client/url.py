"""url, url update."""

from __future__ import annotations

import json
from typing import Any

import click

from ballpoint.cli import columns
from ballpoint.cli.client import complete
from ballpoint.cli.client.http import api, sprite_name, sprite_path


class _ShowsByDefault(click.Group):
    """`url NAME` is `url show NAME`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["show", *args])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args and args[0] != "--json" else ["show", *args])


@click.group(cls=_ShowsByDefault)
def url() -> None:
    """Where a sprite is in a browser, and who may open it there. `url NAME` is `url show NAME`."""


@url.command()
@click.argument("name", required=False, shell_complete=complete.sprites)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def show(ctx: click.Context, name: str | None, as_json: bool) -> None:
    """Show a sprite's URL, and who may open it."""
    _tell(api(ctx).call("GET", sprite_path(sprite_name(ctx, name))), as_json)


@url.command()
@click.argument("name", required=False, shell_complete=complete.sprites)
@click.option(
    "-a", "--auth", type=click.Choice(["sprite", "public"]), required=True,
    help="sprite: whoever has a token of its organization. public: everybody.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def update(ctx: click.Context, name: str | None, auth: str, as_json: bool) -> None:
    """Choose who may open a sprite's URL."""
    body = {"url_settings": {"auth": auth}}
    _tell(api(ctx).call("PUT", sprite_path(sprite_name(ctx, name)), json=body), as_json)


def _tell(sprite: dict[str, Any], as_json: bool) -> None:
    settings = sprite["url_settings"]
    if as_json:
        click.echo(json.dumps({"name": sprite["name"], "url": sprite["url"], "url_settings": settings}, indent=2))
        return
    columns.facts({"url": sprite["url"], "auth": settings["auth"]})

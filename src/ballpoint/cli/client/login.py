"""login, org auth, auth setup."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from ballpoint.cli.client import settings
from ballpoint.cli.client.http import Api
from ballpoint.core.errors import InvalidError


@click.command()
@click.argument("api", metavar="[URL|ALIAS]", required=False)
@click.option(
    "--token-file", type=click.Path(path_type=Path), help="File with the token; else SPRITE_TOKEN, or asked for."
)
@click.pass_context
def login(ctx: click.Context, api: str | None, token_file: Path | None) -> None:
    """Remember a node and a token for it. The token is never taken from the command line.

    `ballpoint -o ALIAS:ORG login URL` also gives the node an alias.
    """
    _log_in(ctx, api, lambda: _token(token_file))


@click.group()
def auth() -> None:
    """Logging in, as scripts for `sprite` write it."""


@auth.command()
@click.option(
    "--token", required=True, help="The token: everybody on this machine sees it meanwhile; `login` hides it."
)
@click.pass_context
def setup(ctx: click.Context, token: str) -> None:
    """Remember TOKEN, for the node that SPRITES_API_URL or -o names."""
    _log_in(ctx, None, lambda: token)


def _log_in(ctx: click.Context, api: str | None, token: Callable[[], str]) -> None:
    named, org = settings.split_choice(ctx.obj["org"])
    chosen = api or named or os.environ.get("SPRITES_API_URL")
    if not chosen:
        raise InvalidError("which node?", hint="ballpoint login http://HOST:PORT")
    alias = settings.checked_alias(named) if api and named else None
    selected = settings.selection(chosen, token())
    if org and org != selected.org:
        raise InvalidError(f"the token is one of {selected.org}, not of {org}", hint="leave out -o, and SPRITE_ORG")
    # Tried before it is remembered: what does not work must not take the place of what does.
    Api(selected).call("GET", "/v1/sprites", params={"max_results": 1})
    settings.remember(selected, alias)
    click.echo(f"logged in to {selected.url} as {selected.org}")


def _token(file: Path | None) -> str:
    if file is not None:
        try:
            return file.read_text().strip()
        except OSError as error:
            raise InvalidError(f"cannot read {file}: {error.strerror}") from error
    if os.environ.get("SPRITE_TOKEN"):
        return os.environ["SPRITE_TOKEN"]
    if sys.stdin.isatty():
        return str(click.prompt("Token", hide_input=True)).strip()
    return sys.stdin.readline().strip()

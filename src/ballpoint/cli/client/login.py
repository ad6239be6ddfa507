"""login."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from ballpoint.cli.client import settings
from ballpoint.cli.client.http import Api
from ballpoint.core.errors import InvalidError


@click.command()
@click.argument("url", required=False)
@click.option(
    "--token-file", type=click.Path(path_type=Path), help="File with the token; else SPRITE_TOKEN, or asked for."
)
def login(url: str | None, token_file: Path | None) -> None:
    """Remember a node and a token for it. The token is never taken from the command line."""
    chosen = url or os.environ.get("SPRITES_API_URL")
    if not chosen:
        raise InvalidError("which node?", hint="ballpoint login http://HOST:PORT")
    selected = settings.selection(chosen, _token(token_file))
    # Tried before it is remembered: what does not work must not take the place of what does.
    Api(selected).call("GET", "/v1/sprites", params={"max_results": 1})
    settings.remember(selected)
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

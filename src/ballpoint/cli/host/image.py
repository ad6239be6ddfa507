"""image build, image list."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ballpoint.core.config import DEFAULT_CACHE


@click.group()
def image() -> None:
    """The standard images of this host."""


@image.command()
@click.argument("recipe", type=click.Choice(["standard", "slim"]), default="standard")
@click.option("--cache", type=click.Path(path_type=Path), default=DEFAULT_CACHE, show_default=True)
@click.option("--mirror", metavar="URL", help="Debian mirror [the host's].")
def build(recipe: str, cache: Path, mirror: str | None) -> None:
    """Build RECIPE anew with today's packages."""
    from ballpoint.cli.host.progress import showing
    from ballpoint.image.catalogue import Catalogue

    with showing(f"image {recipe}") as report:
        made = Catalogue(cache).build(recipe, mirror=mirror, progress=report)
    click.echo(f"{made.digest}  {made.size >> 20} MB")


@image.command("list")
@click.option("--cache", type=click.Path(path_type=Path), default=DEFAULT_CACHE, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(cache: Path, as_json: bool) -> None:
    """List the images built on this host."""
    import msgspec

    from ballpoint.image.catalogue import Catalogue

    images = Catalogue(cache).list()
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(each, enc_hook=str) for each in images], indent=2))
        return
    for each in images:
        click.echo(f"{each.digest[:16]}  {each.recipe:<8}  {each.built_at[:19]}  {each.size >> 20} MB")

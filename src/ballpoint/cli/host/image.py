"""image build, image list."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ballpoint.cli import columns
from ballpoint.core.config import DEFAULT_CACHE

_RECIPES = ("standard", "slim")


@click.group()
def image() -> None:
    """The standard images of this host."""


@image.command()
@click.argument("recipe", type=click.Choice(_RECIPES), default="standard")
@click.option("--cache", type=click.Path(path_type=Path), default=DEFAULT_CACHE, show_default=True)
@click.option("--mirror", metavar="URL", help="Debian mirror [the host's].")
def build(recipe: str, cache: Path, mirror: str | None) -> None:
    """Build RECIPE anew with today's packages."""
    from ballpoint.cli.host.progress import showing
    from ballpoint.image.catalogue import Catalogue

    with showing(f"image {recipe}") as report:
        made = Catalogue(cache).build(recipe, mirror=mirror, progress=report)
    click.echo(f"{made.digest}  {made.size >> 20} MiB")


@image.command("list")
@click.option("--cache", type=click.Path(path_type=Path), default=DEFAULT_CACHE, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(cache: Path, as_json: bool) -> None:
    """List the images built on this host, and those that new sprites of a node started now would get."""
    import msgspec

    from ballpoint.image.catalogue import Catalogue

    catalogue = Catalogue(cache)
    images = catalogue.list()
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(each, enc_hook=str) for each in images], indent=2))
        return
    current = {catalogue.current(recipe) for recipe in _RECIPES}
    columns.show(
        ("DIGEST", "RECIPE", "BUILT", "SIZE", "NEW SPRITES"),
        [
            (
                each.digest[:16],
                each.recipe,
                columns.moment(each.built_at),
                f"{each.size >> 20} MiB",
                "yes" if each in current else "no",
            )
            for each in images
        ],
    )

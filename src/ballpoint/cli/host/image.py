"""image build, image list, image prune."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ballpoint.cli import columns
from ballpoint.core.config import DEFAULT_CACHE, load_config
from ballpoint.core.errors import NotFoundError

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
    """List the images built on this host: which new sprites would get, and the data directories that use them."""
    import msgspec

    from ballpoint.image.catalogue import Catalogue
    from ballpoint.image.uses import Uses

    uses = Uses(cache).read().values()
    catalogue = Catalogue(cache)
    images = catalogue.list()
    users = {each.digest: sorted(str(use.data) for use in uses if each.digest in use.digests) for each in images}
    if as_json:
        found = [{**msgspec.to_builtins(each, enc_hook=str), "used_by": users[each.digest]} for each in images]
        click.echo(json.dumps(found, indent=2))
        return
    current = {catalogue.current(recipe) for recipe in _RECIPES}
    columns.show(
        ("DIGEST", "RECIPE", "BUILT", "SIZE", "NEW SPRITES", "USED BY"),
        [
            (
                each.digest[:16],
                each.recipe,
                columns.moment(each.built_at),
                f"{each.size >> 20} MiB",
                "yes" if each in current else "no",
                ",".join(users[each.digest]),
            )
            for each in images
        ],
    )


@image.command()
@click.option("--cache", type=click.Path(path_type=Path), default=DEFAULT_CACHE, show_default=True)
@click.option(
    "--forget", type=click.Path(path_type=Path), metavar="DATA", help="A node that is gone for good, with its sprites."
)
def prune(cache: Path, forget: Path | None) -> None:
    """Remove the images that no node uses and that a newer one has replaced.

    Nodes do that themselves with images that nobody has used for a week. The node of a data directory that was removed
    by hand counts as one that uses its images, until it is forgotten.
    """
    from ballpoint.image.uses import Uses

    uses = Uses(cache)
    if forget is not None and not uses.forget(load_config(None, data=forget).node_id):
        raise NotFoundError(f"no node of {forget} is known", hint="ballpoint image list")
    removed = uses.prune(unused_seconds=0)
    for each in removed:
        click.echo(f"removed {each.digest[:16]}  {each.recipe:<8}  {each.built_at[:19]}  {each.size >> 20} MiB")
    if not removed:
        click.echo("there was nothing to remove")

"""store check, store gc, store stats: on a node's store, or on any other."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from ballpoint.cli.host.options import data_option, store_option, store_url
from ballpoint.core.errors import NotFoundError

if TYPE_CHECKING:
    from ballpoint.store.store import Store

T = TypeVar("T")

_MIB = 1 << 20
_DAMAGED = 1


@click.group()
def store() -> None:
    """The object store that keeps the disks: is it whole, what is in it, and what in it is garbage.

    Credentials come from the environment. The node may run meanwhile, or be gone.
    """


@store.command()
@data_option
@store_option
@click.option("--whole", is_flag=True, help="Read everything, and check every hash.")
@click.option("--sample", type=click.FloatRange(0, 1), default=0.0, help="Read this share of the packs [0].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(data: Path | None, url: str | None, whole: bool, sample: float, as_json: bool) -> int:
    """Verify that all is there that disks and checkpoints refer to. Exits with 1 where something is not."""
    import msgspec

    from ballpoint.core import ids
    from ballpoint.volume.log.check import Checked, Damage
    from ballpoint.volume.log.check import check as run

    damages: list[Damage] = []

    def tell(damage: Damage) -> None:
        damages.append(damage)
        if not as_json:
            click.echo(f"damaged: {damage.what}")

    async def work(opened: Store) -> Checked:
        # Another sample each time: in the end, all packs have been read.
        return await run(opened, tell, whole=whole, sample=sample, seed=int(ids.new_instance_id(), 16))

    checked = _with_store(data, url, work)
    if as_json:
        click.echo(json.dumps({"checked": msgspec.to_builtins(checked), "damages": msgspec.to_builtins(damages)}))
    else:
        click.echo(
            f"{checked.volumes} disks, {checked.checkpoints} checkpoints, {checked.blocks} references to blocks;"
            f" {checked.whole} of {checked.packs} packs were read ({checked.size // _MIB} MiB)"
        )
        click.echo(f"{len(damages)} damages" if damages else "all that was looked at is as it was written")
    return _DAMAGED if damages else 0


@store.command()
@data_option
@store_option
@click.option(
    "--retention", type=click.FloatRange(0), metavar="HOURS", default=24.0, show_default=True,
    help="How long a destroyed sprite's disk is kept.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gc(data: Path | None, url: str | None, retention: float, as_json: bool) -> int:
    """Remove what no disk and no checkpoint needs any more. Exits with 1 where damage kept it from removing something.

    May run beside nodes and beside itself, and be interrupted.
    """
    from ballpoint.node.durable.garbage import collect_all

    writer = f"ballpoint store gc on {os.uname().nodename}"
    found = _with_store(data, url, lambda opened: collect_all(opened, writer=writer, retention=retention * 3600))
    if as_json:
        import msgspec

        click.echo(json.dumps(msgspec.to_builtins(found)))
    else:
        click.echo(f"removed {found.packs} packs ({found.size // _MIB} MiB); {found.deleted} disks left the trash")
        click.echo(f"removed {len(found.images)} images ({found.image_bytes // _MIB} MiB)")
        for trouble in found.troubles:
            click.echo(f"kept: {trouble}")
    return _DAMAGED if found.troubles else 0


@store.command()
@data_option
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stats(data: Path | None, url: str | None, as_json: bool) -> None:
    """Count what is in it, and how much of that is garbage."""
    import msgspec

    from ballpoint.image.archive import kept_images
    from ballpoint.volume.log.stats import Stats
    from ballpoint.volume.log.stats import stats as count

    async def work(opened: Store) -> tuple[Stats, dict[str, int]]:
        return await count(opened), await kept_images(opened)

    counted, images = _with_store(data, url, work)
    if as_json:
        click.echo(json.dumps({**msgspec.to_builtins(counted), "garbage": counted.garbage, "images": images}))
        return
    click.echo(f"disks        {counted.volumes} ({counted.trashed} in the trash), {counted.unreadable} unreadable")
    click.echo(f"checkpoints  {counted.checkpoints}")
    click.echo(f"commits      {counted.commits} ({counted.commit_bytes // _MIB} MiB)")
    click.echo(f"packs        {counted.packs} ({counted.pack_bytes // _MIB} MiB)")
    click.echo(f"garbage      {counted.garbage // _MIB} MiB")
    click.echo(f"images       {len(images)} ({sum(images.values()) // _MIB} MiB)")


def _with_store(data: Path | None, url: str | None, work: Callable[[Store], Awaitable[T]]) -> T:
    """What `work` gives, done with the store; one that is nobody's is refused, as a wrong URL mostly names one."""
    from ballpoint.store.deployment import read_deployment
    from ballpoint.store.url import directory_of, open_store, redacted

    place = store_url(data, url)
    nobodys = NotFoundError(f"{redacted(place)} is no store of Ballpoint", hint="name the store by --store, or --data")
    directory = directory_of(place)
    if directory is not None and not directory.is_dir():
        raise nobodys

    async def run() -> T:
        opened = open_store(place)
        try:
            if await read_deployment(opened) is None:
                raise nobodys
            return await work(opened)
        finally:
            await opened.close()

    return asyncio.run(run())

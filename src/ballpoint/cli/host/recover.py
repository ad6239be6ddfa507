"""recover: a node's data directory, from its store."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ballpoint.cli import columns
from ballpoint.core.config import DEFAULT_DATA, load_config
from ballpoint.core.errors import ConflictError, InvalidError

if TYPE_CHECKING:
    from ballpoint.core.config import NodeConfig
    from ballpoint.node.durable.refill import Outcome

_INCOMPLETE = 1


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Directory to fill; it must have no sprite yet.")
@click.option("--store", "url", metavar="URL", required=True, help="The object store to fill it from.")
@click.option("--pool-gb", type=int, help="Size of the volume pool's file [most of what is free].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def recover(data: Path | None, url: str, pool_gb: int | None, as_json: bool) -> int:
    """Fill an empty data directory with all sprites of a store, cold; their disks come when they start.

    Prints of which moment each disk is. Start the node afterwards with the same --data and --store. Exits with 1 where
    something in the store could not be recovered. After an interruption, run it again.
    """
    if os.geteuid() != 0:
        raise InvalidError("a data directory is filled by root", hint="sudo ballpoint recover ...")
    from ballpoint.node import supervisor
    from ballpoint.store.url import check_url

    config = load_config(None, data=data or DEFAULT_DATA, pool_gb=pool_gb, store=check_url(url))
    if supervisor.running(config) is not None:
        raise ConflictError(f"a node runs in {config.data}", hint="recover into an empty directory")
    outcome = asyncio.run(_refill(config))
    if as_json:
        _print_json(outcome)
    else:
        _print(config, outcome)
    return _INCOMPLETE if outcome.failures else 0


async def _refill(config: NodeConfig) -> Outcome:
    from ballpoint.host import mount, namespaces
    from ballpoint.node.durable.refill import refill
    from ballpoint.store.url import directory_of, open_store

    directory = directory_of(config.store_url)
    if directory is not None and not directory.is_dir():
        raise InvalidError(f"there is no directory {directory}", hint="correct --store")
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mount.mount("none", "/", flags=mount.MS_REC | mount.MS_PRIVATE)
    store = open_store(config.store_url)
    try:
        return await refill(config, store)
    finally:
        await store.close()


def _print(config: NodeConfig, outcome: Outcome) -> None:
    columns.show(
        ("NAME", "ORGANIZATION", "AS OF", "COMMIT", "CHECKPOINTS", "VOLUME"),
        [
            (each.name, each.organization, f"{each.time:%F %T}", f"{each.epoch}.{each.number}", str(each.checkpoints),
             each.volume)
            for each in outcome.sprites
        ],
    )  # fmt: skip
    for each in outcome.sprites:
        if each.name != each.recorded:
            click.echo(f"the name {each.recorded!r} is taken by a newer one: {each.volume} is now {each.name!r}")
    for gone in outcome.trashed:
        click.echo(f"not recovered: {gone.name!r} was destroyed at {gone.time:%F %T} (volume {gone.volume})")
    for what, error in outcome.failures:
        click.echo(f"not recovered: {what}: {error.message}", err=True)
    organizations = sorted({each.organization for each in outcome.sprites})
    click.echo(f"recovered {len(outcome.sprites)} sprites. Tokens are not in a store; `up` makes a new one:")
    click.echo(f"  ballpoint up --data {config.data} --store '{config.store_url}'")
    if len(organizations) > 1:
        click.echo(f"of one of the organizations {', '.join(organizations)}; for each of the others:")
        click.echo(f"  ballpoint token create --data {config.data} --org ORGANIZATION")


def _print_json(outcome: Outcome) -> None:
    import msgspec

    failures = [{"what": what, "error": error.message} for what, error in outcome.failures]
    found = {"sprites": outcome.sprites, "trashed": outcome.trashed, "failures": failures}
    click.echo(json.dumps(msgspec.to_builtins(found), indent=2))

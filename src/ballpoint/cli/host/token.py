"""token create, token list, token revoke: on the registry of a node of this machine."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ballpoint.cli import columns
from ballpoint.cli.host.options import data_option
from ballpoint.core.config import DEFAULT_DATA, DEFAULT_ORG, load_config
from ballpoint.core.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from ballpoint.registry.registry import Registry

T = TypeVar("T")


@click.group()
def token() -> None:
    """Tokens of a node of this machine."""


@token.command()
@data_option
@click.option("--org", default=DEFAULT_ORG, show_default=True, help="Organization, made if it is new.")
@click.option("--description", default="", help="What it is for.")
def create(data: Path | None, org: str, description: str) -> None:
    """Make a token and print it, this once."""

    async def work(registry: Registry) -> str:
        return (await registry.create_token(org, description))[1]

    click.echo(with_registry(data, work))


@token.command("list")
@data_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(data: Path | None, as_json: bool) -> None:
    """List tokens, without their secrets."""

    async def work(registry: Registry) -> Any:
        return await registry.tokens()

    found = with_registry(data, work)
    if as_json:
        import msgspec

        click.echo(json.dumps(msgspec.to_builtins(found), indent=2))
        return
    columns.show(
        ("ID", "ORGANIZATION", "STATE", "CREATED", "DESCRIPTION"),
        [
            (each.id, each.org, "revoked" if each.revoked_at else "valid", f"{each.created_at:%F %T}", each.description)
            for each in found
        ],
    )


@token.command()
@data_option
@click.argument("token_id")
def revoke(data: Path | None, token_id: str) -> None:
    """Make a token worthless, at once."""

    async def work(registry: Registry) -> bool:
        return await registry.revoke_token(token_id)

    if not with_registry(data, work):
        raise NotFoundError(f"there is no valid token {token_id}", hint="ballpoint token list")
    click.echo(f"revoked {token_id}")


def with_registry(data: Path | None, work: Callable[[Registry], Awaitable[T]]) -> T:
    """Do `work` with the registry of the node in `data`.

    Raises:
        NotFoundError: there is no node.
        InvalidError: this user may not use its registry.
    """
    from ballpoint.registry.database import url_of
    from ballpoint.registry.registry import Registry

    config = load_config(None, data=data or DEFAULT_DATA)
    if not config.registry_file.exists():
        raise NotFoundError(f"there is no node in {config.data}", hint="start one: ballpoint up, or ballpoint serve")

    if not os.access(config.registry_file, os.R_OK | os.W_OK):
        raise InvalidError(f"this user may not use the registry in {config.data}", hint="sudo ballpoint token ...")

    async def run() -> T:
        registry = await Registry.open(url_of(config.registry_file))
        try:
            return await work(registry)
        finally:
            await registry.close()

    return asyncio.run(run())

"""What can stand at the cursor of a command line: the node is asked, shortly, and any trouble is silence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

# A shell waits while it completes.
_SECONDS = 1.0


def sprites(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Names of sprites."""

    def items(found: Any) -> Iterable[CompletionItem]:
        return (CompletionItem(each["name"], help=each["status"]) for each in found["sprites"])

    from urllib.parse import urlencode

    return _asked(ctx, begun, lambda: "/v1/sprites?" + urlencode({"prefix": begun, "max_results": 50}), items)


def checkpoints(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Ids of a sprite's checkpoints."""

    def items(found: Any) -> Iterable[CompletionItem]:
        return (CompletionItem(each["id"], help=" ".join(each["comment"].split())) for each in found)

    return _asked(ctx, begun, lambda: _below(ctx, "/checkpoints?includeAuto=true"), items)


def sessions(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Ids of a sprite's sessions."""

    def items(found: Any) -> Iterable[CompletionItem]:
        return (CompletionItem(each["id"], help=each["command"]) for each in found["sessions"])

    return _asked(ctx, begun, lambda: _below(ctx, "/exec"), items)


def services(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Names of a sprite's services."""

    def items(found: Any) -> Iterable[CompletionItem]:
        return (CompletionItem(each["name"], help=each["cmd"]) for each in found)

    return _asked(ctx, begun, lambda: _below(ctx, "/services"), items)


def _below(ctx: click.Context, below: str) -> str:
    from ballpoint.cli.client import settings
    from ballpoint.cli.client.http import sprite_path

    return sprite_path(ctx.find_root().params.get("sprite") or settings.selected_sprite() or "", below)


def _asked(
    ctx: click.Context, begun: str, path: Callable[[], str], items: Callable[[Any], Iterable[CompletionItem]]
) -> list[CompletionItem]:
    """Of what the node answers, what begins as the word at the cursor."""
    try:
        # While completing, no command has run, which would have put the options into the context.
        found = asyncio.run(_answer(ctx.find_root().params.get("org"), path()))
        return [item for item in items(found) if item.value.startswith(begun)]
    except Exception:  # noqa: BLE001 - nobody asked for an error here
        return []


async def _answer(org: str | None, path: str) -> Any:
    import httpx2

    from ballpoint.cli.client import settings

    selected = settings.select(org)
    # Reading the certificates takes longer than the answer, and nothing is verified without TLS.
    client = httpx2.AsyncClient(
        base_url=selected.url, timeout=_SECONDS, verify=selected.url.lower().startswith("https:")
    )
    async with asyncio.timeout(_SECONDS), client:
        response = await client.get(path, headers={"Authorization": f"Bearer {selected.token}"})
        response.raise_for_status()
        return response.json()

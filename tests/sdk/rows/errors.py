"""Errors, and what runs the synchronous half."""

from __future__ import annotations

import socket

import pytest
from sprites import exceptions, loop
from sprites.exceptions import APIError, AuthenticationError, NetworkError, NotFoundError, SpriteError

from tests.sdk.table import Kit, row

_QUESTIONS = ("is_rate_limit_error", "is_creation_rate_limited", "is_concurrent_limit_exceeded")


@row("exceptions.SpriteError", "exceptions.NotFoundError")
async def refusals(kit: Kit) -> None:
    with pytest.raises(SpriteError, match="409.*sprite_exists"):
        await kit.do(kit.client.create_sprite, kit.name)
    with pytest.raises(SpriteError, match="422.*name"):
        await kit.do(kit.client.create_sprite, "No Name")
    with pytest.raises(NotFoundError):
        await kit.do(kit.client.get_sprite, "no-such")


@row("exceptions.AuthenticationError")
async def a_wrong_token(kit: Kit) -> None:
    client = kit.new_client(token=kit.node.token + "x")
    with pytest.raises(AuthenticationError):
        await kit.do(client.get_sprite, kit.name)
    await kit.do(client.close if kit.kind == "sync" else client.aclose)


@row("exceptions.NetworkError")
async def nobody_there(kit: Kit) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    client = kit.new_client(url=url)
    with pytest.raises(NetworkError):
        await kit.do(client.get_sprite, kit.name)
    with pytest.raises(NetworkError):
        await kit.do(client.sprite(kit.name).run, "true")
    await kit.do(client.close if kit.kind == "sync" else client.aclose)


@row(
    "exceptions.APIError", "exceptions.parse_api_error",
    *(f"exceptions.APIError.{name}" for name in (*_QUESTIONS, "get_retry_after_seconds")), commands=True,
)  # fmt: skip
async def a_command_that_is_refused(kit: Kit) -> None:
    with pytest.raises(APIError) as refused:
        await kit.do(kit.client.sprite("no-such").run, "true")
    error = refused.value
    assert (error.status_code, error.error_code) == (404, "sprite_not_found")
    assert "no-such" in str(error)
    assert [getattr(error, name)() for name in _QUESTIONS] == [False] * len(_QUESTIONS)
    assert error.get_retry_after_seconds() is None
    # What a node says when it cannot do it now: the same number in the body and in the header.
    said = exceptions.parse_api_error(503, b'{"error": "no_capacity", "message": "m", "retry_after_seconds": 3}')
    assert said is not None
    assert (said.error_code, said.get_retry_after_seconds()) == ("no_capacity", 3)


@row("loop.get_loop", "loop.run_sync", "loop.get_existing_loop", "loop.stop_loop", "Sprite.run", kinds=("sync",))
async def the_loop_of_the_synchronous_half(kit: Kit) -> None:
    sprite = kit.sprite
    assert (await kit.do(sprite.run, "sh", "-c", "exit 3")).returncode == 3
    first = loop.get_existing_loop()
    assert first is loop.get_loop()
    await kit.do(loop.stop_loop)
    assert loop.get_existing_loop() is None
    assert (await kit.do(sprite.run, "sh", "-c", "exit 4")).returncode == 4
    assert loop.get_existing_loop() is not first

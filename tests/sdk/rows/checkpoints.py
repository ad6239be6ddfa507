"""Checkpoints."""

from __future__ import annotations

import pytest
from sprites import checkpoint as checkpoints
from sprites.checkpoint import CheckpointStream, RestoreStream
from sprites.exceptions import APIError, NotFoundError

from tests.sdk.table import Kit, row


@row(
    "Sprite.create_checkpoint", "Sprite.list_checkpoints", "Sprite.get_checkpoint", "Sprite.restore_checkpoint",
    "types.Checkpoint", "types.StreamMessage",
)  # fmt: skip
async def there_and_back(kit: Kit) -> None:
    sprite = await kit.made()
    await kit.do(sprite.run, "sh", "-c", "echo one > file", check=True)
    steps = list(await kit.do(sprite.create_checkpoint, "the first"))
    assert {step.type for step in steps[:-1]} == {"info"} and steps[-1].type == "complete" and "v0" in steps[-1].data
    await kit.do(sprite.run, "sh", "-c", "echo two > file", check=True)
    assert list(await kit.do(sprite.create_checkpoint))[-1].type == "complete"
    first, second = await kit.do(sprite.list_checkpoints)
    assert (first.id, first.comment, first.history) == ("v0", "the first", [])
    assert (second.id, second.comment, second.history) == ("v1", "", ["v0"])
    assert first.create_time < second.create_time and first.create_time.tzinfo is not None
    assert [each.id for each in await kit.do(sprite.list_checkpoints, "v1")] == ["v1"]
    assert await kit.do(sprite.get_checkpoint, "v0") == first
    steps = list(await kit.do(sprite.restore_checkpoint, "v0", timeout=60.0))
    assert steps[-1].type == "complete"
    assert (await kit.do(sprite.run, "cat", "file", capture_output=True)).stdout == b"one\n"
    with pytest.raises(NotFoundError):
        await kit.do(sprite.get_checkpoint, "v7")
    with pytest.raises(APIError) as refused:
        await kit.do(sprite.restore_checkpoint, "v7")
    assert refused.value.status_code == 404


@row(
    *(f"checkpoint.{name}_checkpoint" for name in ("create", "get", "restore")), "checkpoint.list_checkpoints",
    kinds=("sync",),
)  # fmt: skip
async def functions_of_the_module(kit: Kit) -> None:
    sprite = await kit.made()
    with await kit.do(checkpoints.create_checkpoint, sprite, "by the module") as stream:
        assert [message.type for message in stream][-1] == "complete"
    (made,) = await kit.do(checkpoints.list_checkpoints, sprite)
    assert (made.id, made.comment) == ("v0", "by the module")
    assert await kit.do(checkpoints.list_checkpoints, sprite, "v7") == []
    assert await kit.do(checkpoints.get_checkpoint, sprite, "v0") == made
    with await kit.do(checkpoints.restore_checkpoint, sprite, "v0") as stream:
        assert [message.type for message in stream][-1] == "complete"


@row(
    "checkpoint.CheckpointStream", "checkpoint.CheckpointStream.close", "checkpoint.RestoreStream",
    "checkpoint.RestoreStream.close", kinds=("sync",),
)  # fmt: skip
async def streams_that_are_read_as_they_come(kit: Kit) -> None:
    """No method of the SDK makes one of these any more: it reads all before it returns."""
    sprite = await kit.made()
    url, http, headers = f"{kit.node.url}/v1/sprites/{sprite.name}", kit.client._client, kit.client._headers()
    for path, kind in (("checkpoint", CheckpointStream), ("checkpoints/v0/restore", RestoreStream)):
        with http.stream("POST", f"{url}/{path}", headers=headers, json={}) as response, kind(response) as stream:
            assert [message.type for message in stream][-1] == "complete"
        assert response.is_closed

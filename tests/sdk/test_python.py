"""The official Python SDK against a real node: every public name of it, by both halves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import tests.sdk.rows  # noqa: F401 - fills the table
from tests.sdk.surface import public_names, watched
from tests.sdk.table import ROWS, Kind, Row, destroy, kit_of, new_name
from tests.support.nodes import TestNode

pytestmark = pytest.mark.node

# Names that no row uses, by the reason for it.
EXCEPTED = {
    "network policies come later": {
        *(f"{place}.{verb}_network_policy" for place in ("policy", "sprite.Sprite", "async_sprite.AsyncSprite")
          for verb in ("get", "update")),
        "types.NetworkPolicy", "types.PolicyRule",
    },
    "asks another host, whatever the client's base URL is": {
        "client.SpritesClient.create_token", "async_client.AsyncSpritesClient.create_token",
    },
    "no function of this version takes or gives one": {
        "types.ClientOptions", "types.DirEntry", "types.DirEntry.is_file", "types.ExecOptions", "types.ExecResult",
        "types.FSChmodResponse", "types.FSCopyResponse", "types.FSDeleteResponse", "types.FSListResponse",
        "types.FSRenameResponse", "types.FSWriteResponse", "types.PortMapping", "types.Service",
        "types.ServiceRequest", "types.SpawnOptions", "exceptions.FileExistsError_",
    },
    "another name of ExecError": {"exceptions.ExitError", "exceptions.ExitError.exit_code"},
}  # fmt: skip


def _cases() -> Iterator[object]:
    for row in ROWS:
        for kind in row.kinds:
            for control in (False, True) if row.commands else (False,):
                module, name = row.function.__module__.rpartition(".")[2], row.function.__name__
                way = f"{kind}{'-control' if control else ''}"
                yield pytest.param(row, kind, control, id=f"{module}.{name}-{way}")


@pytest.fixture(scope="module")
def shared(node: TestNode) -> Iterator[str]:
    """The name of the sprite that rows share."""
    name = new_name()
    assert node.api("POST", "/v1/sprites", json={"name": name}).status_code == 201
    yield name
    destroy(node, name)


def test_every_name_has_a_row_or_a_reason() -> None:
    """A later SDK that can do more, or that lacks what a row says it uses, fails here."""
    in_rows = {name for row in ROWS for kind in row.kinds for name in row.names_in(kind)}
    excepted = [name for names in EXCEPTED.values() for name in names]
    assert len(set(excepted)) == len(excepted) and not in_rows & set(excepted)
    assert in_rows | set(excepted) == public_names()


@pytest.mark.parametrize(("row", "kind", "control"), list(_cases()))
async def test_row(row: Row, kind: Kind, control: bool, node: TestNode, shared: str) -> None:
    names = row.names_in(kind)
    with watched(names) as used:
        async with kit_of(node, kind, control, shared) as kit:
            await row.function(kit)
    assert used == names, "the row does not use what it says it does"

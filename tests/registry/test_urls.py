"""Which sprite a host means, and browsers that are logged in."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ballpoint.core.errors import UnauthorizedError
from ballpoint.core.types import Caller
from ballpoint.registry import registry as module
from ballpoint.registry.registry import Registry

from .world import StandingClock, add

_WEEK = 7 * 24 * 3600.0


async def caller(registry: Registry, org: str) -> Caller:
    _, text = await registry.create_token(org, "")
    return await registry.authenticate(text)


async def meant(registry: Registry, label: str) -> tuple[str, str] | None:
    found = await registry.sprite_at(label)
    return None if found is None else (found.org, found.name)


async def test_hosts_of_one_organization(registry: Registry) -> None:
    acme = await caller(registry, "acme")
    for name in ("web", "web-acme"):
        await add(registry, acme.org_id, name)
    assert await meant(registry, "web") == ("acme", "web")
    assert await meant(registry, "web-acme") == ("acme", "web")
    assert await meant(registry, "web-acme-acme") == ("acme", "web-acme")
    assert await meant(registry, "nobody") is None
    assert await meant(registry, "nobody-acme") is None


async def test_hosts_of_two_organizations(registry: Registry) -> None:
    acme, other = await caller(registry, "acme"), await caller(registry, "b")
    await add(registry, acme.org_id, "web")
    await add(registry, other.org_id, "web")
    assert await meant(registry, "web") is None
    assert await meant(registry, "web-acme") == ("acme", "web")
    assert await meant(registry, "web-b") == ("b", "web")


async def test_a_short_host_of_before_is_never_another_organizations(registry: Registry, clock: StandingClock) -> None:
    acme = await caller(registry, "acme")
    await add(registry, acme.org_id, "web-b")
    assert await meant(registry, "web-b") == ("acme", "web-b")
    clock.pass_by(1)
    other = await caller(registry, "b")
    clock.pass_by(1)
    for name in ("web", "app"):
        await add(registry, other.org_id, name)
    await add(registry, acme.org_id, "app-b")  # of later: it never had that host
    assert await meant(registry, "web-b") is None
    assert await meant(registry, "app-b") == ("b", "app")


async def test_a_sprite_that_is_being_destroyed_has_no_host(registry: Registry) -> None:
    acme = await caller(registry, "acme")
    sprite = await add(registry, acme.org_id, "web")
    await registry.set_state(sprite.id, "deleting", kind="deleting", cause="")
    assert await meant(registry, "web-acme") is None


async def test_a_log_in_is_good_for_its_sprite_until_it_ends(registry: Registry, clock: StandingClock) -> None:
    acme = await caller(registry, "acme")
    value = await registry.log_in(acme, "sprite-1", _WEEK)
    assert await registry.logged_in(value, "sprite-1") == acme
    assert await registry.logged_in(value, "sprite-2") is None
    assert await registry.logged_in("another", "sprite-1") is None
    clock.pass_by(_WEEK - 1)
    assert await registry.logged_in(value, "sprite-1") == acme
    clock.pass_by(1)
    assert await registry.logged_in(value, "sprite-1") is None


async def test_a_log_in_dies_with_its_token_its_sprite_and_by_logging_out(registry: Registry) -> None:
    acme, more = await caller(registry, "acme"), await caller(registry, "acme")
    sprite = await add(registry, acme.org_id, "web")
    first, second, third = [await registry.log_in(each, sprite.id, _WEEK) for each in (acme, more, more)]
    assert await registry.revoke_token(acme.token_id)
    assert await registry.logged_in(first, sprite.id) is None
    with pytest.raises(UnauthorizedError):
        await registry.log_in(acme, sprite.id, _WEEK)
    assert await registry.log_out(second)
    assert not await registry.log_out(second)
    assert await registry.logged_in(second, sprite.id) is None
    assert await registry.logged_in(third, sprite.id) == more
    await registry.delete_sprite(sprite.id, "")
    assert await registry.logged_in(third, sprite.id) is None


async def test_a_value_is_in_no_file_and_the_oldest_go_first(
    registry: Registry, file: Path, clock: StandingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOG_INS_KEPT", 3)
    acme, other = await caller(registry, "acme"), await caller(registry, "acme")
    kept = await registry.log_in(other, "sprite-1", _WEEK)
    values = []
    for _ in range(5):
        clock.pass_by(1)
        values.append(await registry.log_in(acme, "sprite-1", _WEEK))
    good = [await registry.logged_in(value, "sprite-1") is not None for value in values]
    assert good == [False, False, True, True, True]
    assert await registry.logged_in(kept, "sprite-1") == other
    for path in file.parent.iterdir():
        assert not any(value.encode() in path.read_bytes() for value in values)
    clock.pass_by(_WEEK)
    await registry.log_in(acme, "sprite-1", _WEEK)
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM log_ins").fetchone() == (1,)

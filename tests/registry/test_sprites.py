"""Sprites: names are unique in an organization, listings are whole and in order, states come with their times."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import get_args
from urllib.parse import quote

import msgspec
import pytest

from ballpoint.core.errors import ConflictError, InvalidError, NotFoundError
from ballpoint.core.types import Caller
from ballpoint.registry.database import url_of
from ballpoint.registry.records import SpriteState
from ballpoint.registry.registry import Registry

from .world import StandingClock, add, names


async def test_a_sprite_is_recorded_as_it_was_given(registry: Registry, org: str, clock: StandingClock) -> None:
    made = registry.new_sprite(
        Caller(org_id=org, org="acme", token_id="t1"),
        "web",
        sprite_id="sprite-1",
        volume_id="volume-1",
        image_digest="blake3-77",
        environment={"A": "1", "empty": "", "ünïcode": "ß\n\0\U0001f40b"},
        labels=["b", "a"],
        config={"ram_mb": 512, "cpus": 1.5, "region": None},
        url_settings={"auth": "public", "private_access": None},
    )
    with pytest.raises(NotFoundError):
        await registry.sprite(org, "web")
    await registry.require_free(org, "web")
    await registry.create_sprite(made, "by token t1")
    with pytest.raises(ConflictError):
        await registry.require_free(org, "web")
    assert (made.id, made.org_id, made.org, made.name, made.state) == ("sprite-1", org, "acme", "web", "running")
    assert (made.volume_id, made.image_digest) == ("volume-1", "blake3-77")
    assert made.environment == {"A": "1", "empty": "", "ünïcode": "ß\n\0\U0001f40b"}
    assert made.labels == ["b", "a"]
    assert made.config == {"ram_mb": 512, "cpus": 1.5, "region": None}
    assert made.url_settings == {"auth": "public", "private_access": None}
    assert made.privileges == {}
    assert made.created_at == made.updated_at == made.last_running_at == clock.now()
    assert made.last_warming_at is None
    assert made == await registry.sprite(org, "web") == await registry.sprite_by_id("sprite-1")


async def test_everything_survives_a_restart(registry: Registry, org: str, file: Path) -> None:
    made = await add(registry, org, "web", environment={"A": "1"})
    again = await Registry.open(url_of(file))
    assert await again.all_sprites() == [made]
    await again.close()


async def test_a_name_is_taken_once_in_an_organization(registry: Registry, org: str) -> None:
    made = await add(registry, org, "web")
    with pytest.raises(ConflictError) as caught:
        await add(registry, org, "web")
    assert caught.value.code == "sprite_exists"
    assert await registry.all_sprites() == [made]
    rival, _ = await registry.create_token("rival", "")
    assert (await add(registry, rival.org_id, "web")).org == "rival"


async def test_of_many_creates_at_once_one_wins(registry: Registry, org: str) -> None:
    tried = await asyncio.gather(*(add(registry, org, "web") for _ in range(20)), return_exceptions=True)
    won = [each for each in tried if not isinstance(each, BaseException)]
    lost = [each for each in tried if isinstance(each, ConflictError) and each.code == "sprite_exists"]
    assert won == await registry.all_sprites()
    assert len(won) == 1
    assert len(lost) == len(tried) - len(won)


async def test_a_name_is_free_only_when_its_sprite_is_forgotten(registry: Registry, org: str) -> None:
    first = await add(registry, org, "web")
    await registry.set_state(first.id, "deleting", kind="deleting", cause="")
    with pytest.raises(ConflictError):
        await add(registry, org, "web")
    assert await registry.delete_sprite(first.id, "")
    second = await add(registry, org, "web")
    assert await registry.sprite(org, "web") == second
    with pytest.raises(NotFoundError):
        await registry.sprite_by_id(first.id)


async def test_another_organization_finds_nothing(registry: Registry, org: str) -> None:
    await add(registry, org, "web")
    rival, _ = await registry.create_token("rival", "")
    with pytest.raises(NotFoundError) as caught:
        await registry.sprite(rival.org_id, "web")
    assert caught.value.code == "sprite_not_found"
    assert await names(registry, rival.org_id) == []
    assert set((await registry.counts(rival.org_id))[0].values()) == {0}


async def test_what_is_not_there_cannot_be_changed(registry: Registry, org: str) -> None:
    with pytest.raises(NotFoundError):
        await registry.sprite(org, "web")
    with pytest.raises(NotFoundError):
        await registry.sprite_by_id("sprite-0")
    with pytest.raises(NotFoundError):
        await registry.update_sprite("sprite-0", labels=[])
    with pytest.raises(NotFoundError):
        await registry.set_state("sprite-0", "running", kind="started", cause="")
    assert not await registry.delete_sprite("sprite-0", "")
    assert await registry.events("sprite-0") == []
    assert await registry.all_sprites() == []


async def test_an_update_changes_what_it_names(registry: Registry, org: str, clock: StandingClock) -> None:
    made = await add(registry, org, "web", labels=["a"], environment={"A": "1"})
    other = await add(registry, org, "other")
    moment = clock.pass_by(5)
    changed = await registry.update_sprite(made.id, labels=[], privileges={"profile": "minimal"})
    assert changed == msgspec.structs.replace(made, labels=[], privileges={"profile": "minimal"}, updated_at=moment)
    assert await registry.sprite(org, "web") == changed
    assert await registry.sprite(org, "other") == other


@pytest.mark.parametrize("change", [{"name": "new"}, {"state": "cold"}, {"org_id": "x"}, {"labels": [], "nonsense": 1}])
async def test_an_update_of_anything_else_changes_nothing(
    registry: Registry, org: str, change: dict[str, object]
) -> None:
    made = await add(registry, org, "web", labels=["a"])
    with pytest.raises(InvalidError):
        await registry.update_sprite(made.id, **change)
    assert await registry.sprite(org, "web") == made


async def test_a_state_comes_with_its_time_and_event(registry: Registry, org: str, clock: StandingClock) -> None:
    made = await add(registry, org, "web")
    ran = clock.pass_by(1)
    running = await registry.set_state(made.id, "running", kind="restarted", cause="by token t2")
    warmed = clock.pass_by(1)
    await registry.set_state(made.id, "warm", kind="frozen", cause="idle")
    clock.pass_by(1)
    cold = await registry.set_state(made.id, "cold", kind="stopped", cause="memory was short")
    assert (running.state, running.last_running_at, running.last_warming_at) == ("running", ran, None)
    assert (cold.state, cold.last_running_at, cold.last_warming_at) == ("cold", ran, warmed)
    assert cold.updated_at == clock.now()
    assert [(event.kind, event.cause) for event in await registry.events(made.id)] == [
        ("created", "by token t1"),
        ("restarted", "by token t2"),
        ("frozen", "idle"),
        ("stopped", "memory was short"),
    ]


async def test_counters_are_of_one_organization(registry: Registry, org: str) -> None:
    rival, _ = await registry.create_token("rival", "")
    states: list[SpriteState] = ["running", "running", "warm", "cold", "deleting", "creating"]
    for number, state in enumerate(states):
        for of in (org, rival.org_id) if state == "cold" else (org,):
            made = await add(registry, of, f"n{number}")
            await registry.set_state(made.id, state, kind="", cause="")
    assert await registry.counts(org) == ({"running": 2, "warm": 1, "cold": 1}, [])
    assert await registry.counts(rival.org_id) == ({"running": 0, "warm": 0, "cold": 1}, [])
    # Some may be left out, and are said to be there where they are.
    ids = {sprite.name: sprite.id for sprite in await registry.all_sprites() if sprite.org_id == org}
    apart = [ids[name] for name in ("n0", "n3", "n4")]
    found, there = await registry.counts(org, apart=[*apart, "none"])
    assert (found, sorted(there)) == ({"running": 1, "warm": 1, "cold": 0}, sorted(apart[:2]))
    assert await registry.counts(rival.org_id, apart=apart) == ({"running": 0, "warm": 0, "cold": 1}, [])


async def test_a_listing_is_by_name_and_omits_what_is_going(registry: Registry, org: str) -> None:
    for name in ("b", "a-1", "a", "c", "a1"):
        await add(registry, org, name)
    await registry.set_state((await registry.sprite(org, "b")).id, "deleting", kind="", cause="")
    assert await names(registry, org) == ["a", "a-1", "a1", "c"]


@pytest.mark.parametrize(
    ("prefix", "found"),
    [
        ("", ["a", "a-1", "a1", "b"]),
        ("a", ["a", "a-1", "a1"]),
        ("a-", ["a-1"]),
        ("A", []),
        ("%", []),
        ("_", []),
        ("ab", []),
    ],
)
async def test_a_prefix_is_taken_literally(registry: Registry, org: str, prefix: str, found: list[str]) -> None:
    for name in ("b", "a-1", "a", "a1"):
        await add(registry, org, name)
    assert await names(registry, org, prefix=prefix) == found


async def test_pages_join_to_the_whole(registry: Registry, org: str) -> None:
    made = sorted(f"n{number}" for number in range(7))
    for name in made:
        await add(registry, org, name)
    for limit in (1, 2, 3, 6, 7, 8):
        seen: list[str] = []
        token = None
        while True:
            page, token = await registry.list_sprites(org, limit=limit, after=token)
            assert 1 <= len(page) <= limit
            seen += [sprite.name for sprite in page]
            if token is None:
                break
            assert token == quote(token)
        assert seen == made


async def test_a_page_goes_on_behind_a_sprite_that_is_gone(registry: Registry, org: str) -> None:
    for name in ("a", "b", "c"):
        await add(registry, org, name)
    page, token = await registry.list_sprites(org, limit=2)
    for sprite in page:
        await registry.delete_sprite(sprite.id, "")
    await add(registry, org, "bb")
    assert await names(registry, org, after=token) == ["bb", "c"]


@pytest.mark.parametrize("token", ["!", "a", "/w==", "_w", "ü", "\udcff", "YQ==YQ=="])
async def test_a_token_of_another_kind_is_refused(registry: Registry, org: str, token: str) -> None:
    with pytest.raises(InvalidError):
        await registry.list_sprites(org, after=token)


async def test_recovery_sees_every_sprite_of_everyone(registry: Registry, org: str, clock: StandingClock) -> None:
    rival, _ = await registry.create_token("rival", "")
    made = []
    for number, state in enumerate(get_args(SpriteState)):
        clock.pass_by(1)
        sprite = await add(registry, rival.org_id if number % 2 else org, f"n{number}")
        made.append(await registry.set_state(sprite.id, state, kind="", cause=""))
    assert await registry.all_sprites() == made

"""Tokens: who has one is let in, their secrets are not kept, and a revoked one is worthless at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.core.errors import ConflictError, InvalidError, UnauthorizedError
from ballpoint.core.types import Caller
from ballpoint.registry.database import url_of
from ballpoint.registry.registry import Registry, split_token

from .world import StandingClock, add, other_writer

_IMPORTED = "acme/o1/t1/a-secret-value"


async def test_a_token_names_its_organization(registry: Registry, clock: StandingClock) -> None:
    info, text = await registry.create_token("acme", "for the build")
    assert await registry.authenticate(text) == Caller(org_id=info.org_id, org="acme", token_id=info.id)
    assert (info.org, info.description, info.created_at, info.revoked_at) == (
        "acme",
        "for the build",
        clock.now(),
        None,
    )


async def test_tokens_of_one_organization_share_its_id(registry: Registry) -> None:
    first, _ = await registry.create_token("acme", "")
    second, _ = await registry.create_token("acme", "")
    other, _ = await registry.create_token("rival", "")
    assert first.org_id == second.org_id != other.org_id
    assert first.id != second.id


async def test_the_secret_is_in_no_file(registry: Registry, file: Path) -> None:
    _, text = await registry.create_token("acme", "")
    await registry.import_token(imported := "other/o1/t1/a-secret-value")
    await registry.authenticate(text)
    stored = b"".join(path.read_bytes() for path in file.parent.iterdir())
    assert b"acme" in stored
    for secret in (text, imported):
        assert split_token(secret)[3].encode() not in stored


async def test_only_the_exact_token_is_good(registry: Registry) -> None:
    info, text = await registry.create_token("acme", "")
    rival, _ = await registry.create_token("rival", "")
    value = split_token(text)[3]
    flipped = value[:-1] + ("a" if value[-1] != "a" else "b")
    for wrong in (
        "",
        "///",
        value,
        f"acme/{info.org_id}/{info.id}",
        f"acme/{info.org_id}/{info.id}/",
        f"acme/{info.org_id}/{info.id}/{flipped}",
        f"acme/{info.org_id}/{info.id}/{value}/more",
        f"acme/{info.org_id}/{rival.id}/{value}",
        f"acme/{rival.org_id}/{info.id}/{value}",
        f"rival/{rival.org_id}/{info.id}/{value}",
        f"ACME/{info.org_id}/{info.id}/{value}",
        f"acme/{info.org_id}/{info.id}/{value}é",
        f"acme/{info.org_id}/{info.id}/{value}\0",
        text * 100,
        "\udcff/a/b/c",
    ):
        with pytest.raises(UnauthorizedError) as caught:
            await registry.authenticate(wrong)
        assert value not in str(caught.value)
    await registry.authenticate(text)


async def test_a_wrong_token_is_refused_in_the_same_words(registry: Registry) -> None:
    info, text = await registry.create_token("acme", "")
    unknown = text.replace(info.id, "00000000")
    wrong_value = "/".join([*text.split("/")[:3], "wrong"])
    said = set()
    for wrong in ("nonsense", unknown, wrong_value):
        with pytest.raises(UnauthorizedError) as caught:
            await registry.authenticate(wrong)
        said.add(str(caught.value))
    await registry.revoke_token(info.id)
    with pytest.raises(UnauthorizedError) as caught:
        await registry.authenticate(text)
    assert said == {str(caught.value)}


async def test_a_revoked_token_stays_listed_and_worthless(registry: Registry, clock: StandingClock) -> None:
    info, text = await registry.create_token("acme", "")
    moment = clock.pass_by(5)
    assert await registry.revoke_token(info.id)
    clock.pass_by(5)
    assert not await registry.revoke_token(info.id)
    assert [token.revoked_at for token in await registry.tokens()] == [moment]
    with pytest.raises(UnauthorizedError):
        await registry.authenticate(text)


async def test_an_unknown_token_cannot_be_revoked(registry: Registry) -> None:
    assert not await registry.revoke_token("00000000")


async def test_a_token_revoked_elsewhere_is_worthless_at_once(registry: Registry, file: Path) -> None:
    info, text = await registry.create_token("acme", "")
    await registry.authenticate(text)
    elsewhere = await Registry.open(url_of(file))
    assert await elsewhere.revoke_token(info.id)
    await elsewhere.close()
    with pytest.raises(UnauthorizedError):
        await registry.authenticate(text)


async def test_tokens_are_listed_by_age_and_organization(registry: Registry, clock: StandingClock) -> None:
    made = []
    for org in ("acme", "rival", "acme"):
        made.append((await registry.create_token(org, ""))[0])
        clock.pass_by(1)
    assert await registry.tokens() == made
    assert await registry.tokens("acme") == [made[0], made[2]]
    assert await registry.tokens("nobody") == []


async def test_import_is_idempotent_and_survives_a_restart(registry: Registry, file: Path) -> None:
    info = await registry.import_token(_IMPORTED + "\n")
    assert await registry.import_token(_IMPORTED) == info
    again = await Registry.open(url_of(file))
    assert await again.import_token(_IMPORTED) == info
    assert await again.authenticate(_IMPORTED) == Caller(org_id="o1", org="acme", token_id="t1")
    await again.close()


async def test_importing_a_revoked_token_does_not_revive_it(registry: Registry) -> None:
    info = await registry.import_token(_IMPORTED)
    await registry.revoke_token(info.id)
    assert (await registry.import_token(_IMPORTED)).revoked_at is not None
    with pytest.raises(UnauthorizedError):
        await registry.authenticate(_IMPORTED)


@pytest.mark.parametrize(
    "other",
    [
        "acme/o1/t1/another-value",  # the id of a token
        "acme/o2/t2/value",  # the name of an organization
        "rival/o1/t2/value",  # the id of an organization
    ],
)
async def test_an_import_that_contradicts_changes_nothing(registry: Registry, other: str) -> None:
    await registry.import_token(_IMPORTED)
    known = await registry.tokens()
    with pytest.raises(ConflictError) as caught:
        await registry.import_token(other)
    assert split_token(other)[3] not in str(caught.value)
    assert await registry.tokens() == known
    await registry.authenticate(_IMPORTED)
    with pytest.raises(UnauthorizedError):
        await registry.authenticate(other)


async def test_a_token_of_the_default_organization_can_be_imported(registry: Registry) -> None:
    await registry.import_token("default/o9/t9/value")
    assert (await registry.authenticate("default/o9/t9/value")).org_id == "o9"


@pytest.mark.parametrize("text", ["", "a/b/c", "a/b/c/d/e", "a//c/d", "a/b/c/\x07", "a b/c/d/e", "ä/b/c/d", "a" * 2000])
async def test_a_token_of_another_shape_is_not_imported(registry: Registry, text: str) -> None:
    known = await registry.tokens()
    with pytest.raises(InvalidError) as caught:
        await registry.import_token(text)
    assert not text or text not in str(caught.value)
    assert await registry.tokens() == known


@pytest.mark.parametrize("org", ["", "a/b", "a b", " a", "a\n", "ä", "a" * 2000])
async def test_an_organization_that_no_token_can_name_is_not_made(registry: Registry, org: str) -> None:
    known = await registry.tokens()
    with pytest.raises(InvalidError):
        await registry.create_token(org, "")
    assert await registry.tokens() == known


async def test_who_authenticates_does_not_wait_for_a_writer(registry: Registry, file: Path) -> None:
    info, text = await registry.create_token("acme", "")
    sprite = await add(registry, info.org_id, "web")
    with other_writer(file):
        assert (await registry.authenticate(text)).org == "acme"
        assert await registry.sprite(info.org_id, "web") == sprite


_PART = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="/"), min_size=1, max_size=40)


@given(st.tuples(_PART, _PART, _PART, _PART), st.sampled_from(["", "\n", " ", "\r\n"]))
def test_a_token_splits_into_what_it_was_made_of(parts: tuple[str, str, str, str], around: str) -> None:
    assert split_token(around + "/".join(parts) + around) == parts


@given(st.text())
def test_text_that_splits_is_whole(text: str) -> None:
    try:
        parts = split_token(text)
    except InvalidError:
        return
    assert "/".join(parts) == text.strip()
    assert all(part.isascii() and part.isprintable() and " " not in part for part in parts)

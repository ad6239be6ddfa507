"""What the volume log needs of a store, asked of every store."""

from __future__ import annotations

import asyncio
import random

import pytest

from ballpoint.core.errors import InvalidError, NotFoundError
from ballpoint.store import store as stores
from ballpoint.store.store import Store, list_all
from tests.support.seeds import fresh_seed

# In the order of their bytes. Of MIXED a walk through directories would give another: no key is to be like that, and
# where a server orders them all the same, so do we.
ORDERED = ["Z-b", "Z.b", "a/b-c", "a/b.c", "a/c/c", "a/c/c-d", "a/c0", "a0", "aB", "a_", "aa/x", "b"]
MIXED = ["a-b", "a.b", "a/b-c", "a/b.c", "a/b/c", "a/b/c-d", "a/b0", "a0", "aB", "a_", "aa/x", "b"]


async def keys(store: Store, prefix: str = "", **query: object) -> list[str]:
    return [item.key for item in await store.list(prefix, **query)]  # type: ignore[arg-type]


async def fill(store: Store, names: list[str]) -> None:
    await asyncio.gather(*(store.put(name, name.encode()) for name in names))


async def test_what_is_created_is_there(store: Store) -> None:
    assert await store.create("a/b/c", b"data")
    assert await store.get("a/b/c") == b"data"
    assert [(item.key, item.size) for item in await store.list("")] == [("a/b/c", 4)]


async def test_an_empty_object_is_one(store: Store) -> None:
    assert await store.create("empty", b"")
    for length in (None, 0, 10):
        assert await store.get("empty", 0, length) == b""
    with pytest.raises(InvalidError):
        await store.get("empty", 1, 1)
    assert not await store.create("empty", b"not")


async def test_the_first_to_create_wins(store: Store) -> None:
    assert await store.create("key", b"first")
    assert not await store.create("key", b"second")
    assert await store.get("key") == b"first"


async def test_of_many_at_once_one_creates(store: Store) -> None:
    async def race(key: str) -> None:
        made = await asyncio.gather(*(store.create(key, str(n).encode()) for n in range(16)))
        assert made.count(True) == 1
        assert await store.get(key) == str(made.index(True)).encode()

    # SeaweedFS has some of the racers wait for seconds: the rounds go side by side.
    await asyncio.gather(*(race(f"race/{round_}") for round_ in range(20)))


async def test_what_was_deleted_can_be_created_again(store: Store) -> None:
    assert await store.create("key", b"first")
    await store.delete(["key"])
    assert await store.create("key", b"second")
    assert await store.get("key") == b"second"


async def test_put_may_be_repeated(store: Store) -> None:
    for _ in range(3):
        await store.put("packs/one", b"data")
    assert await store.get("packs/one") == b"data"


async def test_large_objects_are_whole(store: Store) -> None:
    data = random.Random(1).randbytes(9 << 20)
    await store.put("large", data)
    assert await store.get("large") == data
    assert await store.get("large", 4 << 20, 1 << 20) == data[4 << 20 : 5 << 20]


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, None, b"0123456789"), (3, 4, b"3456"), (3, None, b"3456789"), (8, 100, b"89"), (0, 0, b""), (9, 1, b"9")],
)
async def test_a_part(store: Store, start: int, length: int | None, expected: bytes) -> None:
    await store.put("key", b"0123456789")
    assert await store.get("key", start, length) == expected


async def test_a_part_beyond_the_end(store: Store) -> None:
    await store.put("key", b"0123456789")
    for start in (10, 11):
        with pytest.raises(InvalidError):
            await store.get("key", start, 1)


@pytest.mark.parametrize("key", ["nothing", "a", "a/b/c", "a/b/c/d", "z/y"])
async def test_what_is_not_there(store: Store, key: str) -> None:
    await store.put("a/b", b"")
    with pytest.raises(NotFoundError):
        await store.get(key)
    await store.delete([key])
    assert await keys(store) == ["a/b"]


async def test_deletes_come_in_batches(store: Store) -> None:
    names = [f"k/{n:04}" for n in range(50)]
    await fill(store, names)
    await store.delete([*names[10:40], "k/none"])
    assert await keys(store) == names[:10] + names[40:]
    await store.delete([])


async def listed_in_order(store: Store, names: list[str]) -> None:
    await fill(store, names)
    assert await keys(store) == sorted(names)
    for prefix in ["a", "a/", "a/b", "a/c", "aa/", "b", "c", "a/b/", "a/c/", "a-", "Z"]:
        expected = [name for name in sorted(names) if name.startswith(prefix)]
        assert await keys(store, prefix) == expected
        for after in [*names, "a/", "a/b/", "0", "zz"]:
            assert await keys(store, prefix, after=after) == [name for name in expected if name > after]
        assert await keys(store, prefix, limit=1) == expected[:1]
    assert await keys(store, limit=5) == sorted(names)[:5]
    assert await keys(store, limit=0) == []


async def test_keys_are_listed_in_the_order_of_their_bytes(store: Store) -> None:
    await listed_in_order(store, ORDERED)


async def test_keys_beside_directories_are_listed_in_the_order_of_their_bytes(byte_ordered: Store) -> None:
    await listed_in_order(byte_ordered, MIXED)


async def test_any_keys_are_listed_in_the_order_of_their_bytes(store: Store) -> None:
    seed = fresh_seed()
    chance = random.Random(seed)
    names: set[str] = set()
    for _ in range(60):
        name = "/".join("".join(chance.choices("aB0_", k=chance.randint(1, 3))) for _ in range(chance.randint(1, 4)))
        # A file system has no file where it has a directory.
        if not any(name.startswith(f"{other}/") or other.startswith(f"{name}/") for other in names):
            names.add(name)
    await fill(store, sorted(names, key=lambda _: chance.random()))
    for _ in range(40):
        prefix, after = chance.choice([*names])[: chance.randint(0, 4)], chance.choice([*names, ""])
        prefix = prefix.rstrip("/")
        limit = chance.randint(1, 12)
        expected = sorted(name for name in names if name.startswith(prefix) and name > after)
        assert await keys(store, prefix, after=after, limit=limit) == expected[:limit]


async def test_a_listing_goes_on_where_a_page_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "LIST_MAX", 7)
    names = [f"page/{n:03}" for n in range(30)]
    await fill(store, names)
    assert [item.key for item in await list_all(store, "page/")] == names


async def test_a_listing_sees_what_was_answered_before(store: Store) -> None:
    for n in range(30):
        assert await store.create(f"log/{1000 - n:04}", b"")
        assert await keys(store, "log/", limit=1) == [f"log/{1000 - n:04}"]
        if n % 3 == 2:
            await store.delete([f"log/{1000 - n:04}"])
            assert await keys(store, "log/", limit=1) == [f"log/{1001 - n:04}"]


NO_KEYS = ["", "/", "a/", "/a", "a//b", "..", "a/../b", ".new/x", "a b", "ä", "a\0", "a\n", 600 * "x"]


@pytest.mark.parametrize("key", NO_KEYS)
async def test_what_is_no_key_is_refused(store: Store, key: str) -> None:
    for call in (store.get(key), store.put(key, b""), store.create(key, b""), store.delete([key])):
        with pytest.raises(InvalidError):
            await call
    assert await keys(store) == []

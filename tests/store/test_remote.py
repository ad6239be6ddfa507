"""What only a network can get wrong: answers that are lost, late, or say something else than they seem to."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import pytest
from obstore.store import LocalStore, S3Store

from ballpoint.core import ids
from ballpoint.core.errors import InvalidError, NotFoundError, UnavailableError
from ballpoint.store.remote import RemoteStore
from ballpoint.store.settle import create_settled
from ballpoint.store.store import Store, UnknownOutcomeError
from ballpoint.store.url import open_store
from tests.store import servers
from tests.store.proxy import LOST_ANSWER, LOST_REQUEST, SILENCE, Fate, Proxy, proxied, says

KEY = "log/1"


@pytest.fixture
async def proxy(seaweedfs: str) -> AsyncIterator[Proxy]:
    async with proxied(seaweedfs) as made:
        yield made


@pytest.fixture
def behind(proxy: Proxy) -> Store:
    """A store behind the proxy."""
    return open_store(servers.store_url(proxy.endpoint, ids.new_uuid()))


def impatient(endpoint: str, seconds: float = 1.0) -> Store:
    """A store whose calls have so long."""
    objects = S3Store(
        servers.BUCKET,
        endpoint=endpoint,
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    return RemoteStore(objects, "the store", ids.new_uuid(), seconds=seconds)


@pytest.mark.parametrize("fate", [LOST_ANSWER, says(500, "InternalError", forward=True), says(503, forward=True)])
async def test_a_create_whose_answer_is_lost_is_not_sent_again(proxy: Proxy, behind: Store, fate: Fate) -> None:
    """Sent again, it would find what it has made itself, and take it for another's."""
    proxy.fates = [fate]
    with pytest.raises(UnknownOutcomeError):
        await behind.create(KEY, b"ours")
    assert proxy.requests == ["PUT"]
    assert await behind.get(KEY) == b"ours"


async def test_a_create_that_never_came_is_not_known_either(proxy: Proxy, behind: Store) -> None:
    proxy.fates = [LOST_REQUEST]
    with pytest.raises(UnknownOutcomeError):
        await behind.create(KEY, b"ours")
    with pytest.raises(NotFoundError):
        await behind.get(KEY)


async def test_a_create_whose_answer_is_lost_is_settled(proxy: Proxy, behind: Store) -> None:
    proxy.fates = [LOST_ANSWER, LOST_ANSWER, says(503), LOST_REQUEST]
    assert await create_settled(behind, KEY, b"ours")
    assert not await create_settled(behind, KEY, b"theirs")


async def test_a_conflict_is_neither_success_nor_existence(proxy: Proxy, behind: Store) -> None:
    proxy.fates = [says(409, "ConditionalRequestConflict")] * 3
    assert await behind.create(KEY, b"first")
    proxy.fates = [says(409, "OperationAborted")]
    assert not await behind.create(KEY, b"second")
    assert await behind.get(KEY) == b"first"


async def test_a_conflict_that_does_not_end_leaves_it_open(proxy: Proxy) -> None:
    proxy.after = says(409, "ConditionalRequestConflict")
    with pytest.raises(UnknownOutcomeError):
        await impatient(proxy.endpoint).create(KEY, b"data")


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (404, "NoSuchBucket"), (429, "TooManyRequests")])
async def test_a_create_that_is_refused_is_not_made(proxy: Proxy, behind: Store, status: int, code: str) -> None:
    proxy.fates = [says(status, code)]
    with pytest.raises(UnavailableError, match=code) as caught:
        await behind.create(KEY, b"data")
    assert not isinstance(caught.value, UnknownOutcomeError)
    assert await behind.create(KEY, b"data")


PASSING = [
    LOST_ANSWER,
    LOST_REQUEST,
    says(500, "InternalError"),
    says(503, "SlowDown", forward=True),
    says(409, "OperationAborted"),
    says(429),
    says(400, "RequestTimeout"),
]


@pytest.mark.parametrize("fate", PASSING, ids=str)
async def test_what_is_idempotent_is_repeated(proxy: Proxy, behind: Store, fate: Fate) -> None:
    proxy.fates = [fate]
    await behind.put("a", b"data")
    proxy.fates = [fate, fate]
    assert await behind.get("a") == b"data"
    proxy.fates = [fate]
    assert [item.key for item in await behind.list("")] == ["a"]
    proxy.fates = [fate]
    await behind.delete(["a"])
    assert await behind.list("") == []


@pytest.mark.parametrize("after", [SILENCE, LOST_REQUEST, says(503)], ids=["silence", "lost", "busy"])
async def test_an_outage_is_told_at_the_deadline(proxy: Proxy, after: Fate) -> None:
    store = impatient(proxy.endpoint)
    proxy.after = after
    changes: list[Callable[[], Coroutine[None, None, object]]] = [
        lambda: store.put("a", b""),
        lambda: store.create("a", b""),
        lambda: store.delete(["a"]),
    ]
    for change in changes:
        with pytest.raises(UnknownOutcomeError):
            await change()
    for look in (store.get("a"), store.list("")):
        with pytest.raises(UnavailableError) as caught:
            await look
        assert not isinstance(caught.value, UnknownOutcomeError)


async def test_a_silent_connection_does_not_have_the_whole_deadline(moto: str) -> None:
    """Before a server that answers at once: SeaweedFS may itself be silent for seconds."""
    async with proxied(moto) as proxy:
        store = impatient(proxy.endpoint, seconds=12.0)
        await store.put("a", b"data")
        proxy.fates = [SILENCE]
        assert await store.get("a") == b"data"
        assert proxy.fates == []


async def test_a_change_that_may_have_been_made_is_not_called_refused(proxy: Proxy, behind: Store) -> None:
    proxy.fates = [LOST_ANSWER, says(403, "ExpiredToken")]
    with pytest.raises(UnknownOutcomeError):
        await behind.put("a", b"data")
    proxy.fates = [says(429), says(403, "ExpiredToken")]
    with pytest.raises(UnavailableError) as caught:
        await behind.put("b", b"data")
    assert not isinstance(caught.value, UnknownOutcomeError)
    assert [item.key for item in await behind.list("")] == ["a"]


async def test_a_bucket_that_is_not_there_is_no_object_that_is_not_there(moto: str) -> None:
    store = open_store(servers.store_url(moto, bucket="no-such-bucket"))
    calls: list[Callable[[], Coroutine[None, None, object]]] = [
        lambda: store.get("a"),
        lambda: store.get("a", 0, 0),
        lambda: store.create("a", b""),
        lambda: store.put("a", b""),
        lambda: store.list(""),
        lambda: store.delete(["a"]),
    ]
    for call in calls:
        with pytest.raises(UnavailableError, match="NoSuchBucket") as caught:
            await call()
        assert caught.value.hint and "bucket" in caught.value.hint


async def test_wrong_credentials_are_said_and_not_shown(seaweedfs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-secret")
    store = open_store(servers.store_url(seaweedfs, ids.new_uuid()))
    with pytest.raises(UnavailableError, match="403 SignatureDoesNotMatch") as caught:
        await store.get("a")
    shown = "".join(traceback.format_exception(caught.value))
    assert "credentials in the environment" in shown
    assert "secret" not in shown


@pytest.mark.parametrize(("status", "code"), [(403, "AuthenticationFailed"), (400, "InvalidQueryParameterValue")])
async def test_a_signature_that_the_server_quotes_is_not_shown(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    """Azure quotes the shared access signature that it does not like, S3 what was signed; obstore quotes both."""
    signature = "c2VjcmV0LXNpZ25hdHVyZQ=="
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", f"sv=2024-11-04&sig={signature}")
    store = open_store(f"az://container/p?account=someone&endpoint={proxy.endpoint}")
    calls: list[Callable[[], Coroutine[None, None, object]]] = [
        lambda: store.get("a"),
        lambda: store.put("a", b""),
        lambda: store.create("a", b""),
        lambda: store.list(""),
        lambda: store.delete(["a"]),
    ]
    proxy.after = says(status, code, f"Signature did not match: sig={signature}")
    for call in calls:
        with pytest.raises(UnavailableError, match=code) as caught:
            await call()
        assert signature not in "".join(traceback.format_exception(caught.value))
    proxy.after = says(404, "BlobNotFound", f"sig={signature}")
    with pytest.raises(NotFoundError) as missing:
        await store.get("a")
    assert signature not in "".join(traceback.format_exception(missing.value))


async def test_azure_says_with_a_conflict_that_a_blob_exists(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    store = open_store(f"az://container/p?account=someone&endpoint={proxy.endpoint}")
    proxy.fates = [says(409, "BlobAlreadyExists")]
    assert not await store.create("a", b"")
    proxy.fates = [says(409, "LeaseAlreadyPresent"), says(412, "ConditionNotMet")]
    assert not await store.create("a", b"")


async def test_an_object_that_is_not_there_does_not_keep_others_from_being_deleted(tmp_path: Path) -> None:
    """obstore's store of a directory fails at such an object, as GCS and Azure do."""
    store = RemoteStore(LocalStore(tmp_path), "the store", "p")
    names = [f"k/{n:03}" for n in range(30)]
    for name in names[::2]:
        await store.put(name, b"")
    await store.delete(names)
    assert await store.list("") == []


async def test_a_store_that_lists_in_another_order_is_found_out(seaweedfs: str) -> None:
    store = open_store(servers.store_url(seaweedfs, ids.new_uuid()))
    await store.put("a/b", b"")
    await store.put("a-b", b"")
    with pytest.raises(InvalidError, match="a-b after a/b"):
        await store.list("")


async def test_stores_of_other_prefixes_are_not_seen(seaweedfs: str) -> None:
    prefix = ids.new_uuid()
    below, beside = (open_store(servers.store_url(seaweedfs, name)) for name in (f"{prefix}/a", f"{prefix}/ab"))
    for store in (below, beside):
        assert await store.create("key", b"")
    whole = open_store(servers.store_url(seaweedfs, prefix))
    assert [item.key for item in await whole.list("")] == ["a/key", "ab/key"]
    assert [item.key for item in await below.list("")] == ["key"]

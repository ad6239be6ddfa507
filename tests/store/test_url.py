"""A store's URL: what it names, what it must not hold, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ballpoint.core import ids
from ballpoint.core.errors import InvalidError
from ballpoint.store.directory import DirectoryStore
from ballpoint.store.remote import RemoteStore
from ballpoint.store.url import check_url, directory_of, open_store, redacted, variables
from tests.store import servers

SECRET = "hunter2"


async def test_a_directory(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/some%20objects")
    assert isinstance(store, DirectoryStore)
    await store.create("key", b"")
    assert (tmp_path / "some objects" / "key").exists()
    await store.close()


async def test_a_bucket_with_and_without_a_prefix(seaweedfs: str) -> None:
    prefix = ids.new_uuid()
    store = open_store(servers.store_url(seaweedfs, f"{prefix}/below/"))
    assert await store.create("key", b"data")
    assert await open_store(servers.store_url(seaweedfs)).get(f"{prefix}/below/key") == b"data"


@pytest.mark.parametrize("url", ["gs://bucket/prefix", "gs://bucket", "az://container/prefix?account=someone"])
async def test_the_others(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    assert isinstance(open_store(url), RemoteStore)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "objects",
        "/var/objects",
        "http://host/bucket",
        "file://objects",
        "file://host/objects",
        "file:///objects?x=y",
        "file:///a%00b",
        "s3://",
        "s3:///prefix",
        "s3://b",
        "s3://bucket:9000/prefix",
        "s3://[bucket/prefix",
        "s3://bucket//prefix",
        "s3://bucket/pre fix",
        "s3://bucket/../other",
        f"s3://bucket/{257 * 'x'}",
        "s3://bucket?region",
        "s3://bucket?region=",
        "s3://bucket?region=a&region=b",
        "s3://bucket#fragment",
        "s3://bucket?endpoint=host:9000",
        "s3://bucket?endpoint=ftp://host",
        "s3://bucket?endpoint=http://",
        "s3://bucket?endpoint=http://host:port",
        "s3://bucket?account=someone",
        "gs://bucket?region=here",
    ],
)
@pytest.mark.parametrize("take", [open_store, check_url])
def test_what_names_no_store_is_refused(url: str, take: Callable[[str], object]) -> None:
    with pytest.raises(InvalidError) as caught:
        take(url)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"s3://key:{SECRET}@bucket/prefix",
        f"s3://{SECRET}@bucket/prefix",
        f"s3://bucket/prefix?secret_access_key={SECRET}",
        f"s3://bucket/prefix?X-Amz-Signature={SECRET}&region=here",
        f"s3://bucket?endpoint=http://key:{SECRET}@host:9000",
        f"s3://bucket?endpoint=http://host:9000?token={SECRET}",
        f"az://container/prefix?account=someone&sig={SECRET}",
        f"file://user:{SECRET}@localhost/objects",
    ],
)
@pytest.mark.parametrize("take", [open_store, check_url])
def test_a_credential_is_refused_and_not_shown(url: str, take: Callable[[str], object]) -> None:
    with pytest.raises(InvalidError) as caught:
        take(url)
    assert caught.value.hint and "environment" in caught.value.hint
    assert SECRET not in str(caught.value)
    assert SECRET not in redacted(url)


@pytest.mark.parametrize(
    "url", ["s3://bucket?" + SECRET, "s3://bucket#" + SECRET, f"s3://[{SECRET}", f"s3://b?{SECRET}="]
)
def test_what_cannot_be_read_is_not_shown_either(url: str) -> None:
    assert SECRET not in redacted(url)


@pytest.mark.parametrize(
    "url",
    [
        "file:///var/objects",
        "s3://bucket/prefix?endpoint=http://127.0.0.1:9000&region=here",
        "gs://bucket",
        "az://container/prefix?account=someone",
    ],
)
def test_what_holds_no_secret_is_taken_and_shown_whole(url: str) -> None:
    assert check_url(url) == redacted(url) == url


def test_what_the_environment_lacks_is_said_without_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", f"{SECRET} is no base64")
    for url in ("az://container", "az://container?account=someone"):
        with pytest.raises(InvalidError, match="environment") as caught:
            open_store(url)
        assert SECRET not in str(caught.value)


def test_a_child_is_given_what_its_store_is_opened_with_and_no_more() -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": "1",
        "GOOGLE_SERVICE_ACCOUNT": "2",
        "AZURE_STORAGE_ACCOUNT_KEY": "3",
        "PATH": "4",
    }
    given = {url: set(variables(url, environment).values()) for url in ("s3://b", "gs://b", "az://b", "file:///b")}
    assert given == {"s3://b": {"1"}, "gs://b": {"2"}, "az://b": {"3"}, "file:///b": set()}


def test_a_directory_is_told_from_the_others(tmp_path: Path) -> None:
    assert directory_of(f"file://{tmp_path}/some%20objects") == tmp_path / "some objects"
    assert directory_of("s3://bucket/prefix") is None

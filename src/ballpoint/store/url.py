"""A store by its URL. The URL is in configuration and logs, so no credential may be in it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from obstore import exceptions
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from ballpoint.core.errors import InvalidError
from ballpoint.store.directory import DirectoryStore
from ballpoint.store.remote import RemoteStore
from ballpoint.store.store import Store, check_key

if TYPE_CHECKING:  # they are in obstore's stubs alone
    from obstore.store import AzureConfig, ClientConfig, RetryConfig, S3Config

FORMS = "file:///DIR, s3://BUCKET[/PREFIX][?endpoint=URL&region=NAME], gs://BUCKET[/PREFIX], az://CONTAINER[/PREFIX]"

_VARIABLES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
_SETTINGS = {"file": set[str](), "s3": {"endpoint", "region"}, "gs": set[str](), "az": {"account", "endpoint"}}
# What all three allow, and more: the provider has the last word.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,220}[A-Za-z0-9]")

# S3 has keys of up to 1,024 bytes, GCS and Azure too; ours take 512 of them.
_PREFIX_MAX = 256

# Every request is made once: RemoteStore knows which may be made again, and has a deadline for all of it.
_ONCE: RetryConfig = {"max_retries": 0}
# Longer than any of those deadlines, which are what ends a request.
_CLIENT: ClientConfig = {"timeout": timedelta(hours=1), "connect_timeout": timedelta(seconds=10)}


def open_store(url: str) -> Store:
    """The store that `url` names. Credentials are taken from the environment (docs/store.md). No request is made.

    Raises:
        InvalidError: the URL is none of FORMS, or holds a credential, or the environment lacks something.
        UnavailableError: a directory cannot be made or written to.
    """
    parts, settings = _split(url)
    if parts.scheme == "file":
        return DirectoryStore(_directory(url, parts))
    name = redacted(url)
    return RemoteStore(_objects(name, parts, settings), name, _prefix(url, parts))


def check_url(url: str) -> str:
    """`url`, if it has one of FORMS; then it holds no credential, and may be stored and shown as it is.

    Raises:
        InvalidError: it has not.
    """
    parts, _ = _split(url)
    if parts.scheme == "file":
        _directory(url, parts)
    else:
        _prefix(url, parts)
    return url


def directory_of(url: str) -> Path | None:
    """The directory that a `file:` URL of FORMS names; None of another kind."""
    parts, _ = _split(url)
    return _directory(url, parts) if parts.scheme == "file" else None


def variables(url: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Those of `environment` that the store of `url` is opened with, for a child process that gets no others."""
    prefix = _VARIABLES.get(urlsplit(url).scheme)
    return {name: value for name, value in environment.items() if prefix is not None and name.startswith(prefix)}


def redacted(url: str) -> str:
    """`url` as it may be shown: what could be a credential is left out, if somebody wrote one into it."""
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        if "endpoint" in query:
            endpoint = urlsplit(query["endpoint"])
            query["endpoint"] = f"{endpoint.scheme}://{_host(endpoint)}"
    except ValueError:
        return "(a URL that cannot be read)"
    known = {name: value for name, value in query.items() if name in _SETTINGS.get(parts.scheme, set())}
    shown = f"?{urlencode(known, safe=':/')}" if known else ""
    return f"{parts.scheme}://{_host(parts)}{parts.path}{shown}"


def _split(url: str) -> tuple[SplitResult, dict[str, str]]:
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        _refuse(url, "cannot be read")
    if parts.scheme not in _SETTINGS:
        _refuse(url, "is of no kind that is known")
    if "@" in parts.netloc:
        _refuse_credential(url, "has a user or a password")
    settings = dict(pairs)
    if unknown := settings.keys() - _SETTINGS[parts.scheme]:
        _refuse_credential(url, f"has {', '.join(sorted(unknown))!r}, which is no setting of it")
    if len(settings) != len(pairs) or parts.fragment or not all(settings.values()):
        _refuse(url, "has a setting twice, an empty one, or a fragment")
    if "endpoint" in settings:
        _check_endpoint(url, settings["endpoint"])
    return parts, settings


def _check_endpoint(url: str, endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        _refuse(url, "has an endpoint that cannot be read")
    if "@" in parts.netloc or parts.query:
        _refuse_credential(url, "has an endpoint with a user, a password or a query")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.fragment:
        _refuse(url, "has an endpoint that is no http:// or https:// URL")


def _directory(url: str, parts: SplitResult) -> Path:
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        _refuse(url, "does not name a directory of this host by its whole path")
    return Path(path)


def _prefix(url: str, parts: SplitResult) -> str:
    """What all keys begin with, without the slash behind it."""
    if not _BUCKET.fullmatch(parts.netloc):
        _refuse(url, "has no bucket's name")
    prefix = parts.path.removeprefix("/").removesuffix("/")
    if len(prefix) > _PREFIX_MAX:
        _refuse(url, f"has a prefix of more than {_PREFIX_MAX} characters")
    return check_key(prefix) if prefix else ""


def _objects(name: str, parts: SplitResult, settings: dict[str, str]) -> ObjectStore:
    client: ClientConfig = {**_CLIENT, "allow_http": settings.get("endpoint", "").startswith("http:")}
    try:
        match parts.scheme:
            case "s3":
                s3: S3Config = {}
                if "endpoint" in settings:
                    s3["endpoint"] = settings["endpoint"]
                if "region" in settings:
                    s3["region"] = settings["region"]
                return S3Store(parts.netloc, config=s3, client_options=client, retry_config=_ONCE)
            case "gs":
                return GCSStore(parts.netloc, client_options=client, retry_config=_ONCE)
            case _:
                azure: AzureConfig = {}
                if "account" in settings:
                    azure["account_name"] = settings["account"]
                if "endpoint" in settings:
                    azure["endpoint"] = settings["endpoint"]
                return AzureStore(parts.netloc, config=azure, client_options=client, retry_config=_ONCE)
    except exceptions.BaseError:
        # Without the cause: it may quote the setting that it does not understand.
        raise InvalidError(
            f"{name} cannot be opened with what is in the environment", hint="docs/store.md names the variables"
        ) from None


def _host(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2]


def _refuse(url: str, why: str) -> NoReturn:
    raise InvalidError(f"the store's URL {redacted(url)} {why}", hint=f"one of {FORMS}")


def _refuse_credential(url: str, why: str) -> NoReturn:
    raise InvalidError(
        f"the store's URL {redacted(url)} {why}", hint="credentials come from the environment: docs/store.md"
    )

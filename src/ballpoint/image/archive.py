"""Standard images in the store: below each disk that is kept there lies one, and a host that lacks it fetches it.

    images/<digest>/<hash>   a part of the file, named by the blake3 of its bytes; stored as one zstd frame
    images/<digest>/index    which parts make the file, and what is known of it (`Index`)

The index is put last, so an image is whole once it has one. What is put twice, by whomever, is the same image.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import zstandard
from blake3 import blake3

from ballpoint.core.errors import ConflictError, CorruptError, NotFoundError, UnavailableError
from ballpoint.core.threads import to_the_end
from ballpoint.image.catalogue import Catalogue, Image
from ballpoint.image.progress import Progress
from ballpoint.store.store import LIST_MAX, Store, list_all

_BELOW = "images/"
_INDEX = "index"
_FORMAT = 1
_PART_BYTES = 16 << 20
# In memory at once, each twice: as it is stored and as it is.
_FETCHED_AT_ONCE = 4
_LEVEL = 3
_ROUNDS = 3
_KEY = re.compile(rf"{_BELOW}([0-9a-f]{{64}})/([0-9a-f]{{64}}|{_INDEX})")


_Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Index(msgspec.Struct, frozen=True):
    """Content of an image's index, as JSON. Unknown keys are left alone.

    Attributes:
        size: bytes of the file.
        part_bytes: of each part but the last, which may have fewer.
        parts: their hashes, hexadecimal, in order.
        recipe, recipe_digest, built_at: as `Image`.
    """

    size: int
    part_bytes: int
    parts: tuple[_Hash, ...]
    recipe: str
    recipe_digest: str
    built_at: str
    format: int = _FORMAT


class _Format(msgspec.Struct, frozen=True):
    """What is read of it first."""

    format: int


def _nobody(_: Progress) -> None:
    pass


async def keep(
    store: Store, image: Image, progress: Callable[[Progress], None] = _nobody, *, threads: Executor | None = None
) -> int:
    """Put `image` into the store, or what is missing of it there. Idempotent; one part after the other.

    Args:
        threads: where parts are hashed and compressed; the loop's own by default.

    Returns:
        How many bytes were put.

    Raises:
        UnavailableError: the store does not answer, or somebody removes the image at the same time. What was put stays
            put: call again.
        CorruptError: the image's file, or its index in the store, is damaged.
    """
    put = 0
    for _ in range(_ROUNDS):
        there = await _names(store, image.digest)
        index = await _read_index(store, image.digest) if _INDEX in there else None
        if index is not None and there.issuperset(index.parts):
            return put
        put += await _put_missing(store, image, there, progress, threads)
    raise UnavailableError(f"the image {image.digest[:16]} is being removed from the store", hint="try again")


async def fetch(
    store: Store, catalogue: Catalogue, digest: str, progress: Callable[[Progress], None] = _nobody
) -> Image | None:
    """Bring the image `digest` from the store to this host. A crash half-way leaves parts that the next call finds.

    Returns:
        The image; None where another process is fetching it, or has just done so.

    Raises:
        NotFoundError: the store has none of that name.
        ConflictError: a later version of this program put it there.
        CorruptError: it is damaged there; what and where is said.
        UnavailableError: the store does not answer, or this host has no room for it.
    """
    if catalogue.has(digest):
        return catalogue.find(digest)
    index = await _read_index(store, digest)
    if index is None:
        raise NotFoundError(
            f"neither this host nor the store has the image {digest[:16]}", hint="copy it from a host that has it"
        )
    with catalogue.receiving(digest) as file:
        if file is None:
            return None
        try:
            await _fill(store, digest, index, file, progress)
            progress(Progress("checking the image", 0.95))
            admit = partial(
                catalogue.admit,
                digest,
                recipe=index.recipe,
                recipe_digest=index.recipe_digest,
                built_at=index.built_at,
            )
            image = await to_the_end(admit)
        except OSError as error:
            raise UnavailableError(f"the image {digest[:16]} cannot be written to {file}: {error.strerror}") from error
    progress(Progress("done", 1.0))
    return image


async def kept_images(store: Store) -> dict[str, int]:
    """Digests of the images in the store, or of which something is there, and their bytes as they are stored."""
    found: dict[str, int] = {}
    for item in await list_all(store, _BELOW):
        key = _KEY.fullmatch(item.key)
        if key is not None:
            found[key[1]] = found.get(key[1], 0) + item.size
    return found


async def drop(store: Store, digests: Collection[str]) -> int:
    """Remove images from the store; the caller knows that no disk there names them. Idempotent.

    A crash half-way leaves parts without an index, which is no image.

    Returns:
        How many bytes were freed.
    """
    freed = 0
    for digest in digests:
        items = await list_all(store, f"{_BELOW}{digest}/")
        await store.delete([_key(digest, _INDEX)])
        keys = [item.key for item in items]
        for first in range(0, len(keys), LIST_MAX):
            await store.delete(keys[first : first + LIST_MAX])
        freed += sum(item.size for item in items)
    return freed


async def _put_missing(
    store: Store, image: Image, there: set[str], progress: Callable[[Progress], None], threads: Executor | None
) -> int:
    """Put the parts that are not `there`, which they are added to, and then the index. Returns the bytes put."""
    put = 0
    parts = []
    loop = asyncio.get_running_loop()
    with image.path.open("rb") as file:
        for start in range(0, image.size, _PART_BYTES):
            name, stored = await loop.run_in_executor(threads, _read_part, file.fileno(), start, there)
            if stored is not None:
                await store.put(_key(image.digest, name), stored)
                put += len(stored)
                there.add(name)
            parts.append(name)
            progress(Progress("putting the image into the store", min(1.0, (start + _PART_BYTES) / image.size)))
    index = Index(image.size, _PART_BYTES, tuple(parts), image.recipe, image.recipe_digest, image.built_at)
    text = msgspec.json.encode(index)
    # Where another node has put it, that one is as good: it differs in the date at most.
    return put + (len(text) if await store.create(_key(image.digest, _INDEX), text) else 0)


def _read_part(fd: int, start: int, there: set[str]) -> tuple[str, bytes | None]:
    """The name of the part at `start`, and how it is stored where it is not there."""
    content = os.pread(fd, _PART_BYTES, start)
    name = blake3(content).hexdigest()
    return name, None if name in there else zstandard.ZstdCompressor(level=_LEVEL).compress(content)


async def _fill(store: Store, digest: str, index: Index, file: Path, progress: Callable[[Progress], None]) -> None:
    """Bring all parts of an image into `file`, but those that are in it."""
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    done = 0
    slots = asyncio.Semaphore(_FETCHED_AT_ONCE)

    async def bring(number: int, name: str) -> None:
        nonlocal done
        async with slots:
            start = number * index.part_bytes
            size = min(index.part_bytes, index.size - start)
            # To the end: a thread that outlived the descriptor would write into whatever has its number next.
            if not await to_the_end(_is_there, fd, start, size, name):
                key = _key(digest, name)
                try:
                    stored = await store.get(key)
                except NotFoundError as error:
                    raise CorruptError(f"the store's image {digest[:16]} has lost {key}", hint=_MENDED) from error
                await to_the_end(_write_part, fd, start, size, stored, key, name)
            done += size
            progress(Progress("fetching the image", 0.95 * done / index.size))

    try:
        os.ftruncate(fd, index.size)
        async with asyncio.TaskGroup() as group:
            for number, name in enumerate(index.parts):
                group.create_task(bring(number, name))
    except* (CorruptError, UnavailableError, OSError) as errors:
        raise errors.exceptions[0] from None
    finally:
        os.close(fd)


def _is_there(fd: int, start: int, size: int, name: str) -> bool:
    return blake3(os.pread(fd, size, start)).hexdigest() == name


def _write_part(fd: int, start: int, size: int, stored: bytes, key: str, name: str) -> None:
    try:
        # The frame's own size is what zstd allocates, and it never writes more.
        said = zstandard.frame_content_size(stored)
        content = zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False) if said == size else b""
    except zstandard.ZstdError as error:
        raise CorruptError(f"{key} in the store is damaged: {error}", hint=_MENDED) from error
    if blake3(content).hexdigest() != name:
        raise CorruptError(f"{key} in the store is not what was put there", hint=_MENDED)
    left = memoryview(content)
    while left:  # a file system that is nearly full takes a part, and says why at the next
        written = os.pwrite(fd, left, start)
        left, start = left[written:], start + written


async def _names(store: Store, digest: str) -> set[str]:
    return {item.key.rpartition("/")[2] for item in await list_all(store, f"{_BELOW}{digest}/")}


async def _read_index(store: Store, digest: str) -> Index | None:
    """None where there is none.

    Raises:
        ConflictError: a later version put it there.
        CorruptError: it is damaged.
    """
    key = _key(digest, _INDEX)
    try:
        text = await store.get(key)
    except NotFoundError:
        return None
    try:
        if msgspec.json.decode(text, type=_Format).format > _FORMAT:
            raise ConflictError(f"a later version put {key} into the store", hint="use that version")
        index = msgspec.json.decode(text, type=Index)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptError(f"{key} in the store is damaged: {error}", hint=_MENDED) from error
    wanted = -(-index.size // index.part_bytes) if 0 < index.part_bytes <= _PART_BYTES else 0
    if not index.parts or len(index.parts) != wanted:
        raise CorruptError(f"{key} in the store contradicts itself", hint=_MENDED)
    return index


def _key(digest: str, name: str) -> str:
    return f"{_BELOW}{digest}/{name}"


_MENDED = "delete that object; a node that has the image puts it there at its next start"

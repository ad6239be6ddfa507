"""Which node uses which image: the record by which any node of a host may remove what none needs any more.

CACHE/images/.uses/NODE.json holds {"format", "data", "digests"} for each node, running or not, that has sprites or may
make some. It is read and written, and images are removed, only while .uses/.lock is held: an image that a node has
recorded is there, and stays.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import ConflictError, CorruptError, NotFoundError, UnavailableError
from ballpoint.host import process
from ballpoint.host.files import try_flock, write_atomically
from ballpoint.image.catalogue import Catalogue, Image
from ballpoint.image.recipe import RECIPES

log = logging.getLogger(__name__)

# What nobody has said to use for this long goes: until then, a node that keeps no record may still need it.
UNUSED_SECONDS = 7 * 24 * 3600.0
_FORMAT = 1
_LOCK_SECONDS = 60.0
_LOOK_SECONDS = 0.02


class Use(msgspec.Struct, frozen=True):
    """What one node uses.

    Attributes:
        data: the node's directory.
        digests: of the images its sprites are on, and of the one new sprites get while it runs.
    """

    data: Path
    digests: tuple[str, ...]
    format: int = _FORMAT


class Uses:
    """The records in a cache directory. Safe to use from several processes at once."""

    def __init__(self, cache: Path) -> None:
        self._catalogue = Catalogue(cache)
        self._root = cache / "images" / ".uses"

    def read(self) -> dict[str, Use]:
        """The records by node id.

        Raises:
            CorruptError: one of them is damaged; which images it names nobody knows.
            ConflictError: a later version wrote one.
        """
        found = {}
        for file in sorted(self._root.glob("*.json")):
            try:
                use = msgspec.json.decode(file.read_bytes(), type=Use, dec_hook=lambda kind, value: kind(value))
            except FileNotFoundError:
                continue
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                hint = f"start its node again, or remove {file} if there is none any more"
                raise CorruptError(f"{file} is damaged: {error}", hint=hint) from error
            if use.format > _FORMAT:
                raise ConflictError(f"a later version wrote {file}", hint="use that version")
            found[file.stem] = use
        return found

    def current(self, node_id: str, data: Path, recipe: str, digests: Iterable[str]) -> Image:
        """The newest image of `recipe`, recorded for the node together with `digests`.

        Raises:
            NotFoundError: it was not built.
            UnavailableError: somebody holds the lock for too long.
        """
        with self._locked():
            image = self._catalogue.current(recipe)
            if image is None:
                raise NotFoundError(f"the image {recipe} was not built", hint=f"ballpoint image build {recipe}")
            self._write(node_id, data, {*digests, image.digest})
        return image

    def record(self, node_id: str, data: Path, digests: Iterable[str]) -> None:
        """Replace what the node is known to use; it may name no image anew. Without any, the record is removed."""
        with self._locked():
            self._write(node_id, data, set(digests))

    def forget(self, node_id: str) -> bool:
        """Take it that the node is gone for good. Returns whether it had a record."""
        with self._locked():
            try:
                (self._root / f"{node_id}.json").unlink()
            except FileNotFoundError:
                return False
        return True

    def prune(self, unused_seconds: float = UNUSED_SECONDS) -> list[Image]:
        """Remove the images that no node uses and that a newer one of the same recipe has replaced.

        None is removed while one is being built: it may turn out to be the same.

        Args:
            unused_seconds: how long ago a node must have said last that it uses an image.

        Returns:
            Those removed.

        Raises:
            As `read`, and then nothing is removed.
        """
        removed = []
        with self._locked(), self._catalogue.without_builds() as alone:
            if not alone:
                return []
            used = {digest for use in self.read().values() for digest in use.digests}
            images = self._catalogue.list()
            # By the recipe as this program knows it: what an older or a newer one builds is not for it to judge.
            newest = {recipe: self._catalogue.current(recipe) for recipe in RECIPES}
            for image in images:
                replacement = newest.get(image.recipe)
                if replacement is None or image.built_at >= replacement.built_at or image.digest in used:
                    continue
                if SYSTEM_CLOCK.now().timestamp() - self._said(image.digest) < unused_seconds:
                    continue
                if self._catalogue.remove(image.digest):
                    removed.append(image)
        return removed

    def _write(self, node_id: str, data: Path, digests: set[str]) -> None:
        file = self._root / f"{node_id}.json"
        try:
            before = set(msgspec.json.decode(file.read_bytes(), type=dict)["digests"])
        except (FileNotFoundError, msgspec.DecodeError, KeyError, TypeError):
            before = set()
        for digest in {*before, *digests}:
            try:
                os.utime(self._catalogue.record(digest))
            except FileNotFoundError:
                log.warning("there is no image %s on this host", digest[:16])
        if digests:
            use = Use(data.resolve(), tuple(sorted(digests)))
            write_atomically(file, msgspec.json.encode(use, enc_hook=str))
        else:
            file.unlink(missing_ok=True)

    def _said(self, digest: str) -> float:
        """When it was built, or a node said last that it uses it or does no more: seconds since 1970."""
        return self._catalogue.record(digest).stat().st_mtime

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._root.mkdir(parents=True, exist_ok=True)
        deadline = SYSTEM_CLOCK.monotonic() + _LOCK_SECONDS
        with (self._root / ".lock").open("w") as lock:
            while not try_flock(lock.fileno()):
                if SYSTEM_CLOCK.monotonic() > deadline:
                    raise UnavailableError(f"another process holds {lock.name}", hint=f"lslocks; fuser {lock.name}")
                process.pause(_LOOK_SECONDS)
            yield

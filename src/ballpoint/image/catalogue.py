"""Built images of a host, shared by its nodes.

Layout below CACHE/images (docs/standard-image.md): DIGEST/{image.erofs,image.json}; .build-* while one is being built.
An image exists from the rename of its directory on.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from blake3 import blake3

from ballpoint.core.clock import SYSTEM_CLOCK, rfc3339
from ballpoint.core.errors import NotFoundError
from ballpoint.host.files import fsync_directory, remove_tree
from ballpoint.image.build import Progress, build_filesystem
from ballpoint.image.recipe import Recipe, load_recipe


class Image(msgspec.Struct, frozen=True):
    """A standard image.

    Attributes:
        digest: blake3 of the file, in hexadecimal: its name.
        recipe, recipe_digest: what it was built from.
        path: the erofs file.
        built_at: RFC 3339.
        size: bytes.
    """

    digest: str
    recipe: str
    recipe_digest: str
    path: Path
    built_at: str
    size: int


class Catalogue:
    """The images in a cache directory. Safe to use from several processes at once."""

    def __init__(self, cache: Path) -> None:
        self._root = cache / "images"
        self._root.mkdir(parents=True, exist_ok=True)

    def list(self) -> list[Image]:
        """All images, oldest first."""
        found = [self._read(path.parent) for path in self._root.glob("[0-9a-f]*/image.json")]
        return sorted(found, key=lambda image: image.built_at)

    def find(self, digest: str) -> Image:
        """The image `digest`. NotFoundError where the host has none of that name."""
        directory = self._root / digest
        if not digest.isalnum() or not (directory / "image.json").exists():
            raise NotFoundError(f"there is no image {digest[:16]!r} on this host", hint="ballpoint image list")
        return self._read(directory)

    def current(self, recipe: str) -> Image | None:
        """The newest image of a recipe as its text is now; None where it was not built yet."""
        digest = load_recipe(recipe).digest
        matching = [image for image in self.list() if (image.recipe, image.recipe_digest) == (recipe, digest)]
        return matching[-1] if matching else None

    def ensure(self, recipe: str, *, mirror: str | None, progress: Callable[[Progress], None]) -> Image:
        """The current image of `recipe`, built if there is none; a second process waits for the first."""
        found = self.current(recipe)
        if found is not None:
            return found
        with self._building():
            return self.current(recipe) or self._build(load_recipe(recipe), mirror, progress)

    def build(self, recipe: str, *, mirror: str | None, progress: Callable[[Progress], None]) -> Image:
        """Build `recipe` anew, with today's packages. The same packages give the same image.

        Raises:
            NotFoundError: there is no such recipe.
            UnavailableError: a tool is missing, or the mirror does not answer.
        """
        text = load_recipe(recipe)
        with self._building():
            return self._build(text, mirror, progress)

    def remove(self, digest: str) -> bool:
        """Remove an image; the caller knows that no volume names it. Returns whether it was there."""
        directory = self._root / digest
        if not digest.isalnum() or not directory.is_dir():
            return False
        (directory / "image.json").unlink(missing_ok=True)
        return remove_tree(directory)

    def _build(self, recipe: Recipe, mirror: str | None, progress: Callable[[Progress], None]) -> Image:
        partial = self._root / f".build-{os.getpid()}"
        partial.mkdir()
        try:
            file = partial / "image.erofs"
            build_filesystem(recipe, file, partial, mirror=mirror, progress=progress)
            digest = blake3(max_threads=blake3.AUTO).update_mmap(file).hexdigest()
            image = Image(
                digest, recipe.name, recipe.digest, self._root / digest / "image.erofs",
                rfc3339(SYSTEM_CLOCK.now()), file.stat().st_size,
            )  # fmt: skip
            with file.open("rb") as built:
                os.fsync(built.fileno())
            (partial / "image.json").write_bytes(msgspec.json.encode(image, enc_hook=str))
            target = self._root / digest
            if target.exists():  # the same packages: the same image, now known to be current
                (partial / "image.json").replace(target / "image.json")
            else:
                partial.rename(target)
            fsync_directory(self._root)
            return image
        finally:
            remove_tree(partial)

    @contextmanager
    def _building(self) -> Iterator[None]:
        """One build at a time; what an interrupted one left is removed first."""
        with (self._root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in self._root.glob(".build-*"):
                remove_tree(leftover)
            yield

    def _read(self, directory: Path) -> Image:
        values = json.loads((directory / "image.json").read_bytes())
        return msgspec.convert({**values, "path": directory / "image.erofs"}, Image, dec_hook=_path)


def _path(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)

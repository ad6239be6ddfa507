"""Built images of a host, shared by its nodes.

Layout below CACHE/images (docs/standard-image.md): DIGEST/{image.erofs,image.json}; .build-* while one is being built,
.fetch-* while one is being fetched from the store, .removed-* while one is being removed. An image exists from one
rename of its directory to the other.
Who uses which is recorded in .uses (image/uses.py).
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from blake3 import blake3

from ballpoint.core.clock import SYSTEM_CLOCK, rfc3339
from ballpoint.core.errors import ConflictError, CorruptError, NotFoundError
from ballpoint.host import process
from ballpoint.host.files import fsync_directory, remove_tree, try_flock, write_atomically
from ballpoint.image.build import Progress, build_filesystem
from ballpoint.image.recipe import Recipe, load_recipe

log = logging.getLogger(__name__)

# Of image.json; a higher one is a later version's, whose image this one may not know how to use.
_FORMAT = 1
_FILE = "image.erofs"
_RECORD = "image.json"
_DIGEST = re.compile("[0-9a-f]{64}")
_LEFTOVERS = (".build-*", ".removed-*")
_FETCH = ".fetch-"
_DYING_SECONDS = 10.0
_LOOK_SECONDS = 0.05


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


class _Record(msgspec.Struct, frozen=True):
    """Content of image.json: what the file and its name do not say. Unknown keys are left alone."""

    recipe: str
    recipe_digest: str
    built_at: str
    size: int
    format: int = _FORMAT


class _Format(msgspec.Struct, frozen=True):
    """What is read of a record first."""

    format: int = _FORMAT


class Catalogue:
    """The images in a cache directory. Safe to use from several processes at once."""

    def __init__(self, cache: Path) -> None:
        self._root = cache / "images"

    def list(self) -> list[Image]:
        """All images, oldest first, without those of a later version of this program.

        Raises:
            CorruptError: one is damaged.
        """
        found = []
        for path in self._root.glob("*"):
            if _DIGEST.fullmatch(path.name):
                try:
                    image = self._read(path.name)
                except ConflictError as error:
                    log.warning("%s", error)
                else:
                    found += [image] if image is not None else []
        return sorted(found, key=lambda image: image.built_at)

    def find(self, digest: str) -> Image:
        """The image `digest`.

        Raises:
            NotFoundError: the host has none of that name.
            ConflictError: a later version of this program made it.
            CorruptError: it is damaged.
        """
        image = self._read(digest) if _DIGEST.fullmatch(digest) else None
        if image is None:
            raise NotFoundError(f"there is no image {digest[:16]!r} on this host", hint="ballpoint image list")
        return image

    def has(self, digest: str) -> bool:
        """Whether the image is there, by its directory alone."""
        return bool(_DIGEST.fullmatch(digest)) and (self._root / digest).is_dir()

    def record(self, digest: str) -> Path:
        """The file with what is known of the image `digest`."""
        return self._root / digest / _RECORD

    def current(self, recipe: str) -> Image | None:
        """The newest image of a recipe as its text is now; None where it was not built yet."""
        digest = load_recipe(recipe).digest
        matching = [image for image in self.list() if (image.recipe, image.recipe_digest) == (recipe, digest)]
        return matching[-1] if matching else None

    def ensure(self, recipe: str, *, mirror: str | None, progress: Callable[[Progress], None]) -> Image:
        """The current image of `recipe`, built if there is none; a second process waits for the first.

        Raises:
            As `build`.
        """
        found = self.current(recipe)
        if found is not None:
            return found
        with self._building(progress):
            return self.current(recipe) or self._build(load_recipe(recipe), mirror, progress)

    def build(self, recipe: str, *, mirror: str | None, progress: Callable[[Progress], None]) -> Image:
        """Build `recipe` anew, with today's packages. The same packages give the same image.

        A crash half-way leaves no image, and files that the next build removes; the build's programs die with it.

        Args:
            mirror: Debian archive; None takes the host's own, or else mmdebstrap's default.
            progress: is told how far it has come.

        Raises:
            NotFoundError: there is no such recipe.
            InvalidError: the caller is not root.
            UnavailableError: a tool is missing, or the mirror does not answer.
        """
        text = load_recipe(recipe)
        with self._building(progress):
            return self._build(text, mirror, progress)

    @contextmanager
    def receiving(self, digest: str) -> Iterator[Path | None]:
        """Gives the file into which the image `digest` is to be fetched, with what an interrupted attempt left in it.

        Gives None where another process fetches it already, or has fetched it. What stays of it is found by the next
        attempt, or removed by one for another image.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        directory = self._root / f"{_FETCH}{digest}"
        directory.mkdir(exist_ok=True)
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None  # whoever fetched it has just renamed it
            return
        try:
            # Whoever had the lock may have renamed or removed the directory since it was opened.
            if try_flock(fd) and directory.exists() and os.path.samestat(os.fstat(fd), directory.stat()):
                self._sweep_fetches(directory)
                if self.has(digest):
                    remove_tree(directory)
                    yield None
                else:
                    yield directory / _FILE
            else:
                yield None
        finally:
            os.close(fd)

    def admit(self, digest: str, *, recipe: str, recipe_digest: str, built_at: str) -> Image:
        """Give the file that was fetched within `receiving` its name; durable when it returns.

        Args:
            recipe, recipe_digest, built_at: as `Image`.

        Raises:
            CorruptError: it is not that image; it is removed.
        """
        directory = self._root / f"{_FETCH}{digest}"
        file = directory / _FILE
        if blake3(max_threads=blake3.AUTO).update_mmap(file).hexdigest() != digest:
            remove_tree(directory)
            raise CorruptError(f"what was fetched is not the image {digest[:16]}", hint="fetch it again")
        with file.open("rb") as fetched:
            os.fsync(fetched.fileno())
        record = _Record(recipe, recipe_digest, built_at, file.stat().st_size)
        write_atomically(directory / _RECORD, msgspec.json.encode(record))
        try:
            directory.rename(self._root / digest)
        except OSError:  # a build of the same packages was faster
            remove_tree(directory)
        fsync_directory(self._root)
        return self.find(digest)

    def _sweep_fetches(self, mine: Path) -> None:
        """Remove what interrupted fetches of other images left."""
        for directory in self._root.glob(f"{_FETCH}*"):
            if directory == mine:
                continue
            try:
                fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                if try_flock(fd):
                    remove_tree(directory)
            finally:
                os.close(fd)

    def remove(self, digest: str) -> bool:
        """Remove an image; the caller knows that no volume names it. Returns whether it was there."""
        if not _DIGEST.fullmatch(digest):
            return False
        gone = self._root / f".removed-{digest}"
        _remove(gone)
        try:
            (self._root / digest).rename(gone)
        except FileNotFoundError:
            return False
        fsync_directory(self._root)
        _remove(gone)
        return True

    def _build(self, recipe: Recipe, mirror: str | None, progress: Callable[[Progress], None]) -> Image:
        partial = self._root / f".build-{os.getpid()}"
        partial.mkdir()
        try:
            build_filesystem(recipe, partial / _FILE, partial, mirror=mirror, progress=progress)
            image = self._publish(recipe, partial / _FILE)
            progress(Progress("removing what it was made from", 0.95))
        finally:
            self._sweep()
        progress(Progress("done", 1.0))
        return image

    def _publish(self, recipe: Recipe, file: Path) -> Image:
        """Give `file` its name; durable when it returns."""
        digest = blake3(max_threads=blake3.AUTO).update_mmap(file).hexdigest()
        with file.open("rb") as built:
            os.fsync(built.fileno())
        record = _Record(recipe.name, recipe.digest, rfc3339(SYSTEM_CLOCK.now()), file.stat().st_size)
        target = self._root / digest
        if target.exists():  # the same packages: the same image, now known to be current
            self._require_known_format(target)
            write_atomically(target / _RECORD, msgspec.json.encode(record))
            return self.find(digest)
        done = self._root / f".build-{os.getpid()}-done"
        done.mkdir()
        file.rename(done / _FILE)
        write_atomically(done / _RECORD, msgspec.json.encode(record))
        done.rename(target)
        fsync_directory(self._root)
        return self.find(digest)

    @contextmanager
    def _building(self, progress: Callable[[Progress], None]) -> Iterator[None]:
        """One build at a time; what an interrupted one left is removed first."""
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / ".lock").open("w") as lock:
            if not try_flock(lock.fileno()):
                progress(Progress("waiting for a build that is under way", 0.0))
                fcntl.flock(lock, fcntl.LOCK_EX)
            self._sweep()
            yield

    @contextmanager
    def without_builds(self) -> Iterator[bool]:
        """Keep builds waiting; gives False where one is under way already, and then keeps none."""
        with (self._root / ".lock").open("w") as lock:
            yield try_flock(lock.fileno())

    def _sweep(self) -> None:
        for pattern in _LEFTOVERS:
            for leftover in self._root.glob(pattern):
                _remove(leftover)

    def _require_known_format(self, directory: Path) -> None:
        try:
            found = msgspec.json.decode((directory / _RECORD).read_bytes(), type=_Format).format
        except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
            return  # of which `_read` says what is wrong
        if found > _FORMAT:
            raise ConflictError(
                f"the image {directory.name[:16]} has the format {found}, and this version knows {_FORMAT} at most",
                hint="use the later version that made it",
            )

    def _read(self, digest: str) -> Image | None:
        directory = self._root / digest
        try:
            self._require_known_format(directory)
            record = msgspec.json.decode((directory / _RECORD).read_bytes(), type=_Record)
            size = (directory / _FILE).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            if directory.is_dir():
                raise CorruptError(f"a file of the image in {directory} is gone", hint=f"rm -r {directory}") from None
            return None  # another process has just removed it
        except msgspec.DecodeError as error:
            raise CorruptError(f"{directory / _RECORD} is damaged: {error}", hint=f"rm -r {directory}") from error
        if size != record.size:
            raise CorruptError(f"{directory / _FILE} has lost bytes", hint=f"rm -r {directory}")
        return Image(digest, record.recipe, record.recipe_digest, directory / _FILE, record.built_at, record.size)


def _remove(tree: Path) -> None:
    """Remove `tree`, into which the programs of a build that was killed may write until they have ended too."""
    deadline = SYSTEM_CLOCK.monotonic() + _DYING_SECONDS
    while tree.exists():
        try:
            remove_tree(tree)
        except OSError:
            if SYSTEM_CLOCK.monotonic() > deadline:
                raise
            process.pause(_LOOK_SECONDS)

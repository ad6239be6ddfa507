"""What a node injected into a volume, brought up to date where nobody inside has changed it since.

A volume remembers what was injected, in its own root, where its sprite does not see it: RECORD holds {"digest",
"files": {path: fingerprint}}. What is there now is compared with that, file by file. The volume's content is its
user's: it is walked one component at a time without following a link, and no program of it is run.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from hashlib import sha256
from pathlib import Path, PurePosixPath

import msgspec

from ballpoint.core.errors import CorruptError
from ballpoint.host.files import write_atomically

RECORD = "injection.json"
# Larger ones are not ours: a bundle of certificates takes a quarter of a megabyte.
_SIZE_MAX = 16 << 20
_OPAQUE = "trusted.overlay.opaque"
_CHANGED = "changed"  # no fingerprint: something else is in the way


class Entry(msgspec.Struct, frozen=True):
    """A file, link or directory of a layer.

    Attributes:
        mode: with its kind, as st_mode.
        uid, gid: its owner.
        content: of a file, or the target of a link.
    """

    mode: int
    uid: int
    gid: int
    content: bytes = b""

    @property
    def fingerprint(self) -> str:
        if stat.S_ISLNK(self.mode):
            return "link " + sha256(self.content).hexdigest()
        return f"{stat.S_IMODE(self.mode):o} " + sha256(self.content).hexdigest()


class Record(msgspec.Struct, frozen=True):
    """What was injected: the injection's digest, and the fingerprint of each file by its path below the root."""

    digest: str
    files: dict[str, str]


class Renewal(msgspec.Struct, frozen=True):
    """What `renew` did.

    Attributes:
        files: by path, what the volume has of the injection from now on, for its `Record`.
        changed: paths written or removed.
        kept: paths left alone, because somebody inside has changed or removed them.
    """

    files: dict[str, str]
    changed: list[str]
    kept: list[str]


def read_layer(upper: Path) -> dict[str, Entry]:
    """Everything in the upper directory of an overlay that nobody else has written to, by path below it."""
    return {str(path.relative_to(upper)): _entry(path) for path in _below(upper)}


def fingerprints(layer: Mapping[str, Entry]) -> dict[str, str]:
    """Of the files and links of `layer`."""
    return {path: entry.fingerprint for path, entry in layer.items() if not stat.S_ISDIR(entry.mode)}


def read_record(volume: int) -> Record | None:
    """The record of the volume with the open root directory `volume`; None where it has none.

    Raises:
        CorruptError: it is damaged.
    """
    try:
        return msgspec.json.decode(Path(f"/proc/self/fd/{volume}", RECORD).read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptError(f"the record of what was injected is damaged: {error}") from error


def write_record(volume: int, digest: str, files: Mapping[str, str]) -> None:
    """Replace the record; durable when it returns."""
    write_atomically(Path(f"/proc/self/fd/{volume}", RECORD), msgspec.json.encode(Record(digest, dict(files))))


def renew(upper: int, layer: Mapping[str, Entry], before: Mapping[str, str]) -> Renewal:
    """Make the upper directory `upper`, which is not in use, hold `layer`, except where it was changed inside.

    Durable when it returns. A crash half-way leaves some files old and some new; the next call finishes it.

    Args:
        layer: what is to be there.
        before: fingerprints of what was injected last.
    """
    wanted = fingerprints(layer)
    renewal = Renewal({}, [], [])
    touched: set[tuple[str, ...]] = set()
    for path in sorted({*before, *wanted}):
        now, was, new = _present(upper, path), before.get(path), wanted.get(path)
        if now == new:
            pass
        elif now != was:
            renewal.kept.append(path)
            new = was
        else:
            with ExitStack() as stack:
                *parents, name = PurePosixPath(path).parts
                directory = _open_below(stack, upper, parents, layer)
                if new is None:
                    os.unlink(name, dir_fd=directory)
                else:
                    _write(directory, name, layer[path])
            renewal.changed.append(path)
            touched |= {parent.parts for parent in PurePosixPath(path).parents}
        if new is not None:
            renewal.files[path] = new
    for names in sorted(touched, reverse=True):
        with ExitStack() as stack:
            os.fsync(_open_below(stack, upper, names, {}))
    return renewal


def _below(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        kind = path.lstat().st_mode
        if stat.S_ISDIR(kind):
            yield path
            yield from _below(path)
        elif stat.S_ISREG(kind) or stat.S_ISLNK(kind):
            yield path


def _entry(path: Path) -> Entry:
    status = path.lstat()
    content = b""
    if stat.S_ISREG(status.st_mode):
        content = path.read_bytes()
    elif stat.S_ISLNK(status.st_mode):
        content = os.fsencode(path.readlink())
    return Entry(status.st_mode, status.st_uid, status.st_gid, content)


def _present(upper: int, path: str) -> str | None:
    """The fingerprint of what is at `path`; None where the image shows through there."""
    *parents, name = PurePosixPath(path).parts
    with ExitStack() as stack:
        directory, opaque = upper, False
        for parent in parents:
            try:
                directory = _open_directory(stack, directory, parent)
            except FileNotFoundError:
                return _CHANGED if opaque else None
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                return _CHANGED  # a link, a file, or what overlayfs puts where something was removed
            with suppress(OSError):  # most directories have no such attribute
                opaque |= os.getxattr(directory, _OPAQUE) == b"y"
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return _CHANGED if opaque else None
        if stat.S_ISLNK(status.st_mode):
            target = os.fsencode(os.readlink(name, dir_fd=directory))
            return Entry(status.st_mode, 0, 0, target).fingerprint
        if not stat.S_ISREG(status.st_mode) or status.st_size > _SIZE_MAX:
            return _CHANGED
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        with os.fdopen(fd, "rb") as file:
            return Entry(status.st_mode, 0, 0, file.read()).fingerprint


def _open_directory(stack: ExitStack, directory: int, name: str) -> int:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    stack.callback(os.close, fd)
    return fd


def _open_below(stack: ExitStack, upper: int, names: Sequence[str], layer: Mapping[str, Entry]) -> int:
    """The directory at the path `names`; what is missing on the way is made as it is in `layer`."""
    directory = upper
    walked = PurePosixPath()
    for name in names:
        walked /= name
        try:
            directory = _open_directory(stack, directory, name)
        except FileNotFoundError:
            entry = layer[str(walked)]
            os.mkdir(name, stat.S_IMODE(entry.mode), dir_fd=directory)
            directory = _open_directory(stack, directory, name)
            os.fchmod(directory, stat.S_IMODE(entry.mode))
            os.fchown(directory, entry.uid, entry.gid)
    return directory


def _write(directory: int, name: str, entry: Entry) -> None:
    """Put `entry` in the place of what may be there, in one step."""
    temporary = f".{name}.ballpoint-new"
    with suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory)
    if stat.S_ISLNK(entry.mode):
        os.symlink(os.fsdecode(entry.content), temporary, dir_fd=directory)
        os.chown(temporary, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=directory)
        with os.fdopen(fd, "wb") as file:
            file.write(entry.content)
            file.flush()
            os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, stat.S_IMODE(entry.mode))
            os.fsync(fd)
    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)

"""Copies of files and trees between this machine and a sprite: what there is to do first, then doing it."""

from __future__ import annotations

import os
import posixpath
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ballpoint.cli.client import streams
from ballpoint.cli.client.remote_files import RemoteFiles
from ballpoint.core.errors import ConflictError, InvalidError, NotFoundError

STDIO = "-"
_READ = 256 * 1024
_MODES = 0o777
_FILE_MODE, _DIRECTORY_MODE = 0o644, 0o755

# Told of which file how many bytes came.
Report = Callable[[str, int], None]


@dataclass(frozen=True)
class Copy:
    """A file to be copied. `size` is None where it is not known before."""

    source: str
    dest: str
    mode: int
    size: int | None


@dataclass
class Plan:
    """What there is to do.

    Attributes:
        directories: to be made, with their modes, those above first.
        others: what can be copied neither as a file nor as a directory, with what it is.
    """

    files: list[Copy] = field(default_factory=list)
    directories: list[tuple[str, int]] = field(default_factory=list)
    others: list[tuple[str, str]] = field(default_factory=list)

    @property
    def size(self) -> int | None:
        sizes = [each.size for each in self.files]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def check(self, *, skip: bool) -> None:
        """Raises InvalidError where something cannot be copied, unless it is to be left out."""
        if self.others and not skip:
            path, kind = self.others[0]
            more = f", and {len(self.others) - 1} more like it" if len(self.others) > 1 else ""
            raise InvalidError(
                f"{path} is a {kind}, which the file API does not carry{more}",
                hint="--skip-others leaves such out; tar, by ballpoint exec, carries them",
            )


# ---- to a sprite ----


def plan_push(remote: RemoteFiles, sources: Iterable[str], dest: str, *, recursive: bool) -> Plan:
    """What is to be done to have `sources` at, or in, `dest`, as cp(1) understands it."""
    given, plan = list(sources), Plan()
    found = remote.find(dest)
    into = found is not None and found["isDir"]
    if (dest.endswith("/") or len(given) > 1) and not into:
        if found is not None:
            raise ConflictError(f"{dest} is no directory", hint="name another, or copy one file")
        into = True
    for source in given:
        if source == STDIO:
            if into:
                raise InvalidError(f"{dest} is a directory", hint=f"name the file, such as {posixpath.join(dest, 'x')}")
            plan.files.append(Copy(STDIO, dest, _FILE_MODE, None))
            continue
        path = Path(source)
        target = posixpath.join(dest, path.resolve().name if path.name in ("", "..") else path.name) if into else dest
        with _local(source):
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                if not recursive:
                    raise InvalidError(f"{source} is a directory", hint="-r copies it with all that is in it")
                if found is not None and not into:
                    raise ConflictError(f"{dest} is no directory", hint="name another")
                _walk(path, target, status, plan)
            elif stat.S_ISREG(status.st_mode):
                plan.files.append(Copy(source, target, status.st_mode & _MODES, status.st_size))
            else:  # such as a shell's <(command)
                plan.files.append(Copy(source, target, _FILE_MODE, None))
    return plan


def _walk(path: Path, dest: str, status: os.stat_result, plan: Plan) -> None:
    plan.directories.append((dest, status.st_mode & _MODES))
    for entry in sorted(os.scandir(path), key=lambda each: each.name):
        below, status = posixpath.join(dest, entry.name), entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            _walk(Path(entry.path), below, status, plan)
        elif stat.S_ISREG(status.st_mode):
            plan.files.append(Copy(entry.path, below, status.st_mode & _MODES, status.st_size))
        else:
            kind = "symbolic link" if stat.S_ISLNK(status.st_mode) else "device, socket or FIFO"
            plan.others.append((entry.path, kind))


def push(remote: RemoteFiles, plan: Plan, report: Report) -> None:
    """Do it. Each file is there whole, or what was there before is."""
    for each in plan.files:
        with _local(each.source), _opened(each.source) as found:
            remote.write(each.dest, _told(found, each.source, report), each.mode)
    full = {posixpath.dirname(path) for path in (*(each.dest for each in plan.files), *dict(plan.directories))}
    for path, mode in reversed(plan.directories):
        if path not in full:
            remote.make_directory(path)
        if mode != _DIRECTORY_MODE:
            remote.chmod(path, mode)


@contextmanager
def _opened(source: str) -> Iterator[Iterator[bytes]]:
    """What it holds, in pieces."""
    if source == STDIO:
        with closing(streams.pieces(_READ)) as found:
            yield found
        return
    with Path(source).open("rb") as file:
        yield iter(partial(file.read, _READ), b"")


def _told(pieces: Iterable[bytes], name: str, report: Report) -> Iterator[bytes]:
    for data in pieces:
        yield data
        report(Path(name).name, len(data))


# ---- from a sprite ----


def plan_pull(remote: RemoteFiles, source: str, dest: str, *, recursive: bool) -> Plan:
    """What is to be done to have the sprite's `source` at, or in, `dest`, as cp(1) understands it."""
    found, plan = remote.find(source), Plan()
    if found is None:
        raise NotFoundError(f"{source} is not in {remote.name}", hint="ballpoint file list shows what is")
    target = Path(dest)
    if dest != STDIO and target.is_dir():
        target /= posixpath.basename(found["path"]) or remote.name
    elif dest.endswith("/"):
        raise InvalidError(f"there is no directory {dest}", hint="make it, or leave out the slash")
    if not found["isDir"]:
        plan.files.append(Copy(source, dest if dest == STDIO else str(target), *_mode_and_size(found)))
        return plan
    if not recursive or dest == STDIO:
        raise InvalidError(f"{source} is a directory", hint="-r copies it with all that is in it, into a directory")
    _walk_remote(remote, source, target, _DIRECTORY_MODE, plan)
    return plan


def _mode_and_size(entry: dict[str, Any]) -> tuple[int, int | None]:
    return int(entry.get("mode", "0644"), 8) & _MODES, entry.get("size")


def _walk_remote(remote: RemoteFiles, path: str, dest: Path, mode: int, plan: Plan) -> None:
    plan.directories.append((str(dest), mode))
    for entry in remote.below(path):
        below, target = posixpath.join(path, entry["name"]), dest / entry["name"]
        mode, size = _mode_and_size(entry)
        if entry["type"] == "directory":
            _walk_remote(remote, below, target, mode, plan)
        elif entry["type"] == "file":
            plan.files.append(Copy(below, str(target), mode, size))
        else:
            plan.others.append((below, "symbolic link" if entry["type"] == "symlink" else str(entry["type"])))


def pull(remote: RemoteFiles, plan: Plan, report: Report) -> None:
    """Do it. Each file is there whole, or what was there before is."""
    for path, _ in plan.directories:
        with _local(path):
            Path(path).mkdir(exist_ok=True)
    for each in plan.files:
        with remote.read(each.source) as pieces:
            if each.dest == STDIO:
                for data in pieces:
                    streams.write(1, data)
                continue
            with _local(each.dest):
                save(Path(each.dest), _counted(pieces, each.source, report), each.mode)
    for path, mode in reversed(plan.directories):
        with _local(path):
            Path(path).chmod(mode)


def _counted(pieces: Iterable[bytes], name: str, report: Report) -> Iterator[bytes]:
    for data in pieces:
        yield data
        report(posixpath.basename(name), len(data))


def save(path: Path, pieces: Iterable[bytes], mode: int) -> None:
    """Have a file of these bytes at `path`: the whole of it, or what was there before."""
    if path.exists() and not path.is_file():  # such as /dev/stdout
        with path.open("wb") as device:
            device.writelines(pieces)
        return
    path = path.resolve()  # a link stays one
    fd, partial = tempfile.mkstemp(prefix=f".{path.name[:200]}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.writelines(pieces)
            os.fchmod(file.fileno(), mode)
        Path(partial).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(partial).unlink()
        raise


@contextmanager
def _local(path: str) -> Iterator[None]:
    """What this machine's files refuse, as a sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise InvalidError(f"there is no {error.filename or path}", hint="name what is there") from error
    except OSError as error:
        raise InvalidError(f"cannot use {error.filename or path}: {error.strerror}") from error

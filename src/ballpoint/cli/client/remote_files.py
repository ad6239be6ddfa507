"""A sprite's files through its API (docs/files.md)."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode

from ballpoint.cli.client.http import Api, sprite_path
from ballpoint.core.errors import InvalidError, NotFoundError

_READ = 256 * 1024
# A byte of a name that is no UTF-8, in an answer.
_UNKNOWN = "\ufffd"


class RemoteFiles:
    """The files of the sprite `name`. Relative paths begin in its user's home."""

    def __init__(self, node: Api, name: str) -> None:
        self._node = node
        self.name = name

    def listing(self, path: str, *, recursive: bool = False) -> dict[str, Any]:
        """What is in a directory, or a file's own entry."""
        found: dict[str, Any] = self._node.call(
            "GET", self._path("list", path=path, recursive="true" if recursive else "false")
        )
        return found

    def find(self, path: str) -> dict[str, Any] | None:
        """The entry of what is at `path`, links followed; None where nothing is.

        A directory's says no more than that it is one: the API tells of what is in it.
        """
        try:
            found = self.listing(path)
        except NotFoundError:
            return None
        entries = found["entries"]
        if len(entries) == 1 and entries[0]["path"] == found["path"] and not entries[0]["isDir"]:
            return dict(entries[0])
        return {"path": found["path"], "name": posixpath.basename(found["path"]), "type": "directory", "isDir": True}

    def below(self, path: str) -> list[dict[str, Any]]:
        """Entries of what is in the directory `path`.

        Raises:
            InvalidError: not all of it can be named here.
        """
        found = self.listing(path)
        if found.get("truncated"):
            raise InvalidError(f"there are too many files in {path}", hint="tar, by ballpoint exec, takes any number")
        for each in found["entries"]:
            name = each["name"]
            if _UNKNOWN in name or "/" in name or name in ("", ".", ".."):
                raise InvalidError(f"{each['path']!r} has a name that cannot be used here", hint="rename it")
            if "error" in each:
                raise InvalidError(f"{each['path']}: {each['error']}")
        return list(found["entries"])

    @contextmanager
    def read(self, path: str) -> Iterator[Iterator[bytes]]:
        """The bytes of a file, in pieces."""
        with self._node.stream("GET", self._path("read", path=path), timeout=None) as response:
            yield response.iter_bytes(_READ)

    def write(self, path: str, content: Iterable[bytes], mode: int) -> None:
        """Write a file whole, with the directories above it; where that breaks off, what was there stays."""
        query = self._path("write", path=path, mode=f"{mode:04o}", mkdirParents="true")
        made = self._node.call("PUT", query, content=content, timeout=None)
        if int(made["mode"], 8) != mode:  # that of a file that was there is kept by a write
            self.chmod(path, mode)

    def chmod(self, path: str, mode: int) -> None:
        """Set a mode."""
        self._node.call("POST", self._path("chmod"), json={"path": path, "mode": f"{mode:04o}"})

    def make_directory(self, path: str) -> None:
        """Have a directory there. The API makes one for what is written into it."""
        keep = posixpath.join(path, ".keep")
        self.write(keep, [b""], 0o644)
        self._node.call("DELETE", self._path("delete", path=keep))

    def _path(self, verb: str, **query: str) -> str:
        # Names of files are bytes.
        fields = urlencode(query, quote_via=quote, errors="surrogateescape")
        return sprite_path(self.name, f"/fs/{verb}") + (f"?{fields}" if fields else "")

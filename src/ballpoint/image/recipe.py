"""Recipes: what goes into an image. Two exist, `standard` and `slim`, and users never add one."""

from __future__ import annotations

import platform
import tomllib
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import msgspec

from ballpoint.core.errors import NotFoundError

RECIPES = ("standard", "slim")
_FOLDER = resources.files("ballpoint.image") / "recipes"


class Recipe(msgspec.Struct, frozen=True):
    """A recipe's content.

    Attributes:
        suite: Debian release.
        packages: Debian packages, beside the essential ones.
        npm: packages from the npm registry, installed for all users, one list after the other: a newer Node.js and
            npm come before what needs them.
        files: path below the root -> (mode, content), put over the packages.
        digest: of all the above, and of the way it is built.
    """

    name: str
    suite: str
    packages: tuple[str, ...]
    npm: tuple[tuple[str, ...], ...]
    files: dict[str, tuple[int, bytes]]
    digest: str


def load_recipe(name: str) -> Recipe:
    """The recipe `name`. NotFoundError where there is none."""
    if name not in RECIPES:
        raise NotFoundError(f"there is no recipe {name!r}", hint=f"one of {', '.join(RECIPES)}")
    common, own = _table("common"), _table(name)
    packages = tuple(sorted({*common["packages"], *own.get("packages", [])}))
    npm = tuple(tuple(_for_machine(package) for package in stage) for stage in own.get("npm", []))
    files = {path: (_mode(path), content) for path, content in sorted(_tree(_FOLDER / "files", ""))}
    text = msgspec.msgpack.encode([common["revision"], common["suite"], packages, npm, list(files.items())])
    return Recipe(name, common["suite"], packages, npm, files, sha256(text).hexdigest())


def suite() -> str:
    """Debian release of every recipe."""
    return str(_table("common")["suite"])


def _table(part: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / f"{part}.toml").read_text())


def _tree(directory: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for entry in directory.iterdir():
        if entry.is_dir():
            found += _tree(entry, f"{prefix}{entry.name}/")
        else:
            found.append((f"{prefix}{entry.name}", entry.read_bytes()))
    return found


def _for_machine(package: str) -> str:
    """npm names processors as Node.js does (process.arch)."""
    return package.replace("@ARCH@", {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()))


def _mode(path: str) -> int:
    """Wheels do not keep modes, so the place says it: programs are executable, sudoers are private (sudoers(5))."""
    if "/bin/" in path or "/sbin/" in path or path.endswith("policy-rc.d"):
        return 0o755
    return 0o440 if "sudoers.d" in path else 0o644

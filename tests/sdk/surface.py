"""What the official Python SDK offers, found by looking at it, and what of it is used."""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import sprites


def public_names() -> set[str]:
    """Every public name of the installed package, as `module.name` or `module.Class.member`.

    A class' members are its methods and properties, inherited ones of the package included; fields of dataclasses
    and members of enumerations are part of their class. A name belongs to the module that defines it. Constants that
    `sprites` exports belong to it.
    """
    found: set[str] = set()
    for module in _modules():
        for name, value in vars(module).items():
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__:
                place = f"{module.__name__.removeprefix('sprites.')}.{name}"
                if inspect.isclass(value):
                    found |= {place} | {f"{place}.{member}" for member in _members(value)}
                elif inspect.isfunction(value):
                    found.add(place)
    return found | {f"sprites.{name}" for name in sprites.__all__ if not _is_defined(getattr(sprites, name))}


def _modules() -> list[ModuleType]:
    names = [each.name for each in pkgutil.iter_modules(sprites.__path__) if not each.name.startswith("_")]
    return [sprites, *(importlib.import_module(f"sprites.{name}") for name in names)]


def _is_defined(value: object) -> bool:
    return inspect.isclass(value) or inspect.isfunction(value)


def _members(kind: type) -> set[str]:
    if issubclass(kind, enum.Enum):
        return set()
    fields = {each.name for each in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    found: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] == "sprites":
            found |= {name for name, value in vars(base).items() if not name.startswith("_") and _is_member(value)}
    return found - fields


def _is_member(value: object) -> bool:
    return callable(value) or isinstance(value, (property, staticmethod, classmethod))


@contextmanager
def watched(names: set[str]) -> Iterator[set[str]]:
    """Within, whichever of `names` is called, read (a property) or made (a class) is added to the set.

    Constants, enumerations and classes that are only a place for constants cannot be watched: they count as used.
    """
    used: set[str] = set()
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            module, first, *member = name.split(".")
            owner: Any = sprites if module == "sprites" else importlib.import_module(f"sprites.{module}")
            if member:
                owner, attribute = getattr(owner, first), member[0]
                patch.setattr(owner, attribute, _watching(inspect.getattr_static(owner, attribute), used, name))
                continue
            value = getattr(owner, first)
            if inspect.isclass(value) and value.__init__ is not object.__init__ and not issubclass(value, enum.Enum):
                patch.setattr(value, "__init__", _watching(value.__init__, used, name))
            elif inspect.isfunction(value):
                patch.setattr(owner, first, _watching(value, used, name))
            else:
                used.add(name)
        yield used


def _watching(value: Any, used: set[str], name: str) -> Any:
    if isinstance(value, property):
        assert value.fget is not None
        return property(_counted(value.fget, used, name))
    if isinstance(value, staticmethod):
        return staticmethod(_counted(value.__func__, used, name))
    return _counted(value, used, name)


def _counted(function: Callable[..., Any], used: set[str], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        used.add(name)
        return function(*args, **kwargs)

    return call

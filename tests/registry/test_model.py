"""Any sequence of operations leaves what a plain dictionary says."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from ballpoint.core.errors import ConflictError, NotFoundError
from ballpoint.registry.database import url_of
from ballpoint.registry.records import Sprite, SpriteState
from ballpoint.registry.registry import Registry

from .world import StandingClock, add

T = TypeVar("T")

_NAMES = st.text(st.sampled_from("ab0-"), min_size=1, max_size=3)
_ORGS = st.sampled_from([0, 1])
_TEXTS = st.text(st.characters(codec="utf-8"), max_size=5)
_LABELS = st.lists(_TEXTS, max_size=3)
_STATES: st.SearchStrategy[SpriteState] = st.sampled_from(["creating", "cold", "warm", "running", "deleting"])
_COUNTED: tuple[SpriteState, ...] = ("running", "warm", "cold")


class RegistryAsDictionary(RuleBasedStateMachine):
    """Sprites by organization and name, and the kinds of their events."""

    sprites = Bundle("sprites")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.url = url_of(Path(self.directory.name) / "registry.db")
        self.clock = StandingClock()
        self.model: dict[tuple[str, str], Sprite] = {}
        self.kinds: dict[str, list[str]] = {}

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        self.clock.pass_by(1)
        return self.runner.run(work)

    def teardown(self) -> None:
        self.do(self.registry.close())
        self.runner.close()
        self.directory.cleanup()

    def known(self, sprite_id: str) -> Sprite | None:
        return next((sprite for sprite in self.model.values() if sprite.id == sprite_id), None)

    @initialize()
    def open(self) -> None:
        self.registry = self.do(Registry.open(self.url, clock=self.clock))
        self.orgs = [self.do(self.registry.create_token(org, ""))[0].org_id for org in ("acme", "rival")]

    @rule(target=sprites, number=_ORGS, name=_NAMES, labels=_LABELS, environment=st.dictionaries(_TEXTS, _TEXTS))
    def create(self, number: int, name: str, labels: list[str], environment: dict[str, str]) -> Any:
        key = (self.orgs[number], name)
        try:
            made = self.do(add(self.registry, *key, labels=labels, environment=environment))
        except ConflictError:
            assert key in self.model
            return multiple()
        assert key not in self.model
        assert (made.state, made.labels, made.environment) == ("running", labels, environment)
        self.model[key] = made
        self.kinds[made.id] = ["created"]
        return made.id

    @rule(sprite_id=sprites, labels=_LABELS)
    def update(self, sprite_id: str, labels: list[str]) -> None:
        before = self.known(sprite_id)
        assert before is not None
        after = self.do(self.registry.update_sprite(sprite_id, labels=labels))
        assert after == msgspec.structs.replace(before, labels=labels, updated_at=self.clock.now())
        self.model[after.org_id, after.name] = after

    @rule(sprite_id=sprites, state=_STATES)
    def set_state(self, sprite_id: str, state: SpriteState) -> None:
        before = self.known(sprite_id)
        assert before is not None
        after = self.do(self.registry.set_state(sprite_id, state, kind=state, cause="a test"))
        times = {"running": "last_running_at", "warm": "last_warming_at"}
        changed = {"state": state, "updated_at": self.clock.now()}
        if state in times:
            changed[times[state]] = self.clock.now()
        assert after == msgspec.structs.replace(before, **changed)
        self.model[after.org_id, after.name] = after
        self.kinds[sprite_id].append(state)

    @rule(sprite_id=consumes(sprites))
    def delete(self, sprite_id: str) -> None:
        gone = self.known(sprite_id)
        assert gone is not None
        assert self.do(self.registry.delete_sprite(sprite_id, "a test"))
        assert not self.do(self.registry.delete_sprite(sprite_id, "a test"))
        del self.model[gone.org_id, gone.name]
        self.kinds[sprite_id].append("deleted")

    @rule()
    def restart(self) -> None:
        self.do(self.registry.close())
        self.registry = self.do(Registry.open(self.url, clock=self.clock))

    @rule(number=_ORGS, prefix=st.text(st.sampled_from("aAb0-%_"), max_size=2), limit=st.integers(1, 4))
    def list_pages(self, number: int, prefix: str, limit: int) -> None:
        org_id = self.orgs[number]
        found: list[Sprite] = []
        token = None
        while True:
            page, token = self.do(self.registry.list_sprites(org_id, prefix=prefix, limit=limit, after=token))
            found += page
            if token is None:
                break
            assert len(page) == limit
        assert found == [
            sprite
            for (of, name), sprite in sorted(self.model.items(), key=lambda item: item[0][1])
            if of == org_id and name.startswith(prefix) and sprite.state != "deleting"
        ]

    @rule(number=_ORGS, name=_NAMES)
    def get(self, number: int, name: str) -> None:
        key = (self.orgs[number], name)
        try:
            assert self.do(self.registry.sprite(*key)) == self.model[key]
        except NotFoundError:
            assert key not in self.model

    @rule()
    def events(self) -> None:
        for sprite_id, kinds in self.kinds.items():
            assert [event.kind for event in self.do(self.registry.events(sprite_id))] == kinds

    @invariant()
    def counted(self) -> None:
        for org_id in self.orgs:
            states = [sprite.state for sprite in self.model.values() if sprite.org_id == org_id]
            assert self.do(self.registry.counts(org_id)) == ({state: states.count(state) for state in _COUNTED}, [])

    @invariant()
    def whole(self) -> None:
        found = {(sprite.org_id, sprite.name): sprite for sprite in self.do(self.registry.all_sprites())}
        assert found == self.model


TestRegistryAsDictionary = RegistryAsDictionary.TestCase
TestRegistryAsDictionary.settings = settings(max_examples=20, stateful_step_count=25)

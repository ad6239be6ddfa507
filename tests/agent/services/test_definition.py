"""Definitions: what clients and the file say, and the order of what needs what."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.agent.services.backoff import FIRST_SECONDS, MOST_SECONDS, WELL_SECONDS, Backoff
from ballpoint.agent.services.definition import (
    FILE_MAX,
    SERVICES_MAX,
    Definition,
    all_needs,
    check_all,
    check_name,
    dump,
    load,
    needed_by,
    parse_definition,
    start_order,
)
from ballpoint.core.errors import BallpointError, ConflictError, InvalidError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["name", "cmd", "args", "needs", "env", "dir", "http_port"]) | st.text(), inner
        )
    ),
)
NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True).filter(lambda name: name != "signal")
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
DEFINITIONS = st.builds(
    Definition,
    name=NAMES,
    cmd=TEXTS.filter(bool),
    args=st.lists(TEXTS, max_size=4).map(tuple),
    http_port=st.none(),
    env=st.dictionaries(TEXTS.filter(lambda name: name and "=" not in name), TEXTS, max_size=3),
    dir=st.none() | TEXTS.map(lambda text: f"/{text}"),
)


@given(st.lists(st.tuples(DEFINITIONS, st.booleans()), max_size=8, unique_by=lambda each: each[0].name))
def test_what_was_written_is_read_again(services: list[tuple[Definition, bool]]) -> None:
    # Each needs the one before it.
    linked = [
        (Definition(**{**each.__dict__, "needs": (services[i - 1][0].name,) if i else ()}), stopped)
        for i, (each, stopped) in enumerate(services)
    ]
    assert load(dump(linked)) == {each.name: (each, stopped) for each, stopped in linked}


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_is_in_the_file_is_services_or_refused(data: bytes) -> None:
    try:
        found = load(data)
    except BallpointError:
        return
    assert load(dump(found.values())) == found


@given(JSON | st.fixed_dictionaries({"cmd": JSON, "args": JSON, "needs": JSON, "env": JSON, "dir": JSON}))
def test_whatever_a_client_says_is_a_definition_or_refused(said: Any) -> None:
    try:
        found = parse_definition("web", said)
    except InvalidError:
        return
    assert parse_definition("web", found.json()) == found
    for text in (found.cmd, *found.args, *found.env, *found.env.values(), found.dir or ""):
        assert "\0" not in text
        text.encode()
    assert found.cmd
    assert found.dir is None or found.dir.startswith("/")
    assert not any("=" in name for name in found.env)


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=10))
def test_a_start_order_has_each_behind_its_needs_or_there_is_a_circle(needs: list[list[int]]) -> None:
    names = [f"s{i}" for i in range(len(needs))]
    definitions = {
        name: Definition(name, "x", needs=tuple(f"s{n}" for n in set(needs[i]) if n < len(needs)))
        for i, name in enumerate(names)
    }
    try:
        order = start_order(definitions)
    except InvalidError:
        # From somewhere on, following needs comes back.
        left = dict(definitions)
        while free := [n for n, each in left.items() if not any(needed in left for needed in each.needs)]:
            for name in free:
                del left[name]
        assert left
        return
    assert sorted(order) == sorted(names)
    for name in names:
        assert all(order.index(needed) < order.index(name) for needed in definitions[name].needs)
        assert all_needs(definitions, name) == [n for n in all_needs(definitions, name) if n != name]
        assert set(definitions[name].needs) <= set(all_needs(definitions, name))
        assert all(name in needed_by(definitions, needed) for needed in definitions[name].needs)


@pytest.mark.parametrize("name", ["a", "0", "web-1.2_x", "a" * 63])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "A", "a/b", "a b", "a" * 64, "signal", "ä", "a\n", None, 5])
def test_what_is_no_name(name: object) -> None:
    with pytest.raises(InvalidError):
        check_name(name)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "cmd is missing"),
        ({"cmd": ""}, "cmd is missing"),
        ({"cmd": "x\0"}, "cmd is no text"),
        ({"cmd": "\ud800"}, "cmd is no text"),
        ({"cmd": "x", "args": "y"}, "args is no list"),
        ({"cmd": "x", "args": [None]}, "args is no list"),
        ({"cmd": "x", "needs": ["web"]}, "needs itself"),
        ({"cmd": "x", "needs": ["No"]}, "no name"),
        ({"cmd": "x", "http_port": 0}, "http_port"),
        ({"cmd": "x", "httpPort": 65536}, "http_port"),
        ({"cmd": "x", "http_port": True}, "http_port"),
        ({"cmd": "x", "http_port": "80"}, "http_port"),
        ({"cmd": "x", "dir": "src"}, "dir"),
        ({"cmd": "x", "env": {"A=B": "c"}}, "variable"),
        ({"cmd": "x", "env": {"A": 1}}, "env"),
        ({"cmd": "x", "env": ["A"]}, "env"),
        ([], "object"),
    ],
)
def test_what_is_no_definition(said: Any, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        parse_definition("web", said)


def test_both_cases_of_keys_are_understood() -> None:
    assert parse_definition("web", {"cmd": "x", "httpPort": 3000}).http_port == 3000
    assert parse_definition("web", {"cmd": "x", "http_port": 3000}).http_port == 3000


def test_what_only_all_show() -> None:
    one, two = Definition("one", "x", http_port=1), Definition("two", "x", http_port=2)
    with pytest.raises(ConflictError, match="'one' has the sprite's HTTP port"):
        check_all({"one": one, "two": two})
    with pytest.raises(InvalidError, match="'two', which is no service"):
        check_all({"one": Definition("one", "x", needs=("two",))})
    circle = {name: Definition(name, "x", needs=(needed,)) for name, needed in (("a", "b"), ("b", "c"), ("c", "a"))}
    with pytest.raises(InvalidError, match="circle: a needs b needs c needs a"):
        check_all(circle)
    with pytest.raises(InvalidError, match="at most"):
        check_all({f"s{i}": Definition(f"s{i}", "x") for i in range(SERVICES_MAX + 1)})
    with pytest.raises(InvalidError, match="larger"):
        dump([(Definition("a", "x", args=("y" * FILE_MAX,)), False)])


def test_backing_off_doubles_up_to_a_bound_and_forgets_after_a_good_run() -> None:
    backoff = Backoff()
    waits = [backoff.after(0.0) for _ in range(40)]
    assert waits[0] == FIRST_SECONDS
    assert all(b in (2 * a, MOST_SECONDS) for a, b in zip(waits, waits[1:], strict=False))
    assert waits[-1] == MOST_SECONDS
    assert backoff.after(WELL_SECONDS) == FIRST_SECONDS
    assert backoff.after(WELL_SECONDS - 1) == 2 * FIRST_SECONDS

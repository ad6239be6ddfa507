"""The query of an exec request, and Go durations."""

from __future__ import annotations

import random
import re
from decimal import Decimal
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.agent.sessions.exec_request import parse_command
from ballpoint.agent.sessions.frames import signal_number
from ballpoint.agent.sessions.session import Command
from ballpoint.core.duration import parse_duration
from ballpoint.core.errors import InvalidError

UNITS = {"ns": "1e-9", "us": "1e-6", "µs": "1e-6", "μs": "1e-6", "ms": "1e-3", "s": "1", "m": "60", "h": "3600"}
NUMBERS = st.from_regex(re.compile(r"[0-9]{1,6}(\.[0-9]{0,6})?|\.[0-9]{1,6}", re.ASCII), fullmatch=True)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
NAMES = st.text(st.characters(exclude_characters="\0=", exclude_categories=["Cs"]), min_size=1, max_size=10)


def websocket(query: str) -> Command:
    return parse_command(query, tty_allowed=True, stdin_default=None)


@given(st.lists(st.tuples(NUMBERS, st.sampled_from(sorted(UNITS))), min_size=1, max_size=4))
def test_durations_are_sums(parts: list[tuple[str, str]]) -> None:
    text = "".join(number + unit for number, unit in parts)
    exact = sum((Decimal(number) * Decimal(UNITS[unit]) for number, unit in parts), Decimal(0))
    assert parse_duration(text) == pytest.approx(float(exact))


@given(st.integers(0, 10**12 - 1))
def test_bare_numbers_are_seconds(number: int) -> None:
    assert parse_duration(str(number)) == number


@given(st.text(max_size=20) | st.text("0123456789.-+ hmsnuµ", max_size=20))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    # A duration of Go without its sign, or a number.
    grammar = r"(([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+|[0-9]{1,12}(\.[0-9]{1,9})?"
    if re.fullmatch(grammar, text):
        assert parse_duration(text) >= 0
    else:
        with pytest.raises(InvalidError):
            parse_duration(text)


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1 s", "1s ", "1d", "1.s.", "1m0", "١s", "١", "inf", "nan", "1e3s", "1" * 65 + "s"]
)
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_duration(text)


@given(
    argv=st.lists(TEXTS, max_size=5),
    env=st.dictionaries(NAMES, TEXTS, max_size=4),
    directory=TEXTS,
    path=TEXTS,
    tty=st.booleans(),
    stdin=st.none() | st.booleans(),
    rows=st.none() | st.integers(1, 10_000),
    cols=st.none() | st.integers(1, 10_000),
    chance=st.randoms(),
)
def test_what_is_sent_is_what_is_run(
    argv: list[str],
    env: dict[str, str],
    directory: str,
    path: str,
    tty: bool,
    stdin: bool | None,
    rows: int | None,
    cols: int | None,
    chance: random.Random,
) -> None:
    """In whatever order the fields come."""
    fields = [("env", f"{name}={value}") for name, value in env.items()]
    fields += [("dir", directory), ("path", path), ("tty", str(tty).lower())]
    fields += [(name, str(value)) for name, value in (("rows", rows), ("cols", cols)) if value is not None]
    if stdin is not None:
        fields.append(("stdin", str(stdin)))
    chance.shuffle(fields)
    at = chance.randrange(len(fields) + 1)
    fields[at:at] = [("cmd", word) for word in argv]
    query = urlencode(fields)
    if argv and not argv[0] and not path:
        with pytest.raises(InvalidError):
            websocket(query)
        return
    command = websocket(query)
    assert (command.argv, command.env) == (tuple(argv), env)
    assert (command.directory, command.path, command.tty) == (directory or None, path or None, tty)
    assert (command.rows, command.cols) == (rows or 24, cols or 80)
    assert command.stdin == (tty if stdin is None else stdin)


@given(st.text(max_size=80) | st.text("cmdenvttyrowspathdirstdinmax_run=&%0123456789ABCDEF;+.", max_size=80))
def test_any_text_is_a_query_or_refused(query: str) -> None:
    try:
        command = websocket(query)
    except InvalidError:
        return
    assert 0 < command.rows <= 10_000
    assert 0 < command.cols <= 10_000
    assert command.max_run is None or command.max_run > 0
    texts = [*command.argv, command.path or "", command.directory or "", *command.env, *command.env.values()]
    assert not any("\0" in text for text in texts)
    assert all(name and "=" not in name for name in command.env)


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        ("cmd=x", 10),
        ("cmd=x&tty=true", None),
        ("cmd=x&max_run_after_disconnect=", 10),
        ("cmd=x&max_run_after_disconnect=0", None),
        ("cmd=x&max_run_after_disconnect=0s", None),
        ("cmd=x&max_run_after_disconnect=1m30s", 90),
        ("cmd=x&tty=true&max_run_after_disconnect=250ms", 0.25),
    ],
)
def test_how_long_it_may_run_alone(query: str, seconds: float | None) -> None:
    assert websocket(query).max_run == seconds


def test_input_is_the_body_only_where_it_is_said_so() -> None:
    assert not parse_command("cmd=x", tty_allowed=False, stdin_default=False).stdin
    assert parse_command("cmd=x&stdin=true", tty_allowed=False, stdin_default=False).stdin


def test_no_command_is_a_shell() -> None:
    assert websocket("").text == "bash"
    assert websocket("path=/bin/zsh").text == "/bin/zsh"
    assert websocket("cmd=a&cmd=b+c").text == "a b c"


@given(st.text() | st.integers() | st.floats() | st.none() | st.from_regex(r"(SIG)?[0-9]{1,12}", fullmatch=True))
def test_signal_numbers_are_signals(name: object) -> None:
    number = signal_number(name)
    assert number is None or 0 < number < 65

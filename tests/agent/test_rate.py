"""How many bytes a second a session says it moves."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.agent.sessions.rate import Rate

MOVES = st.lists(st.tuples(st.floats(0, 60), st.integers(1, 1 << 30)), min_size=1, max_size=20)


@given(MOVES)
def test_it_only_falls_while_nothing_moves(moves: list[tuple[float, int]]) -> None:
    rate, now = Rate(100.0), 100.0
    for pause, count in moves:
        before = rate.at(now + pause)
        assert before <= rate.at(now)
        now += pause
        rate.add(count, now)
        assert rate.at(now) > before
    assert rate.at(now + 300) == pytest.approx(0, abs=1)


@given(st.integers(1, 1 << 20), st.floats(0.001, 0.1))
def test_a_steady_stream_is_told_as_it_is(count: int, pause: float) -> None:
    rate = Rate(0.0)
    for step in itertools.takewhile(lambda step: step * pause < 60, itertools.count(1)):
        rate.add(count, step * pause)
        last = step * pause
    assert rate.at(last + pause / 2) == pytest.approx(count / pause, rel=0.02)

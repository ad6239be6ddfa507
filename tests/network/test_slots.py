"""Slots are unique on a host, whoever takes them at once and whoever dies."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ballpoint.core.errors import UnavailableError
from ballpoint.host import slots


def test_slots_taken_at_once_differ(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda number: slots.acquire(f"node{number % 2}/i{number}", tmp_path), range(100)))
    assert len({slot.number for slot in taken}) == len(taken)
    assert len(slots.owned_by("node0/", tmp_path)) == len(slots.owned_by("node1/", tmp_path)) == 50


def test_user_ids_of_two_slots_never_meet() -> None:
    for number in range(slots.COUNT - 1):
        assert slots.slot(number).uid_base + slots.UID_STRIDE <= slots.slot(number + 1).uid_base
    assert slots.slot(slots.COUNT - 1).uid_base + slots.UID_STRIDE <= 2**31


def test_only_its_owner_frees_a_slot(tmp_path: Path) -> None:
    slot = slots.acquire("node/one", tmp_path)
    assert not slots.release(slot.number, "node/two", tmp_path)
    assert slots.owned_by("node/", tmp_path) == {slot.number: "node/one"}
    assert slots.release(slot.number, "node/one", tmp_path)
    assert not slots.release(slot.number, "node/one", tmp_path)
    assert slots.acquire("node/two", tmp_path) == slot


def test_a_full_host_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "COUNT", 2)
    slots.acquire("node/one", tmp_path)
    slots.acquire("node/two", tmp_path)
    with pytest.raises(UnavailableError, match="slots"):
        slots.acquire("node/three", tmp_path)
    assert len(slots.owned_by("node/", tmp_path)) == 2


def test_nobody_owns_a_slot_of_a_host_without_nodes(tmp_path: Path) -> None:
    assert slots.owned_by("node/", tmp_path) == {}
    assert not slots.release(0, "node/one", tmp_path)

"""The volume log's protocol, searched: first by schedules that broke earlier forms of it, then at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.seeds import fresh_seed
from tests.volume.log.model import (
    RULES,
    Closed,
    Create,
    Delete,
    Get,
    MemberName,
    Name,
    Op,
    Pack,
    Process,
    Put,
    Record,
    World,
    commit,
    search,
    surely,
    take_over,
)

SEEDS = 2500


class Driven:
    """A process that is moved by hand, one operation at a time.

    Attributes:
        op: what it asks for next; None once it has ended.
        result: what it ended with.
    """

    def __init__(self, world: World, process: Process) -> None:
        self._store = world.store
        self._process = process
        self.op: Op | None = next(process)
        self.result: Any = None

    def answer(self, told: Any) -> None:
        try:
            self.op = self._process.send(told)
        except StopIteration as end:
            self.op, self.result = None, end.value

    def let(self) -> None:
        """Do what it asks for."""
        assert self.op is not None
        self.answer(self._store.do(self.op))

    def until(self, kind: type, key: type) -> None:
        """Let it go on until it asks for a `kind` of operation on a `key` of that kind, which is not done yet."""
        while not (isinstance(self.op, kind) and isinstance(getattr(self.op, "key", None), key)):
            self.let()

    def finish(self) -> Any:
        while self.op is not None:
            self.let()
        return self.result


def world(without: str | None) -> World:
    return World(0, set(RULES) - {without})


def begin(made: World) -> Any:
    """A writer's state in volume A, after a takeover."""
    return made.finish(take_over("A", made.rules, made.ids))


def write(made: World, state: Any, kind: str, **content: Any) -> bool:
    """Commit, and acknowledge what is committed."""
    record = made.record(kind, state, **content)
    if not made.finish(commit(state, record)):
        return False
    made.acknowledge(state.head.volume, record)
    return True


def store(made: World, state: Any, upload: int) -> Pack:
    """A new pack in the store, not referred to yet."""
    pack = Pack(state.head.volume, state.next.epoch, upload, next(made.ids))
    made.finish(surely(Put(pack, True)))
    return pack


def data(made: World, state: Any, upload: int, block: int = 0) -> Pack:
    pack = store(made, state, upload)
    assert write(made, state, "data", closed=Closed(pack.epoch, upload), changes={block: pack})
    return pack


def late_duplicate_of_a_writers_own_record(made: World) -> None:
    """Review A1: the record is written twice, trimmed by a successor, and comes once more."""
    zombie = begin(made)
    assert write(made, zombie, "settings")
    record = made.record("settings", zombie)
    attempt = Driven(made, commit(zombie, record))
    late = attempt.op
    assert isinstance(late, Create)
    attempt.answer("lost")
    assert attempt.finish()
    made.acknowledge("A", record)

    successor = begin(made)
    assert write(made, successor, "root", whole=successor.copy())
    made.finish(made.trim(successor))
    made.store.do(late)
    write(made, zombie, "settings")


def number_taken_by_another_commit(made: World) -> None:
    """Review A2: packs are stored, another commit takes the next number, and the garbage is collected."""
    writer = begin(made)
    pack = store(made, writer, 1)
    assert write(made, writer, "settings")
    made.finish(made.collect())
    assert write(made, writer, "data", closed=Closed(pack.epoch, 1), changes={0: pack})


def stale_sealer(made: World) -> None:
    """Review D2: a seal is written on a number that was trimmed meanwhile."""
    first = begin(made)
    assert write(made, first, "settings")
    stale = Driven(made, take_over("A", made.rules, made.ids))
    stale.until(Create, Name)
    assert write(made, first, "settings")

    second = begin(made)
    assert write(made, second, "settings")
    assert write(made, second, "root", whole=second.copy())
    made.finish(made.trim(second))
    state = stale.finish()
    assert write(made, state, "settings")


def two_commits_in_flight(made: World) -> None:
    """The second is made, the first never is."""
    writer = begin(made)
    first = made.record("settings", writer)
    if "one in flight" in made.rules:
        attempt = Driven(made, commit(writer, first))
        attempt.answer("lost")
        assert attempt.finish()
    else:
        writer.apply(writer.next, first)
    assert write(made, writer, "settings")


def trim_below_no_root(made: World) -> None:
    writer = begin(made)
    for upload in (1, 2):
        data(made, writer, upload, block=upload)
    made.finish(made.trim(writer))


def fork_beside_compaction(made: World) -> None:
    """The checkpoint lives on, but in other packs than those that the fork has read of."""
    writer = begin(made)
    old = data(made, writer, 1)
    assert write(made, writer, "checkpoint", checkpoint=7)
    fork = Driven(made, made.fork("A", "F"))
    fork.until(Create, MemberName)
    assert write(made, writer, "compact", closed=Closed(old.epoch, 2), moved={old: store(made, writer, 2)})
    garbage = Driven(made, made.collect())
    garbage.until(Delete, Pack)
    fork.finish()
    garbage.finish()


def fork_beside_a_forgotten_checkpoint(made: World) -> None:
    """The fork's member comes before the checkpoint goes, its first commit after the garbage was collected."""
    writer = begin(made)
    data(made, writer, 1)
    assert write(made, writer, "checkpoint", checkpoint=7)
    fork = Driven(made, made.fork("A", "F"))
    fork.until(Create, Name)
    data(made, writer, 2)
    assert write(made, writer, "forget", checkpoint=7)
    made.finish(made.collect())
    fork.finish()


def member_after_the_first_pass(made: World) -> None:
    """The first pass does not see the fork, and sees the checkpoint forgotten."""
    writer = begin(made)
    data(made, writer, 1)
    assert write(made, writer, "checkpoint", checkpoint=7)
    garbage = Driven(made, made.collect())
    garbage.until(Get, MemberName)  # the members are listed, their logs not yet read
    fork = Driven(made, made.fork("A", "F"))
    fork.until(Create, Name)
    data(made, writer, 2)
    assert write(made, writer, "forget", checkpoint=7)
    garbage.finish()
    fork.finish()


def fork_that_was_given_up(made: World) -> None:
    """Its member has gone, and then its first commit comes."""
    writer = begin(made)
    data(made, writer, 1)
    assert write(made, writer, "checkpoint", checkpoint=7)
    fork = Driven(made, made.fork("A", "F"))
    fork.until(Create, Name)
    given_up = Record("abandoned", next(made.ids), None, Closed(0, 0))
    made.finish(_once(Create(Name("F", 1, 1), given_up)))
    data(made, writer, 2)
    assert write(made, writer, "forget", checkpoint=7)
    while MemberName("F") in made.store.objects:
        made.finish(made.collect())
    fork.finish()


def block_of_an_older_state(made: World) -> None:
    """It is found by its hash in a map that nothing reaches any more, while its pack is collected."""
    writer = begin(made)
    old = data(made, writer, 1)
    data(made, writer, 2)
    made.finish(made.collect())
    if "own blocks" in made.rules:
        assert old not in writer.reached()  # so it is stored anew
        old = store(made, writer, 3)
    assert write(made, writer, "data", closed=Closed(old.epoch, 3), changes={1: old})


def commit_before_its_packs(made: World) -> None:
    writer = begin(made)
    pack = Pack("A", writer.next.epoch, 1, next(made.ids))
    if "whole upload" in made.rules:
        made.finish(surely(Put(pack, True)))
    assert write(made, writer, "data", closed=Closed(pack.epoch, 1), changes={0: pack})


def _once(op: Op) -> Process:
    return (yield op)


SCHEDULES: dict[str, Callable[[World], None]] = {
    "seals stay": late_duplicate_of_a_writers_own_record,
    "closed": number_taken_by_another_commit,
    "look again": stale_sealer,
    "one in flight": two_commits_in_flight,
    "root first": trim_below_no_root,
    "read again": fork_beside_compaction,
    "member's root": fork_beside_a_forgotten_checkpoint,
    "second pass": member_after_the_first_pass,
    "tombstones stay": fork_that_was_given_up,
    "own blocks": block_of_an_older_state,
    "whole upload": commit_before_its_packs,
}


def test_every_rule_has_a_schedule_that_needs_it() -> None:
    assert SCHEDULES.keys() == RULES.keys()


@pytest.mark.parametrize("rule", SCHEDULES)
def test_a_schedule_is_harmless_by_the_rules(rule: str) -> None:
    made = world(without=None)
    SCHEDULES[rule](made)
    made.check()


@pytest.mark.parametrize("rule", SCHEDULES)
def test_a_schedule_does_harm_without_its_rule(rule: str) -> None:
    made = world(without=rule)
    SCHEDULES[rule](made)
    with pytest.raises(AssertionError):
        made.check()


def test_random_schedules_do_no_harm() -> None:
    first = fresh_seed()
    assert search(range(first, first + SEEDS)) is None


@pytest.mark.parametrize("rule", sorted(RULES.keys() - {"member's root", "second pass", "read again"}))
def test_random_schedules_find_out_that_a_rule_is_missing(rule: str) -> None:
    """But for three, which take some thousand schedules each. Always the same ones: that they are enough is known."""
    assert search(range(SEEDS), without=rule) is not None

"""A model of the volume log's protocol (docs/volume-format.md), small enough to be searched by random schedules.

The store's operations are atomic. Whoever asks for a change may be told nothing ("lost"), and the change may be made
now, later, twice or never; a change that was confirmed may be made again later, as a network may deliver a request
twice. A listing comes in two pages, read at different times. Processes are generators that yield one operation at a
time; they may stand still for as long as they like, and end at any yield.

What must hold at every moment:
- every volume's log can be read, and its history has every commit that was acknowledged;
- every pack exists that a live map of a log reaches.

Each rule of the protocol can be switched off by its name (`RULES`), which is how it is shown to be needed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

RULES = {
    "seals stay": "a seal is never deleted",
    "tombstones stay": "`abandoned` and `delete` are never deleted",
    "look again": "a seal counts only if it is the highest key after it was written",
    "one in flight": "the next commit is sent only when the one before is settled",
    "root first": "only what is below a complete root is deleted",
    "closed": "only packs that a commit has closed are candidates",
    "second pass": "a candidate is deleted only if a second pass does not reach it either",
    "member's root": "a fork that has not committed keeps alive what its member record reaches",
    "read again": "a fork looks again, after its member was written, whether its source still reaches every pack of it",
    "own blocks": "a commit names only new packs and those its own state reaches",
    "whole upload": "a commit is sent only when every pack it names is stored",
}

BLOCKS = 6
EVER = 1 << 40  # above every number of an upload


class Closed(NamedTuple):
    """Up to which upload packs are referred to, or garbage."""

    epoch: int
    upload: int


class Pack(NamedTuple):
    volume: str
    epoch: int
    upload: int
    id: int


class Name(NamedTuple):
    """Of a record: its place in its volume's log."""

    volume: str
    epoch: int
    number: int


class MemberName(NamedTuple):
    volume: str
    member: Literal[True] = True


Map = dict[int, Pack]


@dataclass(frozen=True)
class Record:
    """A commit.

    Attributes:
        id: the put-id, which no other record has.
        previous: name and id of the record before; None in the first of a volume.
        changes: of the map, for `data`.
        moved: pack -> the one that took over its blocks, for `compact`.
        checkpoint: whose name it is about.
        whole: everything, for `root`.
    """

    kind: str
    id: int
    previous: tuple[Name, int] | None
    closed: Closed
    changes: Map = field(default_factory=dict)
    moved: dict[Pack, Pack] = field(default_factory=dict)
    checkpoint: int = 0
    whole: State | None = None


@dataclass(frozen=True)
class Member:
    """That a volume belongs to the lineage; of a fork, with the map it starts with."""

    id: int
    map: Map


@dataclass
class State:
    """Of a volume after its log was read up to `head`."""

    head: Name
    head_id: int
    map: Map
    checkpoints: dict[int, Map]
    history: tuple[int, ...]
    closed: Closed
    dead: bool = False
    sealed: bool = False

    def copy(self) -> State:
        return replace(self, map=dict(self.map), checkpoints={k: dict(m) for k, m in self.checkpoints.items()})

    @property
    def next(self) -> Name:
        """Where the next record goes; after a seal, a new epoch begins."""
        volume, epoch, number = self.head
        return Name(volume, epoch + 1, 1) if self.sealed else Name(volume, epoch, number + 1)

    def apply(self, name: Name, record: Record) -> None:
        if record.kind == "root":
            assert record.whole is not None
            self.__dict__.update(record.whole.copy().__dict__)
        self.head, self.head_id = name, record.id
        self.history = (*self.history, record.id)
        self.closed = max(self.closed, record.closed)
        self.sealed = record.kind == "seal"
        if record.kind == "seal":
            self.closed = Closed(name.epoch, EVER)
        elif record.kind == "data":
            self.map.update(record.changes)
        elif record.kind == "compact":
            for each in (self.map, *self.checkpoints.values()):
                each.update({block: record.moved.get(pack, pack) for block, pack in each.items()})
        elif record.kind == "checkpoint":
            self.checkpoints[record.checkpoint] = dict(self.map)
        elif record.kind == "forget":
            self.checkpoints.pop(record.checkpoint, None)
        elif record.kind == "restore":
            self.map = dict(self.checkpoints[record.checkpoint])
        elif record.kind in ("delete", "abandoned"):
            self.dead = True
            self.closed = Closed(EVER, EVER)

    def reached(self) -> set[Pack]:
        """Packs that must exist."""
        if self.dead:
            return set()
        return {pack for each in (self.map, *self.checkpoints.values()) for pack in each.values()}


# ---- the store ----


@dataclass(frozen=True)
class Create:
    """Answers "made", "exists" or "lost"."""

    key: Any
    value: Any


@dataclass(frozen=True)
class Put:
    """Answers "made" or "lost"."""

    key: Any
    value: Any


@dataclass(frozen=True)
class Delete:
    """Answers "made" or "lost"."""

    key: Any


@dataclass(frozen=True)
class Get:
    key: Any


@dataclass(frozen=True)
class Page:
    """Keys of a kind (of a volume) in falling order, below `below`; about half of them where it is None."""

    kind: type
    volume: str | None = None
    below: Any = None


Op = Create | Put | Delete | Get | Page
Process = Generator[Op, Any, Any]


class Store:
    def __init__(self) -> None:
        self.objects: dict[Any, Any] = {}  # key -> Record, Member, or True for a pack

    def do(self, op: Op) -> Any:
        if isinstance(op, Get):
            return self.objects.get(op.key)
        if isinstance(op, Page):
            found: list[Any] = [key for key in self.objects if type(key) is op.kind]
            keys = sorted((key for key in found if op.volume in (None, key.volume)), reverse=True)
            return keys[: (len(keys) + 1) // 2] if op.below is None else [key for key in keys if key < op.below]
        if isinstance(op, Delete):
            self.objects.pop(op.key, None)
        elif isinstance(op, Put) or op.key not in self.objects:
            self.objects[op.key] = op.value
        else:
            return "exists"
        return "made"


# ---- what everybody does ----


def listing(kind: type, volume: str | None = None) -> Process:
    keys = yield Page(kind, volume)
    if keys:
        keys = [*keys, *(yield Page(kind, volume, below=keys[-1]))]
    return keys


def create(key: Any, value: Any) -> Process:
    """Create-only, settled by creating again. True: it is there, or was, by us. False: somebody else was first."""
    while True:
        answer = yield Create(key, value)
        if answer == "made":
            return True
        if answer == "exists":
            found = yield Get(key)
            # Where it has gone since, we are far behind.
            return found is not None and found.id == value.id


def surely(op: Put | Delete) -> Process:
    while (yield op) != "made":
        pass


def replay(volume: str) -> Process:
    """The volume's state; None while it has no record. Starts again where the log is trimmed under its eyes."""
    while True:
        keys = yield Page(Name, volume)
        if not keys:
            return None
        chain: list[tuple[Name, Record]] = []
        name, identity = keys[0], None
        while name is not None:
            record = yield Get(name)
            if record is None or identity not in (None, record.id):
                break
            chain.append((name, record))
            if record.kind == "root" or record.previous is None:
                state = State(name, record.id, {}, {}, (), Closed(0, 0))
                for each in reversed(chain):
                    state.apply(*each)
                return state
            name, identity = record.previous


def commit(state: State, record: Record) -> Process:
    """Write the next record. False: fenced."""
    name = state.next
    if not (yield from create(name, record)):
        return False
    state.apply(name, record)
    return True


def take_over(volume: str, rules: set[str], ids: itertools.count[int]) -> Process:
    """Seal what is there, so that its writer can commit no more. The state, or None where there is nothing to write."""
    while True:
        state = yield from replay(volume)
        if state is None or state.dead:
            return None
        name = state.next
        seal = Record("seal", next(ids), (state.head, state.head_id), state.closed)
        if not (yield from create(name, seal)):
            continue
        if "look again" in rules and (yield Page(Name, volume))[0] != name:
            continue  # it stands where a record was trimmed
        state.apply(name, seal)
        return state


# ---- the processes ----


class World:
    """Everything of one schedule.

    Attributes:
        acknowledged: (volume, put-id) of commits somebody was told about.
    """

    def __init__(self, seed: int, rules: set[str]) -> None:
        self.random = random.Random(seed)
        self.rules = rules
        self.ids = itertools.count(1)
        self.store = Store()
        self.acknowledged: list[tuple[str, int]] = []
        self.late: list[Op] = []
        self.counts = dict.fromkeys(("commits", "packs deleted", "forks", "members removed", "takeovers"), 0)
        first = Name("A", 1, 1)
        self.store.objects[MemberName("A")] = Member(next(self.ids), {})
        state = State(first, 0, {}, {}, (), Closed(0, 0))
        self.store.objects[first] = Record("root", next(self.ids), None, Closed(0, 0), whole=state)

    def volumes(self) -> list[str]:
        return sorted({key.volume for key in self.store.objects if isinstance(key, MemberName | Name)})

    def record(self, kind: str, state: State, closed: Closed | None = None, **content: Any) -> Record:
        return Record(kind, next(self.ids), (state.head, state.head_id), closed or state.closed, **content)

    def writer(self, volume: str, steps: int | None = None) -> Process:
        state = yield from take_over(volume, self.rules, self.ids)
        if state is None:
            return
        self.counts["takeovers"] += 1
        epoch = state.head.epoch + 1
        uploads = itertools.count(1)
        seen: list[Pack] = []
        kinds = ["data"] * 6 + ["checkpoint"] * 3 + ["forget", "restore", "compact", "settings"] + ["root", "trim"] * 2
        for _ in range(steps if steps is not None else self.random.randint(2, 14)):
            kind = self.random.choice(kinds)
            if self.random.random() < 0.02:
                kind = "delete"
            seen += [pack for pack in state.reached() if pack not in seen]
            if kind == "trim":
                yield from self.trim(state)
                continue
            if kind in ("forget", "restore") and not state.checkpoints:
                continue
            if kind == "data":
                record = yield from self.upload(state, epoch, uploads, seen)
                if record is None:
                    return
            elif kind == "compact":
                record = yield from self.compacted(state, epoch, uploads)
            elif kind == "root":
                record = self.record("root", state, whole=state.copy())
            else:
                chosen = self.random.choice(sorted(state.checkpoints)) if kind in ("forget", "restore") else 0
                record = self.record(kind, state, checkpoint=chosen or next(self.ids))
            if "one in flight" not in self.rules and self.random.random() < 0.3:
                yield Create(state.next, record)
                state.apply(state.next, record)  # whatever became of it
                continue
            if not (yield from commit(state, record)):
                return
            self.acknowledge(volume, record)
            if state.dead:
                return

    def acknowledge(self, volume: str, record: Record) -> None:
        self.acknowledged.append((volume, record.id))
        self.counts["commits"] += 1

    def upload(self, state: State, epoch: int, uploads: itertools.count[int], seen: list[Pack]) -> Process:
        """New blocks, and their commit; another commit may come between. None: fenced."""
        changes: Map = {}
        stored = []
        for _ in range(self.random.randint(1, 2)):
            pack = Pack(state.head.volume, epoch, next(uploads), next(self.ids))
            stored.append(pack)
            if "whole upload" in self.rules:
                yield from surely(Put(pack, True))
            else:
                yield Put(pack, True)
            changes[self.random.randrange(BLOCKS)] = pack
        if self.random.random() < 0.3:
            between = self.record("settings", state)
            if not (yield from commit(state, between)):
                return None
            self.acknowledge(state.head.volume, between)
        known = sorted(state.reached()) if "own blocks" in self.rules else seen
        if known and self.random.random() < 0.3:
            changes[self.random.randrange(BLOCKS)] = self.random.choice(known)
        return self.record("data", state, Closed(epoch, stored[-1].upload), changes=changes)

    def compacted(self, state: State, epoch: int, uploads: itertools.count[int]) -> Process:
        own = sorted(pack for pack in state.reached() if pack.volume == state.head.volume)
        moved = {}
        for pack in own[:2]:
            moved[pack] = Pack(state.head.volume, epoch, next(uploads), next(self.ids))
            yield from surely(Put(moved[pack], True))
        closed = Closed(epoch, max((pack.upload for pack in moved.values()), default=0))
        return self.record("compact", state, max(closed, state.closed), moved=moved)

    def trim(self, state: State) -> Process:
        """Delete what no reader needs any more, in any order."""
        names = yield from listing(Name, state.head.volume)
        records = {}
        for name in names:
            if name <= state.head:
                records[name] = yield Get(name)
        roots = [name for name, record in records.items() if record is not None and record.kind == "root"]
        limit = max(roots, default=None) if "root first" in self.rules else state.head
        stay = {"seals stay": {"seal"}, "tombstones stay": {"delete", "abandoned"}}
        kept = {kind for rule, kinds in stay.items() if rule in self.rules for kind in kinds}
        doomed = [
            name for name, record in records.items()
            if limit is not None and name < limit and record is not None and record.kind not in kept
        ]  # fmt: skip
        self.random.shuffle(doomed)
        for name in doomed:
            yield Delete(name)

    def fork(self, source: str, volume: str) -> Process:
        state = yield from replay(source)
        if state is None or state.dead or not state.checkpoints:
            return
        chosen = self.random.choice(sorted(state.checkpoints))
        content = dict(state.checkpoints[chosen])
        member = Member(next(self.ids), content if "member's root" in self.rules else {})
        if not (yield from create(MemberName(volume), member)):
            return
        if "read again" in self.rules:
            state = yield from replay(source)
            if state is None or not set(content.values()) <= state.reached():
                return
        name = Name(volume, 1, 1)
        start = State(name, 0, content, {}, (), Closed(0, 0))
        record = Record("root", next(self.ids), None, Closed(0, 0), whole=start)
        if (yield from create(name, record)):
            self.acknowledge(volume, record)
            self.counts["forks"] += 1

    def look(self) -> Process:
        """One pass: (packs reached, closed of each volume, members in the order they were read)."""
        reached: set[Pack] = set()
        closed: dict[str, Closed] = {}
        dead: set[str] = set()
        for name in (yield from listing(MemberName)):
            member = yield Get(name)
            if member is None:
                continue
            state = yield from replay(name.volume)
            if state is None:
                reached |= set(member.map.values())
                closed[name.volume] = Closed(0, 0)
            else:
                reached |= state.reached()
                closed[name.volume] = state.closed
                if state.dead:
                    dead.add(name.volume)
        return reached, closed, dead

    def collect(self) -> Process:
        """Delete packs that nobody will ever ask for, and members of volumes that are closed for good."""
        for name in (yield from listing(MemberName)):
            if self.random.random() < 0.1 and not (yield Page(Name, name.volume)):
                given_up = Record("abandoned", next(self.ids), None, Closed(EVER, EVER))
                yield from create(Name(name.volume, 1, 1), given_up)
        reached, closed, dead = yield from self.look()
        candidates: list[Pack] = []
        for volume in closed:
            packs = yield from listing(Pack, volume)
            if not packs and volume in dead and self.random.random() < 0.5:
                yield from surely(Delete(MemberName(volume)))
                self.counts["members removed"] += 1
                if "tombstones stay" not in self.rules:
                    yield Delete(Name(volume, 1, 1))
            limit = closed[volume] if "closed" in self.rules else Closed(EVER, EVER)
            candidates += [pack for pack in packs if pack not in reached and Closed(pack.epoch, pack.upload) <= limit]
        if "second pass" in self.rules:
            again, _, _ = yield from self.look()
            candidates = [pack for pack in candidates if pack not in again]
        self.random.shuffle(candidates)
        for pack in candidates:
            yield Delete(pack)
            self.counts["packs deleted"] += 1

    def deleter(self, volume: str) -> Process:
        """After its time in the trash: anybody writes `delete`."""
        state = yield from take_over(volume, self.rules, self.ids)
        if state is None:
            return
        record = self.record("delete", state)
        if (yield from commit(state, record)):
            self.acknowledge(volume, record)

    # ---- schedules ----

    def finish(self, process: Process) -> Any:
        """Run a process to its end, alone."""
        answer = None
        while True:
            try:
                answer = self.store.do(process.send(answer))
            except StopIteration as end:
                return end.value

    def check(self) -> None:
        states: dict[str, State] = {}
        for volume in {volume for volume, _ in self.acknowledged}:
            reader = replay(volume)
            answer = None
            for _ in range(2000):
                try:
                    answer = self.store.do(reader.send(answer))
                except StopIteration as end:
                    states[volume] = end.value
                    break
            else:
                raise AssertionError(f"{volume} cannot be read")
            assert states[volume] is not None, f"{volume} has no log"
            gone = sorted(pack for pack in states[volume].reached() if pack not in self.store.objects)
            assert not gone, f"{volume} reaches {gone[:2]}, deleted"
        for volume, identity in self.acknowledged:
            assert identity in states[volume].history, f"{volume} has lost the acknowledged {identity}"

    def fault(self, op: Op) -> Any:
        """Make a change, badly: what its caller is told."""
        fate = self.random.random()
        if fate < 0.02:
            self.late.append(op)  # confirmed, and once more later
            return self.store.do(op)
        if fate < 0.05:
            self.store.do(op)
        elif fate < 0.08:
            self.late += [op] * self.random.choice([1, 1, 2])
        elif fate >= 0.09:
            return self.store.do(op)
        return "lost"

    def run(self, steps: int = 900) -> None:
        going: list[list[Any]] = []  # process, what it is sent next, how seldom it moves
        numbers = itertools.count(1)
        for step in range(steps):
            if len(going) < 6 and self.random.random() < 0.15:
                kind = self.random.choice(["writer"] * 4 + ["fork"] * 2 + ["collect"] * 3)
                volume = self.random.choice(self.volumes())
                if kind == "writer":
                    made = self.writer(volume)
                elif kind == "fork":
                    made = self.fork(volume, f"F{next(numbers)}")
                else:
                    made = self.collect()
                if self.random.random() < 0.01:
                    made = self.deleter(volume)
                going.append([made, None, self.random.choice([0.0, 0.0, 0.0, 0.9, 0.98])])
            if self.late and self.random.random() < 0.05:
                self.store.do(self.late.pop(self.random.randrange(len(self.late))))
            if not going:
                continue
            each = self.random.choice(going)
            if self.random.random() < each[2]:
                continue
            if self.random.random() < 0.003:
                going.remove(each)
                each[0].close()
                continue
            try:
                op = each[0].send(each[1])
            except StopIteration:
                going.remove(each)
                continue
            each[1] = self.fault(op) if isinstance(op, Create | Put | Delete) else self.store.do(op)
            if step % 7 == 0:
                self.check()
        self.check()


def search(seeds: Iterable[int], without: str | None = None) -> tuple[int, str] | None:
    """The first seed that breaks what must hold, and how; None where all hold."""
    for seed in seeds:
        world = World(seed, set(RULES) - {without})
        try:
            world.run()
        except AssertionError as error:
            return seed, str(error)
    return None

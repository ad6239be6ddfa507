"""What people do with a computer, in a sprite whose disk is saved meanwhile, against the same elsewhere."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from bench.client import Client
from bench.context import Context, timed
from bench.places import BINDFS, Chroot, passed_through
from bench.report import Check, Result, Series, at_most, missing, number

_LIMIT = 1.15
_SQLITE = """
import sqlite3, sys
level, count = sys.argv[1], int(sys.argv[2])
database = sqlite3.connect(level, isolation_level=None)
database.execute("pragma journal_mode=wal")
database.execute(f"pragma synchronous={level}")
database.execute("create table t (id integer primary key, text text)")
for number in range(count):
    database.execute("insert into t values (?, ?)", (number, f"{number:0200}"))
database.close()
"""

Run = Callable[[str, bool], Awaitable[float]]


@dataclass(frozen=True)
class _Work:
    """Something to do: `script` is timed, `before` and `after` are not.

    Attributes:
        judged: False where no target is set for it.
    """

    title: str
    script: str
    before: str = ":"
    after: str = ":"
    as_root: bool = False
    judged: bool = True


def _works(context: Context) -> list[_Work]:
    normal, full = context.count(50_000, 5_000), context.count(1_000, 100)
    return [
        _Work("untar", "tar xf tree.tar -C tree", before="mkdir tree"),
        _Work(
            "git add and commit",
            # It would tidy up in the background, beside the next work.
            "git -C tree add -A && git -C tree -c gc.auto=0 -c user.name=b -c user.email=b@b commit -q -m all",
            before="git init -q tree",
        ),
        _Work("dpkg install", "dpkg -i tree.deb", after="dpkg -P bench-tree", as_root=True),
        _Work(
            f"{normal:,} SQLite transactions, WAL, NORMAL",
            f"python3 -c '{_SQLITE}' normal {normal}",
            after="rm -rf normal* tree",
        ),
        _Work(
            f"{full:,} SQLite transactions, WAL, FULL",
            f"python3 -c '{_SQLITE}' full {full}",
            after="rm -f full*",
            judged=False,
        ),
    ]


# Makes an archive and a package of the same files of the image, wherever it runs.
_PREPARE = """
set -e
find /usr/share /usr/lib/python3* -xdev -type f -size -256k | LC_ALL=C sort | head -n COUNT > list
tar cf tree.tar --owner=1000 --group=1000 -P --transform 's,^/,,' -T list
mkdir -p package/DEBIAN package/opt/tree
tar xf tree.tar -C package/opt/tree
cat > package/DEBIAN/control << END
Package: bench-tree
Version: 1
Architecture: all
Maintainer: bench <bench@localhost>
Description: files
END
dpkg-deb -Znone -b package tree.deb
rm -rf package
"""


async def work(context: Context) -> Result:
    result = Result("work", "work in a sprite that is saved meanwhile")
    works = _works(context)
    rootfs = context.work / "rootfs"
    async with AsyncExitStack() as stack:
        bench = await stack.enter_async_context(context.node(pool=1))
        why = await stack.enter_async_context(passed_through(rootfs, context.work / BINDFS))
        name = bench.name()
        await bench.client.create(name)

        async def sprite(script: str, as_root: bool) -> float:
            return await timed(_run(bench.client, name, script, as_root))

        places: dict[str, Run] = {"sprite": sprite, "host": _in(Chroot(rootfs))}
        for run in places.values():
            await run(_PREPARE.replace("COUNT", str(context.count(12_000, 1_500))), False)
        if why is None:
            places[BINDFS] = _in(Chroot(context.work / BINDFS))
        samples: dict[str, list[float]] = {}
        names = list(places)
        for round_ in range(context.count(5, 1)):
            for place in names[round_ % len(names) :] + names[: round_ % len(names)]:
                await bench.client.sync(name)
                os.sync()
                for each in works:
                    await places[place](each.before, each.as_root)
                    seconds = await places[place](each.script, each.as_root)
                    await places[place](each.after, each.as_root)
                    samples.setdefault(f"{each.title}, {place}", []).append(seconds)
        await _in(Chroot(rootfs))("rm -rf tree* list", False)
    result.series = {key: Series.of(values, "s") for key, values in samples.items()}
    for each in works:
        ours, host = (result.series[f"{each.title}, {place}"] for place in ("sprite", "host"))
        text = f"{each.title}: {ours}"
        yardstick = f"the same on the host: p50 {number(host.p50)} s"
        ratio = ours.p50 / host.p50
        if each.judged:
            result.checks.append(at_most(text, ratio, _LIMIT, yardstick=yardstick))
        else:
            result.checks.append(Check(text, yardstick, ratio, "stated", None))
        if why is not None:
            result.checks.append(missing(text, BINDFS, why, "faster"))
        else:
            fuse = result.series[f"{each.title}, {BINDFS}"]
            result.checks.append(
                at_most(text, ours.p50 / fuse.p50, 1.0, yardstick=f"{BINDFS}: p50 {number(fuse.p50)} s")
            )
    result.notes.append(
        "the yardsticks run the same programs on a copy of the same image, on the host's file system, and on that"
        " through FUSE. Everywhere the works follow each other at once, so that the disk is being saved during most of"
        " them; before and after, the store has everything"
    )
    return result


def _in(chroot: Chroot) -> Run:
    async def run(script: str, as_root: bool) -> float:
        return await chroot.run(script, as_root=as_root)

    return run


async def _run(client: Client, name: str, script: str, as_root: bool) -> None:
    await client.run(name, *(("sudo",) if as_root else ()), "bash", "-c", script)

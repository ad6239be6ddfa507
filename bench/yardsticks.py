"""Other ways of starting a process, over the very files a sprite starts with."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.nodes import CACHE

from ballpoint.host import mount, process
from ballpoint.image.catalogue import Catalogue
from ballpoint.image.mount import mount_image
from bench import timer

_SECONDS = 180.0
_LIVE = f"ballpoint-bench-live-{os.getpid()}"


class MissingError(Exception):
    """The yardstick does not run on this host; says why."""


class Containers:
    """podman, crun and runc over one root filesystem. Made by `containers`.

    Attributes:
        missing: yardstick -> why it does not run here.
        tools: yardstick -> how it is run, for the report.
    """

    def __init__(self, work: Path, timing: asyncio.subprocess.Process) -> None:
        self._work = work
        self._timing = timing
        self._count = 0
        self._podman_options: list[str] = []
        self.missing: dict[str, str] = {}
        self.tools: dict[str, str] = {}

    def _bundle(self, *command: str) -> Path:
        """An OCI bundle for `command`, as `runc spec` makes it, but without a terminal and with a writable root."""
        bundle = self._work / ("bundle" + "".join(command).replace("/", "-"))
        if not bundle.exists():
            bundle.mkdir()
            process.run(["runc", "spec", "--bundle", str(bundle)], timeout=_SECONDS)
            config = json.loads((bundle / "config.json").read_text())
            config["process"] |= {"terminal": False, "args": list(command), "rlimits": []}
            config["root"] = {"path": str(self._work / "rootfs"), "readonly": False}
            (bundle / "config.json").write_text(json.dumps(config))
        return bundle

    def _argv(self, yardstick: str, command: tuple[str, ...]) -> list[str]:
        self._count += 1
        if yardstick == "podman run":
            store = self._work / "podman"
            places = ["--root", str(store / "root"), "--runroot", str(store / "run"), "--tmpdir", str(store / "tmp")]
            options = ["run", "--rm", "--network=none", *self._podman_options, "--rootfs", str(self._work / "rootfs")]
            return ["podman", *places, *options, *command]
        if yardstick == "runc exec":
            return ["runc", "exec", _LIVE, *command]
        tool = yardstick.split()[0]
        return [tool, "run", "--bundle", str(self._bundle(*command)), f"ballpoint-bench-{os.getpid()}-{self._count}"]

    async def probe(self) -> None:
        """Find out what runs here."""
        for tool in ("podman", "crun", "runc"):
            if process.which(tool) is None:
                for yardstick in ("run", "exec"):
                    self.missing[f"{tool} {yardstick}"] = f"{tool} is not installed"
        if "runc run" in self.missing:
            self.missing.setdefault("crun run", "runc, which writes its bundle, is not installed")
        else:
            live = self._bundle("/bin/sleep", "infinity")
            await self._probe("runc exec", ["runc", "run", "--detach", "--bundle", str(live), _LIVE])
        if "podman run" not in self.missing and (problem := await self._try("podman run")) is not None:
            # Where root may not raise limits, podman's defaults are refused.
            files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 20000)
            self._podman_options = [f"--ulimit=nofile={files}:{files}", "--ulimit=nproc=4096:4096"]
            if (again := await self._try("podman run")) is not None:
                self.missing["podman run"] = f"{problem}; with lower limits: {again}"
        for yardstick in ("crun run", "runc exec"):
            if yardstick not in self.missing and (problem := await self._try(yardstick)) is not None:
                self.missing[yardstick] = problem
        for yardstick in ("podman run", "crun run", "runc exec"):
            if yardstick in self.missing:
                self.tools[yardstick] = f"MISSING: {self.missing[yardstick]}"
            else:
                version = process.run([yardstick.split()[0], "--version"], timeout=_SECONDS)
                options = (
                    f", with {' '.join(self._podman_options)}"
                    if yardstick == "podman run" and self._podman_options
                    else ""
                )
                self.tools[yardstick] = version.splitlines()[0] + options

    async def _probe(self, yardstick: str, argv: list[str]) -> None:
        try:
            await self._run([argv])
        except MissingError as error:
            self.missing[yardstick] = str(error)

    async def _try(self, yardstick: str) -> str | None:
        try:
            await self._run([self._argv(yardstick, ("/bin/true",))])
        except MissingError as error:
            return str(error)
        return None

    async def time(self, yardstick: str, *command: str) -> float:
        """Seconds of one run."""
        return (await self.at_once(yardstick, 1, *command))[0]

    async def spawned(self, *command: str) -> float:
        """Seconds of a posix_spawn(3) of a program of this host, by a small process that waits for it."""
        return (await self._run([list(command)]))[0]

    async def at_once(self, yardstick: str, count: int, *command: str) -> list[float]:
        """Seconds of `count` runs started together, each from the common start.

        Raises:
            MissingError: it does not run here.
        """
        if yardstick in self.missing:
            raise MissingError(self.missing[yardstick])
        return await self._run([self._argv(yardstick, command) for _ in range(count)])

    async def _run(self, commands: list[list[str]]) -> list[float]:
        assert self._timing.stdin is not None and self._timing.stdout is not None
        self._timing.stdin.write(json.dumps(commands).encode() + b"\n")
        async with asyncio.timeout(_SECONDS):
            answer: dict[str, Any] = json.loads(await self._timing.stdout.readline())
        if answer["failed"] is not None:
            raise MissingError(answer["failed"])
        return list(answer["seconds"])

    async def close(self) -> None:
        if "runc exec" not in self.missing:
            await self._run([["runc", "delete", "--force", _LIVE]])


@asynccontextmanager
async def containers(work: Path) -> AsyncIterator[Containers]:
    """The yardsticks, over the files of the newest slim image; everything of them is below `work`."""
    rootfs = work / "rootfs"
    await asyncio.to_thread(_extract, rootfs)
    timing = await asyncio.create_subprocess_exec(
        "unshare", "--mount", "--propagation", "private", sys.executable, "-m", timer.__name__,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 20,
    )  # fmt: skip
    assert timing.stdin is not None and timing.stdout is not None
    try:
        if await timing.stdout.readline() != b"ready\n":
            raise RuntimeError("the yardsticks' timer did not start")
        made = Containers(work, timing)
        await made.probe()
        try:
            yield made
        finally:
            await made.close()
    finally:
        timing.stdin.close()
        await timing.wait()


def _extract(rootfs: Path) -> None:
    image = Catalogue(CACHE).current("slim")
    if image is None:
        raise RuntimeError("the slim image is not built: start a node first")
    place = rootfs.with_name("image")
    place.mkdir()
    fd = mount_image(image)
    try:
        mount.move_mount(fd, place)
    finally:
        os.close(fd)
    try:
        process.run(["cp", "-a", f"{place}/.", str(rootfs)], timeout=_SECONDS)
    finally:
        mount.umount2(place)


@asynccontextmanager
async def stream_servers(work: Path, total: int) -> AsyncIterator[dict[str, str]]:
    """The stream yardsticks, each sending `total` bytes: name -> WebSocket URL."""
    path = str(work / f"source-{total}.sock")
    started: list[asyncio.subprocess.Process] = []

    async def start(kind: str) -> str:
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.streams", kind, str(total), path, stdout=asyncio.subprocess.PIPE
        )
        started.append(program)
        assert program.stdout is not None
        async with asyncio.timeout(30):
            return (await program.stdout.readline()).decode().strip()

    try:
        await start("source")
        ports = {"relay": await start("relay"), "bare server": await start("bare")}
        yield {name: f"ws://127.0.0.1:{port}/" for name, port in ports.items()}
    finally:
        for program in started:
            program.kill()
            await program.wait()
        Path(path).unlink(missing_ok=True)

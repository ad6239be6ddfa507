"""The supervisor: binds what must outlive its children, starts them, and starts again what dies.

It holds no state and no secret. Its children die with it; instances do not, and are adopted by the next node.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from ballpoint.core import peer, steps
from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.config import RUN_ROOT, NodeConfig, load_config
from ballpoint.core.errors import BallpointError, ConflictError, InvalidError, UnavailableError
from ballpoint.host import logfile, mount, namespaces, notify, prctl, process, rcu, slots
from ballpoint.host.files import remove_tree, try_flock, write_atomically
from ballpoint.host.loop import drop_devices, hold_devices
from ballpoint.host.namespaces import CLONE_NEWNS
from ballpoint.image import mirrors
from ballpoint.image.build import Progress
from ballpoint.image.catalogue import Catalogue
from ballpoint.runtime.container.programs import ensure_programs, zygote_command
from ballpoint.store import url

log = logging.getLogger("supervisor")

# The last slot of the host-wide range is nobody's: its first id is the edges' identity.
_EDGE_UID = slots.UID_FIRST + slots.COUNT * slots.UID_STRIDE - 1
_STOP_SECONDS = 20.0
_LISTEN_SECONDS, _LISTEN_AGAIN_SECONDS = 3.0, 0.05
_RESTART_FIRST, _RESTART_MAX = 0.1, 5.0
_STEADY_SECONDS = 10.0
_READY_SECONDS = 120.0
# The log and the one before it take twice this.
LOG_BYTES = 10 << 20
_LOG_SECONDS = 10.0
# Below the run directory: what the node was started with. Whoever finds the lock held can believe it.
_CONFIG = "config.json"

# What `stop` found: a node that ran; one that was dead already, of which something was left; or nothing.
Stopped = Literal["stopped", "removed", "nothing"]


class _Place(msgspec.Struct):
    """What is read of another node's settings, which another version may have written."""

    data: str


def serve(config: NodeConfig, log_file: Path | None = None) -> int:
    """Run a node in the foreground until SIGTERM. Running sprites go on running.

    Args:
        log_file: what standard error is appended to, and is to be kept from growing without bound.

    Returns:
        The exit code.

    Raises:
        InvalidError: not root, or a setting cannot be used.
        ConflictError: another supervisor runs this node, or the port is taken.
        UnavailableError: something the host must have is missing.
    """
    if os.geteuid() != 0:
        raise InvalidError("a node must be run as root", hint="sudo ballpoint serve ...")
    with ExitStack() as stack:
        # Nobody else sees the node's mounts, so nobody can pin them, and none outlives it.
        namespaces.unshare(CLONE_NEWNS)
        mount.mount("none", "/", flags=mount.MS_REC | mount.MS_PRIVATE)
        config.data.mkdir(parents=True, exist_ok=True)
        for directory in (RUN_ROOT, config.run):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o711)
        stack.callback(os.close, _lock(config.run))
        stack.callback(_leave, config)
        write_atomically(config.run / _CONFIG, msgspec.json.encode(config, enc_hook=str), mode=0o600)
        hold_devices(config.node_id, RUN_ROOT)
        rcu.hold(config.node_id, RUN_ROOT)
        listener = bind(config)
        stack.callback(listener.close)
        programs = ensure_programs(config.cache)
        _ensure_image(config)
        return asyncio.run(_Supervisor(config, listener, programs, log_file).run())


def _leave(config: NodeConfig) -> None:
    """Remove what a supervisor made, unless sprites run that need it."""
    if not any((config.run / "instances").glob("*")):
        _let_go(config)


def running(config: NodeConfig) -> NodeConfig | None:
    """What the node in `config.data` was started with; None where none runs there.

    Raises:
        UnavailableError: it was started just now.
    """
    if not _runs(config.run):
        return None
    try:
        return load_config(None, **msgspec.json.decode((config.run / _CONFIG).read_bytes()))
    except FileNotFoundError as error:
        raise UnavailableError("the node was started just now", hint="try again") from error


def found_in(run: Path) -> tuple[Path | None, bool]:
    """Data of the node that has `run` for its own, None where nothing says, and whether it runs or has died."""
    try:
        data = Path(msgspec.json.decode((run / _CONFIG).read_bytes(), type=_Place).data)
    except (OSError, msgspec.DecodeError):  # it starts or goes just now, or is no node's
        return None, False
    return data, _runs(run)


def stop(config: NodeConfig) -> Stopped:
    """Stop a node with its sprites, running or dead, and leave nothing of it but its data. Idempotent.

    Raises:
        InvalidError: not root.
        UnavailableError: something does not end.
    """
    if os.geteuid() != 0:
        raise InvalidError("stopping a node needs root", hint="sudo ballpoint down ...")
    ran = _stop_supervisor(config.run)
    namespaces.unshare(CLONE_NEWNS)
    mount.mount("none", "/", flags=mount.MS_REC | mount.MS_PRIVATE)
    held = [*RUN_ROOT.glob(f"*/{config.node_id}"), *slots.owned_by(f"{config.node_id}/")]
    left = config.run.exists() or held != []
    if left:
        # Not above: a supervisor, which never does this, starts in half the time without.
        from ballpoint.node.clearing import clear

        asyncio.run(clear(config))
    _let_go(config)
    if ran:
        return "stopped"
    return "removed" if left else "nothing"


def _let_go(config: NodeConfig) -> None:
    """Remove what a node has below the run directory, and end what it holds of the host."""
    remove_tree(config.run)
    drop_devices(config.node_id, RUN_ROOT)
    rcu.drop(config.node_id, RUN_ROOT)


def _lock(run: Path) -> int:
    """Hold the node's lock for as long as this process lives; the file says who does."""
    fd = os.open(run / "supervisor", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not try_flock(fd):
        os.close(fd)
        raise ConflictError("this node runs already", hint="ballpoint down stops it")
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


def _held_lock(run: Path) -> int | None:
    """The lock's file, opened, where a supervisor holds it."""
    try:
        fd = os.open(run / "supervisor", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if not try_flock(fd):
        return fd
    os.close(fd)
    return None


def _runs(run: Path) -> bool:
    """Whether a supervisor holds the lock."""
    fd = _held_lock(run)
    if fd is None:
        return False
    os.close(fd)
    return True


def _stop_supervisor(run: Path) -> bool:
    """End the supervisor, whose children end with it. Returns whether there was one."""
    fd = _held_lock(run)
    if fd is None:
        return False
    try:
        pidfd = os.pidfd_open(int(os.pread(fd, 32, 0)))
    finally:
        os.close(fd)
    try:
        prctl.pidfd_send_signal(pidfd, signal.SIGTERM)
        if not prctl.wait_pidfd(pidfd, _STOP_SECONDS * 2):
            raise UnavailableError("the node does not stop", hint="look into its log; then kill its supervisor")
    finally:
        os.close(pidfd)
    return True


def bind(config: NodeConfig) -> socket.socket:
    """The socket that listens where `config` says; the caller closes it.

    Waits a moment for who listens there to go: edges of a supervisor that was killed do, when the kernel comes to them.

    Raises:
        ConflictError: that is not possible, mostly because somebody else listens there.
    """
    host, port = config.listen_address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    deadline = SYSTEM_CLOCK.monotonic() + _LISTEN_SECONDS
    while True:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(4096)
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE or SYSTEM_CLOCK.monotonic() > deadline:
                raise ConflictError(
                    f"cannot listen on {config.listen}: {error.strerror}", hint="choose another --listen"
                ) from error
            process.pause(_LISTEN_AGAIN_SECONDS)
        else:
            return listener


def _ensure_image(config: NodeConfig) -> None:
    last = ""

    def report(progress: Progress) -> None:
        nonlocal last
        if progress.step != last:
            last = progress.step
            log.info("image %s: %3.0f %% %s", config.image, progress.fraction * 100, progress.step)

    Catalogue(config.cache).ensure(config.image, mirror=config.mirror, progress=report)


@dataclass
class _Child:
    """A process to keep running. `start` makes it anew; `process` is the present one."""

    name: str
    start: Callable[[], process.Child]
    process: process.Child | None = None
    restart_after: float = _RESTART_FIRST
    started: float = 0.0


class _Supervisor:
    def __init__(self, config: NodeConfig, listener: socket.socket, programs: Path, log_file: Path | None) -> None:
        self._config = config
        self._listener = listener
        self._programs = programs
        self._log_file = log_file
        self._stopping = asyncio.Event()
        self._zygotes = peer.listen(config.run / "zygote.sock", mode=0o600)

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        # The zygote first, as it must not see anything that is read later. It ends last: a node that stops finishes the
        # blanks it is making.
        node_ended = asyncio.Event()
        zygote = loop.create_task(self._keep(_Child("zygote", self._start_zygote), node_ended))
        ready_read, ready_write = os.pipe()
        os.set_blocking(ready_read, False)
        node = _Child("node", lambda: self._start_node(ready_write))
        tasks = [loop.create_task(self._keep(node, self._stopping))]
        if self._log_file is not None:
            tasks.append(loop.create_task(self._bound(self._log_file)))
        try:
            failure = await self._ready(ready_read, [zygote, *tasks])
            if failure is not None:
                raise failure
            # A node that is started again says so, too; nobody asks, and a pipe that is full would stop it.
            loop.add_reader(ready_read, os.read, ready_read, 4096)
            if not self._stopping.is_set():
                edges = self._config.edges or os.cpu_count() or 1
                children = [_Child(f"edge {n}", self._start_edge) for n in range(edges)]
                tasks += [loop.create_task(self._keep(child, self._stopping)) for child in children]
                # On standard output, where a script waits for it.
                sys.stdout.write(f"ballpoint: serving on http://{self._address()}\n")
                sys.stdout.flush()
                notify.tell_ready()
            await self._stopping.wait()
        finally:
            self._stopping.set()
            await asyncio.gather(*tasks, return_exceptions=True)
            node_ended.set()
            await asyncio.gather(zygote, return_exceptions=True)
            loop.remove_reader(ready_read)
            os.close(ready_read)
            os.close(ready_write)
        return 0

    async def _ready(self, fd: int, tasks: list[asyncio.Task[None]]) -> BallpointError | None:
        """Wait for the node's word that creates work. Returns why they never will."""
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        loop.add_reader(fd, _settle, readable)
        stopping = loop.create_task(self._stopping.wait())
        try:
            await asyncio.wait(
                {readable, stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED, timeout=_READY_SECONDS
            )
        finally:
            loop.remove_reader(fd)
            stopping.cancel()
        if self._stopping.is_set():
            return None
        if not readable.done():
            return UnavailableError(f"the node is not ready after {_READY_SECONDS:g} s", hint="its log says why")
        said = os.read(fd, 4096).decode()
        if said == "ready":
            return None
        message, _, hint = said.partition("\n")
        return UnavailableError(message, hint=hint or None)

    async def _bound(self, log_file: Path) -> None:
        """Keep the log from growing without bound. What the kernel could tell is each line, which is too often."""
        while not self._stopping.is_set():
            try:
                await asyncio.to_thread(logfile.bound, log_file, LOG_BYTES)
            except OSError as error:
                log.warning("%s grows: it cannot be copied and emptied: %s", log_file, error)
            try:
                await asyncio.wait_for(self._stopping.wait(), _LOG_SECONDS)
            except TimeoutError:
                continue

    async def _keep(self, child: _Child, stopping: asyncio.Event) -> None:
        """Keep `child` running until `stopping`, then end it."""
        while not stopping.is_set():
            child.started = SYSTEM_CLOCK.monotonic()
            child.process = child.start()
            log.info("%s is process %d", child.name, child.process.pid)
            await self._ended_or_stopping(child.process, stopping)
            if stopping.is_set():
                break
            log.warning("%s ended with status %s; starting it again", child.name, child.process.wait())
            if SYSTEM_CLOCK.monotonic() - child.started > _STEADY_SECONDS:
                child.restart_after = _RESTART_FIRST
            try:
                await asyncio.wait_for(stopping.wait(), child.restart_after)
            except TimeoutError:
                child.restart_after = min(child.restart_after * 2, _RESTART_MAX)
        if child.process is not None:
            await self._end(child)

    async def _end(self, child: _Child) -> None:
        assert child.process is not None
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(asyncio.to_thread(child.process.wait), _STOP_SECONDS)
            except TimeoutError:
                log.warning("%s does not stop; killing it", child.name)
                child.process.kill()
                await asyncio.to_thread(child.process.wait)

    async def _ended_or_stopping(self, child: process.Child, stopping: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        pidfd = os.pidfd_open(child.pid)
        loop.add_reader(pidfd, _settle, ended)
        stop = loop.create_task(stopping.wait())
        try:
            await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            loop.remove_reader(pidfd)
            os.close(pidfd)

    def _start_zygote(self) -> process.Child:
        fd = self._zygotes.fileno()
        command = zygote_command(sys.executable, fd, self._programs)
        return process.start(command, pass_fds=[fd], clean_environment=True)

    def _start_node(self, ready: int) -> process.Child:
        command = [
            sys.executable, "-m", "ballpoint.api", str(self._config.run / _CONFIG),
            f"--ready-fd={ready}", f"--edge-uid={_EDGE_UID}", f"--port={self._listener.getsockname()[1]}",
        ]  # fmt: skip
        environment = {**mirrors.variables(), **url.variables(self._config.store_url), **steps.variables()}
        return process.start(command, pass_fds=[ready], env=environment)

    def _start_edge(self) -> process.Child:
        fd = self._listener.fileno()
        command = [
            sys.executable, "-m", "ballpoint.edge", f"--listen-fd={fd}",
            f"--run={self._config.run}", f"--uid={_EDGE_UID}",
        ]  # fmt: skip
        return process.start(command, pass_fds=[fd])

    def _address(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

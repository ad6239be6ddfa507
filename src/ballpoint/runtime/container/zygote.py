"""The zygote: everything an agent needs, imported once; forks agents into their own namespaces.

It is part of the boundary, for an agent *has* its memory, environment and mount table. So it starts with an empty
environment, before any secret is loaded, and sees a mount namespace with nothing in it: a tmpfs with the helper
programs, /proc, /sys and a few devices. It is one thread, or the fork would be unsafe.

Requests (core.wire, on connections to its listening socket):
    fill    {nonce, instance, uid_base, limits, journal_bytes, names} + a descriptor per name; see `_fill`
                                                                    -> {pid} + anchor pidfd
    revive  {} + anchor pidfd, agent cgroup, agent cgroup.procs...  -> {}
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from ballpoint.agent import main as agent
from ballpoint.agent.warm import warm_up
from ballpoint.core import wire
from ballpoint.host import mount, namespaces, prctl
from ballpoint.host.namespaces import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
)
from ballpoint.host.slots import UID_STRIDE
from ballpoint.runtime.container.programs import FILTER, OF_INSTANCES

# Character devices of an instance: name -> (major, minor), Documentation/admin-guide/devices.txt.
DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
    "fuse": (10, 229),
    "net/tun": (10, 200),
}
_STAGE = ("proc", "sys", "dev", "run")
_ANCHOR, _ANCHOR_KEEPS = 3, 4
# All of the instance's range but the agent's own id: 65,536 for the sprite and as many for a user's own containers.
_INNER_IDS = UID_STRIDE - 1
# What instances may raise their open files to: what Docker's start script asks for. They are memory of their cgroup.
_OPEN_FILES, _OWN_OPEN_FILES = 1 << 20, 1 << 16


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="zygote")
    parser.add_argument("--socket-fd", type=int, required=True, help="listening SOCK_SEQPACKET socket")
    parser.add_argument("--programs", type=Path, required=True, help="directory of the compiled helpers")
    options = parser.parse_args()
    prctl.set_name("zygote")
    prctl.die_with_parent()
    # The kernel forgets that wish when the user id changes, which every fill does; this stays.
    supervisor = os.pidfd_open(os.getppid())
    _raise_limits()
    seccomp = (options.programs / FILTER).read_bytes()
    warm_up()
    _enter_empty_root(options.programs)
    listener = socket.socket(fileno=options.socket_fd)
    listener.setblocking(False)
    # A late import would fail inside an instance, where there is no file system to import from: fail alike everywhere.
    sys.meta_path.clear()
    gc.collect()
    gc.freeze()
    _Zygote(listener, seccomp, supervisor).serve()


def _raise_limits() -> None:
    """Give instances the limits that only the host can; what they use is bounded by their cgroups.

    A host that is a container itself may refuse; then its own limits stand.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for hard in (max(most, _OPEN_FILES), most):
        try:
            # An agent holds several descriptors a session.
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _OWN_OPEN_FILES), hard))
            break
        except (ValueError, OSError):
            continue
    # core(5): where core_pattern is a program, the host runs it as root, even at 0 bytes; at 1 it does not.
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NPROC, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _enter_empty_root(programs: Path) -> None:
    """Leave the host's mounts for a tmpfs that holds what instances are made of."""
    files = {name: (programs / name).read_bytes() for name in OF_INSTANCES}
    namespaces.unshare(CLONE_NEWNS)
    mount.mount("none", "/", flags=mount.MS_REC | mount.MS_PRIVATE)
    root = mount.fsmount("tmpfs", {"mode": "755", "size": "32m"})
    mount.move_mount(root, "/run")
    os.chdir(f"/proc/self/fd/{root}")
    for directory in ("aroot", "proc", "sys", "dev"):
        Path(directory).mkdir()

    mount.mount_at("aroot", "tmpfs", {"mode": "755", "size": "16m"})
    agent_root = Path("aroot")
    for directory in ("bin", "proc", "sys", "dev", "mnt", *(f"stage/{name}" for name in _STAGE)):
        (agent_root / directory).mkdir(parents=True)
    for name, content in files.items():
        (agent_root / "bin" / name).write_bytes(content)
        (agent_root / "bin" / name).chmod(0o755)
    _seal(agent_root, mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NODEV)

    mount.mount_at("dev", "tmpfs", {"mode": "755", "size": "1m"})
    for name, (major, minor) in DEVICES.items():
        device = Path("dev") / name
        if name in ("fuse", "net/tun") and not Path("/dev", name).exists():
            continue
        device.parent.mkdir(exist_ok=True)
        os.mknod(device, 0o020666, os.makedev(major, minor))
        device.chmod(0o666)
    _seal(Path("dev"), mount.MOUNT_ATTR_RDONLY)

    # A user namespace may mount proc and sysfs of its own only where it can see whole ones (mount_too_revealing).
    mount.mount_at("proc", "proc", {})
    mount.mount_at("sys", "sysfs", {}, mount.MOUNT_ATTR_RDONLY)
    namespaces.pivot_root(".", ".")
    mount.umount2(".", mount.MNT_DETACH)
    os.chdir("/")
    os.close(root)


def _seal(path: Path, attributes: int) -> None:
    fd = mount.open_tree(path, clone=False)
    mount.mount_setattr(fd, set_=attributes)
    os.close(fd)


class _Zygote:
    def __init__(self, listener: socket.socket, seccomp: bytes, supervisor: int) -> None:
        self._listener = listener
        self._seccomp = seccomp
        self._supervisor = supervisor
        self._connections: dict[int, socket.socket] = {}
        self._poll = select.poll()
        wakeup, self._woken = socket.socketpair()
        wakeup.setblocking(False)
        self._woken.setblocking(False)
        self._wakeup = wakeup
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for each in (listener, self._woken, supervisor):
            self._poll.register(each, select.POLLIN)

    def serve(self) -> NoReturn:
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._listener.fileno():
                    self._accept()
                elif fd == self._woken.fileno():
                    self._reap()
                elif fd == self._supervisor:
                    sys.exit(0)
                elif fd in self._connections:
                    self._request(self._connections[fd])

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        self._connections[connection.fileno()] = connection
        self._poll.register(connection, select.POLLIN)

    def _reap(self) -> None:
        self._woken.recv(4096)
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    return
            except ChildProcessError:
                return

    def _request(self, connection: socket.socket) -> None:
        try:
            message, fds = wire.receive(connection)
        except OSError:  # it went with an answer unread
            message = {}
        if not message:
            self._drop(connection)
            return
        answer: dict[str, Any] = {"id": message.get("id")}
        pidfds: list[int] = []
        try:
            work = {"fill": self._fill, "revive": self._revive}[message["op"]]
            pid, pidfd = work(message, fds)
            pidfds.append(pidfd)
            answer["ok"] = {"pid": pid}
        except Exception as error:  # noqa: BLE001 - the node is told, and decides; the zygote serves on
            traceback.print_exc()
            answer["error"] = f"{type(error).__name__}: {error}"
        try:
            wire.send(connection, answer, pidfds)
        except OSError:  # the node was killed; the next one finds by its group what was made
            self._drop(connection)
        finally:
            for fd in (*fds, *pidfds):
                os.close(fd)

    def _drop(self, connection: socket.socket) -> None:
        self._poll.unregister(connection)
        del self._connections[connection.fileno()]
        connection.close()

    def _fill(self, message: dict[str, Any], fds: list[int]) -> tuple[int, int]:
        """Clone an anchor and its agent. Names: cgroup, agent-group, agent-procs-N, and what the agent deposits."""
        assert threading.active_count() == 1
        given = dict(zip(message["names"], fds, strict=True))
        procs = [given.pop(name) for name in sorted(given) if name.startswith("agent-procs-")]
        go_read, go_write = os.pipe()
        flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET
        base = int(message["uid_base"])
        # The kernel counts inotify instances, namespaces and the like of a user namespace against who made it. Were
        # that the host's root for all instances, one of them could use up what all have.
        prctl.prctl(prctl.PR_SET_SECUREBITS, prctl.SECBIT_NO_SETUID_FIXUP)
        os.seteuid(base)
        pid = -1
        try:
            pid, pidfd = namespaces.clone3(flags, cgroup=given.pop("cgroup"))
        finally:
            if pid != 0:
                os.seteuid(0)
                prctl.prctl(prctl.PR_SET_SECUREBITS, 0)
        if pid == 0:
            os.close(go_write)
            _child(_become_instance, message, given, go_read, given.pop("agent-group"), self._seccomp)
        try:
            os.close(go_read)
            for kind in ("uid_map", "gid_map"):
                Path(f"/proc/{pid}/{kind}").write_text(f"0 {base} 1\n1 {base + 1} {_INNER_IDS}\n")
            for fd in procs:
                os.write(fd, str(pid).encode())
            os.write(go_write, b"g")
        except BaseException:
            prctl.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
            raise
        finally:
            os.close(go_write)
        return pid, pidfd

    def _revive(self, message: dict[str, Any], fds: list[int]) -> tuple[int, int]:
        """Fork a new agent into the namespaces of a living anchor."""
        assert threading.active_count() == 1
        anchor, cgroup, *procs = fds
        go_read, go_write = os.pipe()
        pid, pidfd = namespaces.clone3(0, cgroup=cgroup)
        if pid == 0:
            os.close(go_write)
            _child(_rejoin_instance, anchor, go_read, self._seccomp)
        os.close(go_read)
        try:
            for fd in procs:
                os.write(fd, str(pid).encode())
            os.write(go_write, b"g")
        except BaseException:
            os.close(pidfd)
            raise
        finally:
            os.close(go_write)
        return pid, pidfd


def _child(work: Any, *arguments: Any) -> NoReturn:
    """Run `work` in a forked child, which must never return into the zygote's own loop."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        work(*arguments)
    except BaseException:  # noqa: BLE001 - the last frame of a process: print and die
        traceback.print_exc()
    os._exit(1)


def _await_go(go: int) -> None:
    """Wait until the zygote has written the maps and joined the v1 controllers."""
    if os.read(go, 1) != b"g":
        os._exit(1)


def _become_root() -> None:
    """Be root of the user namespace with nothing of the zygote's at hand."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    # Or /proc/<pid> would belong to the host's root, and the agent could not read its own children's namespaces.
    prctl.prctl(prctl.PR_SET_DUMPABLE, 1)
    prctl.join_session_keyring()
    os.setsid()


def _become_instance(message: dict[str, Any], given: dict[str, int], go: int, group: int, seccomp: bytes) -> None:
    _await_go(go)
    _become_root()
    # Not in the clone: the v1 controllers were joined in between, and their cgroup roots are fixed here.
    namespaces.unshare(CLONE_NEWCGROUP)
    # The cgroup namespace has the instance's group as its root, because nobody leaves that root where v2 is mounted
    # with `nsdelegate`, as systemd does: the container's group must be below. The agent's own is beside it.
    os.write(group, b"0")
    os.close(group)
    prctl.install_seccomp_filter(seccomp)
    mount.mount("none", "/", flags=mount.MS_REC | mount.MS_PRIVATE)
    root = mount.open_tree("/aroot")
    dev = mount.open_tree("/dev", recursive=True)
    restricted = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC
    proc = mount.fsmount("proc", {}, restricted)
    sysfs = mount.fsmount("sysfs", {}, restricted | mount.MOUNT_ATTR_RDONLY)
    mount.move_mount(root, "/aroot")
    os.fchdir(root)
    namespaces.pivot_root(".", ".")
    mount.umount2(".", mount.MNT_DETACH)
    os.chdir("/")
    for fd, path in ((proc, "/proc"), (sysfs, "/sys"), (dev, "/dev")):
        mount.move_mount(fd, path)

    anchor, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    identity = {name: message[name] for name in ("instance", "nonce", "limits", "journal_bytes")}
    if os.fork() == 0:
        anchor.close()
        _run_agent(ours, given, identity)
    # The anchor's two ends must not be in each other's place while they are put there.
    high = [os.dup(anchor.fileno()), os.dup(ours.fileno())]
    while min(high) <= _ANCHOR_KEEPS:
        high = [os.dup(fd) for fd in high]
    os.dup2(high[0], _ANCHOR)
    os.dup2(high[1], _ANCHOR_KEEPS)
    _null_standard_streams()
    os.closerange(_ANCHOR_KEEPS + 1, 1 << 16)
    os.execve("/bin/anchor", ["anchor"], {})


def _rejoin_instance(anchor: int, go: int, seccomp: bytes) -> None:
    _await_go(go)
    ours = prctl.pidfd_getfd(anchor, _ANCHOR_KEEPS)
    namespaces.setns(
        anchor,
        CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP,
    )
    if os.fork() != 0:  # setns to a pid namespace holds for children only
        os._exit(0)
    _become_root()
    prctl.install_seccomp_filter(seccomp)
    _run_agent(socket.socket(fileno=ours), None, None)


def _run_agent(sock: socket.socket, given: dict[str, int] | None, identity: dict[str, Any] | None) -> NoReturn:
    prctl.set_name("agent")
    _null_standard_streams()
    _close_all_but({0, 1, 2, sock.fileno(), *(given or {}).values()})
    agent.run(sock, given, identity)
    os._exit(0)


def _null_standard_streams() -> None:
    """The zygote's standard error is the node's log; nobody inside may write to it."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


def _close_all_but(keep: set[int]) -> None:
    low = 0
    for fd in sorted(keep):
        if low < fd:  # an empty range would close everything from `low` on
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 16)


if __name__ == "__main__":
    # json's C scanner and the encoder are loaded on first use.
    json.loads(json.dumps({"warm": [1, None, True, "é"]}))
    main()

"""One sprite takes all it can get of what the kernel shares; another works, and new ones can be made.

Each test shows two things: that the first sprite did run out, or had more than the kernel gives all users together by
default, and that the second gets its share while the first holds on to everything.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ballpoint.core import ids
from ballpoint.host import namespaces
from tests.inside.conftest import Make, agent_of, instance_of
from tests.support.nodes import TestNode, shell
from tests.support.raw import exec_websocket

pytestmark = [pytest.mark.node, pytest.mark.host, pytest.mark.usefixtures("host_limits")]

# What a taker is made of: it takes until it is refused (or has `most`), says how much and why, and holds on.
TAKER = """
import ctypes, errno, os, signal, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def failed(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
held, most = [], 10 ** 9
told = open('/run/taken.new', 'w')
{take}
count, why = 0, 'enough'
try:
    while count < most:
        take(count)
        count += 1
except (OSError, MemoryError) as error:
    why = errno.errorcode.get(getattr(error, 'errno', 0) or 0, type(error).__name__)
told.write(f'{{count}} {{why}}')
told.flush()
os.rename('/run/taken.new', '/run/taken')
signal.pause()
"""


@contextmanager
def taking(sprite: Any, take: str, *, user: str = "root") -> Iterator[tuple[int, str]]:
    """While it lasts, `sprite` holds what it took. Yields how often it could, and why it stopped."""
    program = base64.b64encode(TAKER.format(take=take).encode()).decode()
    code, said = shell(
        sprite,
        f"rm -f /run/taken; echo {program} | base64 -d >/tmp/taker.py; "
        "setsid python3 /tmp/taker.py >/tmp/taker.log 2>&1 </dev/null & pid=$!; "
        "until [ -e /run/taken ]; do kill -0 $pid 2>/dev/null || { cat /tmp/taker.log; exit 1; }; done; "
        "echo $pid >/run/taker; cat /run/taken",
        user=user,
        timeout=200,
    )
    assert code == 0, said
    count, why = said.split()
    try:
        yield int(count), why
    finally:
        shell(sprite, "kill -9 -$(cat /run/taker)", user=user)


def works(node: TestNode, other: Any) -> None:
    """Another sprite runs commands, with a terminal and without; a new one is made, used and ended."""
    assert shell(other, "echo $((6 * 7)) | cat; id -un") == (0, "42\nsprite\n")
    assert shell(other, "ps ax | wc -l | grep -q . && echo yes", user="root") == (0, "yes\n")
    heard = exec_websocket(node, other.name, "tty", tty="true")
    assert heard.terminal == [0] and b"/dev/pts/" in heard.stdout
    name = f"t-{ids.new_instance_id()}"
    fresh = node.client().create_sprite(name)
    assert shell(fresh, "echo new") == (0, "new\n")
    node.client().delete_sprite(name)


@pytest.fixture(scope="module")
def other(make_sprite: Make) -> Any:
    return make_sprite()


def test_processes(node: TestNode, make_sprite: Make, other: Any) -> None:
    take = """
def take(_):
    pid = os.fork()
    if pid == 0:
        signal.pause()
"""
    with taking(make_sprite(), take) as (count, why):
        assert (count > 100, why) == (True, "EAGAIN")
        works(node, other)


def test_inotify(node: TestNode, make_sprite: Make, other: Any) -> None:
    """Counted against the user who made the user namespace: were that the host's root, one sprite would have all."""
    instances = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    take = "def take(_): held.append(failed(libc.inotify_init1(0)))"
    with taking(make_sprite(), take) as (count, why):
        assert (count, why) == (instances, "EMFILE")
        watch = (
            "import ctypes; l = ctypes.CDLL(None); f = l.inotify_init1(0); print(l.inotify_add_watch(f, b'/tmp', 2))"
        )
        assert shell(other, f'python3 -c "{watch}"') == (0, "1\n")
        # The host's own processes have theirs as well.
        done = subprocess.run([sys.executable, "-c", watch], capture_output=True, text=True, check=True)
        assert done.stdout == "1\n"
        works(node, other)


def test_namespaces(node: TestNode, make_sprite: Make, other: Any) -> None:
    """Counted like inotify instances. A sprite's own limit is lowered, so that the test need not make 100,000."""
    sprite = make_sprite()
    take = """
with open('/proc/sys/user/max_user_namespaces', 'w') as file:
    file.write('200')
def take(_):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = libc.unshare(0x10000000) and ctypes.get_errno()
        os.write(write, bytes([code]))
        signal.pause()
    os.close(write)
    code = os.read(read, 1)[0]
    os.close(read)
    if code:
        raise OSError(code, 'unshare')
"""
    with taking(sprite, take) as (count, why):
        assert (count > 100, why) == (True, "ENOSPC")
        assert shell(other, "unshare -Ur true && echo yes") == (0, "yes\n")
        works(node, other)


def test_keys(node: TestNode, make_sprite: Make, other: Any) -> None:
    number = 217 if _arm() else 248
    take = f"""
def take(i):
    failed(libc.syscall({number}, b'user', b'k%d' % i, b'x' * 8, ctypes.c_long(8), ctypes.c_long(-4)))
"""
    with taking(make_sprite(), take) as (count, why):
        assert (count > 10, why) == (True, "EDQUOT")
        one = take.replace("failed(", "print(0 < ") + "\ntake(1)"
        program = base64.b64encode(("import ctypes\nlibc = ctypes.CDLL(None)\n" + one).encode()).decode()
        assert shell(other, f"echo {program} | base64 -d | python3", user="root") == (0, "True\n")
        works(node, other)


def test_connections(node: TestNode, make_sprite: Make, other: Any) -> None:
    """Tracked connections of the host: 192.0.2.1 (RFC 5737) is nobody's, and a datagram is enough to be tracked."""
    sprite = make_sprite()
    gateway = "ping -c 3 -i 0.2 -W 2 -q $(ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p')"
    assert shell(sprite, f"{gateway} | grep ' 0% packet loss'", user="root")[0] == 0
    take = """
most = 20000
held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
def take(i):
    try:
        held[0].sendto(b'x', ('192.0.2.%d' % (1 + i // 10000), 1 + i % 10000))
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOBUFS):
            raise
"""
    with taking(sprite, take) as (count, _):
        assert count == 20000
        code, said = shell(sprite, gateway, user="root")
        assert code != 0 and "100% packet loss" in said  # it has none left for itself
        assert shell(other, f"{gateway} | grep ' 0% packet loss'", user="root")[0] == 0
        works(node, other)


def test_shared_memory(node: TestNode, make_sprite: Make, other: Any) -> None:
    take = """
held.append(open('/dev/shm/all', 'wb', buffering=0))
def take(_):
    if held[0].write(b'x' * (1 << 20)) < 1 << 20:
        raise OSError(errno.ENOSPC, 'short')
"""
    sprite = make_sprite()
    with taking(sprite, take) as (count, why):
        assert (count > 10, why) == (True, "ENOSPC")
        assert shell(other, "head -c 10M /dev/zero >/dev/shm/some && stat -c %s /dev/shm/some") == (0, "10485760\n")
        works(node, other)
    shell(sprite, "rm /dev/shm/all", user="root")


def test_terminals(node: TestNode, make_sprite: Make, other: Any) -> None:
    """A sprite's own devpts has a limit; one that it mounts itself has none but the host's and its memory's."""
    default = 4096  # of kernel.pty.max, Documentation/admin-guide/sysctl/kernel.rst
    take = f"""
import resource
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
most = min({default * 2}, hard - 100)
os.makedirs('/tmp/pts', exist_ok=True)
failed(libc.mount(b'none', b'/tmp/pts', b'devpts', 0, b'ptmxmode=666'))
def take(_):
    held.append(os.open('/tmp/pts/ptmx', os.O_RDWR | os.O_NOCTTY))
"""
    own = "def take(_): held.append(os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY))"
    sprite = make_sprite()
    with taking(sprite, own) as (count, why):
        assert (count > 10, why) == (True, "ENOSPC")
        works(node, other)
    with taking(sprite, take) as (count, _):
        assert count > default
        works(node, other)


def test_asynchronous_io(node: TestNode, make_sprite: Make, other: Any) -> None:
    """fs.aio-max-nr is one number for the host, 65536 by default: a single call could have it all."""
    number = 0 if _arm() else 206
    take = f"""
most = 20
def take(_):
    context = ctypes.c_ulong(0)
    failed(libc.syscall({number}, ctypes.c_long(65536), ctypes.byref(context)))
"""
    with taking(make_sprite(), take) as (count, why):
        assert (count, why) == (20, "enough")
        one = f"import ctypes; c = ctypes.c_ulong(0); print(ctypes.CDLL(None).syscall({number}, 1024, ctypes.byref(c)))"
        assert shell(other, f'python3 -c "{one}"') == (0, "0\n")
        works(node, other)


def test_open_files(node: TestNode, make_sprite: Make, other: Any) -> None:
    """Open files are memory of the sprite that opens them: its memory runs out, not the host's table."""
    take = """
import resource
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
most = hard * 4
def take(i):
    if i % (hard - 200) == 0 and i:
        pid = os.fork()
        if pid:
            signal.pause()  # holds its own; the child closes them and goes on
        os.closerange(100, hard)
    os.open('/dev/null', os.O_RDONLY)
"""
    assert int(Path("/proc/sys/fs/file-max").read_text()) > 1 << 40
    with taking(make_sprite(), take) as (count, _):
        assert count > 10000
        works(node, other)


def test_core_files(node: TestNode, make_sprite: Make, tmp_path: Path) -> None:
    """Neither a file nor, where core_pattern is a program, that program, which the host would run as root.

    The kernel leaves it alone at a limit of 1 byte only. So nobody inside may lower the limit either: sudo does, to 0.
    """
    sprite = make_sprite()
    handler, called = tmp_path / "handler", tmp_path / "called"
    handler.write_text(f"#!/bin/sh\ncat >/dev/null\n(echo process $1; cat /proc/$1/cgroup) >> {called}\n")
    handler.chmod(0o755)
    pattern = Path("/proc/sys/kernel/core_pattern")
    # core(5): with a limit the kernel keeps who crashed until the handler has ended; without one nobody waits for it.
    limit = Path("/proc/sys/kernel/core_pipe_limit")
    former, former_limit = pattern.read_text(), limit.read_text()
    # The kernel splits the pattern at spaces and takes 127 bytes.
    link = Path("/run") / f"core-{ids.new_instance_id()}"
    link.symlink_to(handler)
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    lower = f"import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); {crash}"
    try:
        limit.write_text("1000")
        pattern.write_text(f"|{link} %P")
        victim = subprocess.Popen([sys.executable, "-c", lower])
        victim.wait(timeout=60)
        assert f"process {victim.pid}\n" in called.read_text()  # a process of the host is handled
        code, said = shell(
            sprite,
            f'cd /tmp; python3 -c "{crash}"; python3 -c "{lower}"; sudo python3 -c "{crash}"; ulimit -c 0; '
            f'ulimit -c unlimited; python3 -c "{crash}"; echo $?; ls -a | grep -c core; prlimit --core --noheadings',
        )
        assert said.split("\n")[:3] == ["139", "0", "CORE max core file size 1 1 bytes"], said
        agent = agent_of(node, instance_of(node, sprite))
        assert any(line.split()[4:6] == ["1", "1"] for line in Path(f"/proc/{agent}/limits").read_text().splitlines())
        assert node.id not in called.read_text()
    finally:
        pattern.write_text(former)
        limit.write_text(former_limit)
        link.unlink()


def test_limits_are_counted_by_sprite(node: TestNode, make_sprite: Make) -> None:
    """Who made a sprite's outer user namespace is a user id of its own, of no process of the host."""
    owners = set()
    for sprite in (make_sprite(), make_sprite()):
        instance = instance_of(node, sprite)
        record = json.loads(Path(f"/run/ballpoint/{node.id}/instances/{instance}/instance.json").read_text())
        with Path(f"/proc/{agent_of(node, instance)}/ns/user").open() as outer:
            owner = namespaces.ns_owner_uid(outer.fileno())
        assert owner == record["uid_base"] > 0
        owners.add(owner)
    assert len(owners) == 2


def _arm() -> bool:
    return Path("/lib/ld-linux-aarch64.so.1").exists()

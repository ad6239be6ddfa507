"""The walls, tried from both places an attacker may have: root in a sprite, and a shell in its agent's place.

docs/inside.md says what they keep. `attack.py` holds the attempts. Its looks are first made by a process of the host,
which must see everything there is to be seen: so an attempt that is broken does not pass for a wall.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ballpoint.core import ids
from ballpoint.host import prctl
from ballpoint.host.cgroup import CONTROLLERS, Hierarchies
from ballpoint.runtime.container.programs import FILTER, ensure_programs
from tests.inside.conftest import Make, agent_of, group_of, init_of, instance_of
from tests.support.nodes import CACHE, TestNode, shell
from tests.support.waiting import eventually

pytestmark = [pytest.mark.node, pytest.mark.host]

HERE = Path(__file__).parent
PLACES = ("sprite", "agent")
# Names below /proc/sys that belong to the kernel, not to a namespace.
SYSCTLS = (
    "kernel/panic", "kernel/core_pattern", "kernel/sysrq", "kernel/modprobe", "kernel/printk",
    "kernel/kptr_restrict", "kernel/dmesg_restrict", "kernel/unprivileged_bpf_disabled", "kernel/perf_event_paranoid",
    "kernel/keys/maxkeys", "kernel/pty/max", "kernel/randomize_va_space", "kernel/threads-max", "vm/drop_caches",
    "vm/overcommit_memory", "vm/swappiness", "vm/max_map_count", "fs/file-max", "fs/nr_open", "fs/aio-max-nr",
    "fs/inotify/max_user_instances", "fs/protected_symlinks", "fs/suid_dumpable",
    "net/netfilter/nf_conntrack_max", "net/core/bpf_jit_enable",
)  # fmt: skip
# major:minor of devices that are the host's: loop0, memory, the kernel's log, loop-control, kvm.
HOST_DEVICES = {
    "loop0": ("b", 7, 0), "mem": ("c", 1, 1), "kmsg": ("c", 1, 11), "loop-control": ("c", 10, 237),
    "kvm": ("c", 10, 232),
}  # fmt: skip


def addresses() -> list[str]:
    """The host's IPv4 addresses beyond its loopback."""
    text = subprocess.run(["ip", "-4", "-o", "addr"], capture_output=True, text=True, check=True).stdout
    return sorted({found for found in re.findall(r"inet ([\d.]+)", text) if not found.startswith("127.")})


class Scene:
    """Two sprites, and things of the host for the first of them not to see.

    Attributes:
        given: what the attack is told.
        secret: bytes that the node's front door knows and an instance must not.
    """

    def __init__(self, node: TestNode, make_sprite: Make, directory: Path, stack: ExitStack) -> None:
        self.node = node
        self.sprite, self.other = make_sprite(), make_sprite()
        self.instance = instance_of(node, self.sprite)
        self.secret = node.token.encode()
        marker = f"host-marker-{ids.new_instance_id()}"
        file = directory / marker
        file.write_bytes(self.secret)
        sleeper = subprocess.Popen(["bash", "-c", f"exec -a {marker} sleep 1000"], stdin=subprocess.PIPE)
        stack.callback(sleeper.wait)
        stack.callback(sleeper.kill)
        assert sleeper.stdin is not None
        stack.callback(sleeper.stdin.close)

        def listen(address: Any, family: int = socket.AF_UNIX) -> socket.socket:
            made = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            made.bind(address)
            made.listen(64)
            return made

        listen(str(directory / "unix.sock"))
        listen("\0" + marker)
        loopback = listen(("127.0.0.1", 0), socket.AF_INET)
        everywhere = listen(("0.0.0.0", 0), socket.AF_INET).getsockname()[1]
        other = f"other-marker-{ids.new_instance_id()}"
        listener = (
            "import socket,time;s=socket.create_server(('0.0.0.0',8080));print('up',flush=True);"
            "[s.accept() for _ in iter(int,1)]"
        )
        code, said = shell(
            self.other,
            f"(exec -a {other} sleep 1000) >/dev/null 2>&1 & "
            f'python3 -c "{listener}" >/tmp/up 2>&1 & until grep -qs up /tmp/up; do :; done; hostname -I',
        )
        assert code == 0, said
        self.given: dict[str, Any] = {
            "secret": base64.b64encode(self.secret[::-1]).decode(),
            "process": marker,
            "pid": sleeper.pid,
            "file": str(file),
            "mount": " /sys/fs/cgroup/unified " if Path("/sys/fs/cgroup/unified").exists() else " /dev/pts ",
            "devices": ["loop0", "loop-control", "kmsg", "vda", "sda", "nvme0n1", "mem", "port", "kvm"],
            "unix": str(directory / "unix.sock"),
            "abstract": marker,
            "node_sockets": [str(path) for path in Path(f"/run/ballpoint/{node.id}").rglob("*.sock")],
            "loopback_port": loopback.getsockname()[1],
            "node_port": int(node.url.rsplit(":", 1)[1]),
            "addresses": [[address, everywhere] for address in addresses()],
            "other_process": other,
            "other_listener": [said.split()[-1], 8080],
            "places": ["/etc", "/run", "/home", "/root", "/tmp", "/var", "/.sprite", "/dev/shm", "/bin"],
            "sysctls": SYSCTLS,
            "nodes": [],
        }

    def run(self, what: str, place: str) -> list[list[Any]]:
        """What became of the attack; [name, outcome, whether it was a refusal]."""
        text = json.dumps(self.given)
        if place == "host":
            command = [sys.executable, str(HERE / "attack.py"), what]
        elif place == "agent":
            groups = group_of(self.node, self.instance).child("agent")
            procs = [str(groups.v2 / "cgroup.procs")]
            procs += [str(mount / groups.path / "cgroup.procs") for mount in groups.hierarchies.v1.values()]
            agent = agent_of(self.node, self.instance)
            assert "Seccomp:\t2" in Path(f"/proc/{agent}/status").read_text()
            seccomp = ensure_programs(CACHE) / FILTER
            command = [sys.executable, "-I", str(HERE / "place.py"), str(agent), what, str(seccomp), *procs]
        else:
            return self._in_sprite(what, text)
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))

    def _in_sprite(self, what: str, text: str) -> list[list[Any]]:
        program = base64.b64encode((HERE / "attack.py").read_bytes()).decode()
        # Encoded, because the script is in its shell's own command line, where the attack looks for these names.
        given = base64.b64encode(text.encode()).decode()
        script = (
            f"echo {program} | base64 -d >/root/attack.py && echo {given} | base64 -d | python3 /root/attack.py {what}"
        )
        code, said = shell(self.sprite, script, user="root", timeout=200)
        assert code == 0, said
        return list(json.loads(said))


@pytest.fixture(scope="module")
def scene(node: TestNode, make_sprite: Make, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(node, make_sprite, tmp_path_factory.mktemp("host"), stack)


def failed(results: list[list[Any]]) -> dict[str, str]:
    return {name: outcome for name, outcome, refused in results if not refused}


def test_a_host_process_sees_everything_the_attack_looks_for(scene: Scene) -> None:
    unseen = {name for name, outcome, _ in scene.run("sights", "host") if outcome != "seen"}
    # Another node may have gone meanwhile, with its address.
    gone = {address for address, _ in scene.given["addresses"]} - set(addresses())
    assert {name for name in unseen if not any(name.endswith(f" {address}") for address in gone)} == set()


@pytest.mark.parametrize("place", PLACES)
def test_nothing_of_the_host_or_of_another_sprite_is_seen(scene: Scene, place: str) -> None:
    results = scene.run("sights", place)
    assert len(results) == len(scene.run("sights", "host"))
    assert failed(results) == {}


@pytest.fixture(scope="module")
def planted(scene: Scene) -> list[str]:
    """Device nodes that the host put on the sprite's disk, which a sprite can write only to a disk it brings."""
    root = Path(f"/proc/{init_of(scene.node, scene.instance)}/root")
    record = json.loads(Path(f"/run/ballpoint/{scene.node.id}/instances/{scene.instance}/instance.json").read_text())
    made = []
    with prctl.file_access_as(int(record["uid_base"]) + 1):
        for name, (kind, major, minor) in HOST_DEVICES.items():
            for directory in ("var/lib/docker", "opt"):
                path = root / directory / f"planted-{name}"
                os.mknod(path, (0o060666 if kind == "b" else 0o020666), os.makedev(major, minor))
                path.chmod(0o666)
                made.append(f"/{directory}/planted-{name}")
    return made


def test_the_kernel_refuses_every_act_of_root_in_a_sprite(scene: Scene, planted: list[str]) -> None:
    scene.given["nodes"] = planted
    try:
        code, said = shell(scene.sprite, f"ls -l {' '.join(planted)}", user="root")
        assert code == 0 and len(re.findall(r"^[bc]rw-rw-rw-", said, re.MULTILINE)) == len(planted), said
        before = limits(scene), sysctls()
        results = scene.run("acts", "sprite")
    finally:
        scene.given["nodes"] = []
    assert failed(results) == {}
    assert (limits(scene), sysctls()) == before


def test_the_kernel_refuses_every_act_in_the_agents_place(scene: Scene) -> None:
    before = limits(scene), sysctls()
    assert failed(scene.run("acts", "agent")) == {}
    assert (limits(scene), sysctls()) == before


@pytest.mark.parametrize(
    "remount", ["mount -o remount,bind,dev /", "mount -o remount,dev /", "mount -o remount,dev,rw,bind /var/lib/docker"]
)
def test_nodev_cannot_be_taken_off(scene: Scene, planted: list[str], remount: str) -> None:
    code, said = shell(scene.sprite, f"{remount}; head -c1 {planted[0]}; head -c1 {planted[1]}", user="root")
    assert code != 0
    assert "ermission denied" in said or "not permitted" in said


def test_the_device_policy_holds_by_itself(scene: Scene, tmp_path: Path) -> None:
    """Where no mount flag helps: a host process in the sprite's group opens a node in the host's /dev."""
    group = group_of(scene.node, scene.instance).child("inner").child("main")
    node = tmp_path / "loop0"
    os.mknod(node, 0o060600, os.makedev(7, 0))
    program = (
        "import os,sys\n"
        "if len(sys.argv) > 2: open(sys.argv[2], 'w').write('0')\n"
        "os.close(os.open('/dev/null', os.O_RDWR))\n"
        "try: os.open(sys.argv[1], os.O_RDONLY)\n"
        "except OSError as error: print(error.errno)\n"
        "else: print('opened')\n"
    )
    try:
        command = [sys.executable, "-c", program, str(node)]
        free = subprocess.run(command, capture_output=True, text=True, check=True)
        held = subprocess.run([*command, str(group.v2 / "cgroup.procs")], capture_output=True, text=True, check=True)
    finally:
        node.unlink()
    assert free.stdout == "opened\n"
    assert held.stdout == "1\n"  # EPERM


def sysctls() -> dict[str, str]:
    """The kernel's settings that a sprite tries to change, as the host has them."""
    return {
        name: path.read_text()
        for name in (*SYSCTLS, "kernel/pid_max", "kernel/hostname")
        if (path := Path("/proc/sys", name)).exists() and path.stat().st_mode & 0o400
    }


def test_what_a_sprite_may_set_is_its_own(scene: Scene) -> None:
    before = sysctls()
    code, said = shell(
        scene.sprite,
        "hostname elsewhere; echo 3000 >/proc/sys/kernel/pid_max; sysctl -qw net.ipv4.ip_forward=1; "
        "echo 1 >/proc/sys/user/max_inotify_instances; hostname sprite; sysctl -n net.ipv4.ip_forward",
        user="root",
    )
    assert code == 0 and said.endswith("1\n"), said
    assert sysctls() == before
    shell(
        scene.sprite,
        "echo 4194304 >/proc/sys/kernel/pid_max; echo 2147483647 >/proc/sys/user/max_inotify_instances",
        user="root",
    )


def limits(scene: Scene) -> dict[str, str]:
    """Every limit of the instance, as the host has it written down."""
    group = group_of(scene.node, scene.instance)
    names = ("cpu.max", "memory.max", "pids.max", "cgroup.freeze", "cgroup.max.depth", "cgroup.max.descendants",
             "cpu.cfs_quota_us", "memory.limit_in_bytes")  # fmt: skip
    found = {}
    for part in (group, group.child("agent"), group.child("inner")):
        for base in (part.v2, *(mount / part.path for mount in part.hierarchies.v1.values())):
            found.update({str(base / name): (base / name).read_text() for name in names if (base / name).exists()})
    assert found
    return found


def test_a_process_cannot_leave_its_groups(scene: Scene) -> None:
    """Whatever it moves to, all its groups stay below the instance's."""
    marker = f"leaver-{ids.new_instance_id()}"
    code, said = shell(
        scene.sprite,
        "cd /sys/fs/cgroup; mkdir -p mine/deep; echo $$ > cgroup.procs; echo $$ > mine/deep/cgroup.procs; "
        "unshare -C mount -t cgroup2 none /mnt; echo $$ > /mnt/../cgroup.procs; "
        'for c in cpu memory pids; do unshare -m sh -c "mount -t cgroup -o $c none /mnt && '
        'echo $$ > /mnt/../cgroup.procs; echo $$ > /mnt/cgroup.procs"; done; '
        f"(exec -a {marker} sleep 1000) >/dev/null 2>&1 & until pgrep -f ^{marker}; do :; done",
        user="root",
    )
    assert code == 0, said
    pids = [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if _cmdline(path).startswith(marker)]
    assert len(pids) == 1
    path = f"/{group_of(scene.node, scene.instance).path}/"
    hierarchies = Hierarchies.detect()
    seen = set()
    for line in Path(f"/proc/{pids[0]}/cgroup").read_text().splitlines():
        number, names, place = line.split(":", 2)
        for name in names.split(",") if number != "0" else ("unified",):
            if name == "unified" or name in hierarchies.v1:
                assert place.startswith(path), line
                seen.add(name)
    assert seen == {"unified", *(name for name in CONTROLLERS if name in hierarchies.v1)}


def _cmdline(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def test_the_token_is_in_no_process_of_an_instance(scene: Scene) -> None:
    """Nor in the zygote, whose memory every agent has a copy of. The front door, as the contrary, knows it."""
    zygotes = scene.node.processes("zygote")
    assert zygotes
    group = group_of(scene.node, scene.instance)
    members = {*zygotes}
    for path in group.v2.rglob("cgroup.procs"):
        members |= {int(pid) for pid in path.read_text().split()}
    assert len(members) > 3
    for pid in members:
        assert scene.secret not in environment_and_memory(pid), Path(f"/proc/{pid}/cmdline").read_text()
    # A process that has it is found out: the scan itself works.
    holder = subprocess.Popen(["cat"], stdin=subprocess.PIPE, env={"HELD": scene.secret.decode()})
    try:
        assert scene.secret in environment_and_memory(holder.pid)
    finally:
        holder.kill()
        holder.communicate()


def environment_and_memory(pid: int) -> bytes:
    """Everything readable of a process: a few megabytes."""
    parts = [Path(f"/proc/{pid}/environ").read_bytes(), Path(f"/proc/{pid}/cmdline").read_bytes()]
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
            span, rights, _, device, *_ = line.split()
            low, high = (int(number, 16) for number in span.split("-"))
            # Private or anonymous memory; programs' own text cannot hold what was made at run time.
            if not rights.startswith("rw") or high - low > 1 << 28:
                continue
            try:
                memory.seek(low)
                parts.append(memory.read(high - low))
            except (OSError, OverflowError, ValueError):
                continue
    return b"\0".join(parts)


def test_the_zygote_starts_with_nothing_of_the_node(scene: Scene) -> None:
    for pid in (*scene.node.processes("zygote"), agent_of(scene.node, scene.instance)):
        assert Path(f"/proc/{pid}/environ").read_bytes().replace(b"\0", b"") == b""
        mounts = Path(f"/proc/{pid}/mountinfo").read_text()
        assert {line.split(" - ")[1].split()[0] for line in mounts.splitlines()} <= {"tmpfs", "proc", "sysfs"}
        assert all(line.split()[3] in ("/", "/aroot") or "tmpfs" in line for line in mounts.splitlines())


def test_what_enters_a_sprite_cannot_be_traced(scene: Scene) -> None:
    """The helper that joins the container holds the agent's memory until it has become the user's program."""
    watcher = r"""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
open('/run/watching', 'w').close()
refused = taken = 0
def newest():
    # The last number given out (proc_loadavg(5)): the newest process that lives may be far behind it.
    return int(open('/proc/loadavg').read().split()[-1])
while not os.path.exists('/run/enough'):
    for pid in range(newest() + 1, newest() + 4):
        for _ in range(3000):
            if libc.ptrace(0x4206, pid, None, None) == 0:
                try:
                    name = os.readlink(f'/proc/{pid}/exe')
                except OSError:
                    name = ''
                if name.endswith('nsexec') or '(deleted)' in name:
                    print('TAKEN', name)
                os.kill(pid, 9)
                break
            if ctypes.get_errno() == 1:
                # Earlier it is the agent's own child, later the command's end: go on until it is the helper, or gone.
                try:
                    if open(f'/proc/{pid}/comm').read() == 'nsexec\n':
                        refused += 1
                        open('/run/refused', 'w').close()
                        break
                except OSError:
                    break
print('refused', refused)
"""
    program = base64.b64encode(watcher.encode()).decode()
    # The helper looks its user up when it is inside already: a long list keeps it there for milliseconds.
    code, said = shell(
        scene.sprite,
        "cp -p /etc/passwd /etc/passwd.was; yes 'filler:x:99:99::/:/bin/false' | head -30000 >/etc/passwd; "
        f"cat /etc/passwd.was >>/etc/passwd; echo {program} | base64 -d >/run/watch.py; "
        "python3 /run/watch.py >/run/watched 2>&1 & "
        "until [ -e /run/watching ]; do :; done",
        user="root",
    )
    assert code == 0, said
    # The watcher may kill a command of its own sprite, so files say how far it is.
    root = Path(f"/proc/{init_of(scene.node, scene.instance)}/root/run")
    record = json.loads(Path(f"/run/ballpoint/{scene.node.id}/instances/{scene.instance}/instance.json").read_text())

    def command() -> None:
        scene.node.api("POST", f"/v1/sprites/{scene.sprite.name}/exec", params={"cmd": "true"})

    def caught_on_its_way_in() -> bool:
        command()
        return (root / "refused").exists()

    try:
        eventually(caught_on_its_way_in)
        for _ in range(50):
            command()
    finally:
        with prctl.file_access_as(int(record["uid_base"]) + 1):
            (root / "enough").touch()
        eventually(lambda: "refused" in (root / "watched").read_text())
        assert shell(scene.sprite, "mv /etc/passwd.was /etc/passwd", user="root")[0] == 0
    watched = (root / "watched").read_text()
    assert "TAKEN" not in watched
    assert int(watched.split()[-1]) > 0, watched


def test_flags_of_the_handed_over_mounts_are_locked(scene: Scene) -> None:
    """What an attacker in the agent's place could do to the next claim's root: nothing, the flags came locked."""
    code, said = shell(scene.sprite, "grep -E ' / / | /var/lib/(docker|containers) ' /proc/self/mountinfo", user="root")
    assert code == 0
    assert all("nodev" in line.split()[5] for line in said.splitlines())
    assert len(said.splitlines()) == 3

"""What a node may leave on its host, so that a test can see that it leaves nothing."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ballpoint.network import rules


def traces(node_id: str, data: Path) -> dict[str, list[str]]:
    """Everything on the host that belongs to a node: kind -> names. All empty when it is gone."""
    cgroups = [
        str(path)
        for root in Path("/sys/fs/cgroup").glob("*")
        if root.is_dir()
        for path in root.glob(f"ballpoint-{node_id}")
    ] + [str(path) for path in Path("/sys/fs/cgroup").glob(f"ballpoint-{node_id}")]
    return {
        "processes": _processes(str(data)),
        "loop devices": [line for line in _run("losetup", "-a") if str(data) in line],
        "mounts": _mounts(str(data)),
        "cgroups": cgroups,
        "tables": [line for line in _run("nft", "list", "tables") if node_id in line],
        "slots": [owner for owner in sorted(_slot_owners()) if owner.startswith(f"{node_id}/")],
        "links": links(node_id),
        "run directory": [str(path) for path in Path("/run/ballpoint").glob(node_id)],
        "holds": [str(path) for path in Path("/run/ballpoint").glob(f"*/{node_id}")],
    }  # fmt: skip


@contextmanager
def alone() -> Iterator[None]:
    """Of the tests that do this, one at a time: what they change is the machine's, and other workers test, too."""
    with Path(__file__).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def links(node_id: str) -> list[str]:
    """Names of the host's ends of the links of a node's sprites. A link carries the node's id as its group."""
    found = []
    for path in Path("/sys/class/net").glob("bp*"):
        with suppress(OSError):  # another node's, which goes right now
            if int((path / "netdev_group").read_text()) == rules.group(node_id):
                found.append(path.name)
    return sorted(found)


def _slot_owners() -> list[str]:
    """`node/instance` of every slot of this host; other nodes may free theirs at any time."""
    found = []
    for path in Path("/run/ballpoint/slots").glob("*"):
        with suppress(FileNotFoundError):
            found.append(str(path.readlink()))
    return found


def _processes(text: str) -> list[str]:
    """Those that name the data. Those of instances name nothing, but a group that holds one cannot be removed."""
    found = []
    ours = {os.getpid(), os.getppid()}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command and int(path.parent.name) not in ours:
            found.append(f"{path.parent.name} {command}")
    return found


def _mounts(data: str) -> list[str]:
    """In whatever mount namespace: one that a process is in is seen, and others have gone."""
    found: set[str] = set()
    for path in Path("/proc").glob("[0-9]*/mountinfo"):
        with suppress(OSError):
            found.update(line for line in path.read_text().splitlines() if data in line)
    return sorted(found)


def _run(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def only_child(pid: int) -> int:
    (child,) = children(pid)
    return child


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def process_state(pid: int) -> str:
    """The letter of a process's state (proc_pid_stat(5)); "gone" where there is none."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "gone"

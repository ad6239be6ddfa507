"""Memory that can still be given out: by the host, and by the cgroups a process lives in."""

from __future__ import annotations

from pathlib import Path

from ballpoint.host.cgroup import Hierarchies

# cgroup-v1/memory.rst: a group without a limit shows the largest multiple of the page size.
_UNLIMITED = 1 << 62


def available(
    hierarchies: Hierarchies, own: Path = Path("/proc/self/cgroup"), meminfo: Path = Path("/proc/meminfo")
) -> int:
    """Bytes that this process and its children could still use without swapping.

    It is what the kernel says of the host, or less where the process's cgroup or one above it has a limit. Pages of
    files that were not used lately count as free in both (proc_meminfo(5), cgroup-v2.rst).
    """
    found = [_of_host(meminfo)]
    v1 = hierarchies.v1.get("memory")
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" and v1 is None:
            found += _of_groups(hierarchies.v2, path, "memory.max", "memory.current", "inactive_file")
        elif v1 is not None and "memory" in controllers.split(","):
            found += _of_groups(v1, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return max(0, min(found))


def _of_host(meminfo: Path) -> int:
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _of_groups(mount: Path, path: str, limit: str, usage: str, reclaimable: str) -> list[int]:
    """Of the group at `path` and of each above it that has a limit."""
    if ".." in path.split("/"):
        return []  # it lies above what this mount shows (cgroup_namespaces(7))
    group = mount / path.lstrip("/")
    found = []
    for each in (group, *group.parents):
        try:
            text = (each / limit).read_text().strip()
            if text != "max" and int(text) < _UNLIMITED:
                used = int((each / usage).read_text())
                found.append(int(text) - used + _statistic(each / "memory.stat", reclaimable))
        except FileNotFoundError:
            pass  # the root has no limit, and a group without the controller has none of its own
        if each == mount:
            break
    return found


def _statistic(file: Path, name: str) -> int:
    for line in file.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0

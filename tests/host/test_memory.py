"""Memory that can be given out: the least of what the host and the groups above a process have."""

from __future__ import annotations

from pathlib import Path

from ballpoint.host.cgroup import Hierarchies
from ballpoint.host.memory import available

MIB = 1 << 20
MEMINFO = "MemTotal: 4194304 kB\nMemFree: 1 kB\nMemAvailable: 2097152 kB\n"


def group(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)


def look(place: Path, hierarchies: Hierarchies, own: str, meminfo: str = MEMINFO) -> int:
    (place / "own").write_text(own)
    (place / "meminfo").write_text(meminfo)
    return available(hierarchies, place / "own", place / "meminfo") // MIB


def limited(limit: str, used: int, cached: int = 0) -> dict[str, str]:
    stat = f"anon 1\ninactive_file {cached * MIB}\nactive_file 7\n"
    return {"memory.max": f"{limit}\n", "memory.current": f"{used * MIB}\n", "memory.stat": stat}


def test_a_host_without_groups(tmp_path: Path) -> None:
    assert look(tmp_path, Hierarchies(tmp_path / "none"), "0::/\n") == 2048
    assert look(tmp_path, Hierarchies(tmp_path / "none"), "0::/\n", "MemTotal: 5 kB\n") == 0


def test_every_group_above_counts(tmp_path: Path) -> None:
    v2 = tmp_path / "v2"
    group(v2, {})
    group(v2 / "a", limited(str(900 * MIB), 400, cached=100))
    group(v2 / "a/b", limited("max", 300))
    assert look(tmp_path, Hierarchies(v2), "0::/a/b\n") == 600
    group(v2 / "a/b", limited(str(310 * MIB), 300, cached=5))
    assert look(tmp_path, Hierarchies(v2), "0::/a/b\n") == 15
    assert look(tmp_path, Hierarchies(v2), "0::/a\n") == 600
    assert look(tmp_path, Hierarchies(v2), "0::/a/gone\n") == 600
    assert look(tmp_path, Hierarchies(v2), "0::/../a/b\n") == 2048


def test_a_group_over_its_limit_has_nothing(tmp_path: Path) -> None:
    group(tmp_path / "v2/a", limited(str(100 * MIB), 130))
    assert look(tmp_path, Hierarchies(tmp_path / "v2"), "0::/a\n") == 0


def test_the_older_hierarchy(tmp_path: Path) -> None:
    v1 = tmp_path / "memory"
    group(
        v1 / "a",
        {
            "memory.limit_in_bytes": f"{700 * MIB}\n",
            "memory.usage_in_bytes": f"{300 * MIB}\n",
            "memory.stat": f"inactive_file 5\ntotal_inactive_file {50 * MIB}\n",
        },
    )
    group(v1, {"memory.limit_in_bytes": "9223372036854771712\n", "memory.usage_in_bytes": "1\n", "memory.stat": ""})
    group(tmp_path / "v2/a", limited("0", 1))
    hierarchies = Hierarchies(tmp_path / "v2", {"memory": v1})
    assert look(tmp_path, hierarchies, "8:cpu,memory:/a\n0::/a\n") == 450


def test_this_host_itself() -> None:
    assert available(Hierarchies.detect()) > 0

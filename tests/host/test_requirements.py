"""What a host must have: packages, and limits that are raised for good."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.core.errors import UnavailableError
from ballpoint.host import process
from ballpoint.host.requirements import (
    PACKAGES,
    SYSCTLS,
    forget_packages,
    install_packages,
    installed_packages,
    load_modules,
    low_sysctls,
    missing_packages,
    raise_sysctls,
    sysctl_value,
)

NAMES = st.sampled_from(sorted(SYSCTLS))
PRESENT = st.dictionaries(NAMES, st.integers(-3, 3))


def tree(root: Path, offsets: dict[str, int]) -> Path:
    """A tree like /proc/sys, whose limits lie `offsets` above what they should be."""
    for name, offset in offsets.items():
        path = root / name.replace(".", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{SYSCTLS[name] + offset}\n")
    return root


def stated(file: Path) -> dict[str, int]:
    """What a file of sysctl.d(5) says."""
    lines = file.read_text().splitlines() if file.exists() else []
    pairs = [line.split(" = ") for line in lines if line and not line.startswith("#")]
    return {name: int(value) for name, value in pairs}


@given(PRESENT, PRESENT)
def test_limits_are_raised_and_never_lowered(first: dict[str, int], second: dict[str, int]) -> None:
    """Twice, because a limit may become too low later; what the first time raised is kept for the next boot."""
    with TemporaryDirectory() as directory:
        root, file = tree(Path(directory, "sys"), first), Path(directory, "sysctl.d", "ours.conf")
        raised: set[str] = set()
        for offsets in (first, second):
            tree(root, offsets)
            before = {name: sysctl_value(name, root) for name in SYSCTLS}
            wanted = low_sysctls(root)
            assert raise_sysctls(root, file) == wanted
            raised |= set(wanted)
            assert low_sysctls(root) == {}
            for name, value in before.items():
                assert sysctl_value(name, root) == (SYSCTLS[name] if name in wanted else value)
            # A limit that was high enough is not in it: the next boot would lower it.
            assert stated(file) == {name: SYSCTLS[name] for name in raised}
            assert raise_sysctls(root, file) == {}


def test_a_limit_the_kernel_refuses_is_an_error(tmp_path: Path) -> None:
    root = tree(tmp_path, {"kernel.pid_max": -1})
    path = root / "kernel" / "pid_max"
    path.unlink()
    # A lower number, which nobody may write.
    path.symlink_to("/proc/sys/kernel/ngroups_max")
    with pytest.raises(UnavailableError, match=r"kernel\.pid_max"):
        raise_sysctls(root, tmp_path / "ours.conf")


def test_a_limit_that_is_no_number_is_none(tmp_path: Path) -> None:
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / "pid_max").write_text("max\n")
    assert sysctl_value("kernel.pid_max", tmp_path) is None
    assert sysctl_value("kernel.no_such_limit", tmp_path) is None
    assert low_sysctls(tmp_path) == {}


def test_packages_of_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PATH", str(tmp_path / "bin"))
    assert missing_packages(tmp_path) == list(PACKAGES.values())
    for item in PACKAGES:
        path = tmp_path / (item.lstrip("/") if item.startswith("/") else f"bin/{item}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o755)
    assert missing_packages(tmp_path) == []
    extra = ["npm", "nginx=nginx-light"]
    assert missing_packages(tmp_path, extra) == ["npm", "nginx-light"]
    for program in ("npm", "nginx"):
        (tmp_path / "bin" / program).touch(mode=0o755)
    assert missing_packages(tmp_path, extra) == []


def test_a_host_without_apt_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PATH", str(tmp_path))
    with pytest.raises(UnavailableError) as caught:
        install_packages(["nftables", "gcc"], tmp_path / "installed")
    assert "nftables gcc" in str(caught.value.hint)


def test_an_apt_that_fails_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is asked without questions, and for nothing but what is missing."""
    apt = tmp_path / "apt-get"
    apt.write_text(
        f'#!/bin/sh\necho "$DEBIAN_FRONTEND $*" >> {tmp_path}/asked\n[ "$1" = update ] || '
        '{ echo "E: Unable to locate package" >&2; exit 100; }\n'
    )
    apt.chmod(0o755)
    monkeypatch.setattr(process, "_PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UnavailableError) as caught:
        install_packages(["nftables"], tmp_path / "installed")
    assert "nftables" in caught.value.message and "Unable to locate package" in caught.value.message
    asked = (tmp_path / "asked").read_text().splitlines()
    assert all(line.startswith("noninteractive ") for line in asked)
    assert asked[-1].endswith(" nftables")


def test_what_is_installed_is_recorded_unless_it_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what a failing apt may have installed; told is what is there."""
    programs, present, record = tmp_path / "bin", tmp_path / "present", tmp_path / "etc/installed"
    programs.mkdir()
    present.write_text("installed gcc\nconfig-files nftables\n")
    (programs / "dpkg-query").write_text(f"#!/bin/sh\nwhile read -r line; do echo $line; done <{present}\n")
    apt = programs / "apt-get"
    apt.write_text('#!/bin/sh\n[ "$1" = update ]\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setattr(process, "_PATH", str(programs))
    assert installed_packages(record) == []
    with pytest.raises(UnavailableError):
        install_packages(["gcc", "nftables"], record)
    assert installed_packages(record) == []
    apt.write_text(f"#!/bin/sh\n[ $1 = update ] || echo installed nftables >>{present}\n")
    install_packages(["gcc", "nftables"], record)
    assert installed_packages(record) == ["nftables"]
    apt.write_text(f"#!/bin/sh\n[ $1 = update ] || echo installed crun >>{present}\n")
    install_packages(["crun"], record)
    assert installed_packages(record) == ["crun", "nftables"]
    assert forget_packages(record)
    assert not record.parent.exists()
    assert not forget_packages(record)


def test_the_first_time_raises_the_limit_of_a_module_that_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next boot loads it, before it sets limits."""
    limits, programs, file = tmp_path / "sys", tmp_path / "bin", tmp_path / "modules-load.d/ours.conf"
    programs.mkdir()
    limit = limits / "net/netfilter/nf_conntrack_max"
    monkeypatch.setattr(process, "_PATH", str(programs))
    assert load_modules(limits, file) == []  # there is no modprobe
    modprobe = programs / "modprobe"
    modprobe.write_text("#!/bin/sh\nexit 1\n")
    modprobe.chmod(0o755)
    assert load_modules(limits, file) == []
    assert not file.exists()
    modprobe.write_text(
        f'#!/bin/sh\n/bin/mkdir -p {limit.parent}; echo 65536 > {limit}; echo "$@" > {tmp_path}/asked\n'
    )
    assert load_modules(limits, file) == ["nf_conntrack"]
    assert (tmp_path / "asked").read_text().split() == ["--all", "nf_conntrack"]
    assert "nf_conntrack" in file.read_text().splitlines()
    assert raise_sysctls(limits, tmp_path / "ours.conf") == {
        "net.netfilter.nf_conntrack_max": SYSCTLS["net.netfilter.nf_conntrack_max"]
    }
    assert load_modules(limits, file) == []

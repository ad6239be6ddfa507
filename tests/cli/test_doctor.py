"""What doctor says of this host, and of hosts that lack something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.cli.host import attempt as attempts
from ballpoint.cli.host import checks as module
from ballpoint.cli.host.attempt import attempt, probe
from ballpoint.cli.host.checks import MINIMUM_KERNEL, TRIED_KERNELS, Check, Finding, checks, controllers
from ballpoint.cli.main import cli
from ballpoint.core.config import NodeConfig
from ballpoint.core.errors import InvalidError, UnavailableError
from ballpoint.host import process
from ballpoint.host.cgroup import Hierarchies
from ballpoint.host.filesystem import fifreeze, fithaw
from ballpoint.host.requirements import SYSCTLS
from ballpoint.node.durable.storage import Memory, write_memory
from ballpoint.store.deployment import new_deployment
from tests.support.waiting import eventually

# For what must happen. Seconds.
_DEADLINE = 60
_SHELL_IN_NETNS = ["unshare", "--net", "sh", "-euc"]


def sysctls(root: Path, values: dict[str, int]) -> Path:
    """A tree like /proc/sys."""
    for name, value in values.items():
        path = root / name.replace(".", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


def told(output: str) -> dict[str, Check]:
    return {item["name"]: Check(**item) for item in json.loads(output)}


def doctor_in(*before: str, script: str, status: int = 0) -> dict[str, Check]:
    """What doctor says where `script` was carried out first, by a shell that `before` starts somewhere else."""
    command = [*before, f'{script}\nexec "$0" -m ballpoint.cli doctor --json', sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (status, "")
    return told(done.stdout)


def leftovers() -> str:
    """Whatever on this host says that doctor made it."""
    seen = [Path("/proc/self/mountinfo").read_text()]
    seen += [process.run(list(command), timeout=_DEADLINE) for command in (
        ("losetup", "--list", "--noheadings", "--output", "BACK-FILE"), ("nft", "list", "tables"),
    )]  # fmt: skip
    seen += [str(path) for path in Path("/tmp").iterdir()]
    seen += [str(path) for hierarchy in _hierarchies() for path in hierarchy.iterdir()]
    lines = "\n".join(seen).splitlines()
    return "\n".join(line for line in lines if "ballpoint-doctor" in line or "d0c702" in line)


def _hierarchies() -> list[Path]:
    found = Hierarchies.detect()
    return [found.v2, *found.v1.values()]


# What it says of this host


@pytest.mark.host
def test_this_host_will_do_and_nothing_stays_behind(root: None, tmp_path: Path) -> None:
    found = checks(NodeConfig(data=tmp_path / "data"))
    assert [check for check in found if check.state == "missing"] == []
    assert {check.name: check.state for check in found}["network"] == "ok"
    assert not (tmp_path / "data").exists()
    eventually(lambda: leftovers() == "")  # another test's may be at work


@pytest.mark.host
def test_it_prints_what_it_found(root: None, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ballpoint.cli", "doctor", "--data", str(tmp_path / "data")]
    text = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=300)
    assert (text.returncode, found.returncode, text.stderr, found.stderr) == (0, 0, "", "")
    lines = text.stdout.splitlines()
    for check in told(found.stdout).values():
        assert any(check.name in line and check.found in line for line in lines), check


@pytest.mark.host
def test_a_host_without_devices(root: None) -> None:
    found = doctor_in(
        "unshare", "--mount", "sh", "-euc", status=1,
        script="mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3",
    )  # fmt: skip
    assert found["loop devices"].state == "missing"
    assert found["loop devices"].mend == "modprobe loop"
    assert found["KVM"].state == "optional"
    assert found["devices"].state == "warning"
    assert found["devices"].mend == "modprobe fuse; modprobe tun"
    # Nothing else is blamed for it.
    assert {found[name].state for name in ("user namespaces", "cgroups", "network", "firewall")} == {"ok"}


@pytest.mark.host
def test_a_root_that_may_not_mount(root: None) -> None:
    """As inside many containers: the capability is gone, although the user is root."""
    found = doctor_in("setpriv", "--bounding-set=-sys_admin", "sh", "-euc", script="", status=1)
    for name in ("overlay of mapped ids", "XFS reflinks", "network"):
        assert found[name].state == "missing", found[name]
        assert "Operation not permitted" in found[name].found


@pytest.mark.host
@pytest.mark.parametrize(("hook", "chain"), [("forward", "FORWARD"), ("input", "INPUT")])
def test_a_firewall_that_drops_by_default(root: None, hook: str, chain: str) -> None:
    rule = f"type filter hook {hook} priority filter; policy drop;"
    found = doctor_in(*_SHELL_IN_NETNS, script=f"nft 'table ip filter {{ chain {chain} {{ {rule} }}; }}'")
    assert found["firewall"].state == "warning"
    assert chain in found["firewall"].found and "iptables" not in found["firewall"].found
    assert f"iptables -I {chain} -i bp+ -j ACCEPT" in str(found["firewall"].mend)
    assert found["network"].state == "ok"


def test_only_root_can_tell_most(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = {check.name: check for check in checks(NodeConfig(data=tmp_path))}
    assert (found["root"].state, found["root"].mend) == ("missing", "sudo ballpoint doctor")
    assert (found["cgroups"].state, found["cgroups"].found) == ("warning", "only root can tell")
    assert [check.name for check in found.values() if check.state == "missing"] == ["root"]


@pytest.mark.host
def test_a_host_without_tools(root: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "_PATH", str(tmp_path))
    found = {check.name: check for check in checks(NodeConfig(data=tmp_path / "data"))}
    for name, package in (
        ("packages", "mmdebstrap"), ("network", "nftables"), ("XFS reflinks", "xfsprogs"), ("erofs", "erofs-utils"),
    ):  # fmt: skip
        assert found[name].state == "missing"
        assert str(found[name].mend).startswith("apt-get install ") and package in str(found[name].mend)
    assert found["loop devices"].state == "ok"
    assert found["firewall"].state == "warning"


# The command


@pytest.mark.parametrize(
    ("states", "status"),
    [(["ok"], 0), (["ok", "warning", "optional"], 0), (["ok", "missing"], 1), (["missing", "ok"], 1)],
)
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_it_fails_where_something_needed_is_missing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    states: list[str],
    status: int,
    flags: list[str],
) -> None:
    made = [Check(f"thing {number}", state, "seen", "command") for number, state in enumerate(states)]  # type: ignore[arg-type]
    monkeypatch.setattr(module, "checks", lambda config: made)
    assert cli.main(["doctor", *flags], standalone_mode=False) == status
    output = capsys.readouterr().out
    if flags:
        assert list(told(output).values()) == made
    else:
        assert output.count("mend: command") == len([state for state in states if state != "ok"])


def test_it_looks_at_the_given_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def record(config: NodeConfig) -> list[Check]:
        asked.append(config.data)
        return [Check("thing", "ok", "seen")]

    monkeypatch.setattr(module, "checks", record)
    cli.main(["doctor", "--data", str(tmp_path)], standalone_mode=False)
    assert asked == [tmp_path]


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch, root: None, tmp_path: Path) -> None:
    def broken() -> Finding:
        raise PermissionError(1, "Operation not permitted", "/sys/thing")

    monkeypatch.setattr(module, "cgroups", broken)
    found = {check.name: check for check in checks(NodeConfig(data=tmp_path))}
    assert found["cgroups"] == Check("cgroups", "missing", "Operation not permitted: /sys/thing")
    assert found["network"].state == "ok"


# Single checks, on what this host cannot show


@pytest.mark.parametrize("release", ["5.10.0-28-amd64", "6.0.19", "4.4", "2.6.32-754.el6.x86_64"])
def test_a_kernel_too_old(release: str) -> None:
    finding = module.kernel(release)
    assert finding.state == "missing" and release in finding.found and finding.mend


@pytest.mark.parametrize("release", ["6.2.0-18-amd64", "6.8.0-31-generic", "6.12+deb13-amd64", "7.0-rc3", "12.0"])
def test_a_kernel_nobody_tried(release: str) -> None:
    finding = module.kernel(release)
    assert finding.state == "ok" and "untested" in finding.found


@pytest.mark.parametrize("version", TRIED_KERNELS)
def test_a_kernel_that_was_tried(version: tuple[int, int]) -> None:
    release = f"{version[0]}.{version[1]}.3-cloud-amd64"
    assert module.kernel(release) == Finding("ok", release)


@given(st.tuples(st.integers(0, 99), st.integers(0, 999)), st.text())
def test_any_release_is_judged_by_its_first_two_numbers(version: tuple[int, int], rest: str) -> None:
    old = module.kernel(f"{version[0]}.{version[1]}-{rest}").state == "missing"
    assert old == (version < MINIMUM_KERNEL)


@given(st.text())
def test_a_release_of_any_shape_is_judged(release: str) -> None:
    assert module.kernel(release).state in ("ok", "warning", "missing")


@pytest.mark.parametrize(
    ("name", "value", "state"),
    [
        ("kernel.apparmor_restrict_unprivileged_userns", 1, "warning"),
        ("kernel.unprivileged_userns_clone", 0, "missing"),
        ("user.max_user_namespaces", 0, "missing"),
    ],
)
def test_user_namespaces_that_a_setting_forbids(root: None, tmp_path: Path, name: str, value: int, state: str) -> None:
    finding = module.user_namespaces(sysctls(tmp_path, {name: value}))
    assert finding.state == state
    assert str(finding.mend).startswith(f"sysctl -w {name}=")
    # What it says mends it does.
    setting, _, mended = str(finding.mend).removeprefix("sysctl -w ").partition("=")
    assert module.user_namespaces(sysctls(tmp_path, {setting: int(mended)})).state == "ok"


def test_the_worst_is_said_first(root: None, tmp_path: Path) -> None:
    values = {"kernel.apparmor_restrict_unprivileged_userns": 1, "kernel.unprivileged_userns_clone": 0}
    assert module.user_namespaces(sysctls(tmp_path, values)).state == "missing"


@given(st.dictionaries(st.sampled_from(sorted(SYSCTLS)), st.integers(-1, 1), min_size=1))
def test_limits_below_what_they_should_be_are_named(offsets: dict[str, int]) -> None:
    with temporary_directory() as directory:
        finding = module.kernel_limits(
            sysctls(directory, {name: SYSCTLS[name] + offset for name, offset in offsets.items()})
        )
    low = [name for name in SYSCTLS if offsets.get(name, 0) < 0]
    assert finding.state == ("warning" if low else "ok")
    for name in SYSCTLS:
        assert (f"{name}={SYSCTLS[name]}" in str(finding.mend).split()) == (name in low)


@contextmanager
def temporary_directory() -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def test_limits_this_kernel_does_not_have_are_no_trouble(tmp_path: Path) -> None:
    assert module.kernel_limits(tmp_path).state == "ok"


def test_a_host_with_old_cgroups_alone() -> None:
    line = "30 23 0:26 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory"
    with pytest.raises(UnavailableError) as caught:
        module.cgroups(line)
    assert "mount -t cgroup2" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("hierarchies", "lacking", "mend"),
    [
        (Hierarchies(Path("/cg"), {}, frozenset({"cpu", "memory", "pids"})), ["cpu", "pids"],
         "echo +cpu +pids > /cg/cgroup.subtree_control"),
        (Hierarchies(Path("/cg"), {}, frozenset({"cpu", "pids"})), ["memory"], "boot with cgroup_enable=memory"),
        (Hierarchies(Path("/cg"), {"memory": Path("/m")}, frozenset({"cpu"})), ["pids"],
         "boot with systemd.unified_cgroup_hierarchy=1"),
    ],
)  # fmt: skip
def test_controllers_that_are_lacking(hierarchies: Hierarchies, lacking: list[str], mend: str) -> None:
    finding = controllers(hierarchies, lacking)
    assert (finding.state, finding.mend) == ("warning", mend)
    assert all(name in finding.found for name in (hierarchies.layout, *lacking))
    assert controllers(hierarchies, []).state == "ok"


def test_devices_sprites_are_given(tmp_path: Path) -> None:
    assert module.devices(tmp_path).state == "warning"
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tun").touch()
    assert module.devices(tmp_path).mend == "modprobe fuse"
    (tmp_path / "fuse").touch()
    assert module.devices(tmp_path).state == "ok"


def test_a_pool_that_promises_more_than_there_is(tmp_path: Path) -> None:
    assert module.pool_space(tmp_path / "new").state == "ok"
    image = tmp_path / "pool.img"
    image.write_bytes(b"x" * 4096)
    assert module.pool_space(tmp_path).state == "ok"
    os.truncate(image, 1 << 43)
    state, found, mend = module.pool_space(tmp_path)
    assert (state, str(tmp_path) in str(mend)) == ("warning", True)
    assert "more than is free" in found


def test_a_store_that_is_tried(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    (tmp_path / "file").write_text("in the way")
    good, bad = (NodeConfig(data=tmp_path, store=(tmp_path / name).as_uri()) for name in ("objects", "file"))
    assert module.object_store(good).state == "ok"
    finding = module.object_store(bad)
    assert finding.state == "missing" and "cannot be used" in finding.found and "docs/store.md" in str(finding.mend)
    write_memory(tmp_path, Memory(new_deployment(), str(bad.store), settled=True))
    assert module.object_store(bad).state == "warning"


def test_a_store_that_the_first_start_makes_is_not_made(tmp_path: Path) -> None:
    finding = module.object_store(NodeConfig(data=tmp_path))
    assert finding.state == "ok" and str(tmp_path / "store") in finding.found
    assert list(tmp_path.iterdir()) == []


def test_it_tries_the_store_that_the_node_was_told_or_that_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str | None] = []

    def record(config: NodeConfig) -> list[Check]:
        asked.append(config.store)
        return [Check("thing", "ok", "seen")]

    monkeypatch.setattr(module, "checks", record)
    (tmp_path / "node.toml").write_text('store = "file:///told"\n')
    cli.main(["doctor", "--data", str(tmp_path)], standalone_mode=False)
    cli.main(["doctor", "--data", str(tmp_path), "--store", "file:///asked"], standalone_mode=False)
    assert asked == ["file:///told", "file:///asked"]
    with pytest.raises(InvalidError, match="password"):
        cli.main(["doctor", "--store", "s3://user:word@bucket"], standalone_mode=False)


def test_kvm_is_never_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert module.kvm(tmp_path).state == "optional"
    (tmp_path / "kvm").touch()
    assert "not tried" in module.kvm(tmp_path, "aarch64").found

    def hangs(name: str, *, seconds: float) -> str:
        return attempt(["cat", str(tmp_path / "fifo")], seconds=0.1)

    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(module, "probe", hangs)
    finding = module.kvm(tmp_path, "x86_64")
    assert finding.state == "optional" and "did not end" in finding.found


@pytest.mark.host
@pytest.mark.parametrize(("shares", "found"), [(1, "itself shares extents"), (0, "in a pool file")])
def test_a_data_directory_on_xfs(root: None, tmp_path: Path, shares: int, found: str) -> None:
    with xfs(tmp_path, shares) as place:
        finding = module.reflink(place / "not" / "yet" / "made")
        assert list(place.iterdir()) == []
    assert finding.state == "ok" and found in finding.found


@pytest.mark.host
def test_an_xfs_that_shares_nothing_is_told(root: None, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="shares no extents"):
        probe("reflink", str(_xfs_image(tmp_path, 0)))


def _xfs_image(directory: Path, shares: int) -> Path:
    image = directory / "xfs.img"
    with image.open("wb") as file:
        file.truncate(320 << 20)
    options = f"reflink={shares},bigtime=0,inobtcount=0,rmapbt=0"
    subprocess.run(["mkfs.xfs", "-q", "-m", options, str(image)], check=True, timeout=_DEADLINE)
    return image


@contextmanager
def xfs(directory: Path, shares: int) -> Iterator[Path]:
    place = directory / "xfs"
    place.mkdir()
    with mounted(_xfs_image(directory, shares), place):
        yield place


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, timeout=_DEADLINE)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=_DEADLINE)


@pytest.mark.host
@pytest.mark.parametrize("name", ["erofs", "attach", "reflink"])
def test_a_probe_says_in_one_line_what_does_not_work(root: None, tmp_path: Path, name: str) -> None:
    (tmp_path / "garbage").write_bytes(b"\xff" * (1 << 20))
    path = tmp_path / ("missing" if name == "attach" else "garbage")
    with pytest.raises(UnavailableError) as caught:
        probe(name, str(path), mend="the command")
    assert "\n" not in caught.value.message and "Traceback" not in caught.value.message
    assert caught.value.hint == "the command"


# Attempts


def test_an_attempt_says_what_its_command_said_last() -> None:
    assert attempt(["sh", "-c", "echo first; echo last"], seconds=_DEADLINE) == "last"
    assert attempt(["true"], seconds=_DEADLINE) == ""


@pytest.mark.parametrize(
    ("script", "message"),
    [("echo out; echo err >&2; exit 3", "err"), ("exit 3", "it ended with status 3"), ("kill -9 $$", "-9")],
)
def test_a_failed_attempt_says_why(script: str, message: str) -> None:
    with pytest.raises(UnavailableError) as caught:
        attempt(["sh", "-c", script], seconds=_DEADLINE, mend="the command")
    assert message in caught.value.message
    assert caught.value.hint == "the command"


def test_an_attempt_with_a_program_that_is_not_there() -> None:
    with pytest.raises(UnavailableError, match="no-such-program is not installed"):
        attempt(["no-such-program"], seconds=_DEADLINE)


def test_an_attempt_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UnavailableError, match="did not end"):
        attempt(["sh", "-c", f"echo $$ > {tmp_path}/pid; exec cat {tmp_path}/fifo"], seconds=5)
    assert attempts.stuck == []
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


@pytest.mark.host
def test_an_attempt_that_not_even_a_kill_ends(root: None, tmp_path: Path) -> None:
    """A writer to a frozen file system waits where no signal reaches it, as a broken device makes one wait."""
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, timeout=_DEADLINE)
    with mounted(image, place):
        directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fifreeze(directory)
            with pytest.raises(UnavailableError, match="did not end"):
                attempt(["touch", str(place / "file")], seconds=5)
            child = attempts.stuck.pop()
            assert child.poll() is None
        finally:
            fithaw(directory)
            os.close(directory)
        child.wait(_DEADLINE)

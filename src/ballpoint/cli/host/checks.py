"""What a host must offer, checked one by one: by doing it, wherever existence proves nothing."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from ballpoint.cli.host.attempt import attempt, probe
from ballpoint.core.config import NodeConfig
from ballpoint.core.errors import BallpointError, UnavailableError
from ballpoint.host import filesystem, process
from ballpoint.host.cgroup import Hierarchies
from ballpoint.host.requirements import PACKAGES, SYSCTLS, low_sysctls, missing_packages, sysctl_value

State = Literal["ok", "optional", "warning", "missing"]

# Overlay over idmapped layers and idmapped erofs came with 5.19; 6.1 is the oldest kernel with a Debian release on it.
MINIMUM_KERNEL = (6, 1)
TRIED_KERNELS = ((6, 1), (6, 18))
_KVM_SECONDS = 2.0
_MAKE_SECONDS = 60.0
_STORE_SECONDS = 120.0
# mkfs.xfs refuses less than 300 MB; all of it stays a hole but for the metadata.
_XFS_BYTES = 320 << 20
_EXT4_BYTES = 16 << 20
_LOOP_BYTES = 1 << 20
_SYSCTL = Path("/proc/sys")
_DEV = Path("/dev")
_DISTRIBUTION_KERNEL = "boot a distribution's kernel, on the machine itself or in a virtual one"


class Check(msgspec.Struct, frozen=True):
    """One thing checked.

    Attributes:
        name: of the thing.
        state: `missing` means that a node does not work without it, `warning` that something in it does not,
            `optional` that nothing here needs what is not there.
        found: what is there, or what is wrong.
        mend: the command that mends it.
    """

    name: str
    state: State
    found: str
    mend: str | None = None


class Finding(NamedTuple):
    """A `Check` without its name."""

    state: State
    found: str
    mend: str | None = None


def root() -> Finding:
    if os.geteuid() == 0:
        return Finding("ok", "running as root")
    return Finding("missing", "not root", "sudo ballpoint doctor")


def kernel(release: str) -> Finding:
    """Judge a kernel by its `release`, as uname(2) gives it."""
    found = re.match(r"(\d+)\.(\d+)", release, re.ASCII)
    wanted = ".".join(map(str, MINIMUM_KERNEL))
    if found is None:
        return Finding("warning", f"cannot tell whether {release!r} is {wanted} or later")
    version = (int(found[1]), int(found[2]))
    if version < MINIMUM_KERNEL:
        return Finding("missing", f"{release} is older than {wanted}", "install a newer kernel, and reboot")
    if version not in TRIED_KERNELS:
        return Finding("ok", f"{release} (untested; {wanted} and later should work)")
    return Finding("ok", release)


def packages() -> Finding:
    lacking = missing_packages()
    if lacking:
        names = " ".join(lacking)
        return Finding("missing", f"not installed: {names}", f"apt-get install {names}")
    return Finding("ok", "all tools are installed")


def user_namespaces(sysctl: Path = _SYSCTL) -> Finding:
    """Make one as root, and one as a program inside a sprite would."""
    if sysctl_value("kernel.unprivileged_userns_clone", sysctl) == 0:
        return Finding("missing", "switched off", "sysctl -w kernel.unprivileged_userns_clone=1")
    if sysctl_value("user.max_user_namespaces", sysctl) == 0:
        return Finding("missing", "limited to none", "sysctl -w user.max_user_namespaces=100000")
    probe("userns", mend=_DISTRIBUTION_KERNEL)
    # AppArmor does not restrict root, who makes the node's own. It judges each program, so that one may proves little.
    if sysctl_value("kernel.apparmor_restrict_unprivileged_userns", sysctl) == 1:
        return Finding(
            "warning",
            "AppArmor restricts those of programs inside (bwrap, Chromium, rootless containers)",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        )
    try:
        probe("sandbox")
    except UnavailableError as error:
        return Finding("warning", f"programs inside cannot make theirs: {error.message}")
    return Finding("ok", "a node can make them, and so can programs inside")


def loop_devices() -> Finding:
    with _images() as directory:
        image = _hole(directory / "loop.img", _LOOP_BYTES)
        probe("attach", image, mend="modprobe loop")
    return Finding("ok", "a file can be attached")


def erofs() -> Finding:
    with _images() as directory:
        how = probe("erofs", _erofs_image(directory), mend="modprobe erofs")
    if how == "loop":
        return Finding("ok", "mounts an image through a loop device (from 6.12 on, kernels do without)")
    return Finding("ok", "mounts an image from its file")


def overlay_idmap() -> Finding:
    """Make a sprite's root in small: image, disk, both mapped to other ids, and a file written."""
    with _images() as directory:
        disk = _hole(directory / "disk.img", _EXT4_BYTES)
        _make("mkfs.ext4", "-q", disk)
        probe("overlay", _erofs_image(directory), disk, mend=_DISTRIBUTION_KERNEL)
    return Finding("ok", "over erofs and ext4")


def reflink(data: Path) -> Finding:
    """Make a small XFS and share an extent on it, unless the data directory itself can."""
    near = next(path for path in (data.absolute(), *data.absolute().parents) if path.is_dir())
    if os.access(near, os.W_OK) and filesystem.kind(near) == "xfs" and filesystem.supports_reflink(near):
        return Finding("ok", f"{near} itself shares extents")
    with _images() as directory:
        image = _hole(directory / "xfs.img", _XFS_BYTES)
        _make("mkfs.xfs", "-q", "-m", "reflink=1", image)
        probe("reflink", image, mend="modprobe xfs")
    return Finding("ok", "in a pool file")


def pool_space(data: Path) -> Finding:
    """Compare what the volume pool's file may grow to with what is free below it."""
    from ballpoint.volume.pool import shortfall

    missing = shortfall(data)
    if missing:
        gib = f"{missing / (1 << 30):.1f} GiB"
        found = f"it may grow by {gib} more than is free below it: sprites will be stopped before it is full"
        return Finding("warning", found, f"free {gib} on the file system of {data}")
    return Finding("ok", "there is room for all that the pool may take")


def object_store(config: NodeConfig) -> Finding:
    """Try the store, with the credentials in the environment, for all that a node asks of one."""
    from ballpoint.node.durable.storage import read_memory
    from ballpoint.store import url

    place = url.directory_of(config.store_url)
    if place is not None and not place.exists():
        return Finding("ok", f"none yet: a node's first start makes {place}")
    memory = read_memory(config.data)
    name, variables = url.redacted(config.store_url), url.variables(config.store_url)
    try:
        probe("store", config.store_url, seconds=_STORE_SECONDS, env=variables)
    except UnavailableError as error:
        mend = "correct --store, or the credentials in the environment: docs/store.md"
        # A node that has used it starts without.
        return Finding("warning" if memory is not None and memory.settled else "missing", error.message, mend)
    return Finding("ok", f"{name} does what it must")


def cgroups(mountinfo: str | None = None) -> Finding:
    """Make a group with limits and a device policy.

    Args:
        mountinfo: text to find the hierarchies by, instead of this process's own.
    """
    hierarchies = Hierarchies.detect(mountinfo)
    return controllers(hierarchies, probe("cgroup", mend=_DISTRIBUTION_KERNEL).split())


def controllers(hierarchies: Hierarchies, lacking: list[str]) -> Finding:
    """Judge groups on `hierarchies` that get no limits by the controllers `lacking`."""
    if not lacking:
        return Finding("ok", f"{hierarchies.layout}; limits and a device policy work")
    found = f"{hierarchies.layout}; no limits of {', '.join(lacking)}"
    absent = hierarchies.missing_controllers()
    if not set(lacking) & set(absent):
        enabled = " ".join(f"+{name}" for name in lacking)
        return Finding("warning", found, f"echo {enabled} > {hierarchies.v2}/cgroup.subtree_control")
    if "memory" in absent:
        return Finding("warning", found, "boot with cgroup_enable=memory")
    return Finding("warning", found, "boot with systemd.unified_cgroup_hierarchy=1")


def network() -> Finding:
    """Bring up a node's network in a throw-away namespace: every kind of rule, and an instance's link."""
    if process.which("nft") is None:
        return Finding("missing", "nft is not installed", f"apt-get install {PACKAGES['nft']}")
    probe("network", mend=_DISTRIBUTION_KERNEL)
    return Finding("ok", "a node's rules and links can be made")


def firewall() -> Finding:
    from ballpoint.network.probe import forward_policy_problem

    try:
        problem = forward_policy_problem()
    except BallpointError as error:
        return Finding("warning", f"cannot tell what it drops: {error.message}")
    if problem is None:
        return Finding("ok", "nothing drops what sprites send")
    found, _, mend = problem.partition("; let their links through: ")
    return Finding("warning", found, mend or None)


def kernel_limits(sysctl: Path = _SYSCTL) -> Finding:
    low = low_sysctls(sysctl)
    if low:
        settings = " ".join(f"{name}={value}" for name, value in low.items())
        return Finding("warning", f"low: {', '.join(low)}", f"ballpoint up, or sysctl -w {settings}")
    return Finding("ok", f"none of {len(SYSCTLS)} is too low")


def devices(dev: Path = _DEV) -> Finding:
    """What sprites are given of the host's devices where it has them."""
    lacking = [name for name in ("fuse", "net/tun") if not (dev / name).exists()]
    if lacking:
        modules = "; ".join(f"modprobe {Path(name).name}" for name in lacking)
        return Finding("warning", f"sprites have no {' and no '.join(f'/dev/{name}' for name in lacking)}", modules)
    return Finding("ok", "FUSE and TUN")


def kvm(dev: Path = _DEV, machine: str | None = None) -> Finding:
    """Run a guest of one instruction, in a process that is given two seconds: a device that exists may still hang.

    Args:
        machine: the processor's kind, as uname(2) gives it; the host's own by default.
    """
    if not (dev / "kvm").exists():
        return Finding("optional", "none; only the microvm runtime uses it")
    if (machine or platform.machine()) != "x86_64":
        return Finding("optional", "there, but not tried on this kind of processor; only the microvm runtime uses it")
    try:
        probe("kvm", seconds=_KVM_SECONDS)
    except UnavailableError as error:
        return Finding("optional", f"there, but does not work: {error.message}; only the microvm runtime uses it")
    return Finding("ok", "runs a guest")


def checks(config: NodeConfig) -> list[Check]:
    """All checks for a node with `config`. What they make on the host is gone when they end."""
    for_anyone: dict[str, Callable[[], Finding]] = {
        "root": root,
        "kernel": lambda: kernel(platform.release()),
        "packages": packages,
        "kernel limits": kernel_limits,
        "devices": devices,
    }
    for_root: dict[str, Callable[[], Finding]] = {
        "user namespaces": user_namespaces,
        "loop devices": loop_devices,
        "erofs": erofs,
        "overlay of mapped ids": overlay_idmap,
        "XFS reflinks": lambda: reflink(config.data),
        "pool space": lambda: pool_space(config.data),
        "object store": lambda: object_store(config),
        "cgroups": cgroups,
        "network": network,
        "firewall": firewall,
        "KVM": kvm,
    }
    may = os.geteuid() == 0
    found = [Check(name, *_outcome(check)) for name, check in for_anyone.items()]
    for name, check in for_root.items():
        outcome = _outcome(check) if may else Finding("warning", "only root can tell", "sudo ballpoint doctor")
        found.append(Check(name, *outcome))
    return found


def _outcome(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except BallpointError as error:
        return Finding("missing", error.message, error.hint)
    except OSError as error:
        return Finding("missing", f"{error.strerror}: {error.filename}" if error.filename else str(error))


@contextmanager
def _images() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ballpoint-doctor-") as directory:
        yield Path(directory)


def _hole(path: Path, size: int) -> str:
    with path.open("wb") as file:
        file.truncate(size)
    return str(path)


def _erofs_image(directory: Path) -> str:
    content, image = directory / "content", directory / "image.erofs"
    content.mkdir()
    (content / "file").write_text("below")
    _make("mkfs.erofs", "--quiet", str(image), str(content))
    return str(image)


def _make(tool: str, *arguments: str) -> None:
    attempt([tool, *arguments], seconds=_MAKE_SECONDS, mend=f"apt-get install {PACKAGES[tool]}")

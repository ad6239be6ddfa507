"""What a host must offer, checked one by one: by doing it, wherever existence proves nothing."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from ballpoint.core.config import NodeConfig
from ballpoint.core.errors import BallpointError
from ballpoint.host import filesystem, process
from ballpoint.host.cgroup import Hierarchies
from ballpoint.host.requirements import SYSCTLS, low_sysctls, missing_packages, sysctl_value

State = Literal["ok", "warning", "missing"]

# Overlay over idmapped layers and idmapped erofs came with 5.19; 6.1 is the oldest kernel with a Debian release on it.
MINIMUM_KERNEL = (6, 1)
TRIED_KERNELS = ((6, 18),)
_PROBE_SECONDS = 30.0
_POOL_BYTES = 320 << 20


class Check(msgspec.Struct, frozen=True):
    """One thing checked.

    Attributes:
        name: of the thing.
        state: `missing` means that a node does not work without it.
        found: what is there, or what is wrong.
        mend: the command that mends it.
    """

    name: str
    state: State
    found: str
    mend: str | None = None


def kernel(release: str | None = None) -> Check:
    text = release or platform.release()
    numbers = text.split("-")[0].split(".")
    version = (int(numbers[0]), int(numbers[1]))
    wanted = ".".join(map(str, MINIMUM_KERNEL))
    if version < MINIMUM_KERNEL:
        return Check("kernel", "missing", f"{text} is older than {wanted}", "boot a newer kernel")
    if version not in TRIED_KERNELS:
        return Check("kernel", "ok", f"{text} (untested; {wanted} and later should work)")
    return Check("kernel", "ok", text)


def root() -> Check:
    if os.geteuid() == 0:
        return Check("root", "ok", "running as root")
    return Check("root", "missing", "not root", "sudo ballpoint doctor")


def packages() -> Check:
    lacking = missing_packages()
    if lacking:
        return Check(
            "packages", "missing", f"not installed: {' '.join(lacking)}", f"apt-get install {' '.join(lacking)}"
        )
    return Check("packages", "ok", "all tools are installed")


def user_namespaces(sysctl: Path = Path("/proc/sys")) -> Check:
    name = "user namespaces"
    if sysctl_value("kernel.apparmor_restrict_unprivileged_userns", sysctl) == 1:
        # Our own are made by root and not restricted; those that programs inside make are.
        return Check(
            name, "warning", "AppArmor restricts those of programs inside (bwrap, Chromium, rootless containers)",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        )  # fmt: skip
    if sysctl_value("kernel.unprivileged_userns_clone", sysctl) == 0:
        return Check(name, "missing", "switched off", "sysctl -w kernel.unprivileged_userns_clone=1")
    if sysctl_value("user.max_user_namespaces", sysctl) == 0:
        return Check(name, "missing", "limited to none", "sysctl -w user.max_user_namespaces=100000")
    return _done(name, "can be made", "unshare", "--user", "--map-root-user", "true")


def overlay_idmap() -> Check:
    """Mount an overlay with an idmapped upper in a throw-away mount namespace."""
    return _python("overlay over mapped ids", "works", "ballpoint.cli.host.probes", "overlay")


def file_systems() -> Check:
    known = Path("/proc/filesystems").read_text().split()
    lacking = [name for name in ("overlay", "erofs", "ext4", "xfs") if name not in known and not _loadable(name)]
    if lacking:
        return Check(
            "file systems", "missing", f"not in this kernel: {' '.join(lacking)}", "boot a distribution's kernel"
        )
    return Check("file systems", "ok", "overlay, erofs, ext4 and xfs")


def loop_devices() -> Check:
    if not Path("/dev/loop-control").exists():
        return Check("loop devices", "missing", "there is no /dev/loop-control", "modprobe loop")
    return Check("loop devices", "ok", "available")


def reflink(data: Path) -> Check:
    """Make a small XFS and share an extent on it, unless the data directory itself can."""
    name = "XFS reflinks"
    near = next(path for path in (data, *data.parents) if path.is_dir())
    if os.access(near, os.W_OK) and filesystem.is_xfs(near) and filesystem.supports_reflink(near):
        return Check(name, "ok", f"{near} itself shares extents")
    with tempfile.TemporaryDirectory() as directory:
        image = Path(directory) / "probe.img"
        with image.open("wb") as file:
            file.truncate(_POOL_BYTES)
        made = _done(name, "", "mkfs.xfs", "-q", "-m", "reflink=1", str(image))
        if made.state != "ok":
            return made
        return _python(name, "in a pool file", "ballpoint.cli.host.probes", "reflink", str(image))


def cgroups(mountinfo: str | None = None) -> Check:
    try:
        found = Hierarchies.detect(mountinfo)
    except BallpointError as error:
        return Check("cgroups", "missing", error.message, error.hint)
    lacking = found.missing_controllers()
    if lacking:
        return Check(
            "cgroups", "warning", f"{found.layout}; no limits of {', '.join(lacking)}",
            "boot with systemd.unified_cgroup_hierarchy=1",
        )  # fmt: skip
    return Check("cgroups", "ok", found.layout)


def firewall() -> Check:
    from ballpoint.network.probe import forward_policy_problem

    tables = _done("nftables", "works", "nft", "list", "tables")
    if tables.state != "ok":
        return tables
    problem = forward_policy_problem()
    if problem is not None:
        return Check(
            "nftables",
            "warning",
            problem,
            "iptables -I FORWARD -i 'bp+' -j ACCEPT; iptables -I FORWARD -o 'bp+' -j ACCEPT",
        )
    return Check("nftables", "ok", "works, and nothing else drops what is forwarded")


def kernel_limits(sysctl: Path = Path("/proc/sys")) -> Check:
    low = low_sysctls(sysctl)
    if low:
        settings = " ".join(f"{name}={value}" for name, value in low.items())
        return Check("kernel limits", "warning", f"low: {', '.join(low)}", f"ballpoint up, or sysctl -w {settings}")
    return Check("kernel limits", "ok", f"{len(SYSCTLS)} limits are high enough")


def kvm() -> Check:
    """Run a guest of one instruction, in a process that is given two seconds: a device that exists may still hang."""
    if not Path("/dev/kvm").exists():
        return Check("KVM", "ok", "none; only the microvm runtime would use it")
    done = _python("KVM", "runs a guest", "ballpoint.cli.host.probes", "kvm", seconds=2.0)
    if done.state == "ok":
        return done
    return Check("KVM", "ok", f"does not work here ({done.found}); only the microvm runtime would use it")


def checks(config: NodeConfig) -> list[Check]:
    """All checks for a node with `config`. None changes the host."""
    every: list[Callable[[], Check]] = [
        root, kernel, packages, user_namespaces, overlay_idmap, file_systems, loop_devices,
        lambda: reflink(config.data), cgroups, firewall, kernel_limits, kvm,
    ]  # fmt: skip
    return [check() for check in every]


def _loadable(module: str) -> bool:
    return _done(module, "", "modprobe", "--dry-run", "--quiet", module).state == "ok"


def _done(name: str, found: str, *command: str, seconds: float = _PROBE_SECONDS) -> Check:
    try:
        process.run(command, timeout=seconds)
    except BallpointError as error:
        return Check(name, "missing", error.message, error.hint)
    return Check(name, "ok", found)


def _python(name: str, found: str, module: str, *arguments: str, seconds: float = _PROBE_SECONDS) -> Check:
    return _done(name, found, sys.executable, "-m", module, *arguments, seconds=seconds)

"""What a host must have: programs and kernel limits. `up` brings them about, `doctor` checks them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ballpoint.core.errors import UnavailableError
from ballpoint.host import process
from ballpoint.host.files import write_atomically

# program or file that must be there -> Debian and Ubuntu package that brings it
PACKAGES = {
    "gcc": "gcc",
    "/usr/include/stdlib.h": "libc6-dev",
    "mmdebstrap": "mmdebstrap",
    "mkfs.erofs": "erofs-utils",
    "mkfs.xfs": "xfsprogs",
    "mkfs.ext4": "e2fsprogs",
    "nft": "nftables",
    "ip": "iproute2",
    "unshare": "util-linux",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
    "/etc/ssl/certs/ca-certificates.crt": "ca-certificates",
}

# Limits that all instances of a host share; a value below these lets one sprite starve another. The kernel
# charges open files, terminals and AIO rings to the memory of their cgroup: that bounds them, not the host's counts.
SYSCTLS = {
    "fs.aio-max-nr": 2147483647,
    "fs.file-max": 9223372036854775807,
    "fs.inotify.max_user_instances": 1024,
    "fs.inotify.max_user_watches": 524288,
    "kernel.keys.maxkeys": 20000,
    "kernel.keys.maxbytes": 2000000,
    "kernel.pid_max": 4194304,
    "kernel.pty.max": 2147483647,
    "vm.max_map_count": 1048576,
    "net.core.somaxconn": 4096,
    "net.core.wmem_max": 524288,  # what an agent asks for; see agent/server.py
    "net.netfilter.nf_conntrack_max": 262144,
}
SYSCTL_FILE = Path("/etc/sysctl.d/60-ballpoint.conf")
# A limit of a module is there once the module is; at the next boot, too, it must be loaded before limits are set.
MODULES = {"net.netfilter.nf_conntrack_max": "nf_conntrack"}
MODULES_FILE = Path("/etc/modules-load.d/60-ballpoint.conf")
# Packages that were installed for Ballpoint and not there before: a name a line; # begins a comment.
# `./dev` adds to it what it installs before there is a Python.
INSTALLED_FILE = Path("/etc/ballpoint/installed-packages")
_QUERY_SECONDS = 60.0
_LOAD_SECONDS = 30.0
_INSTALL_SECONDS = 1800.0


def missing_packages(root: Path = Path("/"), extra: Sequence[str] = ()) -> list[str]:
    """Packages whose programs or files the host lacks.

    Args:
        extra: what there must be beside PACKAGES: a package, or PROGRAM=PACKAGE where they have different names.
    """
    missing = []
    others = (each.partition("=") for each in extra)
    for item, package in {**PACKAGES, **{program: package or program for program, _, package in others}}.items():
        there = (root / item.lstrip("/")).exists() if item.startswith("/") else process.which(item) is not None
        if not there:
            missing.append(package)
    return missing


def install_packages(packages: list[str], record: Path = INSTALLED_FILE) -> None:
    """Install Debian packages, and add those that were absent to `record` first: a crash leaves none untold.

    Raises:
        UnavailableError: there is no apt, or it fails.
    """
    if process.which("apt-get") is None:
        raise UnavailableError("this host has no apt-get", hint=f"install yourself: {' '.join(packages)}")
    _add_to(record, set(packages) - _present())
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        process.run(["apt-get", "update", "-q"], timeout=_INSTALL_SECONDS, env=quiet)
        process.run(
            ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages],
            timeout=_INSTALL_SECONDS,
            env=quiet,
        )
    except process.CommandFailedError as error:
        raise UnavailableError(
            f"apt could not install {' '.join(packages)}: {error.message}", hint=error.hint
        ) from error


def installed_packages(record: Path = INSTALLED_FILE) -> list[str]:
    """The packages of `record` that are still there, sorted."""
    recorded = _recorded(record)
    return sorted(recorded & _present()) if recorded else []


def forget_packages(record: Path = INSTALLED_FILE) -> bool:
    """Remove `record`, and its directory with it unless something else is in it. Returns whether it was there."""
    there = record.exists()
    record.unlink(missing_ok=True)
    if there and not any(record.parent.iterdir()):
        record.parent.rmdir()
    return there


def _present() -> set[str]:
    """Names of all Debian packages of this host that are installed, and not only known or half removed."""
    shown = process.run(["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n"], timeout=_QUERY_SECONDS)
    pairs = (line.split(" ", 1) for line in shown.splitlines())
    return {name for state, name in pairs if state == "installed"}


def _recorded(record: Path) -> set[str]:
    lines = record.read_text().splitlines() if record.exists() else []
    return {line for line in map(str.strip, lines) if line and not line.startswith("#")}


def _add_to(record: Path, packages: set[str]) -> None:
    if not packages - _recorded(record):
        return
    record.parent.mkdir(exist_ok=True)
    text = "\n".join(["# Packages that were installed for Ballpoint.", *sorted(packages | _recorded(record)), ""])
    write_atomically(record, text.encode())


def sysctl_value(name: str, root: Path = Path("/proc/sys")) -> int | None:
    """Present value; None where this kernel has no such limit (yet)."""
    try:
        return int((root / name.replace(".", "/")).read_text().split()[0])
    except (OSError, ValueError):
        return None


def low_sysctls(root: Path = Path("/proc/sys")) -> dict[str, int]:
    """Limits that are lower than they should be, with the value they should have."""
    low = {}
    for name, wanted in SYSCTLS.items():
        value = sysctl_value(name, root)
        if value is not None and value < wanted:
            low[name] = wanted
    return low


def load_modules(root: Path = Path("/proc/sys"), file: Path = MODULES_FILE) -> list[str]:
    """Load the modules whose limits are to be raised, now and at the next boot. Returns those that were not there.

    A kernel without modules, or without these, has no such limit, and nothing is done.
    """
    absent = [module for name, module in MODULES.items() if sysctl_value(name, root) is None]
    if not absent or process.which("modprobe") is None:
        return []
    try:
        process.run(["modprobe", "--all", *absent], timeout=_LOAD_SECONDS)
    except process.CommandFailedError:
        return []
    file.parent.mkdir(exist_ok=True)
    text = "\n".join(["# Written by `ballpoint up`: their limits are in sysctl.d.", *MODULES.values(), ""])
    write_atomically(file, text.encode())
    return absent


def raise_sysctls(root: Path = Path("/proc/sys"), file: Path = SYSCTL_FILE) -> dict[str, int]:
    """Raise what is too low, now and for the next boot. Returns what was changed.

    A limit that the host's administrator set higher is never written, so that no boot lowers it.

    Raises:
        UnavailableError: the kernel refuses, as it does inside a container.
    """
    low = low_sysctls(root)
    if not low:
        return {}
    written = file.read_text().splitlines() if file.exists() else []
    before = [name for name in SYSCTLS if any(line.startswith(f"{name} = ") for line in written)]
    lines = [f"{name} = {SYSCTLS[name]}" for name in SYSCTLS if name in before or name in low]
    file.parent.mkdir(exist_ok=True)
    text = "\n".join(["# Written by `ballpoint up`: limits that all sprites of this host share.", *lines, ""])
    write_atomically(file, text.encode())
    for name, value in low.items():
        try:
            Path(root, name.replace(".", "/")).write_text(str(value))
        except OSError as error:
            raise UnavailableError(
                f"cannot raise {name} to {value}: {error.strerror}", hint="run it on the machine itself, as root"
            ) from error
    return low


def main(extra: list[str]) -> None:
    """Install what the host lacks, and raise its limits; for scripts that run before there is a command line."""
    missing = missing_packages(extra=extra)
    if missing:
        sys.stderr.write(f"ballpoint: installing {', '.join(missing)}\n")
        install_packages(missing)
    load_modules()
    for name, value in raise_sysctls().items():
        sys.stderr.write(f"ballpoint: raised {name} to {value}\n")


if __name__ == "__main__":
    main(sys.argv[1:])

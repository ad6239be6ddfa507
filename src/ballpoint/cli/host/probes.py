"""Things that are only known by doing them, each in a process of its own: `python -m ... NAME [ARGUMENT]...`.

Exit status 0 says that it works, and the last line how, where there is more than one way. Otherwise the last line says
what does not work. Everything made goes with the process, or is taken away before it ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import mmap
import os
import signal
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ballpoint.core.errors import BallpointError
from ballpoint.host import filesystem, loop, mount, namespaces, prctl, slots, staging
from ballpoint.host.bpf import attach_device_policy
from ballpoint.host.cgroup import CONTROLLERS, Cgroup, Hierarchies, Limits
from ballpoint.host.namespaces import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
)

# include/uapi/linux/kvm.h
_KVM_CREATE_VM = 0xAE01
_KVM_CREATE_VCPU = 0xAE41
_KVM_GET_VCPU_MMAP_SIZE = 0xAE04
_KVM_SET_USER_MEMORY_REGION = 0x4020AE46
_KVM_GET_SREGS, _KVM_SET_SREGS = 0x8138AE83, 0x4138AE84
_KVM_SET_REGS = 0x4090AE82
_KVM_RUN = 0xAE80
_KVM_EXIT_HLT = 5
_HLT = b"\xf4"

_NOBODY = 65534
# Host ids that the probe's user namespace maps from 0 on.
_FIRST_ID, _IDS = 1_000_000, 65536
_ST_RDONLY = 1  # statvfs(3)
_LOOP_MAJOR = 7  # Documentation/admin-guide/devices.txt
_NULL_DEVICE = (1, 3)
# A node that cannot be: its id is this directory's, not one of a data directory.
_NODE_ID, _INSTANCE_ID = "d0c702", "d0c702d0"
_SUBNET = "10.213.0.0/16"


def userns() -> None:
    """A user namespace with all others inside, as every instance is."""
    os.close(_user_namespace(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP))


def sandbox() -> None:
    """What programs inside a sprite do to confine their own parts: namespaces made by a user without privileges."""
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    namespaces.unshare(CLONE_NEWUSER)
    # AppArmor lets the first one pass, and takes away what it is good for.
    namespaces.unshare(CLONE_NEWNS)


def attach(image: str) -> None:
    """A file as a block device."""
    _, fd = loop.attach(Path(image))
    os.close(fd)


def erofs(image: str) -> str:
    """Mount a standard image. Returns `file` or `loop`: what the kernel mounts it from."""
    _own_mounts()
    mounted = _mount_erofs(image)
    return "loop" if os.major(os.fstat(mounted).st_dev) == _LOOP_MAJOR else "file"


def overlay(image: str, disk: str) -> None:
    """A sprite's root: erofs and ext4 below an overlay, both mapped to a user namespace, and a file written to it."""
    _own_mounts()
    ids = _user_namespace(0)
    plain = _mount_ext4(disk)
    for name in ("upper", "work"):
        Path(f"/proc/self/fd/{plain}", name).mkdir()
    lower, mapped = _map(_mount_erofs(image), ids), _map(plain, ids)
    # Overlayfs keeps the credentials it is mounted with, so they have to map.
    prctl.prctl(prctl.PR_SET_SECUREBITS, prctl.SECBIT_NO_SETUID_FIXUP)
    prctl.set_fs_ids(_FIRST_ID, _FIRST_ID)
    root = mount.fsmount(
        "overlay",
        {
            "source": "probe",
            "lowerdir": f"/proc/self/fd/{lower}",
            "upperdir": f"/proc/self/fd/{mapped}/upper",
            "workdir": f"/proc/self/fd/{mapped}/work",
            "redirect_dir": "on",
        },
    )
    if os.fstatvfs(root).f_flag & _ST_RDONLY:
        raise SystemExit("it comes up read-only")
    Path(f"/proc/self/fd/{root}/file").touch()
    if Path(f"/proc/self/fd/{plain}/upper/file").stat().st_uid != 0:
        raise SystemExit("its files get the wrong owner")


def reflink(image: str) -> None:
    """Two files of an XFS that share their extents."""
    _own_mounts()
    with tempfile.TemporaryDirectory(prefix="ballpoint-doctor-") as directory:
        device, fd = loop.attach(Path(image))
        try:
            mount.mount_at(directory, "xfs", {"source": device})
        finally:
            os.close(fd)
        try:
            if not filesystem.supports_reflink(Path(directory)):
                raise SystemExit("this XFS shares no extents")
        finally:
            mount.umount2(directory)


def cgroup() -> str:
    """A group like a node's, with a child that has limits, and a device policy. Returns the controllers it lacks."""
    hierarchies = Hierarchies.detect()
    group = Cgroup(hierarchies, f"ballpoint-doctor-{os.getpid()}")
    handed_down: set[str] = set()
    try:
        handed_down = group.make_at_the_top()
        child = group.child("limited")
        child.make()
        for name in ("cgroup.freeze", "cgroup.kill"):
            if not (child.v2 / name).exists():
                raise SystemExit(f"there is no {name}")
        child.limit(Limits(cpus=1, memory=64 << 20, pids=16))
        directory = group.open_directory()
        attach_device_policy(directory, [_NULL_DEVICE])
        os.close(directory)
        offered = (group.v2 / "cgroup.controllers").read_text().split()
        return " ".join(name for name in CONTROLLERS if name not in hierarchies.v1 and name not in offered)
    finally:
        group.remove()
        hierarchies.take_back(handed_down)


def network() -> None:
    """A node's address and rules, and an instance's link, on a host of its own."""
    from ballpoint.network.network import Network

    namespaces.unshare(CLONE_NEWNET)
    inside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    namespaces.unshare(CLONE_NEWNET)
    with tempfile.TemporaryDirectory(prefix="ballpoint-doctor-") as directory:
        node = Network(_NODE_ID, subnet=_SUBNET, egress_allow=(), root=Path(directory))
        node.start()
        node.add(_INSTANCE_ID, slots.acquire(f"{_NODE_ID}/{_INSTANCE_ID}", Path(directory)), inside)


def kvm() -> None:
    """A guest that halts at its first instruction (x86-64)."""
    device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    machine = fcntl.ioctl(device, _KVM_CREATE_VM, 0)
    memory = mmap.mmap(-1, 4096)
    memory[:1] = _HLT
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(machine, _KVM_SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", 0, 0, 0x1000, 4096, address))
    processor = fcntl.ioctl(machine, _KVM_CREATE_VCPU, 0)
    state = mmap.mmap(processor, fcntl.ioctl(device, _KVM_GET_VCPU_MMAP_SIZE, 0))
    segments = bytearray(312)
    fcntl.ioctl(processor, _KVM_GET_SREGS, segments)
    # struct kvm_segment: base at 0, selector at 12; the code segment is the first.
    segments[0:8] = bytes(8)
    segments[12:14] = bytes(2)
    fcntl.ioctl(processor, _KVM_SET_SREGS, segments)
    # struct kvm_regs: sixteen registers, then rip and rflags, whose bit 1 is always set.
    fcntl.ioctl(processor, _KVM_SET_REGS, bytearray(struct.pack("=18Q", *[0] * 16, 0x1000, 2)))
    fcntl.ioctl(processor, _KVM_RUN, 0)
    reason = struct.unpack_from("=I", state, 8)[0]
    if reason != _KVM_EXIT_HLT:
        raise SystemExit(f"the guest ended with exit reason {reason}")


def _user_namespace(others: int) -> int:
    """A user namespace that maps 0 to some id, kept by its descriptor, born together with the namespaces `others`."""
    child, pidfd = namespaces.clone3(CLONE_NEWUSER | others)
    if child == 0:
        prctl.die_with_parent()
        signal.pause()
    try:
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{kind}").write_text(f"0 {_FIRST_ID} {_IDS}")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        prctl.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(pidfd)


def store(url: str) -> None:
    """What a node asks of a store before it first uses it."""
    from ballpoint.store.probe import probe as try_store
    from ballpoint.store.url import open_store

    async def work() -> None:
        opened = open_store(url)
        try:
            await try_store(opened)
        finally:
            await opened.close()

    asyncio.run(work())


def _own_mounts() -> None:
    """Let what is mounted go with this process."""
    namespaces.unshare(CLONE_NEWNS)
    mount.mount("none", "/", flags=mount.MS_REC | mount.MS_PRIVATE)


def _mount_erofs(path: str) -> int:
    from ballpoint.image.catalogue import Image
    from ballpoint.image.mount import mount_image

    return mount_image(Image("probe", "probe", "probe", Path(path), "", 0))


def _mount_ext4(path: str) -> int:
    device, fd = loop.attach(Path(path))
    try:
        return staging.hold(mount.fsmount("ext4", {"source": device}))
    finally:
        os.close(fd)


def _map(source: int, ids: int) -> int:
    mapped = mount.open_tree("", source)
    mount.mount_setattr(mapped, set_=mount.MOUNT_ATTR_IDMAP, userns=ids)
    return staging.hold(mapped)


_PROBES: dict[str, Callable[..., str | None]] = {
    probe.__name__: probe for probe in (userns, sandbox, attach, erofs, overlay, reflink, cgroup, network, kvm, store)
}


def main(name: str, *arguments: str) -> None:
    """Run one probe; a failure is one line, never a traceback."""
    try:
        said = _PROBES[name](*arguments)
    except BallpointError as error:
        raise SystemExit(error.message) from None
    except OSError as error:
        raise SystemExit(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None
    if said:
        sys.stdout.write(f"{said}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

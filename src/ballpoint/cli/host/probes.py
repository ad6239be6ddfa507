"""Things that are only known by doing them, each in a process of its own: `python -m ... overlay|reflink IMAGE|kvm`.

Exit status 0 says that it works; otherwise the last line says what does not.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import struct
import sys
import tempfile
from pathlib import Path

from ballpoint.host import filesystem, loop, mount, namespaces
from ballpoint.host.namespaces import CLONE_NEWNS, CLONE_NEWUSER

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


def overlay() -> None:
    """An overlay whose upper is mapped to a user namespace, as every sprite's root is."""
    namespaces.unshare(CLONE_NEWNS)
    mount.mount("none", "/", flags=mount.MS_REC | mount.MS_PRIVATE)
    userns = _user_namespace()
    with tempfile.TemporaryDirectory() as directory:
        mount.mount_at(directory, "tmpfs", {"mode": "755"})
        for name in ("lower", "upper", "work"):
            Path(directory, name).mkdir()
        mapped = mount.open_tree(directory)
        mount.mount_setattr(mapped, set_=mount.MOUNT_ATTR_IDMAP, userns=userns)
        layers = {f"{name}dir": f"/proc/self/fd/{mapped}/{name}" for name in ("lower", "upper", "work")}
        os.close(mount.fsmount("overlay", {"source": "probe", **layers}))
        mount.umount2(directory, mount.MNT_DETACH)


def _user_namespace() -> int:
    """A user namespace that maps 0 to some id, kept by its descriptor."""
    ready_read, ready_write = os.pipe()
    child = os.fork()
    if child == 0:
        namespaces.unshare(CLONE_NEWUSER)
        os.write(ready_write, b"r")
        signal.pause()
    os.read(ready_read, 1)
    for kind in ("uid_map", "gid_map"):
        Path(f"/proc/{child}/{kind}").write_text("0 1000000 65536")
    fd = os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return fd


def reflink(image: Path) -> None:
    """Two files of an XFS that share their extents."""
    namespaces.unshare(CLONE_NEWNS)
    mount.mount("none", "/", flags=mount.MS_REC | mount.MS_PRIVATE)
    with tempfile.TemporaryDirectory() as directory:
        device, fd = loop.attach(image)
        try:
            mount.mount_at(directory, "xfs", {"source": device})
        finally:
            os.close(fd)
        try:
            if not filesystem.supports_reflink(Path(directory)):
                raise SystemExit("this kernel's XFS shares no extents")
        finally:
            mount.umount2(directory)


def kvm() -> None:
    """A guest that halts at its first instruction."""
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


if __name__ == "__main__":
    if sys.argv[1] == "overlay":
        overlay()
    elif sys.argv[1] == "reflink":
        reflink(Path(sys.argv[2]))
    else:
        kvm()

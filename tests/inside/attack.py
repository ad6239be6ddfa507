"""Attempts to get out, run by root in a sprite and by whoever took the agent's place. Standard library only.

    attack.py sights|acts < parameters     prints a JSON list of [name, outcome, whether it is a refusal]

`sights` are looks at what must not be seen; a host process finds every one of them, which the test makes sure of.
`acts` are refused by the kernel, each with one of the errors named beside it. Nothing here imports late: in the agent's
place there is no file system to import from.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import json
import mmap
import os
import resource
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

# (x86-64, arm64) numbers of system calls that Python and libc have no wrapper for.
NUMBERS = {
    "acct": (163, 89), "bpf": (321, 280), "clock_adjtime": (305, 266), "clock_settime": (227, 112),
    "delete_module": (176, 106), "finit_module": (313, 273), "fsconfig": (431, 431), "fsopen": (430, 430),
    "init_module": (175, 105), "io_uring_setup": (425, 425), "ioprio_set": (251, 30), "kexec_file_load": (320, 294),
    "kexec_load": (246, 104), "keyctl": (250, 219), "open_by_handle_at": (304, 265), "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438), "pidfd_open": (434, 434), "process_vm_readv": (310, 270), "ptrace": (101, 117),
    "quotactl": (179, 60), "settimeofday": (164, 170), "swapon": (167, 224), "syslog": (103, 116),
    "umount2": (166, 39), "userfaultfd": (323, 282),
}  # fmt: skip
_ARM = os.uname().machine == "aarch64"
PTRACE_SEIZE = 0x4206
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
SCRATCH = "/mnt/scratch"
CLONE_NEWNS = 0x20000
NS_GET_PARENT = 0xB702
SECONDS = 2.0

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(name: str, *arguments: Any) -> int:
    """The system call `name`; OSError where it fails."""
    converted = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(libc.syscall(ctypes.c_long(NUMBERS[name][_ARM]), *converted))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)
    return result


def mount(source: str, target: str, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    texts = [None if each is None else each.encode() for each in (source, target, kind, data)]
    if libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)


def in_child(work: Callable[[], object]) -> str:
    """Do `work` in a process of its own, and say what came of it: "done: ..." or the error's name."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            text = f"done: {work()!r}"
        except OSError as error:
            text = errno.errorcode.get(error.errno or 0, str(error))
        except BaseException as error:  # noqa: BLE001 - told, and judged by the test
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode()[:4000])
        os._exit(0)
    os.close(write)
    text = b"".join(iter(lambda: os.read(read, 4096), b"")).decode()
    os.close(read)
    os.waitpid(pid, 0)
    return text


# ---- sights: what is there to be seen ----


def processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def contents(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20)
    except OSError:
        return b""


def sees_process(marker: str) -> bool:
    mine = os.getpid()
    return any(marker.encode() in contents(f"/proc/{pid}/cmdline") for pid in processes() if pid != mine)


def sees_mount(marker: str) -> bool:
    return any(marker in contents(f"/proc/{pid}/mountinfo").decode() for pid in ("self", "1"))


def sees_file(path: str) -> bool:
    """By its path, by climbing out of a chroot, through every process, and with all mounts taken off."""

    def climbing() -> bool:
        os.makedirs(f"{SCRATCH}/cell", exist_ok=True)
        os.chroot(f"{SCRATCH}/cell")
        for _ in range(64):
            os.chdir("..")
        os.chroot(".")
        return os.path.exists(path)

    def undermining() -> bool:
        points = [line.split()[4] for line in contents("/proc/self/mountinfo").decode().splitlines()]
        for point in sorted(points, key=len, reverse=True):
            if point != "/" or os.stat("/").st_ino != 2:
                try:
                    call("umount2", point.encode(), MNT_DETACH)
                except OSError:
                    continue
        return os.path.exists(path)

    def through_processes() -> bool:
        return any(os.path.exists(f"/proc/{pid}/{where}{path}") for pid in processes() for where in ("root", "cwd"))

    return (
        os.path.exists(path)
        or in_child(climbing) == "done: True"
        or in_child(undermining) == "done: True"
        or through_processes()
    )


def sees_device(names: list[str]) -> bool:
    return any(os.path.exists(f"/dev/{name}") for name in names)


def reaches_unix(address: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        try:
            stream.connect(address)
        except OSError:
            return False
        return True


def reaches_tcp(host: str, port: int) -> bool:
    with socket.socket() as stream:
        stream.setblocking(False)
        try:
            stream.connect((host, port))
        except BlockingIOError:
            pass
        except OSError:
            return False
        if not select.select([], [stream], [], SECONDS)[1]:
            return False
        return stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def lists_socket(marker: str) -> bool:
    return marker.encode() in contents("/proc/net/unix")


def finds_secret(secret: bytes, places: list[str]) -> bool:
    """In any process's environment, command line or memory, and in any file below `places`."""
    mine = os.getpid()
    for pid in processes():
        if pid == mine:
            continue
        if secret in contents(f"/proc/{pid}/environ") or secret in contents(f"/proc/{pid}/cmdline"):
            return True
        if in_memory(pid, secret):
            return True
    for place in places:
        for directory, _, names in os.walk(place):
            for name in names:
                path = os.path.join(directory, name)
                if os.path.isfile(path) and not os.path.islink(path) and secret in contents(path):
                    return True
    return False


def in_memory(pid: int, secret: bytes) -> bool:
    try:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    except OSError:
        return False
    try:
        for line in contents(f"/proc/{pid}/maps").decode(errors="replace").splitlines():
            span, rights, *_ = line.split()
            low, high = (int(number, 16) for number in span.split("-"))
            if "r" not in rights or "[v" in line or high - low > 1 << 28:
                continue
            try:
                if secret in os.pread(memory, high - low, low):
                    return True
            except (OSError, OverflowError):
                continue
    finally:
        os.close(memory)
    return False


def signals(pid: int) -> bool:
    """Whether `pid`, a number of the host, is somebody else's process here."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return pid not in processes() or b"host-marker" in contents(f"/proc/{pid}/cmdline")


def sights(given: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    secret = base64.b64decode(given["secret"])[::-1]
    yield "a host process in /proc", sees_process(given["process"])
    yield "a host process by its number", signals(given["pid"])
    yield "a host file", sees_file(given["file"])
    yield "a host mount", sees_mount(given["mount"])
    yield "host devices", sees_device(given["devices"])
    yield "a host unix socket by its path", reaches_unix(given["unix"])
    yield "a host unix socket in the abstract", reaches_unix("\0" + given["abstract"])
    yield "the node's control socket", any(reaches_unix(path) for path in given["node_sockets"])
    yield "the list of host unix sockets", lists_socket(given["abstract"])
    yield "a listener on the host's loopback", reaches_tcp("127.0.0.1", given["loopback_port"])
    yield "the node's port", reaches_tcp("127.0.0.1", given["node_port"])
    for address in given["addresses"]:
        yield f"a listener on the host's {address[0]}", reaches_tcp(address[0], address[1])
    yield "the other sprite's processes", sees_process(given["other_process"])
    yield "the other sprite's listener", reaches_tcp(*given["other_listener"])
    yield "the secret", finds_secret(secret, given["places"])


# ---- acts: what the kernel refuses ----

DENIED = ("EPERM", "EACCES")


def acts(given: dict[str, Any]) -> Iterator[tuple[str, Callable[[], object], tuple[str, ...]]]:
    """(name, act, errors that count as a refusal)."""
    pointer = ctypes.create_string_buffer(256)
    absent = (*DENIED, "ENOSYS")
    yield "mknod a block device", lambda: os.mknod(f"{SCRATCH}/block", 0o60600, os.makedev(7, 0)), DENIED
    yield "mknod memory", lambda: os.mknod(f"{SCRATCH}/mem", 0o20600, os.makedev(1, 1)), DENIED
    for path in given["nodes"]:
        yield f"open {path}", partial(os.open, path, os.O_RDONLY), DENIED
    for kind in ("ext4", "xfs", "erofs", "btrfs", "devtmpfs", "debugfs", "tracefs", "securityfs", "pstore"):
        yield f"mount {kind}", partial(mount, "/dev/loop0", SCRATCH, kind), (*DENIED, "ENODEV")
        yield f"fsopen {kind}", partial(_fsopen, kind), (*DENIED, "ENODEV", "ENOENT")
    if given["nodes"]:
        yield "clear nodev of the root", lambda: mount("none", "/", None, MS_REMOUNT | MS_BIND), DENIED
        for path in given["nodes"]:
            yield f"open {path} after it", partial(os.open, path, os.O_RDONLY), DENIED
    yield "make sysfs writable", lambda: mount("none", "/sys", None, MS_REMOUNT | MS_BIND), DENIED
    yield "mount a writable sysfs", lambda: mount("none", SCRATCH, "sysfs"), DENIED

    yield "init_module", lambda: call("init_module", pointer, 16, b""), absent
    yield "finit_module", lambda: call("finit_module", 0, b"", 0), absent
    yield "delete_module", lambda: call("delete_module", b"loop", 0o4000), absent
    yield "kexec_load", lambda: call("kexec_load", 0, 0, 0, 0), absent
    yield "kexec_file_load", lambda: call("kexec_file_load", 0, 0, 0, b"", 0), absent
    yield "bpf", lambda: call("bpf", 5, _bpf_load(), 128), DENIED
    yield "perf of the kernel", lambda: call("perf_event_open", _perf(), -1, 0, -1, 0), absent
    # Anyone may do these two, but for the filter of system calls.
    yield "userfaultfd", lambda: call("userfaultfd", 1), absent
    yield "io_uring", lambda: call("io_uring_setup", 1, ctypes.create_string_buffer(120)), absent
    if not _ARM:  # the other two ways that x86-64 has into the kernel
        yield "userfaultfd by int 0x80", lambda: _int80(374, 1), absent
        yield "io_uring by int 0x80", lambda: _int80(425, 0), absent
        yield "userfaultfd by x32", lambda: _x32(323), absent
    yield "swapon", lambda: call("swapon", b"/mnt/scratch/x", 0), absent
    yield "acct", lambda: call("acct", None), absent
    yield "quotactl", lambda: call("quotactl", 0x800002 << 8, b"/dev/loop0", 0, pointer), (*absent, "ENOENT", "ENODEV")
    yield "settimeofday", lambda: call("settimeofday", struct.pack("qq", 1, 0), None), DENIED
    yield "clock_settime", lambda: call("clock_settime", 0, struct.pack("qq", 1, 0)), DENIED
    yield "clock_adjtime", lambda: call("clock_adjtime", 0, struct.pack("I", 2).ljust(208, b"\0")), DENIED
    yield "the kernel's log", lambda: call("syslog", 3, pointer, 256), DENIED
    yield "clear the kernel's log", lambda: call("syslog", 5, None, 0), DENIED
    yield "open_by_handle_at", lambda: call("open_by_handle_at", os.open("/", os.O_RDONLY), _handle(), 0), DENIED
    for privilege, act in (
        ("a higher nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5)),
        ("real time", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))),
        ("real-time I/O", lambda: call("ioprio_set", 1, 0, 1 << 13)),
        ("core files", lambda: _raise(resource.RLIMIT_CORE, 1 << 20)),
        ("more open files than the host gives", lambda: _raise(resource.RLIMIT_NOFILE, 1)),
        ("a lower OOM score", lambda: write("/proc/self/oom_score_adj", "-900")),
    ):
        yield f"take {privilege}", act, DENIED

    for name in given["sysctls"]:
        yield f"sysctl {name}", partial(rewrite, f"/proc/sys/{name}"), (*DENIED, "EROFS", "ENOENT")
    for path in ("/proc/sysrq-trigger", "/proc/kcore", "/proc/kmsg", "/sys/power/state", "/sys/kernel/uevent_helper",
                 "/sys/kernel/mm/transparent_hugepage/enabled"):  # fmt: skip
        yield f"open {path}", partial(os.open, path, os.O_RDWR), (*DENIED, "EROFS", "ENOENT")

    number = given["pid"]
    yield "ptrace a host process", lambda: call("ptrace", PTRACE_SEIZE, number, 0, 0), ("ESRCH", "EPERM")
    yield "pidfd of a host process", lambda: call("pidfd_open", number, 0), ("ESRCH",)
    yield "read a host process's memory", lambda: _read_memory(number), ("ESRCH", "EPERM")
    for kind in ("user", "pid"):
        # From a namespace one was born in, only those below it can be had.
        yield f"the parent of the {kind} namespace", partial(_parent, kind), DENIED

    for directory, files in limit_files():
        for name in files:
            yield (
                f"cgroup {directory}/{name}",
                partial(rewrite, f"{directory}/{name}"),
                (*DENIED, "EROFS", "EINVAL"),
            )
    for controller in ("cpu", "memory", "pids", "devices", "freezer", "cpuset", "blkio"):
        yield f"limits through a new {controller} mount", partial(_own_v1, controller), (*DENIED, "EBUSY", "EROFS")


def limit_files() -> Iterator[tuple[str, list[str]]]:
    """The group at the root of the cgroup namespace: its limits belong to the node."""
    root = "/sys/fs/cgroup"
    names = ("cgroup.freeze", "cgroup.kill", "cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure", "cpu.max",
             "cpu.weight", "memory.max", "memory.high", "memory.reclaim", "pids.max", "io.max")  # fmt: skip
    if os.path.exists(root):
        yield root, [name for name in names if os.path.exists(f"{root}/{name}")]


def _own_v1(controller: str) -> None:
    """Mount the hierarchy anew, writable, and loosen whatever it shows; where nothing is shown, nothing is loosened."""

    def work() -> None:
        mount("none", SCRATCH, "cgroup", 0, controller)
        try:
            os.mkdir(f"{SCRATCH}/mine")
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM):
                raise
        for name in sorted(os.listdir(SCRATCH)):
            # cgroup.event_control is everyone's to write, and does nothing but notify.
            if os.path.isfile(f"{SCRATCH}/{name}") and name not in ("cgroup.event_control", "memory.pressure_level"):
                try:
                    fd = os.open(f"{SCRATCH}/{name}", os.O_WRONLY)
                except OSError as error:
                    if error.errno in (errno.EACCES, errno.EPERM):
                        continue
                    raise
                os.close(fd)
                raise RuntimeError(f"{name} is writable")
        raise PermissionError(errno.EACCES, "nothing is writable")

    outcome = in_child(work)
    number = getattr(errno, outcome, None)
    if number is None:
        raise RuntimeError(outcome)
    raise OSError(number, outcome)


def write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def rewrite(path: str) -> None:
    """Write what is there already: where it succeeds after all, nothing is harmed."""
    os.close(os.open(path, os.O_WRONLY))
    write(path, contents(path).decode() or "0")


def _raise(kind: int, more: int) -> None:
    """Raise a limit of this process's own, the hard one too."""
    _, hard = resource.getrlimit(kind)
    try:
        resource.setrlimit(kind, (hard + more, hard + more))
    except ValueError as error:  # Python's word for EPERM
        raise PermissionError(errno.EPERM, "setrlimit") from error
    if resource.getrlimit(kind)[1] == hard:  # it was told so, and nothing else
        raise PermissionError(errno.EPERM, "setrlimit")


def _int80(number: int, first: int) -> int:
    """A system call by the 32-bit entry, for which the kernel has other numbers."""
    # push rbx; mov eax, number; mov ebx, first; xor ecx, ecx; int 0x80; pop rbx; ret
    code = b"\x53\xb8" + struct.pack("<I", number) + b"\xbb" + struct.pack("<I", first) + b"\x31\xc9\xcd\x80\x5b\xc3"
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    result = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
    if result < 0:
        raise OSError(-result, "int 0x80")
    return int(result)


def _x32(number: int) -> int:
    result = int(libc.syscall(ctypes.c_long(0x40000000 | number), ctypes.c_long(1)))
    if result < 0:
        raise OSError(ctypes.get_errno(), "x32")
    return result


def _fsopen(kind: str) -> None:
    fs = call("fsopen", kind.encode(), 0)
    try:
        call("fsconfig", fs, 1, b"source", b"/dev/loop0", 0)
        call("fsconfig", fs, 6, None, None, 0)
    finally:
        os.close(fs)


def _handle() -> ctypes.Array[ctypes.c_char]:
    # struct file_handle of the inode 2 of an ext4 (FILEID_INO32_GEN): the root of the host's disk
    return ctypes.create_string_buffer(struct.pack("Ii", 8, 1) + struct.pack("II", 2, 0), 16)


def _bpf_load() -> ctypes.Array[ctypes.c_char]:
    """A socket filter of `r0 = 0; exit`: the least that the kernel could allow."""
    global _code, _licence
    _code = ctypes.create_string_buffer(struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0), 16)
    _licence = ctypes.create_string_buffer(b"GPL")
    load = struct.pack("=IIQQIIQ", 1, 2, ctypes.addressof(_code), ctypes.addressof(_licence), 0, 0, 0)
    return ctypes.create_string_buffer(load, 128)


def _perf() -> ctypes.Array[ctypes.c_char]:
    # struct perf_event_attr: PERF_TYPE_HARDWARE, its size, PERF_COUNT_HW_CPU_CYCLES; the kernel included, any task
    return ctypes.create_string_buffer(struct.pack("=IIQ", 1, 112, 0), 112)


def _read_memory(pid: int) -> int:
    local = ctypes.create_string_buffer(8)
    vector = struct.pack("PN", ctypes.addressof(local), 8)
    return call("process_vm_readv", pid, vector, 1, struct.pack("PN", 0x400000, 8), 1, 0)


def _parent(kind: str) -> int:
    fd = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY)
    parent = libc.ioctl(fd, ctypes.c_ulong(NS_GET_PARENT))
    if parent < 0:
        raise OSError(ctypes.get_errno(), "NS_GET_PARENT")
    return int(parent)


_code: Any = None
_licence: Any = None


def run(what: str, given: dict[str, Any]) -> list[list[Any]]:
    # Mounts of its own, and a place to write to: the agent's root has none.
    if libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("none", "/mnt", "tmpfs")
    os.mkdir(SCRATCH)
    if what == "sights":
        return [[name, "seen" if seen else "not seen", not seen] for name, seen in sights(given)]
    results = []
    for name, act, refusals in acts(given):
        outcome = in_child(act)
        results.append([name, outcome, outcome in refusals])
    return results


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(sys.argv[1], json.loads(sys.stdin.read()))))

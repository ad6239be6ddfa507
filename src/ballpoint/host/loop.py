"""Loop devices: a file as a block device (drivers/block/loop.c, include/uapi/linux/loop.h)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import UnavailableError
from ballpoint.host import filesystem, held

_LOOP_SET_STATUS_BUSY_TRIES = 64
_LOOP_CONFIGURE = 0x4C0A
_LOOP_SET_STATUS64 = 0x4C04
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_CTL_REMOVE = 0x4C81
_LOOP_CTL_GET_FREE = 0x4C82
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR, _LO_FLAGS_DIRECT_IO = 1, 4, 16
# struct loop_info64: lo_device lo_inode lo_rdevice lo_offset lo_sizelimit lo_number lo_encrypt_type
# lo_encrypt_key_size lo_flags lo_file_name[64] lo_crypt_name[64] lo_encrypt_key[32] lo_init[2]
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
# struct loop_config: fd block_size info reserved[8]
_CONFIG_SIZE = 8 + _INFO.size + 64
_POLL_SECONDS = 0.001
# What opening a device says that is being removed.
_GONE = (errno.ENOENT, errno.ENXIO, errno.ENODEV)
DIRECTORY = "loop"  # below the run root
_REMOVERS = 32
_DIRECT_IO = {"ext4", "xfs"}


def attach(
    path: Path, *, read_only: bool = False, direct_io: bool = False, autoclear: bool = True, block_size: int = 0
) -> tuple[str, int]:
    """Attach `path` to a free loop device.

    Args:
        autoclear: the device lets go of the file at its last close or unmount.
        block_size: of the device, in bytes; 0 lets the kernel choose.

    Returns:
        The device's path and an open descriptor of it, which keeps it attached; the caller owns it.
    """
    flags = (_LO_FLAGS_READ_ONLY * read_only) | (_LO_FLAGS_AUTOCLEAR * autoclear) | (_LO_FLAGS_DIRECT_IO * direct_io)
    mode = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
    backing = os.open(path, mode)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            # Another process may take the number, or remove its device, between these calls: the next one is tried.
            for _ in range(_LOOP_SET_STATUS_BUSY_TRIES):
                device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
                try:
                    fd = os.open(device, mode)
                except OSError as error:
                    if error.errno in _GONE:
                        continue
                    raise
                info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, os.fsencode(path)[-63:], b"", b"", 0, 0)
                config = bytearray(struct.pack("=II", backing, block_size) + info + bytes(64))
                assert len(config) == _CONFIG_SIZE
                try:
                    fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
                    return device, fd
                except OSError as error:
                    os.close(fd)
                    if error.errno != errno.EBUSY:
                        raise OSError(error.errno, f"attach loop device: {error.strerror}", str(path)) from error
        finally:
            os.close(control)
    finally:
        os.close(backing)
    raise UnavailableError("no loop device is free", hint="raise max_loop, or end what uses them (losetup -a)")


def may_be_direct(directory: Path) -> bool:
    """Whether the device of a file in `directory` may go past the page cache of the file system below.

    Others may not stand it that a page changes while it is written, as XFS and ext4 let it: btrfs has a wrong checksum
    then.
    """
    return filesystem.kind(directory) in _DIRECT_IO


def bound_dirty_data(device: str, most: int | None) -> None:
    """Bound what the file systems on a device can have unwritten, where the kernel can (6.2+).

    A device keeps its bound when it is detached: whoever gets it next says what is right for him, or all that writes to
    him waits as if there was no memory left (balance_dirty_pages).

    Args:
        most: bytes; None: as much as any device may.
    """
    bdi = Path("/sys/block") / Path(device).name / "bdi"
    if not (bdi / "strict_limit").exists():
        return
    (bdi / "strict_limit").write_text("0" if most is None else "1")
    if most is None:
        (bdi / "max_ratio").write_text("100")
    else:
        (bdi / "max_bytes").write_text(str(most))


def backed() -> dict[tuple[int, int], str]:
    """What every attached device is backed by: (st_dev, st_ino) of the file -> the device. Costs a call per device."""
    found = {}
    for entry in Path("/sys/block").glob("loop*"):
        if not (entry / "loop").is_dir():
            continue
        device = f"/dev/{entry.name}"
        if (file := backing_of(device)) is not None:
            found[file] = device
    return found


def identity(path: Path) -> tuple[int, int]:
    """By what a file is known as the backing of a device, whatever it is called: (st_dev, st_ino)."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def drain(device: str) -> None:
    """Wait until every request that `device` had taken is carried out; requests that come meanwhile wait, too.

    The kernel drains the queue whenever the status of a device is set, also to what it was.
    """
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        status = bytearray(_INFO.size)
        fcntl.ioctl(fd, _LOOP_GET_STATUS64, status)
        fcntl.ioctl(fd, _LOOP_SET_STATUS64, bytes(status))
    finally:
        os.close(fd)


def find_by_backing(path: Path) -> str | None:
    """The device `path` is attached to, known by the file's device and inode; None where there is none."""
    try:
        return backed().get(identity(path))
    except FileNotFoundError:
        return None


def backing_of(device: str) -> tuple[int, int] | None:
    """(st_dev, st_ino) of the file behind `device`; None where it has none any more."""
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = bytearray(_INFO.size)
        fcntl.ioctl(fd, _LOOP_GET_STATUS64, status)
    except OSError:
        return None  # detached meanwhile
    finally:
        os.close(fd)
    encoded, inode = _INFO.unpack(status)[:2]
    # include/linux/kdev_t.h new_encode_dev: minor low 8 bits, major 12 bits, minor high 12 bits
    major, minor = (encoded >> 8) & 0xFFF, (encoded & 0xFF) | ((encoded >> 12) & 0xFFF00)
    return os.makedev(major, minor), inode


class Attachments:
    """Which device each file of one owner is attached to, without asking every device of the host.

    The owner attaches its files nowhere else: what others attach after the start is not known here.
    """

    def __init__(self) -> None:
        self._devices = backed()

    def attach(self, path: Path) -> tuple[str, int]:
        """As `loop.attach`; the device is known from now on."""
        file = identity(path)
        device, fd = attach(path)
        self._devices[file] = device
        return device, fd

    def find(self, path: Path) -> str | None:
        """The device `path` is attached to; None where there is none (any more)."""
        try:
            return self.find_file(identity(path))
        except FileNotFoundError:
            return None

    def find_file(self, file: tuple[int, int]) -> str | None:
        """As `find`, of the file that `identity` gave: it may have another name by now, or none."""
        device = self._devices.get(file)
        # It goes by itself with its last user, and its number to the next who attaches something.
        if device is not None and backing_of(device) != file:
            self._devices.pop(file, None)
            return None
        return device

    def on(self, file_system: int) -> list[str]:
        """The devices whose files are on the file system with that st_dev."""
        found = (self.find_file(file) for file in list(self._devices) if file[0] == file_system)
        return [device for device in found if device is not None]

    def wait_released(self, path: Path, timeout: float) -> None:
        """`loop.wait_released` of the device of `path`."""
        _wait(lambda: self.find(path), path, timeout)

    def wait_file_released(self, file: tuple[int, int], path: Path, timeout: float) -> None:
        """As `wait_released`, of the file that `identity` gave; `path` is what the error calls it."""
        _wait(lambda: self.find_file(file), path, timeout)


def hold_devices(node_id: str, root: Path) -> None:
    """Remember, for the host's nodes, which devices there were before the first of them. Idempotent."""
    held.hold(root / DIRECTORY, node_id, _numbers, lambda: None)


def drop_devices(node_id: str, root: Path) -> bool:
    """End what `hold_devices` began; the last node removes the devices that came since and that nobody uses.

    Returns:
        False where `node_id` held nothing.
    """
    return held.drop(root / DIRECTORY, node_id, _put_back)


def _numbers() -> list[int]:
    return [int(path.name.removeprefix("loop")) for path in Path("/sys/block").glob("loop*")]


def _put_back(before: list[int]) -> None:
    now = set(_numbers())
    _remove(now.difference(before))
    # The host's own, which volumes were attached to meanwhile.
    for number in now.intersection(before):
        if backing_of(f"/dev/loop{number}") is None:
            with suppress(FileNotFoundError):  # removed right now
                bound_dirty_data(f"/dev/loop{number}", None)


def _remove(numbers: Iterable[int]) -> None:
    def remove(number: int) -> None:
        try:
            fcntl.ioctl(control, _LOOP_CTL_REMOVE, number)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENODEV):
                raise

    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        # Each waits for a grace period of the kernel, but all for the same one.
        with ThreadPoolExecutor(_REMOVERS) as threads:
            list(threads.map(remove, numbers))
    finally:
        os.close(control)


def wait_released(path: Path, timeout: float) -> None:
    """Wait until the device of `path` has let go by itself, or, at the end of the time, an exclusive open proves that
    nothing uses it.

    An unmount returns while another mount namespace still holds the file system, and the kernel tells nobody when the
    last one goes, so this looks again and again.

    Args:
        timeout: seconds.

    Raises:
        UnavailableError: it is still in use.
    """
    _wait(lambda: find_by_backing(path), path, timeout)


def _wait(find: Callable[[], str | None], path: Path, timeout: float) -> None:
    pause = threading.Event()
    deadline = SYSTEM_CLOCK.monotonic() + timeout
    wait = _POLL_SECONDS
    while (device := find()) is not None:
        used = False
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            used = True
        late = SYSTEM_CLOCK.monotonic() > deadline
        # Nobody uses it, but who only asks whose it is, as another node that starts does, keeps it from letting go.
        if not used and (late or find() is None):
            return
        if late:
            raise UnavailableError(f"{device} is still in use after {timeout:g} s", hint=f"it holds {path}")
        pause.wait(wait)
        wait = min(wait * 2, 0.05)

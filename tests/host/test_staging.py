"""What kernels before 6.15 need, which copy attached mounts only; done here, whether or not this one needs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("root")]

# For what must happen. Seconds.
_DEADLINE = 60
_BEFORE = """
import os, sys
from pathlib import Path
from ballpoint.cli.host import probes
from ballpoint.host import loop, mount, process, staging
from ballpoint.runtime.container.locker import Locker
from ballpoint.runtime.container.programs import ensure_programs
from ballpoint.volume.pool import _mount_ext4
staging.needed = lambda: True
directory = Path(sys.argv[1])
image, disk = directory / "image.erofs", directory / "disk.img"
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "content").mkdir()
    (tmp_path / "content/file").write_text("below")
    with (tmp_path / "disk.img").open("wb") as file:
        file.truncate(16 << 20)
    for command in (["mkfs.erofs", "--quiet", "image.erofs", "content"], ["mkfs.ext4", "-q", "disk.img"]):
        subprocess.run(command, cwd=tmp_path, check=True, timeout=_DEADLINE, capture_output=True)
    return tmp_path


def ran(script: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _BEFORE + script, str(directory)], capture_output=True, text=True, timeout=_DEADLINE
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def attached(directory: Path) -> list[str]:
    listed = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True, timeout=_DEADLINE).stdout
    return [line for line in listed.splitlines() if str(directory) in line]


def test_an_overlay_over_mapped_layers(files: Path) -> None:
    ran("probes.overlay(str(image), str(disk))", files)
    assert attached(files) == []
    assert str(files) not in Path("/proc/self/mountinfo").read_text()


def test_a_copy_of_the_mount_table_pins_nothing(files: Path) -> None:
    """The locker has one, taken while the disk is mounted, and lives on when the disk is let go."""
    said = ran(
        """
probes._own_mounts()
device, fd = loop.attach(disk)
held = _mount_ext4(device)
os.close(fd)
locker = Locker(directory / "lk", ensure_programs(directory) / "locker")
locked = locker.lock(held)
assert device in Path(f"/proc/{locker._child.pid}/mountinfo").read_text()
os.close(locked)
staging.close(held)
loop.wait_released(disk, 30)
print(locker._child.poll())
locker.close()
""",
        files,
    )
    assert said == "None\n"


def test_a_held_mount_is_read_and_copied(files: Path) -> None:
    said = ran(
        """
probes._own_mounts()
held = probes._mount_erofs(str(image))
copy = mount.open_tree("", held)
staging.close(held)
print(Path(f"/proc/self/fd/{copy}/file").read_text())
""",
        files,
    )
    assert said == "below\n"

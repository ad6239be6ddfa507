"""A writable tree over an image, as a sprite has one, to run programs in."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ballpoint.host import mount
from ballpoint.image.catalogue import Image
from ballpoint.image.mount import mount_image

_SECONDS = 120.0


class Machine:
    """Programs run with `root` as their root directory and with the host's network."""

    def __init__(self, root: Path, environment: dict[str, str] | None = None) -> None:
        self.root = root
        self.environment = environment or {}

    def run(self, *command: str) -> str:
        """What `command` prints; it must succeed."""
        done = self.attempt(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def attempt(self, *command: str) -> subprocess.CompletedProcess[str]:
        inside = ["unshare", "--mount-proc", "--pid", "--fork", "--kill-child", f"--root={self.root}", "--wd=/", "--"]
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG": "C.UTF-8", "HOME": "/root"}
        return subprocess.run(
            [*inside, *command],
            env=environment | self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )


@contextmanager
def machine(image: Image, place: Path) -> Iterator[Machine]:
    """Mount `image` below a fresh writable layer at `place`/root, and undo it."""
    (place / "root").mkdir(parents=True)
    (place / "layer").mkdir()
    lower = mount_image(image)
    try:
        mount.mount_at(place / "layer", "tmpfs", {"source": "layer", "mode": "0755"})
        try:
            for part in ("upper", "work"):
                (place / "layer" / part).mkdir()
            (place / "layer/upper").chmod(0o755)
            layers = {"upperdir": f"{place}/layer/upper", "workdir": f"{place}/layer/work"}
            source = {"source": "machine", "lowerdir": f"/proc/self/fd/{lower}", **layers}
            mount.mount_at(place / "root", "overlay", source)
            try:
                (place / "root/run/resolv.conf").write_bytes(Path("/etc/resolv.conf").read_bytes())
                yield Machine(place / "root")
            finally:
                mount.umount2(place / "root")
        finally:
            mount.umount2(place / "layer")
    finally:
        os.close(lower)

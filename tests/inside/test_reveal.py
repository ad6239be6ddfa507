"""Checkpoints that can be read inside, below /.sprite/checkpoints: shown while the sprite runs, and taken away."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from ballpoint.core.errors import CorruptError
from ballpoint.host import loop, staging
from ballpoint.host.slots import slot
from ballpoint.image.catalogue import Image
from ballpoint.image.mount import mount_image
from ballpoint.node.durable.shown import Readable, Shown
from ballpoint.node.lifecycle.instances import Instance
from ballpoint.node.lifecycle.running import Running
from ballpoint.runtime.container.journals import JournalSpace
from ballpoint.runtime.container.locker import Locker
from ballpoint.runtime.container.programs import ensure_programs
from ballpoint.runtime.container.runtime import ContainerRuntime
from ballpoint.volume.readable import mount_readable
from tests.inside.conftest import Make, agent_of, instance_of, next_agent
from tests.support.nodes import CACHE, TestNode, shell
from tests.support.waiting import eventually

pytestmark = [pytest.mark.node, pytest.mark.host]

PLACE = "/.sprite/checkpoints"
# What is on a checkpoint's disk: more than a sprite could put there, as an image might have been made by another hand.
CONTENT = """
set -e
cd "$1"
mkdir -p upper/home/sprite upper/etc upper/usr/bin work
echo kept >upper/home/sprite/file
chown -R 1000:1000 upper/home/sprite
echo secret >upper/home/sprite/of-root && chmod 600 upper/home/sprite/of-root && chown 0:0 upper/home/sprite/of-root
mknod upper/etc/profile c 0 0 # a whiteout (overlayfs.rst)
mknod upper/disk b 7 0 && chmod 666 upper/disk
cp /usr/bin/id upper/usr/bin/id-as-root && chmod 4755 upper/usr/bin/id-as-root
echo hidden >beside-upper
"""


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


class Scene:
    """A sprite, its instance as a node of its own would hold it, and checkpoints to show in it."""

    def __init__(self, node: TestNode, sprite: Any, image: Image, folder: Path) -> None:
        self.node = node
        self.sprite = sprite
        self.digest = image.digest
        self.folder = folder
        programs = ensure_programs(CACHE)
        self.runtime = ContainerRuntime(node.id, Path("/run/ballpoint") / node.id, programs, JournalSpace(node.data))
        self.runtime._locker = Locker(folder / "lk", programs / "locker")
        self._lower = mount_image(image)
        self.shown = Shown(cast(Any, self))
        self.images: list[Path] = []
        self.instance: Any = None

    def image_mount(self, digest: str) -> int:
        assert digest == self.digest
        return self._lower

    async def adopt(self) -> None:
        """Connect to the sprite's agent, beside the node."""
        found = await self.runtime.adopt(instance_of(self.node, self.sprite))
        assert found is not None
        self.instance = found
        self.running = Running("sprite", Instance(found, slot(0)), cast(Any, None), org_id="o1")

    def checkpoint(self, name: str) -> Readable:
        image = self.folder / f"{name}.img"
        with image.open("wb") as file:
            file.truncate(64 << 20)
        content = self.folder / f"{name}.content"
        content.mkdir()
        run("bash", "-c", CONTENT, "bash", str(content))
        run("mkfs.ext4", "-q", "-d", str(content), str(image))
        self.images.append(image)
        return Readable(name, image, self.digest)

    async def show(self, *wanted: Readable) -> dict[str, str]:
        return await self.shown.show_checkpoints(self.running, wanted)

    def inside(self, script: str, user: str = "root") -> tuple[int, str]:
        return shell(self.sprite, script, user=user)

    def close(self) -> None:
        if self.instance is not None:
            self.instance.release()
        self.runtime.close(keep=True)
        staging.close(self._lower)


@pytest.fixture
async def scene(node: TestNode, make_sprite: Make, slim_image: Image, tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(node, make_sprite(), slim_image, tmp_path)
    try:
        await made.adopt()
        yield made
        await made.show()
    finally:
        made.close()
    for image in made.images:
        eventually(lambda image=image: loop.find_by_backing(image) is None)  # type: ignore[misc]


async def test_a_checkpoint_is_read_inside(scene: Scene) -> None:
    assert scene.inside(f"ls {PLACE}/") == (0, "")
    assert await scene.show(scene.checkpoint("v0"), scene.checkpoint("auto-2026-01-02T03:04:05Z")) == {}
    assert scene.inside(f"ls {PLACE}/") == (0, "auto-2026-01-02T03:04:05Z\nv0\n")
    for user in ("sprite", "root"):
        assert scene.inside(f"cat {PLACE}/v0/home/sprite/file {PLACE}/v0/etc/hostname", user) == (0, "kept\nsprite\n")
    assert scene.inside(f"stat -c %U:%G {PLACE}/v0/home/sprite/file {PLACE}/v0/etc/passwd") == (
        0,
        "sprite:sprite\nroot:root\n",
    )
    # What was deleted is not there; neither is what is beside the root directory on its disk.
    assert scene.inside(f"ls {PLACE}/v0/etc/profile {PLACE}/v0/../v0/../beside-upper")[0] != 0
    assert scene.inside(f"cat {PLACE}/v0/home/sprite/of-root", "sprite")[0] != 0


async def test_it_can_only_be_read(scene: Scene) -> None:
    await scene.show(scene.checkpoint("v0"))
    at = f"{PLACE}/v0"
    for attempt in (f"echo x >{at}/home/sprite/file", f"touch {at}/new", f"rm {at}/etc/hostname", f"chmod 777 {at}"):
        code, said = scene.inside(attempt)
        assert (code != 0, "Read-only file system" in said) == (True, True), said
    code, options = scene.inside(f"findmnt -no OPTIONS $(readlink -f {at})")
    assert code == 0
    assert {"ro", "nosuid", "nodev"} <= set(options.strip().split(","))
    real = f"$(readlink -f {at})"
    for options in ("rw", "bind,rw", "bind,dev", "bind,suid", "bind,dev,suid,rw"):
        assert scene.inside(f"mount -o remount,{options} {real}")[0] != 0
    assert (
        scene.inside(f"mkdir -p /mnt/x && mount --bind {real} /mnt/x && mount -o remount,bind,dev,suid,rw /mnt/x")[0]
        != 0
    )
    assert scene.inside("head -c1 /mnt/x/disk; umount /mnt/x")[1].count("Permission denied") == 1
    code, said = scene.inside(f"{at}/usr/bin/id-as-root -u", "sprite")
    assert (code, said) == (0, "1000\n")


async def test_what_is_wanted_no_more_goes_with_its_mount_and_device(scene: Scene) -> None:
    first, second, third = (scene.checkpoint(f"v{number}") for number in range(3))
    await scene.show(first, second)
    assert loop.find_by_backing(first.image) is not None
    before = scene.inside("stat -c %i /.sprite/checkpoints/v1/etc; grep -c checkpoint /proc/self/mountinfo")
    assert await scene.show(second, third) == {}
    assert await scene.show(second, third) == {}
    assert scene.inside(f"ls {PLACE}/") == (0, "v1\nv2\n")
    assert scene.inside("stat -c %i /.sprite/checkpoints/v1/etc; grep -c checkpoint /proc/self/mountinfo") == before
    eventually(lambda: loop.find_by_backing(first.image) is None)
    assert await scene.show() == {}
    for each in (second, third):
        eventually(lambda each=each: loop.find_by_backing(each.image) is None)  # type: ignore[misc]
    assert scene.inside(f"ls {PLACE}/") == (0, "")


async def test_what_a_process_inside_uses_stays_for_it_alone(scene: Scene) -> None:
    checkpoint = scene.checkpoint("v0")
    await scene.show(checkpoint)
    script = (
        f"cd {PLACE}/v0/etc || exit 1; (exec -a user sleep 1000) >/dev/null 2>&1 & "
        "until pgrep -f ^user >/dev/null; do sleep 0.05; done"
    )
    assert scene.inside(script) == (0, "")
    assert await scene.show() == {}
    assert scene.inside(f"ls {PLACE}/") == (0, "")
    assert loop.find_by_backing(checkpoint.image) is not None
    assert scene.inside("pkill -f '^user'")[0] == 0
    eventually(lambda: loop.find_by_backing(checkpoint.image) is None)


async def test_it_goes_with_the_sprite(scene: Scene) -> None:
    checkpoint = scene.checkpoint("v0")
    await scene.show(checkpoint)
    assert scene.node.api("POST", f"/v1/sprites/{scene.sprite.name}/restart").status_code == 200
    eventually(lambda: loop.find_by_backing(checkpoint.image) is None)
    assert scene.inside(f"ls {PLACE}/") == (0, "")
    scene.instance.release()
    await scene.adopt()


async def test_the_next_agent_and_the_next_node_know_what_is_shown(scene: Scene) -> None:
    await scene.show(scene.checkpoint("v0"))
    instance = instance_of(scene.node, scene.sprite)
    agent = agent_of(scene.node, instance)
    scene.instance.release()
    os.kill(agent, signal.SIGKILL)
    next_agent(scene.node, instance, agent)
    await scene.adopt()
    assert await scene.instance.shown() == {"v0"}
    assert await scene.show() == {}
    assert scene.inside(f"ls {PLACE}/") == (0, "")


async def test_one_that_cannot_be_shown_stops_no_other(scene: Scene) -> None:
    unfrozen, gone, good = scene.checkpoint("v0"), scene.checkpoint("v1"), scene.checkpoint("v2")
    copy = scene.folder / "unfrozen.img"
    # In a mount namespace of its own: another process that copied it would keep the image's device.
    script = 'mount -o loop "$1" "$2" && touch "$2/written" && sync "$2/written" && cp "$1" "$3" && umount "$2"'
    place = scene.folder / "mounted"
    place.mkdir()
    run("unshare", "-m", "bash", "-c", script, "bash", str(unfrozen.image), str(place), str(copy))
    gone.image.unlink()
    noise = scene.folder / "noise.img"
    noise.write_bytes(os.urandom(1 << 20))
    failed = await scene.show(
        Readable("v0", copy, scene.digest),
        gone,
        good,
        Readable("v3", noise, scene.digest),
        Readable("..", good.image, scene.digest),
    )
    assert failed.keys() == {"v0", "v1", "v3", ".."}
    assert "not frozen" in failed["v0"]
    assert scene.inside(f"ls {PLACE}/") == (0, "v2\n")
    for image in (copy, noise):
        with pytest.raises(CorruptError):
            mount_readable(image)
        assert loop.find_by_backing(image) is None


async def test_names_are_no_paths(scene: Scene) -> None:
    for name in ("", ".", "..", "a/b", "/etc", "x" * 200):
        with pytest.raises(Exception, match="no name of a checkpoint"):
            await scene.instance.hide(name)


@pytest.mark.parametrize(
    "before",
    [
        "rm -rf /run/sprite/checkpoints",
        "rm -rf /run/sprite",
        "mount -t tmpfs none /run/sprite/checkpoints",
        "rmdir /run/sprite/checkpoints; ln -s /etc /run/sprite/checkpoints",
        "touch /run/sprite/checkpoints/v0",
        "ln -s /etc /run/sprite/checkpoints/v0",
        "mkdir -p /run/sprite/checkpoints/v0/x",
        "mount -o remount,bind,ro /run",
        "umount -l /run",
    ],
)
async def test_root_inside_spoils_it_for_nobody_else(scene: Scene, before: str) -> None:
    assert scene.inside(before)[0] == 0
    checkpoint = scene.checkpoint("v0")
    failed = await scene.show(checkpoint)
    assert failed.keys() <= {"v0"}
    if not failed:
        assert scene.inside("cat /run/sprite/checkpoints/v0/home/sprite/file") == (0, "kept\n")
    assert scene.inside("grep -c . /etc/hostname") == (0, "1\n")
    await scene.show()
    eventually(lambda: loop.find_by_backing(checkpoint.image) is None)

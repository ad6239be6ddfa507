"""What a new sprite's disk starts as: the standard image below, and a volume cloned from a template above it."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import ExitStack
from pathlib import Path

from ballpoint.agent.services import disk as services
from ballpoint.core.config import NodeConfig
from ballpoint.core.errors import BallpointError
from ballpoint.host import mount, staging
from ballpoint.image import renewal
from ballpoint.image.catalogue import Catalogue, Image
from ballpoint.image.injection import Injection, apply, host_injection
from ballpoint.image.mount import mount_image
from ballpoint.image.renewal import Entry
from ballpoint.runtime.container.rootfs import UPPER, WORK, Bind
from ballpoint.volume.pool import AttachedVolume, VolumePool

log = logging.getLogger(__name__)

# Nested containers need a real file system below their storage; an overlay cannot be another's upper.
BINDS = (Bind("binds/docker", "/var/lib/docker"), Bind("binds/containers", "/var/lib/containers"))

# What a template is made of besides image, injection and size: 2 has a record of what was injected.
_TEMPLATE_VERSION = 2


def may_have_services(volume: AttachedVolume) -> bool:
    """Whether the sprite of a volume may have services; what nobody knows counts as yes.

    Nobody inside has to look then, beside the sprite's first command. No image has their file, so it is in the upper
    layer or nowhere. Nothing that the sprite has put in the way is followed.
    """
    *directories, name = [UPPER, *services.PATH.strip("/").split("/")]
    try:
        with ExitStack() as stack:
            at = stack.enter_context(volume.opened())
            for directory in directories:
                at = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
                stack.callback(os.close, at)
            os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


class Disks:
    """Images and volumes of one node. Calls block; they are made in worker threads.

    Args:
        image: what new sprites get.
    """

    def __init__(self, config: NodeConfig, catalogue: Catalogue, image: Image, pool: VolumePool) -> None:
        self._config = config
        self._catalogue = catalogue
        self.image = image
        self.pool = pool
        self.injection: Injection = host_injection(config.ca_bundle, config.mirror)
        self._mounts: dict[str, int] = {}
        self._mounting = threading.Lock()
        self._layers: dict[str, dict[str, Entry]] = {}
        self._layering = threading.Lock()
        self._template = ""

    def prepare(self) -> None:
        """Make the template of new volumes, with this node's certificates and mirrors in it. Idempotent."""
        self.image_mount(self.image.digest)
        key = f"{self.image.digest[:16]}-{self.injection.digest[:16]}-{self._config.disk_gb}-{_TEMPLATE_VERSION}"
        self.pool.ensure_template(key, self._config.disk_gb, self._inject)
        self.pool.drop_templates({key})
        self._template = key

    def image_mount(self, digest: str) -> int:
        """Mount of an image; stays this object's.

        Raises:
            NotFoundError: the node has no image of that digest.
        """
        with self._mounting:
            if digest not in self._mounts:
                self._mounts[digest] = mount_image(self._catalogue.find(digest))
            return self._mounts[digest]

    def keep_images(self, digests: set[str]) -> None:
        """Let go of the images that are not in `digests`; sprites that still run on one hold it by themselves."""
        with self._mounting:
            for digest in self._mounts.keys() - digests:
                staging.close(self._mounts.pop(digest))

    def make(self, volume_id: str) -> AttachedVolume:
        """A new volume from the template, attached.

        Raises:
            UnavailableError: the pool is full.
        """
        meta = {"image": self.image.digest, "injection": self.injection.digest}
        self.pool.create(volume_id, template=self._template, meta=meta)
        return self.pool.attach(volume_id)

    def attach(self, volume_id: str) -> AttachedVolume:
        """Mount a sprite's volume, with this node's certificates and mirrors where it has others."""
        return self._renewed(self.pool.attach(volume_id))

    def attach_staged(self, volume_id: str, staged: Path) -> AttachedVolume:
        """As `attach`, of an image that is not the volume's disk yet."""
        return self._renewed(self.pool.attach_staged(volume_id, staged))

    def _renewed(self, volume: AttachedVolume) -> AttachedVolume:
        try:
            self._renew(volume)
        except (BallpointError, OSError) as error:
            log.warning("certificates and package sources of volume %s stay as they are: %s", volume.id, error)
        return volume

    def close(self) -> None:
        for fd in self._mounts.values():
            staging.close(fd)
        self._mounts.clear()
        self.pool.close()

    def _inject(self, volume: int) -> None:
        """Write the injection through an overlay, so that directories above keep what the image says of them."""
        disk = Path(f"/proc/self/fd/{volume}")
        layer = self._apply(disk, self.image.digest)
        # Everything above an upper is the sprite's root directory, which the image owns.
        (disk / UPPER).chmod(0o755)
        renewal.write_record(volume, self.injection.digest, renewal.fingerprints(layer))

    def _apply(self, disk: Path, image: str) -> dict[str, Entry]:
        """Inject into the fresh directories of an overlay below `disk`. Returns what is there then."""
        place = self._config.run / "template"
        place.mkdir(exist_ok=True)
        lower = f"/proc/self/fd/{self.image_mount(image)}"
        options = {"lowerdir": lower, "upperdir": f"{disk}/{UPPER}", "workdir": f"{disk}/{WORK}"}
        mount.mount_at(place, "overlay", {"source": "template", **options, "redirect_dir": "on"})
        try:
            apply(self.injection, place)
        finally:
            mount.umount2(place, mount.MNT_DETACH)
        return renewal.read_layer(disk / UPPER)

    def _layer(self, image: str) -> dict[str, Entry]:
        """What the injection adds to `image`: made once, and never by programs that a sprite could have changed."""
        with self._layering:
            if image not in self._layers:
                place = self._config.run / "layer"
                place.mkdir(exist_ok=True)
                mount.mount_at(place, "tmpfs", {"source": "layer", "mode": "0755"})
                try:
                    for name in (UPPER, WORK):
                        (place / name).mkdir()
                    self._layers[image] = self._apply(place, image)
                finally:
                    mount.umount2(place, mount.MNT_DETACH)
            return self._layers[image]

    def _renew(self, volume: AttachedVolume) -> None:
        with volume.opened() as root:
            record = renewal.read_record(root)
            if record is None or record.digest == self.injection.digest:
                return
            layer = self._layer(self.pool.meta(volume.id)["image"])
            upper = os.open(UPPER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
            try:
                done = renewal.renew(upper, layer, record.files)
            finally:
                os.close(upper)
            renewal.write_record(root, self.injection.digest, done.files)
            log.info(
                "volume %s has this node's certificates and package sources: %d files changed; kept: %s",
                volume.id,
                len(done.changed),
                ", ".join(done.kept) or "none",
            )

"""What the store has of a disk, brought back into the pool: as a snapshot, of which disks are then clones."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from uuid import UUID

from ballpoint.core.threads import to_the_end
from ballpoint.host.files import remove_file
from ballpoint.store.store import Store
from ballpoint.volume import snapshots
from ballpoint.volume.log.log import View
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.sync.hydrate import Filled, Progress, hydrate


async def fetch(
    pool: VolumePool,
    volume_id: str,
    sequence: int,
    *,
    store: Store,
    volume: UUID,
    checkpoint: str | None = None,
    progress: Progress | None = None,
) -> View:
    """Make a snapshot of what the store has of a volume. It is durable when this returns, and as any other.

    Whoever calls names it in the volume's record next, as the base where it is the disk's, and then clones it
    (`VolumePool.stage`, `replace_disk`). A crash before that leaves a file which the next start removes, a failure
    leaves none; both are mended by one more call.

    Args:
        volume_id: of the directory in the pool it belongs to.
        sequence: of the snapshot, one that no other has.
        volume: its name in the store, or that of another whose disk is wanted.
        checkpoint: id of one; None: the disk.
        progress: is told how far it is.

    Returns:
        What the log was: the disk is the one after the commit `head`.

    Raises:
        UnavailableError: the pool has no room for it, or the store does not answer.
        Others as `hydrate`.
    """
    directory = pool.directory(volume_id)
    path = snapshots.path_of(directory, sequence)

    def told(filled: Filled) -> None:
        if not filled.done:
            pool.require_room(filled.total)
        if progress is not None:
            progress(filled)

    fd = await asyncio.to_thread(_make, path)
    try:
        with pool.room():
            view = await hydrate(store, volume, fd, checkpoint=checkpoint, progress=told)
            await to_the_end(snapshots.keep, directory, sequence)
        return view
    except BaseException:
        remove_file(path)
        raise
    finally:
        os.close(fd)


def _make(path: Path) -> int:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    remove_file(path)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)

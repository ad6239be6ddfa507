"""Moving processes between cgroups without waiting for the kernel, for as long as a node of the host runs.

A write to cgroup.procs first waits for an RCU grace period, 7 to 20 ms, unless another such write was a moment ago.
Every exec makes one, so the first exec after a pause would pay it. The mount option `favordynmods` (kernel 6.0,
Documentation/admin-guide/cgroup-v2.rst) keeps the lock in the state where nothing is waited for; forks and exits of
the whole host then take its slower path, which was too little to be measured. It acts on all hierarchies, v1 included.
"""

from __future__ import annotations

import errno
import logging
from pathlib import Path

from ballpoint.host import held, mount
from ballpoint.host.cgroup import Hierarchies

log = logging.getLogger(__name__)

DIRECTORY = "favordynmods"  # below the run root
_OPTION = "favordynmods"


def hold(node_id: str, root: Path, hierarchies: Hierarchies) -> None:
    """Turn it on for `node_id`; where the kernel or a container's host refuses, execs are slower. Idempotent."""

    def change() -> None:
        options = _options(hierarchies.v2)
        if _OPTION not in options:
            _set(hierarchies.v2, [*options, _OPTION])

    held.hold(root / DIRECTORY, node_id, lambda: _OPTION in _options(hierarchies.v2), change)


def drop(node_id: str, root: Path, hierarchies: Hierarchies) -> bool:
    """End what `hold` began; the last node puts the option back. Returns False where `node_id` held nothing."""

    def put_back(found: bool) -> None:
        options = _options(hierarchies.v2)
        if not found and _OPTION in options:
            _set(hierarchies.v2, [name for name in options if name != _OPTION])

    return held.drop(root / DIRECTORY, node_id, put_back)


def _options(v2: Path) -> list[str]:
    """Options of the hierarchy, which a reconfiguration must name again or lose."""
    for each in mount.mounts():
        if (each.point, each.kind) == (str(v2), "cgroup2"):
            return [name for name in each.options if name not in ("rw", "ro")]
    return []


def _set(v2: Path, options: list[str]) -> None:
    try:
        mount.reconfigure(v2, dict.fromkeys(options))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM, errno.EACCES):
            raise
        log.warning("the first exec after a pause will be slower: %s", error)

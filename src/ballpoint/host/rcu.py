"""RCU grace periods that end at once, while something waits for several of them.

To freeze a file system the kernel stops three kinds of writers, and waits for a grace period for each (freeze_super in
fs/super.c, percpu_down_write): 22 ms here, for which the writers wait, too. With /sys/kernel/rcu_expedited at 1
(Documentation/RCU/whatisRCU.rst, synchronize_rcu_expedited) all of it takes less than 2 ms, and interrupts each
processor of the host. So it is at 1 only for these moments, and a host that has it at 1 by its own choice keeps it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ballpoint.host import held

log = logging.getLogger(__name__)

DIRECTORY = "rcu"  # below the run root
EXPEDITED = Path("/sys/kernel/rcu_expedited")

_lock = threading.Lock()
_users = 0
_changed = False
_refused = False


def hold(node_id: str, root: Path) -> None:
    """Remember what the host has, for a process that dies while it is changed; what one has left is put back."""
    held.hold(root / DIRECTORY, node_id, setting, lambda: None)
    put_back(held.before(root / DIRECTORY))


def drop(node_id: str, root: Path) -> bool:
    """End what `hold` began; the last node puts back what was found. Returns False where `node_id` held nothing."""
    return held.drop(root / DIRECTORY, node_id, put_back)


@contextmanager
def expedited() -> Iterator[None]:
    """Within, in any thread, grace periods end at once. Where the kernel refuses that, they take what they take."""
    global _users, _changed
    with _lock:
        if not _users and setting() == "0":
            _changed = _write("1")
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users and _changed:
                _write("0")
                _changed = False


def setting() -> str | None:
    """What the host has now; None where it has no such knob."""
    try:
        return EXPEDITED.read_text().strip()
    except OSError:
        return None


def put_back(found: str | None) -> None:
    """Set what `setting` gave, after a process died that may have been within `expedited`."""
    if found is not None and found != setting():
        _write(found)


def _write(value: str) -> bool:
    global _refused
    try:
        EXPEDITED.write_text(value)
    except OSError as error:
        if not _refused:
            log.warning("freezing a disk takes longer than it could: %s", error)
        _refused = True
        return False
    return True

"""The commands an agent plays through before it exists leave nothing but what they are for."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own, as the zygote is one: what it imports and forks must be seen from the start.
_PROGRAM = """
import os, sys
from ballpoint.agent.warm import warm_up

def descriptors():
    return sorted((name, os.readlink(f"/proc/self/fd/{name}")) for name in os.listdir("/proc/self/fd") if name != "3")

before = descriptors()
warm_up()
assert descriptors() == before, (before, descriptors())
assert len(os.listdir("/proc/self/task")) == 1
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    pass
else:
    raise AssertionError("a child is left")
sys.meta_path.clear()
known = set(sys.modules)
warm_up()
assert set(sys.modules) == known, set(sys.modules) - known
"""


def test_playing_through_commands_leaves_no_descriptor_no_child_no_thread_and_nothing_to_import() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr

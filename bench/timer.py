"""Times commands in a mount namespace of its own; a program, spoken to in lines of JSON.

In: `[[argv...], ...]`, started one right after the other. Out: `{"seconds": [...], "failed": null | text}`, each time
counted from the moment before the first start.

Some container programs refuse a host whose unified cgroup hierarchy stands beside the old ones, so that hierarchy is
unmounted here, where only the yardsticks see it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

HYBRID = Path("/sys/fs/cgroup/unified")


def run(commands: list[list[str]]) -> dict[str, object]:
    with tempfile.TemporaryFile() as errors, open(os.devnull, "r+b") as null:
        streams = [(os.POSIX_SPAWN_DUP2, null.fileno(), 0), (os.POSIX_SPAWN_DUP2, null.fileno(), 1)]
        streams.append((os.POSIX_SPAWN_DUP2, errors.fileno(), 2))
        started = perf_counter()
        pids = [os.posix_spawnp(argv[0], argv, os.environ, file_actions=streams) for argv in commands]
        ended: dict[int, tuple[float, int]] = {}
        while len(ended) < len(pids):
            pid, status = os.wait()
            if pid in pids:
                ended[pid] = (perf_counter() - started, os.waitstatus_to_exitcode(status))
        codes = [ended[pid][1] for pid in pids]
        failed = None
        if any(codes):
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
            failed = f"{sum(map(bool, codes))} of {len(codes)} failed: {said[-1][:300] if said else codes}"
        return {"seconds": [ended[pid][0] for pid in pids], "failed": failed}


def main() -> None:
    if HYBRID.is_mount():
        subprocess.run(["umount", str(HYBRID)], check=True)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

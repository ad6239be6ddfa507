"""Takes an agent's place: joins its cgroups and all of its namespaces as their root, and runs the attack there.

    python -I place.py PID sights|acts FILTER PROCS... < parameters

PID is the agent's, as the host numbers it; FILTER the file of its seccomp program; PROCS `cgroup.procs` of its groups.
The attack runs as a process that has what the agent has: uid 0 and every capability of its user namespace, its root,
its network, its filter and its limits.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from ballpoint.host import prctl  # noqa: E402
from tests.inside import attack  # noqa: E402 - isolated mode looks nowhere

# sched.h: user, pid, mount, uts, ipc, network and cgroup namespaces
ALL = 0x10000000 | 0x20000000 | 0x20000 | 0x4000000 | 0x8000000 | 0x40000000 | 0x2000000
PR_SET_DUMPABLE = 4
# proc_pid_limits(5)
LIMITS = {
    "Max core file size": resource.RLIMIT_CORE,
    "Max open files": resource.RLIMIT_NOFILE,
    "Max processes": resource.RLIMIT_NPROC,
}


def limit_in(lines: list[str], name: str) -> tuple[int, int]:
    line = next(line for line in lines if line.startswith(name))
    soft, hard = (-1 if word == "unlimited" else int(word) for word in line[26:].split()[:2])
    return soft, hard


def main() -> None:
    pid, what, seccomp, *groups = sys.argv[1:]
    with open(seccomp, "rb") as program:
        code = program.read()
    given = json.loads(sys.stdin.read())
    with open(f"/proc/{pid}/limits") as file:
        lines = file.read().splitlines()
    limits = {kind: limit_in(lines, name) for name, kind in LIMITS.items()}
    with open(f"/proc/{pid}/oom_score_adj") as file:
        score = file.read()
    libc = ctypes.CDLL(None, use_errno=True)
    agent = os.pidfd_open(int(pid))
    for group in groups:
        with open(group, "w") as procs:
            procs.write("0")
    for kind, limit in limits.items():
        resource.setrlimit(kind, limit)
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(score)
    if libc.setns(agent, ALL) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.closerange(3, 1 << 16)
    read, write = os.pipe()
    if os.fork() == 0:  # setns to a pid namespace holds for children only
        os.close(read)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        libc.prctl(PR_SET_DUMPABLE, ctypes.c_ulong(1), 0, 0, 0)
        # A session keyring of its own, as the agent has (KEYCTL_JOIN_SESSION_KEYRING).
        attack.call("keyctl", 1, None, 0, 0, 0)
        prctl.install_seccomp_filter(code)
        os.chdir("/")
        os.setsid()
        with os.fdopen(write, "w") as out:
            json.dump(attack.run(what, given), out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as results:
        sys.stdout.write(results.read())
    os.wait()


main()

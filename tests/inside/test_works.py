"""What works inside a sprite, with the real tools: the table of docs/inside.md, row by row.

A row says "works", or "refused" with the words its user reads. Its test is the case of the same name below; a row
without a case, a case without a row, and a row that says something else than is true, all fail.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sprites.exceptions import NetworkError

from tests.inside.conftest import Make
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually

pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(600)]

DOCUMENT = Path(__file__).parents[2] / "docs" / "inside.md"
INSTALL_SECONDS = 500.0
PACKAGES = (
    "docker.io docker-cli podman uidmap passt netavark aardvark-dns nftables crun catatonit fuse-overlayfs fuse3 "
    "bubblewrap gdb strace tcpdump postgresql redis-server chromium gcc libc6-dev"
)
# An image of nothing but bash and four tools, made here: no registry is asked.
IMAGE = """
mkdir -p /tmp/image/bin && cd /tmp/image
for each in bash cat id ls stat; do
    cp -L /bin/$each bin/
    for lib in $(ldd /bin/$each | grep -o '/[^ ]*'); do mkdir -p .$(dirname $lib); cp -L $lib .$lib; done
done
ln -sf bash bin/sh && tar -cf /tmp/image.tar .
"""
# Docker's own script wants to raise limits that only some hosts let a node raise (docs/inside.md).
DOCKER = """
if [ $(ulimit -Hn) -ge 1048576 ]; then service docker start; else setsid dockerd >/tmp/dockerd.log 2>&1 </dev/null & fi
for _ in $(seq 300); do docker info >/dev/null 2>&1 && break; sleep 0.1; done
docker import /tmp/image.tar tiny >/dev/null
"""


@dataclass(frozen=True)
class Case:
    """Commands that prove a row.

    Attributes:
        script: of bash, run by `user`.
        expect: pattern (re.search, multi-line) in its output, where the row says "works".
    """

    script: str
    expect: str = ""
    user: str = "root"


CASES = {
    # ---- containers ----
    "`docker run`": Case("docker run --rm tiny bash -c 'echo in a container; id -u'", r"^in a container\n0$"),
    "`docker run` on Docker's bridge, with a published port": Case(
        "docker run -d --name web -p 8081:80 tiny bash -c 'while :; do read -t 60 < <(:); done' >/dev/null; "
        "docker port web; docker exec web cat /sys/class/net/eth0/operstate; docker rm -f web",
        r"^80/tcp -> 0\.0\.0\.0:8081$(.|\n)*^up$",
    ),
    "`docker build`": Case(
        "mkdir -p /tmp/build; printf 'FROM tiny\\nRUN echo built > /f\\n' > /tmp/build/Dockerfile; "
        "DOCKER_BUILDKIT=0 docker build -q -t built /tmp/build >/dev/null && docker run --rm built cat /f",
        r"^built$",
    ),
    "Docker's storage driver overlay2": Case("docker info --format '{{.Driver}}'", r"^overlay2$"),
    "`docker run --privileged`": Case("docker run --rm --privileged tiny id"),
    "`podman run`, rootless": Case(
        "podman import -q /tmp/image.tar tiny >/dev/null; podman run --rm tiny bash -c 'echo in a container; id -u'",
        r"^in a container\n0$",
        user="sprite",
    ),
    "`podman run`, rootless, a file of user 65534": Case(
        "rm -rf build; mkdir build; cp /tmp/image.tar build/; "
        "podman import -q /tmp/image.tar tiny >/dev/null; "
        "podman unshare sh -c 'touch nobodys; chown 65534:65534 nobodys; stat -c %u nobodys; rm nobodys'",
        r"^65534$",
        user="sprite",
    ),
    "`podman build`, rootless": Case(
        "mkdir -p b; printf 'FROM localhost/tiny\\nRUN echo built > /f\\n' > b/Dockerfile; "
        "podman import -q /tmp/image.tar tiny >/dev/null; "
        "podman build -q -t built b >/dev/null && podman run --rm built cat /f",
        r"^built$",
        user="sprite",
    ),
    "`podman run` as root": Case(
        "podman import -q /tmp/image.tar tiny >/dev/null; podman run --rm tiny bash -c 'echo in a container; id -u'",
        r"^in a container\n0$",
    ),
    "`bwrap`": Case(
        "bwrap --ro-bind / / --dev /dev --proc /proc --unshare-all bash -c 'echo $$; ls -d /proc/[0-9]* | wc -l'",
        r"^\d\n\d$",
        user="sprite",
    ),
    "`unshare` (user, mount, pid, network namespaces)": Case(
        "unshare -Urmnpf --mount-proc bash -c 'echo $$; id -u; ls /sys/class/net'", r"^1\n0\n", user="sprite"
    ),
    "Chromium with its sandbox": Case(
        "chromium --headless --disable-gpu --dump-dom 'data:text/html,<p id=x>hello</p>' 2>/dev/null",
        r'<p id="x">hello</p>',
        user="sprite",
    ),
    # ---- debuggers, network, devices ----
    "`gdb` and `strace` on running processes": Case(
        "sleep 1000 & pid=$!; gdb -p $pid -batch -ex 'info registers rip' 2>/dev/null; "
        "strace -o /tmp/trace -p $pid 2>/dev/null & "
        "until grep -q 'TracerPid:.[1-9]' /proc/$pid/status; do sleep 0.1; done; kill $pid; wait; cat /tmp/trace",
        r"^rip +0x[0-9a-f]+(.|\n)*killed by SIGTERM",
        user="sprite",
    ),
    "`tcpdump`": Case(
        "tcpdump -i lo -c 1 -n icmp 2>/tmp/tcpdump >/tmp/packets & "
        "until grep -q listening /tmp/tcpdump; do sleep 0.1; done; ping -c 2 127.0.0.1 >/dev/null; wait; "
        "cat /tmp/packets",
        r"127\.0\.0\.1 > 127\.0\.0\.1: ICMP echo request",
    ),
    "`iptables` and `nft`": Case(
        "r1='INPUT -p tcp --dport 9 -j REJECT' r2='OUTPUT -p tcp --dport 99 -j REDIRECT --to 98'; "
        "iptables -A $r1; iptables -t nat -A $r2; iptables -S INPUT; iptables -t nat -S OUTPUT; "
        "nft add table inet mine && nft list tables; nft delete table inet mine; "
        "iptables -D $r1; iptables -t nat -D $r2",
        r"--dport 9 -j REJECT(.|\n)*-j REDIRECT(.|\n)*^table inet mine$",
    ),
    "TUN devices": Case(
        "ip tuntap add dev tun7 mode tun && ip addr add 192.0.2.1/24 dev tun7 && ip link set tun7 up && "
        "ip -br addr show tun7; ip link del tun7",
        r"^tun7 .*192\.0\.2\.1/24",
    ),
    "FUSE": Case(
        "mkdir -p l u w m; echo of the lower > l/f; fuse-overlayfs -o lowerdir=l,upperdir=u,workdir=w m; "
        "cat m/f; stat -f -c %T m; fusermount3 -u m",
        r"^of the lower\nfuseblk$|^of the lower\nUNKNOWN|^of the lower\nfuse",
        user="sprite",
    ),
    "`mount` of tmpfs, bind, overlay on `/var/lib/docker`": Case(
        "d=/var/lib/docker/t; mkdir -p /mnt/a $d/{l,u,w}; mount -t tmpfs none /mnt/a && mount --bind /etc /mnt/a && "
        "mount -t overlay -o lowerdir=$d/l,upperdir=$d/u,workdir=$d/w none /mnt/a && "
        "stat -f -c %T /mnt/a; umount /mnt/a /mnt/a /mnt/a; rm -r $d",
        r"^overlayfs$",
    ),
    "`mount` of overlay anywhere else": Case(
        "cd /tmp; mkdir -p l u w m; mount -t overlay -o lowerdir=l,upperdir=u,workdir=w none m"
    ),
    "loop devices (`losetup`, `mount -o loop`)": Case("truncate -s 1M /tmp/disk; losetup -f --show /tmp/disk"),
    "`mknod` of a device": Case("mknod /tmp/device b 7 0"),
    "`sysctl` of the network": Case("sysctl -w net.ipv4.ip_forward=1", r"^net\.ipv4\.ip_forward = 1$"),
    "`sysctl` of the kernel": Case("sysctl -w vm.swappiness=10"),
    "`dmesg`": Case("dmesg"),
    "`date -s`": Case("date -s 2020-01-01"),
    # ---- services ----
    "PostgreSQL by `service`": Case(
        "service postgresql start && sudo -u postgres psql -Atc 'select 6 * 7'; service postgresql status; "
        "service postgresql stop",
        r"^42$(.|\n)*online",
    ),
    "Redis by `service`": Case(
        "service redis-server start; for _ in $(seq 100); do redis-cli ping 2>/dev/null && break; sleep 0.1; done; "
        "service redis-server stop",
        r"^PONG$",
    ),
    "`systemctl start` of what has an init script": Case(
        "systemctl start redis-server; for _ in $(seq 100); do redis-cli ping 2>/dev/null && break; sleep 0.1; done; "
        "systemctl stop redis-server",
        r"^PONG$",
    ),
    "`systemctl start` of anything else": Case("systemctl start nonesuch"),
    "writing to `/dev/console`": Case("echo hello | tee /dev/console", r"^hello$", user="sprite"),
    # ---- the sprite's own limits ----
    "`free`": Case("free -m; sudo -u sprite free -b", r"^Mem: +1024 (.|\n)*^Mem: +1073741824 "),
    "`nproc`": Case("nproc; sudo -u sprite nproc", r"^1\n1$"),
    "`df`": Case("df --output=source,size -BG / | tail -1", r"^sprite +9\dG$|^sprite +100G$"),
}
# What needs a sprite of its own, and what is no script.
ALONE = ("`free`", "`nproc`")
OTHER = ("`sudo reboot`",)


def rows() -> dict[str, tuple[str, str]]:
    """The table of the document: what -> (works or refused, the words)."""
    found = {}
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if len(cells) >= 2 and (verdict := re.match(r"(works|refused)(?:: `(.*)`)?$", cells[1])):
            assert cells[0] not in found
            found[cells[0]] = (verdict[1], verdict[2] or "")
    return found


def unbound() -> list[str]:
    """What is wrong between the table and the cases: rows without one, cases without a row, refusals without words."""
    table, proved = rows(), {*CASES, *OTHER}
    return [
        *(f"the row {what} (docs/inside.md)" for what in table if what not in proved),
        *(f"a row for the case {what} (docs/inside.md)" for what in sorted(proved - table.keys())),
        *(f"the refusal of {what}" for what, (verdict, words) in table.items() if verdict == "refused" and not words),
    ]


def test_the_table_has_a_test_for_every_row() -> None:
    assert rows()
    assert unbound() == []


@pytest.fixture(scope="module")
def equipped(make_sprite: Make) -> Any:
    """A sprite with all the tools installed by apt, and an image for its containers."""
    sprite = make_sprite()
    install = f"apt-get update -q && apt-get install -q -y --no-install-recommends {PACKAGES}"
    code, said = shell(
        sprite, f"export DEBIAN_FRONTEND=noninteractive; {install}", user="root", timeout=INSTALL_SECONDS
    )
    assert code == 0, said[-4000:]
    code, said = shell(sprite, IMAGE + DOCKER, user="root", timeout=INSTALL_SECONDS)
    assert code == 0, said[-4000:]
    return sprite


@pytest.fixture(scope="module")
def limited(make_sprite: Make) -> Any:
    """A sprite with less than the host has."""
    return make_sprite(ram_mb=1024, cpus=1)


@pytest.mark.parametrize("what", [what for what in CASES if what not in ALONE])
def test_it_is_as_the_table_says(equipped: Any, what: str) -> None:
    prove(equipped, what)


@pytest.mark.parametrize("what", ALONE)
def test_a_sprites_own_limits(limited: Any, what: str) -> None:
    prove(limited, what)


def prove(sprite: Any, what: str) -> None:
    case = CASES[what]
    verdict, words = rows()[what]
    code, said = shell(sprite, case.script, user=case.user, timeout=300)
    if verdict == "works":
        assert case.expect and re.search(case.expect, said, re.MULTILINE), (code, said)
    else:
        assert code != 0, said
        assert words in said


def test_reboot_is_a_restart(node: TestNode, limited: Any) -> None:
    """The disk stays, the processes end, and the sprite runs again."""
    assert rows()["`sudo reboot`"] == ("works", "")
    assert shell(limited, "echo kept > ~/file; sync; sleep 100000 >/dev/null 2>&1 &")[0] == 0
    with suppress(NetworkError):  # the command itself is ended
        shell(limited, "sudo reboot; sleep 60")

    def restarted() -> bool:
        events = node.api("GET", f"/v1/sprites/{limited.name}/events").text.splitlines()
        return any((event := json.loads(line))["kind"] == "restarted" and "inside" in event["cause"] for line in events)

    eventually(restarted)
    assert shell(limited, "cat ~/file; pgrep -c sleep") == (1, "kept\n0\n")
    assert shell(limited, "reboot") == (1, "reboot: must be root (sudo reboot)\n")

"""Files by the API of a real node: what is put in the way inside leads nowhere else, and holds nobody up."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx2
import pytest

from tests.inside.conftest import Make, agent_of, group_of, init_of, instance_of, next_agent
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually

pytestmark = pytest.mark.node

# fuse.h: mounts a file system at argv[1] that answers FUSE_INIT and then nothing, and says so on the console's place.
SILENT_FUSE = r"""
import ctypes, os, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
if libc.mount(b"silent", sys.argv[1].encode(), b"fuse", 6, options.encode()) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
request = os.read(fd, 1 << 20)
unique = struct.unpack_from("<Q", request, 8)[0]
init = struct.pack("<IIIIHHII", 7, 31, 65536, 0, 16, 12, 65536, 1) + bytes(32)
os.write(fd, struct.pack("<IiQ", 16 + len(init), 0, unique) + init)
open(sys.argv[1] + ".ready", "w").close()
while True:
    os.read(fd, 1 << 20)  # a question is taken, and not answered
"""


class Files:
    """The API for the files of one sprite."""

    def __init__(self, node: TestNode, sprite: Any) -> None:
        self.node = node
        self.sprite = sprite

    def ask(self, method: str, verb: str, **arguments: Any) -> httpx2.Response:
        return self.node.api(method, f"/v1/sprites/{self.sprite.name}/fs/{verb}", **arguments)

    def read(self, path: str, **query: Any) -> httpx2.Response:
        return self.ask("GET", "read", params={"path": path, **query})

    def write(self, path: str, content: Any = b"x", **query: Any) -> httpx2.Response:
        return self.ask("PUT", "write", params={"path": path, **query}, content=content)

    def list(self, path: str, **query: Any) -> httpx2.Response:
        return self.ask("GET", "list", params={"path": path, **query})

    def delete(self, path: str, **query: Any) -> httpx2.Response:
        return self.ask("DELETE", "delete", params={"path": path, **query})

    def post(self, verb: str, **content: Any) -> httpx2.Response:
        return self.ask("POST", verb, json=content)

    def inside(self, script: str, user: str = "sprite") -> str:
        code, said = shell(self.sprite, script, user=user)
        assert code == 0, said
        return said


@pytest.fixture(scope="module")
def files(node: TestNode, make_sprite: Make) -> Files:
    return Files(node, make_sprite())


def code_of(answer: httpx2.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/json", answer.text
    assert "code" in answer.json(), answer.text
    return answer.status_code, answer.json()["code"]


def helpers_of(files: Files) -> list[int]:
    """Pids on the host of what is being done to a sprite's files."""
    members = group_of(files.node, instance_of(files.node, files.sprite)).child("inner").child("main").pids()
    found = []
    for pid in members:
        try:
            if Path(f"/proc/{pid}/comm").read_text() == "files\n":
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):  # it ends right now
            pass
    return found


# ---- where paths lead ----


def test_links_and_dots_lead_into_the_sprite(files: Files) -> None:
    files.inside("echo of the sprite >/etc/marker", user="root")
    files.inside("ln -sfn /../../../etc/marker up; ln -sfn / top; echo mine >mine; cd /tmp && ln -sfn ../../../.. dots")
    for path in ("/home/sprite/up", "/../../etc/marker", "top/etc/marker", "/tmp/dots/../etc/marker",
                 "/proc/self/root/etc/marker", "/proc/self/cwd/etc/marker"):  # fmt: skip
        answer = files.read(path)
        assert (answer.status_code, answer.text) == (200, "of the sprite\n"), path
    assert files.read("/proc/1/root/etc/marker", asRoot="true").text == "of the sprite\n"
    assert files.read("mine").text == "mine\n"  # without workingDir: the user's home


def test_what_is_on_the_host_is_not_there(files: Files) -> None:
    host = files.node.data
    assert host.is_dir()
    files.inside(f"ln -sfn {host} host-data; ln -sfn /proc/1/root/../../../..{host} by-proc")
    for path in (str(host), "/home/sprite/host-data", "/home/sprite/by-proc", f"/../../..{host}"):
        for root in ("false", "true"):
            answer = files.list(path, asRoot=root)
            assert code_of(answer) in ((404, "ENOENT"), (403, "EACCES")), path
    assert files.write(f"{host}/new", mkdirParents="true", asRoot="true").status_code == 200
    assert not (host / "new").exists()
    assert files.inside(f"cat {host}/new") == "x"


def test_a_helpers_own_parts_are_of_no_use(files: Files) -> None:
    """By /proc/self a path leads to the process that follows it, whose program is the agent's and cannot be changed."""
    for answer in (
        files.write("/proc/self/exe", b"changed", asRoot="true"),
        files.post("chmod", path="/proc/self/exe", mode="0777", asRoot=True),
        files.post("chown", path="/proc/self/exe", uid=1000, asRoot=True),
        files.delete("/proc/self/exe", asRoot="true"),
        *(files.write(f"/proc/self/fd/{fd}", b"x", asRoot="true") for fd in range(3)),
        *(files.read(f"/proc/self/fd/{fd}", asRoot="true") for fd in range(3)),
        files.post("chmod", path="/proc/self/fd/0", mode="0600", asRoot=True),
    ):
        assert answer.status_code in (400, 403, 404, 409), answer.text
    assert files.write("/tmp/still", b"works").status_code == 200


def test_a_helper_is_an_inner_process_of_its_user_and_no_other(files: Files) -> None:
    """Seen from the host while it waits for the rest of a body, by who it is, and from inside by what root may do."""
    instance = instance_of(files.node, files.sprite)
    init = init_of(files.node, instance)
    shells = [status_of(init)]
    for user, as_root in (("sprite", "false"), ("root", "true")):
        base = int(shells[0]["Uid"].split()[0])
        # So large that the helper has the client's socket.
        with BeginWrite(files, "/home/sprite/held", 2_000_000, asRoot=as_root):
            eventually(lambda: len(helpers_of(files)) == 1)
            [pid] = helpers_of(files)
            status = status_of(pid)
            expected = base + (1000 if user == "sprite" else 0)
            assert status["Uid"].split() == [str(expected)] * 4
            caps = int(status["CapEff"], 16)
            assert (caps == 0) is (user == "sprite")
            assert int(status["CapPrm"], 16) == caps and caps & ~int(status["CapBnd"], 16) == 0
            assert int(status["CapInh"], 16) == 0
            assert status["Seccomp"] == "2"
            for kind in ("user", "mnt", "net", "ipc", "uts", "cgroup", "pid"):
                assert os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/{init}/ns/{kind}"), kind
            held = sorted(int(fd) for fd in os.listdir(f"/proc/{pid}/fd"))
            assert held[:3] == [0, 1, 2] and len(held) <= 7, held
            inner = status["NSpid"].split()[-1]
            for attempt in (f"cat /proc/{inner}/environ", f"ls /proc/{inner}/fd", f"cat /proc/{inner}/maps"):
                code, said = shell(files.sprite, attempt, user="root")
                assert code != 0 and "Permission denied" in said, (attempt, said)
        eventually(lambda: helpers_of(files) == [])
    assert code_of(files.list("/home/sprite/held"))[1] == "ENOENT"


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


class BeginWrite:
    """A write whose body does not come to its end."""

    def __init__(self, files: Files, path: str, size: int = 1000, **query: str) -> None:
        where = urlsplit(files.node.url)
        assert where.hostname and where.port
        self.sock = socket.create_connection((where.hostname, where.port))
        target = f"/v1/sprites/{files.sprite.name}/fs/write?{urlencode({'path': path, **query})}"
        head = f"PUT {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {files.node.token}\r\n"
        self.sock.sendall(f"{head}Content-Length: {size}\r\n\r\nthe beginning".encode())

    def __enter__(self) -> BeginWrite:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


# ---- users ----


def test_each_has_the_rights_of_its_user(files: Files) -> None:
    files.inside(
        "id -u other || useradd other; groupadd -f team; usermod -aG team sprite; mkdir -p /srv/other /srv/team; "
        "echo secret >/srv/other/file; chown -R other:other /srv/other; chmod 700 /srv/other; "
        "echo shared >/srv/team/file; chown -R other:team /srv/team; chmod 750 /srv/team; chmod 640 /srv/team/file",
        user="root",
    )
    for answer in (
        files.read("/srv/other/file"),
        files.list("/srv/other"),
        files.write("/srv/other/file"),
        files.write("/srv/team/file"),
        files.delete("/srv/team/file"),
        files.post("rename", source="/srv/other/file", dest="/tmp/x"),
        files.post("copy", source="/srv/other/file", dest="/tmp/x"),
        files.read("/etc/shadow"),
    ):
        assert code_of(answer) == (403, "EACCES")
    assert code_of(files.post("chmod", path="/srv/team/file", mode="0666")) == (403, "EPERM")
    assert code_of(files.post("chown", path="/home/sprite/mine", uid="root")) == (403, "EPERM")
    assert files.read("/srv/team/file").text == "shared\n"  # by a group of the sprite's own /etc/group
    assert files.read("/srv/other/file", asRoot="true").text == "secret\n"
    assert files.write("/srv/other/file", b"written", asRoot="true").status_code == 200
    assert files.inside("stat -c '%U %G' /srv/other/file; cat /srv/other/file", user="root") == "other other\nwritten"
    assert files.post("chown", path="/home/sprite/mine", uid="other", gid="team", asRoot=True).status_code == 200
    assert files.inside("stat -c '%U %G' mine") == "other team\n"


def test_a_file_in_a_directory_of_another_is_written_in_place(files: Files) -> None:
    files.inside(
        "mkdir -p /srv/theirs; echo before, and longer >/srv/theirs/file; chown sprite /srv/theirs/file", user="root"
    )
    inode = files.inside("stat -c %i /srv/theirs/file")
    assert files.write("/srv/theirs/file", b"after").status_code == 200
    assert files.inside("cat /srv/theirs/file; stat -c ' %i' /srv/theirs/file") == f"after {inode}"
    assert code_of(files.write("/srv/theirs/new", b"x")) == (403, "EACCES")


def test_a_mounted_file_stays_mounted(files: Files) -> None:
    files.inside("cd /srv; echo a >a; echo b >b; mount --bind a b", user="root")
    try:
        assert files.write("/srv/b", b"both", asRoot="true").status_code == 200
        assert files.inside("cat /srv/a /srv/b") == "bothboth"
        answer = files.delete("/srv/b", asRoot="true")
        assert code_of(answer) == (409, "EBUSY")
    finally:
        files.inside("umount /srv/b", user="root")


def test_a_mount_in_a_tree_is_not_entered(files: Files) -> None:
    files.inside("mkdir -p /srv/tree/m; mount -t tmpfs none /srv/tree/m; echo x >/srv/tree/m/precious", user="root")
    try:
        listing = files.list("/srv/tree", recursive="true", asRoot="true").json()
        assert [entry["name"] for entry in listing["entries"]] == ["m"]
        assert code_of(files.delete("/srv/tree", recursive="true", asRoot="true")) == (409, "EBUSY")
        assert files.post("chmod", path="/srv/tree", mode="0777", recursive=True, asRoot=True).status_code == 200
        assert (
            files.post("copy", source="/srv/tree", dest="/srv/copied", recursive=True, asRoot=True).status_code == 200
        )
        assert files.inside("ls /srv/tree/m /srv/copied/m; stat -c %a /srv/tree/m/precious") == (
            "/srv/copied/m:\n\n/srv/tree/m:\nprecious\n644\n"
        )
    finally:
        files.inside("umount /srv/tree/m", user="root")


# ---- what is no file, and what does not answer ----


def test_devices_fifos_and_sockets(files: Files) -> None:
    files.inside(
        "cd /tmp; rm -f fifo sock; mkfifo fifo; "
        "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")'"
    )
    for path in (
        "/dev/zero",
        "/dev/null",
        "/dev/tty",
        "/dev/ptmx",
        "/dev/fuse",
        "/dev/console",
        "/tmp/fifo",
        "/tmp/sock",
    ):
        for answer in (files.read(path, asRoot="true"), files.write(path, asRoot="true")):
            assert code_of(answer) == (400, "EINVAL"), path
    assert {entry["type"] for entry in files.list("/tmp").json()["entries"]} >= {"fifo", "socket"}


def test_a_file_that_is_leased_is_busy(files: Files) -> None:
    """fcntl(2): who opens it waits until its holder lets go, up to 45 s."""
    script = (
        "import fcntl, os, time; f = os.open('leased', os.O_CREAT | os.O_RDONLY); fcntl.fcntl(f, fcntl.F_SETLEASE, "
        "fcntl.F_WRLCK); open('is-leased', 'w').close(); import signal; signal.signal(signal.SIGIO, lambda *_: None)\n"
        "while True: time.sleep(100)"
    )
    files.inside(
        f'rm -f is-leased; (python3 -c "{script}" >/dev/null 2>&1 &); until [ -e is-leased ]; do sleep 0.05; done'
    )
    assert code_of(files.read("leased")) == (409, "EAGAIN")
    files.inside("pkill -f [i]s-leased")


@pytest.mark.slow
def test_a_file_system_that_does_not_answer(files: Files) -> None:
    """FUSE holds a process, killed or not, as long as its daemon has taken a question and not answered it."""
    files.inside("mkdir -p /srv/fuse/dead; echo fine >/srv/fuse/file", user="root")
    assert files.write("/tmp/silent.py", SILENT_FUSE).status_code == 200
    files.inside(
        "(setsid python3 /tmp/silent.py /srv/fuse/dead >/dev/null 2>/tmp/said &); "
        "until [ -e /srv/fuse/dead.ready ]; do sleep 0.05; [ ! -s /tmp/said ] || { cat /tmp/said; exit 1; }; done",
        user="root",
    )
    dead = "/srv/fuse/dead"
    with ThreadPoolExecutor(8) as pool:
        hanging = [
            pool.submit(files.read, f"{dead}/file"),
            pool.submit(files.write, f"{dead}/file", asRoot="true"),
            pool.submit(files.list, dead),
            pool.submit(files.delete, f"{dead}/x", recursive="true", asRoot="true"),
            pool.submit(files.post, "copy", source="/srv/fuse/file", dest=f"{dead}/x", asRoot=True),
        ]
        eventually(lambda: len(helpers_of(files)) >= 5)
        # Meanwhile everything else is answered, what the mount lies in included.
        assert files.read("/srv/fuse/file").text == "fine\n"
        assert [entry["name"] for entry in files.list("/srv/fuse").json()["entries"]] == ["dead", "dead.ready", "file"]
        assert files.list("/srv", recursive="true").status_code == 200
        assert files.inside("echo the agent lives") == "the agent lives\n"
        for each in hanging:
            answer = each.result()
            assert (answer.status_code, answer.json()["error"]) == (503, "unavailable"), answer.text
            assert "does not answer" in answer.json()["hint"]
            assert answer.json()["path"].startswith("/srv/fuse")
    assert files.read("/srv/fuse/file").text == "fine\n"
    files.inside("pkill -9 -f [s]ilent.py", user="root")
    eventually(lambda: helpers_of(files) == [])
    # A daemon that has gone: the kernel says so at once.
    assert code_of(files.read(f"{dead}/file")) == (503, "ENOTCONN")
    assert len(files.list("/srv/fuse").json()["entries"]) == 3
    files.inside(f"umount {dead}", user="root")


# ---- bodies through the edge ----


def test_chunked_bodies_ranges_and_large_listings(files: Files) -> None:
    data = os.urandom(5 << 20)
    pieces = (data[at : at + 70_000] for at in range(0, len(data), 70_000))
    assert files.write("/tmp/big", pieces).json()["size"] == len(data)
    assert files.read("/tmp/big").content == data
    answer = files.ask("GET", "read", params={"path": "/tmp/big"}, headers={"Range": "bytes=1000-1999"})
    assert (answer.status_code, answer.content) == (206, data[1000:2000])
    assert answer.headers["content-range"] == f"bytes 1000-1999/{len(data)}"
    files.inside("mkdir -p many; cd many; seq 20000 | xargs touch")
    assert files.list("many").json()["count"] == 20_000
    assert files.delete("many", recursive="true").json()["count"] == 20_001


def test_a_refused_body_is_answered(files: Files) -> None:
    """Although most of it has not been read."""
    assert code_of(files.write("/etc/new", os.urandom(20 << 20))) == (403, "EACCES")


# ---- ends ----


def test_an_agent_that_dies_in_the_middle_leaves_the_former_file(node: TestNode, files: Files) -> None:
    files.write("/home/sprite/kept", b"the former")
    instance = instance_of(node, files.sprite)
    agent = agent_of(node, instance)
    with BeginWrite(files, "/home/sprite/kept") as writing, BeginWrite(files, "/home/sprite/kept", 2_000_000):
        eventually(lambda: len(helpers_of(files)) == 2)
        os.kill(agent, signal.SIGKILL)
        writing.sock.settimeout(60)
        assert b" 200 " not in writing.sock.recv(1000)
    eventually(lambda: helpers_of(files) == [])
    next_agent(node, instance, agent)
    assert files.read("/home/sprite/kept").text == "the former"
    assert files.write("/home/sprite/kept", b"the next").status_code == 200
    assert files.inside("cat kept; ls -A ~ | grep -c written || true") == "the next0\n"


def test_a_full_disk(files: Files) -> None:
    files.inside("mkdir -p /srv/full; mount -t tmpfs -o size=32m,uid=1000 none /srv/full", user="root")
    try:
        assert files.write("/srv/full/kept", b"the former").status_code == 200
        for path in ("/srv/full/new", "/srv/full/kept"):
            answer = files.write(path, (bytes(1 << 20) for _ in range(100)))
            assert code_of(answer) == (507, "ENOSPC")
            assert answer.json()["path"] == path
        assert code_of(files.post("copy", source="/tmp/full", dest="/srv/full/copy")) == (404, "ENOENT")
        files.inside("head -c 64M /dev/zero >/tmp/full")
        assert code_of(files.post("copy", source="/tmp/full", dest="/srv/full/copy")) == (507, "ENOSPC")
        assert files.read("/srv/full/kept").text == "the former"
        assert [entry["name"] for entry in files.list("/srv/full").json()["entries"]] == ["kept"]
        assert files.write("/srv/full/fits", bytes(20 << 20)).status_code == 200  # what was not kept takes no room
    finally:
        files.inside("umount /srv/full", user="root")


def test_a_client_that_leaves_ends_its_helper(files: Files) -> None:
    files.inside("head -c 300M /dev/zero >/tmp/zeros")
    url = f"{files.node.url}/v1/sprites/{files.sprite.name}/fs/read?path=/tmp/zeros"
    client = subprocess.Popen(
        ["curl", "-s", "--limit-rate", "1000", "-H", f"Authorization: Bearer {files.node.token}", url],
        stdout=subprocess.DEVNULL,
    )
    eventually(lambda: len(helpers_of(files)) == 1)
    client.kill()
    client.wait()
    eventually(lambda: helpers_of(files) == [])

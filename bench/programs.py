"""What is run inside sprites: programs for their Python, as texts."""

from __future__ import annotations

# argv: path, bytes. Blocks of 64 KiB that differ from each other and compress well; durable at the end.
FILL = """
import os, sys
path, size = sys.argv[1], int(sys.argv[2])
block = bytearray(os.urandom(4096) * 16)
with open(path, "wb", buffering=0) as file:
    for number in range(-(-size // len(block))):
        block[:8] = number.to_bytes(8, "little")
        file.write(block)
    os.fsync(file.fileno())
"""

# argv: path, bytes. As the files of a root file system, in their order; repeated with another number in each block of
# 64 KiB, and the same wherever the image is the same. Durable at the end.
ROOTFS_LIKE = """
import os, sys
path, size = sys.argv[1], int(sys.argv[2])
data = bytearray()
for top, directories, files in os.walk("/usr"):
    directories.sort()
    for name in sorted(files):
        file = os.path.join(top, name)
        if top.startswith("/usr/lib") and not os.path.islink(file):
            with open(file, "rb") as source:
                data += source.read()
    if len(data) > 300_000_000:
        break
with open(path, "wb", buffering=0) as file:
    written = 0
    while written < size:
        start = written % (len(data) - 65536)
        file.write(written.to_bytes(8, "little") + data[start:start + 65528])
        written += 65536
    os.fsync(file.fileno())
"""

# argv: seconds, path of the answer. How many rounds of computing it comes to.
COMPUTE = """
import os, sys, time
end, rounds = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < end:
    sum(range(20000))
    rounds += 1
with open(sys.argv[2] + ".new", "w") as answer:
    answer.write(str(rounds))
os.rename(sys.argv[2] + ".new", sys.argv[2])
"""

# argv: seconds. Writes 4 KiB every second, at the same place.
TRICKLE = """
import os, sys, time
with open("trickle", "wb", buffering=0) as file:
    for number in range(int(sys.argv[1])):
        os.pwrite(file.fileno(), os.urandom(4096), 0)
        time.sleep(1)
"""

# argv: path, bytes. A SQLite database of about so many.
DATABASE = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("pragma journal_mode=wal")
database.execute("create table t (id integer primary key, text text)")
rows = int(sys.argv[2]) // 520
database.executemany("insert into t values (?, ?)", ((number, os.urandom(250).hex()) for number in range(rows)))
database.commit()
database.close()
"""

# argv: path, "insert" or "update", how many. So many transactions of one row; updates are of rows all over the table.
TRANSACTIONS = """
import os, random, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
(rows,) = database.execute("select count(*) from t").fetchone()
for number in range(int(sys.argv[3])):
    text = os.urandom(250).hex()
    if sys.argv[2] == "insert":
        database.execute("insert into t values (?, ?)", (rows + number, text))
    else:
        database.execute("update t set text = ? where id = ?", (text, random.randrange(rows)))
database.close()
"""

# argv: JSON. Threads write 4 KiB at random places of a file, past its file system's memory (O_DIRECT), and one makes
# all of it durable every second, until the time is over, so many are written, or the file `stop` is there. The answer:
# writes in each second, seconds of each fsync, and of each write over 10 ms when it began and how long it took.
WRITE = """
import json, mmap, os, random, sys, threading, time
given = json.loads(sys.argv[1])
seconds, count, pause = given.get("seconds", 1e9), given.get("count", 1 << 60), given.get("pause", 0)
fd = os.open(given["path"], os.O_WRONLY | os.O_DIRECT)
blocks, began = os.fstat(fd).st_size // 4096, time.monotonic()
per_second, stalls, syncs, over = {}, [], [], threading.Event()

def write(seed):
    choose, buffer = random.Random(seed), mmap.mmap(-1, 4096)
    buffer[:2048] = os.urandom(2048)
    for _ in range(count // given["threads"]):
        if over.is_set():
            break
        buffer[:8] = choose.getrandbits(64).to_bytes(8, "little")
        wall, before = time.time(), time.monotonic()
        os.pwrite(fd, buffer, choose.randrange(blocks) * 4096)
        after = time.monotonic()
        counts = per_second.setdefault(seed, {})
        counts[int(after - began)] = counts.get(int(after - began), 0) + 1
        if after - before > 0.01:
            stalls.append((wall, after - before))
        if pause:
            time.sleep(pause)

threads = [threading.Thread(target=write, args=(seed,)) for seed in range(given["threads"])]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    if time.monotonic() - began > seconds or os.path.exists("stop"):
        over.set()
    before = time.monotonic()
    os.fsync(fd)
    syncs.append(time.monotonic() - before)
    over.wait(1)
    if over.is_set():
        break
for thread in threads:
    thread.join()
total = [0] * (1 + max(max(counts) for counts in per_second.values()))
for counts in per_second.values():
    for second, number in counts.items():
        total[second] += number
with open(given["answer"] + ".new", "w") as answer:
    json.dump({"writes": total, "fsyncs": syncs, "stalls": stalls}, answer)
os.rename(given["answer"] + ".new", given["answer"])
"""


def python(program: str, *arguments: object) -> tuple[str, ...]:
    """The command that runs a program."""
    return ("python3", "-c", program, *map(str, arguments))


def background(*command: str) -> tuple[str, ...]:
    """The command that starts another and leaves it running."""
    return ("bash", "-c", 'setsid "$@" </dev/null >/dev/null 2>&1 &', "background", *command)


# argv: bytes, and two ports of localhost. Of each connection to the first it reads so many bytes, then sends `k`; to
# each on the second it sends so many.
ENDS = """
import socket, sys, threading
total, sink, source = map(int, sys.argv[1:])
def take(connection):
    buffer, left = bytearray(1 << 20), total
    with connection:
        while left > 0 and (count := connection.recv_into(buffer)):
            left -= count
        if left <= 0:
            connection.sendall(b"k")
            connection.recv(1)
def give(connection):
    block = bytes(1 << 20)
    with connection:
        for _ in range(total >> 20):
            connection.sendall(block)
def serve(listener, work):
    while True:
        threading.Thread(target=work, args=(listener.accept()[0],), daemon=True).start()
listeners = [socket.create_server(("127.0.0.1", port)) for port in (sink, source)]
print("ready", flush=True)
threading.Thread(target=serve, args=(listeners[0], take), daemon=True).start()
serve(listeners[1], give)
"""

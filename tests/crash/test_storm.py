"""A storm of small writes with fsyncs, as a database makes, on a disk that is saved: nothing dies, all is saved."""

from __future__ import annotations

import pytest

from tests.node.test_lost import directory
from tests.support.checkpoints import disk, kinds, new_sprite, post
from tests.support.nodes import TestNode, shell

pytestmark = [pytest.mark.node, pytest.mark.slow]

_MIB, _SOAK_MIB = 96, 4096
_SOAK_SECONDS = 3600.0

# Pages of 8 KiB at random, an fsync after each 32; every page says which it is and how often it was written.
_STORM = """
import hashlib, os, random, sys
total, pages = int(sys.argv[1]) * 128, int(sys.argv[1]) * 32
def page(number, version):
    head = b"%012d %012d " % (number, version)
    return head + hashlib.shake_128(head).digest(8192 - len(head))
versions, chance = {}, random.Random(7)
with open("database", "w+b", buffering=0) as file:
    for n in range(total):
        number = chance.randrange(pages)
        versions[number] = versions.get(number, 0) + 1
        os.pwrite(file.fileno(), page(number, versions[number]), number * 8192)
        if n % 32 == 0:
            os.fsync(file.fileno())
    os.fsync(file.fileno())
with open("database", "rb", buffering=0) as file:
    bad = [n for n, version in versions.items() if os.pread(file.fileno(), 8192, n * 8192) != page(n, version)]
print("bad:", bad)
"""


@pytest.mark.timeout(900)
def test_a_storm_kills_nothing_and_is_saved(own_node: TestNode, soak: bool) -> None:
    node = own_node.start()
    sprite = new_sprite(node)
    assert shell(sprite, f"cat > storm.py <<'END'\n{_STORM}\nEND")[0] == 0
    before = post(node, sprite, "sync")
    assert before.is_success, before.text
    stored = disk(node, sprite)["bytes_stored"]
    script = f"python3 storm.py {_SOAK_MIB if soak else _MIB} && sha256sum database"
    code, said = shell(sprite, script, timeout=_SOAK_SECONDS)
    assert code == 0 and said.startswith("bad: []\n"), said
    assert not {"stopped", "degraded", "not_saved"} & set(kinds(node, sprite))
    after = post(node, sprite, "sync")
    assert after.is_success, after.text
    assert disk(node, sprite)["bytes_stored"] > stored
    # What the store has is the whole of it.
    assert post(node, sprite, "sleep").is_success
    assert post(node, sprite, "sync").is_success
    (directory(node, sprite) / "disk.img").unlink()
    code, again = shell(node.client().sprite(sprite.name), "sha256sum database")
    assert code == 0 and said.endswith(again)

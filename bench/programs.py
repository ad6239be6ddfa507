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


def python(program: str, *arguments: object) -> tuple[str, ...]:
    """The command that runs a program."""
    return ("python3", "-c", program, *map(str, arguments))

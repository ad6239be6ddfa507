"""The static helper programs: compiled once per source text, shared by all nodes of a host."""

from __future__ import annotations

from hashlib import sha256
from importlib import resources
from pathlib import Path

from ballpoint.core.errors import UnavailableError
from ballpoint.host import process
from ballpoint.host.files import flocked, remove_tree

PROGRAMS = ("anchor", "files", "inner", "locker", "nsexec", "reveal", "svclog")
# Those that are in the root of every agent.
OF_INSTANCES = ("anchor", "files", "inner", "nsexec", "reveal", "svclog")
# The seccomp program of all instances, as the kernel takes it.
FILTER = "filter"
_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s")
_COMPILE_SECONDS = 120


def ensure_programs(cache: Path) -> Path:
    """Directory holding the compiled helpers, made if missing. Idempotent; concurrent callers wait for one another.

    The directory appears whole, by a rename, so a crash leaves none or a complete one.

    Raises:
        UnavailableError: there is no compiler.
    """
    sources = resources.files(__package__) / "helpers"
    texts = {item.name: item.read_bytes() for item in sources.iterdir() if item.name.endswith((".c", ".h"))}
    digest = sha256(b"".join(name.encode() + text for name, text in sorted(texts.items()))).hexdigest()[:16]
    target = cache / "helpers" / digest
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with flocked(target.parent / ".lock"):
        if target.is_dir():
            return target
        partial = target.with_name(f".{digest}.new")
        remove_tree(partial)
        partial.mkdir()
        for name, text in texts.items():
            (partial / name).write_bytes(text)
        for program in PROGRAMS:
            _compile(partial, program)
        process.run([str(partial / "inner"), "filter", str(partial / FILTER)], timeout=_COMPILE_SECONDS)
        partial.rename(target)
    return target


def zygote_command(python: str, socket_fd: int, programs: Path) -> list[str]:
    """The argv that starts a zygote; give it an empty environment."""
    return [
        python,
        "-I",
        "-m",
        "ballpoint.runtime.container.zygote",
        f"--socket-fd={socket_fd}",
        f"--programs={programs}",
    ]


def _compile(directory: Path, program: str) -> None:
    if process.which("gcc") is None:
        raise UnavailableError("there is no C compiler to build the helpers", hint="apt-get install gcc libc6-dev")
    process.run(
        ["gcc", *_FLAGS, "-o", str(directory / program), str(directory / f"{program}.c")], timeout=_COMPILE_SECONDS
    )
    (directory / program).chmod(0o755)

"""Real work in a sprite, by the official Python SDK: packages from apt, pip and npm, a clone, a build, a run.

python examples/real_work.py URL TOKEN GIT_URL
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from sprites import SpritesClient

NAME = "real-work"
APT = """
sudo apt-get update -q >/dev/null
sudo apt-get install -y -q make cowsay >/dev/null
/usr/games/cowsay apt works
"""
PIP = """
python3 -m venv env
env/bin/pip install -q humanize
env/bin/python -c 'import humanize; print("pip:", humanize.intword(10**9))'
"""
NPM = """
npm install --silent left-pad >/dev/null
node -e 'console.log("npm:", require("left-pad")(7, 3, "0"))'
"""


def run(sprite: Any, script: str) -> str:
    """Run a bash script in the sprite and return what it printed; a failure is an error with its output."""
    done = sprite.run("bash", "-ec", script, capture_output=True, timeout=600)
    output: str = done.stdout.decode()
    if done.returncode != 0:
        raise RuntimeError(f"{script!r} ended with {done.returncode}: {output}{done.stderr.decode()}")
    return output


def work(client: Any, git_url: str, pause: Callable[[], None], say: Callable[[str], None]) -> None:
    """Do it all in a new sprite, and destroy it.

    Args:
        git_url: a repository with a Makefile whose target `run` prints a line.
        pause: called in the middle; the node may be restarted there.
    """
    sprite = client.create_sprite(NAME)
    try:
        say(run(sprite, APT))
        say(run(sprite, PIP))
        say(run(sprite, NPM))
        pause()
        say(run(sprite, f"git clone -q {git_url} project; make -C project -s run"))
    finally:
        client.delete_sprite(NAME)


if __name__ == "__main__":
    url, token, repository = sys.argv[1:]
    with SpritesClient(token=token, base_url=url) as sprites:
        work(sprites, repository, pause=lambda: None, say=print)
